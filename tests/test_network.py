"""Build, serve, load tests and the tests themselves talk to this machine only, and look no name up.

strace watches every process that a command starts, their C++ threads too. What it wrote is judged by addresses: nothing
but loopback, and no port 53, which is where a look-up goes whether or not anybody answers it. (A look-up through nscd
would be the exception; it is recognised by its request, as passwords are asked for the same way.)

To check a command by hand: strace -f -e trace=connect,sendto,sendmsg,sendmmsg -o trace COMMAND; grep 'htons(53)' trace
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest
import tritonrank
from conftest import TESTS

ROOT = TESTS.parent
CALLS = "connect,sendto,sendmsg,sendmmsg"
ADDRESS = re.compile(
    r"sa_family=AF_INET6?, sin6?_port=htons\((?P<port>\d+)\).*?"
    r"(?:inet_addr\(|inet_pton\(AF_INET6, )\"(?P<address>[^\"]+)\""
)
NAME_SERVICES = re.compile(r'sun_path="[^"]*(?:systemd/resolve|avahi|mdns)[^"]*"|"[^"]*(?<![a-z])hosts\\0')
DNS_PORT = 53
AFTERWARDS_SECONDS = 1.5
"""Telemetry has a thread of its own, which begins a moment after what it tells of."""
READY_SECONDS = 90
SMALL = (
    "examples.training_examples=16",
    "examples.test_users=30",
    "examples.validation_users=5",
    "finetune.epochs=1",
    "finetune.evaluations=1",
    "quantize.calibration_examples=8",
    "gate.budget=0.9",
    "gate.training=ignore",
)


@dataclass(frozen=True)
class Watch:
    """Runs commands of this tree under strace, with an empty home folder."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self, name: str, command: Sequence[object]) -> subprocess.Popen[str]:
        watched = ["strace", "--seccomp-bpf", "-f", "-qq", "-e", f"trace={CALLS}", "-o", self.folder / f"{name}.trace"]
        return subprocess.Popen(
            [str(part) for part in (*watched, *command)],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, *command: object) -> str:
        process = self.start(name, command)
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output[-3_000:]
        return output

    def environment(self) -> Mapping[str, str]:
        """Ours, without what the product itself has to set."""
        self.home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in tritonrank.TELEMETRY_OFF}
        return kept | {"HOME": str(self.home)}

    def faults(self, name: str) -> list[str]:
        """Of one command: what went beyond this machine, or asked for a name."""
        return [line for line in self.trace(name).splitlines() if is_beyond(line)]

    def trace(self, name: str) -> str:
        return (self.folder / f"{name}.trace").read_text(encoding="utf-8", errors="replace")


def is_beyond(line: str) -> bool:
    """Whether a system call talks to another machine, or to whoever knows names."""
    if NAME_SERVICES.search(line):
        return True
    found = ADDRESS.search(line)
    if found is None:
        return False
    address = ip_address(found["address"])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return int(found["port"]) == DNS_PORT or not ((mapped or address).is_loopback)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    return Watch(tmp_path_factory.mktemp("watch"))


@pytest.fixture(scope="module")
def used(watch: Watch, tiny_base: Path) -> list[str]:
    """Everything that a user does with a ranker, watched; the names of the commands."""
    python, artifacts = sys.executable, watch.folder / "artifacts"
    recipe = [TESTS / "tiny.yaml", "--artifacts", artifacts, "--set", f"model.base={tiny_base}"]
    recipe += [part for setting in SMALL for part in ("--set", setting)]
    watch.run("build", python, "-m", "tritonrank", "build", *recipe)
    watch.run("workload", python, "-m", "tritonrank", "workload", artifacts / "tiny", "--requests", 20)
    watch.run("report", python, "-m", "tritonrank", "report", artifacts / "tiny")
    ready = watch.folder / "ready"
    ports = ["--http-port", 0, "--grpc-port", 0, "--metrics-port", 0, "--ready-file", ready]
    serving = watch.start("serve", [python, "-u", "-m", "tritonrank", "serve", artifacts / "tiny", *ports])
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not ready.exists():
            assert serving.poll() is None, serving.communicate()[0]
            assert time.monotonic() < deadline, "not ready"
            time.sleep(0.1)
        assert serving.stdout is not None
        urls = [serving.stdout.readline().split()[1] for _ in range(2)]
        for url in urls:
            scheme = url.partition(":")[0]
            call = [python, "-m", "tritonrank_client.cli", "rank", "--url", url, "--query", "desk", "--items"]
            (watch.folder / "items").write_text('"a lamp"\n"a desk"\n', encoding="utf-8")
            watch.run(f"rank over {scheme}", *call, watch.folder / "items")
        load = ["--workload", artifacts / "tiny" / "workload.jsonl", "--seconds", 1, "--warm-up", 0, "--rate", 2]
        watch.run("load", python, "-m", "loadtests", "run", urls[1], *load, "--out", watch.folder / "run.json")
        time.sleep(AFTERWARDS_SECONDS)
    finally:
        stop(serving)
    return ["build", "workload", "report", "serve", "rank over http", "rank over grpc", "load"]


def stop(watched: subprocess.Popen[str]) -> None:
    """End what strace watches; strace ends with it."""
    for process in psutil.Process(watched.pid).children():
        process.send_signal(signal.SIGTERM)
    try:
        watched.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        watched.kill()
        raise


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_build_and_serve_and_load_talk_to_this_machine_only(watch: Watch, used: list[str]) -> None:
    assert [(name, fault) for name in used for fault in watch.faults(name)] == []
    assert "connect(" in watch.trace("serve"), "strace saw the calls of its health check"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_onnx_runtime_keeps_no_device_id(watch: Watch, used: list[str]) -> None:
    assert used
    assert [
        str(path) for path in watch.home.rglob("*") if "microsoft" in str(path.relative_to(watch.home)).lower()
    ] == []


@pytest.mark.slow
def test_the_tests_themselves_talk_to_this_machine_only(watch: Watch) -> None:
    """A file whose first import of a library that calls out is its own."""
    output = watch.run("tests", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_lookup.py")
    assert "passed" in output
    assert watch.faults("tests") == []


PLANTED = {
    "planted look-up": "import socket\ntry: socket.getaddrinfo('planted.tritonrank.invalid', 80)\nexcept OSError: pass",
    "planted connection": "import socket\ns = socket.socket(); s.settimeout(0.2)\n"
    "try: s.connect(('192.0.2.1', 9))\nexcept OSError: pass",
    "planted datagram": "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
    "try: s.sendto(b'x', ('2001:db8::1', 9))\nexcept OSError: pass",
    "planted child": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import socket, threading\\n"
    'def look():\\n try: socket.getaddrinfo("planted.tritonrank.invalid", 80)\\n except OSError: pass\\n'
    "t = threading.Thread(target=look); t.start(); t.join()'])",
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(watch: Watch, name: str) -> None:
    """The negative control: a watch that finds nothing proves something only if it would have."""
    watch.run(name, sys.executable, "-c", PLANTED[name])
    assert watch.faults(name)


@pytest.mark.parametrize(
    ("line", "beyond"),
    [
        ('9 connect(3, {sa_family=AF_INET, sin_port=htons(8001), sin_addr=inet_addr("127.0.0.1")}, 16) = 0', False),
        ('9 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0', True),
        ('9 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("10.1.2.3")}, 16) = 0', True),
        (
            "9 connect(3, {sa_family=AF_INET6, sin6_port=htons(8001), sin6_flowinfo=htonl(0), "
            'inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28) = 0',
            False,
        ),
        (
            '9 sendto(3, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(9), sin6_flowinfo=htonl(0), '
            'inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 1',
            True,
        ),
        ('9 connect(3, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0', True),
        ('9 connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = 0', False),
        (r'9 sendto(3, "\2\0\0\0\r\0\0\0\6\0\0\0hosts\0", 18, MSG_NOSIGNAL, NULL, 0) = 18', True),
        (r'9 sendto(3, "\2\0\0\0\0\0\0\0\7\0\0\0passwd\0", 19, MSG_NOSIGNAL, NULL, 0) = 19', False),
    ],
)
def test_only_other_machines_and_name_services_are_beyond(line: str, beyond: bool) -> None:
    assert is_beyond(line) == beyond


def test_the_users_own_choice_wins() -> None:
    code = "import os, tritonrank; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    environment.pop("DO_NOT_TRACK", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
