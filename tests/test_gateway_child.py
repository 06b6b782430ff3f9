"""The gateway that ``up`` keeps: brought back when it is lost, and replaced when something else is to be served."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import Served
from tritonrank.errors import ServerError
from tritonrank.serve.gateway_child import GatewayChild

SECONDS = 60.0


class Triton:
    """The tests' server, as a RunningServer."""

    def __init__(self, served: Served) -> None:
        self.http_url, self.grpc_url = served.urls["http"], served.urls["grpc"]
        self.metrics_url = ""

    def check(self) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def asking(url: str) -> Iterator[list[str]]:
    """Somebody who opens a connection per request, without trying again; what went wrong."""
    failed: list[str] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            try:
                answer = httpx.post(f"{url}/v1/rank", json={"query": "desk", "items": ["a desk", "a lamp"]}, timeout=20)
                failed.extend([] if answer.status_code == 200 else [answer.text])
            except httpx.HTTPError as error:
                failed.append(repr(error))

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield failed
    finally:
        ends.set()
        asker.join(SECONDS)


def model_of(child: GatewayChild) -> str:
    return str(httpx.get(f"{child.url}/v1/models", timeout=20).json()["data"][0]["id"])


def test_another_gateway_takes_over_without_a_refused_caller(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    flags: list[str] = []
    with GatewayChild(Triton(served), 0, name="first", further=lambda: flags) as child:
        url, pid = child.url, child.pid
        with asking(url) as failed:
            time.sleep(0.2)
            flags = ["--model-name", "second"]
            child.check()
            time.sleep(0.2)
        assert not failed
        assert (child.url, model_of(child)) == (url, "second")
        assert child.pid != pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        # One that does not start leaves the one that serves, is told once, and is not tried again and again.
        flags = ["--no-such-flag"]
        child.check()
        began = time.monotonic()
        child.check()
        assert time.monotonic() - began < 0.2
        assert model_of(child) == "second"
    said = capfd.readouterr().err
    assert said.count("--no-such-flag") == 1
    assert "promoted" in said


def test_a_killed_gateway_is_back_and_callers_waited(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with GatewayChild(Triton(served), 0) as child:
        os.kill(child.pid, signal.SIGKILL)
        wait_until_gone(child.pid)
        # Nobody accepts now, and nobody is refused either: the socket is ours.
        answers: list[int] = []
        waiting = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{child.url}/v1/models", timeout=30).status_code)
        )
        waiting.start()
        child.check()
        waiting.join(SECONDS)
        assert answers == [200]
    assert "SIGKILL" in capfd.readouterr().err


@pytest.mark.slow
def test_one_that_ends_again_and_again_is_given_up(served: Served, tmp_path: Path) -> None:
    flags = ["--keys-file", str(tmp_path / "keys.toml")]
    (tmp_path / "keys.toml").write_text("[keys]\n")
    with GatewayChild(Triton(served), 0, further=lambda: flags) as child:
        (tmp_path / "keys.toml").unlink()
        os.kill(child.pid, signal.SIGKILL)
        wait_until_gone(child.pid)
        with pytest.raises(ServerError, match="again and again"):
            child.check()


def test_a_taken_port_is_said_with_the_way_out(served: Served) -> None:
    with (
        GatewayChild(Triton(served), 0) as first,
        pytest.raises(ServerError, match="--port 0"),
        GatewayChild(Triton(served), int(first.url.rpartition(":")[2])),
    ):
        pass


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} lives")
