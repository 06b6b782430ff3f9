"""Locust's own page and options beside ours: what it shows, where it listens, and how many users it takes."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import pytest
from misbehaving_server import MisbehavingServer
from refused_ports import refused_address
from test_loadtest_generator import RATE, locust

from loadtests.processes import child_environment, free_port
from loadtests.results import read_run

pytestmark = pytest.mark.slow


def test_the_web_page_shows_the_load(small_workload: Path, tmp_path: Path) -> None:
    server, port = MisbehavingServer(), free_port()
    command = [*locust(small_workload, server.urls["grpc"]), "--seconds", "2", "--autostart", "--autoquit", "1"]
    command += ["--deadline-ms", "10000"]  # whether they are quick is not asked here
    command += ["--web-host", "127.0.0.1", "--web-port", str(port), "--run-file", str(tmp_path / "run.json")]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page, names = "", set()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and "rank" not in names and process.poll() is None:
            try:
                names = {row["name"] for row in json.loads(fetch(port, "/stats/requests"))["stats"]}
                page = fetch(port, "/")
            except OSError:
                pass
            time.sleep(0.2)
        assert "rank" in names
        assert re.search(r"deadline.ms", page), "our options are in its form"
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        server.close()
    assert read_run(tmp_path / "run.json").totals.good == pytest.approx(RATE * 2, abs=1)


def fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "127.0.0.1:8001"], "expected a URL such as grpc://127.0.0.1:8001"),
        (["--workload", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory. Write one"),
    ],
)
def test_what_cannot_be_sent_is_told_before_anything_is(arguments: list[str], said: str, small_workload: Path) -> None:
    command = [*locust(small_workload, "grpc://127.0.0.1:1"), "--headless", "--seconds", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=child_environment(), check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def listening_addresses(process: subprocess.Popen[bytes], ports: set[int]) -> set[tuple[str, int]]:
    """Where a program and its children listen, once all ``ports`` are among them."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        found = [one for member in family for one in member.net_connections("inet") if one.status == "LISTEN"]
        if ports <= {one.laddr.port for one in found}:
            return {(one.laddr.ip, one.laddr.port) for one in found}
        time.sleep(0.1)
    raise AssertionError(f"not listening on {ports}; exit code {process.poll()}")


@pytest.mark.parametrize(
    ("arguments", "address"), [([], "127.0.0.1"), (["--web-host", "127.0.0.2"], "127.0.0.2")], ids=["default", "told"]
)
def test_the_web_page_and_the_master_listen_on_loopback(
    arguments: list[str], address: str, small_workload: Path
) -> None:
    web, master = free_port(), free_port()
    command = [*locust(small_workload, f"grpc://{refused_address()}"), "--master", *arguments]
    command += ["--web-port", str(web), "--master-bind-port", str(master)]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert listening_addresses(process, {web, master}) == {(address, web), ("127.0.0.1", master)}
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--users", "3"], {"senders": 3}),
        (["--users", "3", "--shape", "closed"], {"senders": 3, "clients": 3}),
        (["--users", "3", "--senders", "5"], "--users 3 and --senders 5"),
        (["--users", "3", "--shape", "closed", "--clients", "2"], "--users 3 and --clients 2"),
        (["--run-time", "9"], "--run-time 9"),
    ],
)
def test_the_number_of_users_is_taken_or_refused(
    arguments: list[str], found: dict[str, int] | str, small_workload: Path, tmp_path: Path
) -> None:
    server = MisbehavingServer()
    command = [*locust(small_workload, server.urls["grpc"]), "--headless", "--seconds", "1", *arguments]
    command += ["--run-file", str(tmp_path / "run.json")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=child_environment(), check=False)
    finally:
        server.close()
    if isinstance(found, str):
        assert (done.returncode, found in done.stderr) == (2, True), done.stderr
        assert not server.asked
        return
    assert "ignored" not in done.stderr
    run = read_run(tmp_path / "run.json")
    assert {"senders": run.client.senders} | {k: int(v) for k, v in run.shape.parameters.items() if k == "clients"} == (
        found
    )


def test_the_users_typed_into_the_page_are_taken(small_workload: Path, tmp_path: Path) -> None:
    server, port = MisbehavingServer(), free_port()
    command = [*locust(small_workload, server.urls["grpc"]), "--seconds", "1", "--web-port", str(port)]
    command += ["--run-file", str(tmp_path / "run.json")]
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        listening_addresses(process, {port})
        form = urllib.parse.urlencode({"user_count": 7, "spawn_rate": 50, "host": server.urls["grpc"]}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", form, timeout=10).close()
        deadline = time.monotonic() + 30
        while not (tmp_path / "run.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert read_run(tmp_path / "run.json").client.senders == 7
    finally:
        process.kill()
        process.wait()
        server.close()
