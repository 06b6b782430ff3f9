"""A gateway that is told to end: balancers hear it first, and who comes before they do is served all the same."""

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from gateways import running_gateway
from misbehaving_server import RIGHT, MisbehavingServer, Slow
from tritonrank.serve.running import run_until_signalled

DRAIN_SECONDS = 1.5
BODY = {"query": "q", "items": ["a", "bb"]}


def test_it_serves_on_while_it_says_that_it_is_not_ready(tmp_path: Path) -> None:
    triton = MisbehavingServer()
    triton.behave(RIGHT)
    try:
        with running_gateway(triton.urls["grpc"], tmp_path, "--drain-s", str(DRAIN_SECONDS)) as gateway:
            with httpx.Client(base_url=gateway.url, timeout=20) as http:
                first = http.post("/v1/rank", json=BODY)
                assert first.status_code == 200
                assert "connection" not in first.headers
                told = time.monotonic()
                gateway.process.send_signal(signal.SIGTERM)
                while httpx.get(f"{gateway.metrics_url}/health/ready").status_code != 503:
                    assert time.monotonic() - told < 10
                last = http.post("/v1/rank", json=BODY)
                assert last.status_code == 200
                assert last.headers["connection"] == "close"  # a balancer's connection is not used again
            triton.behave(Slow(1.0))  # sent in the last moment, answered after the drain
            time.sleep(max(0.0, told + DRAIN_SECONDS - 0.4 - time.monotonic()))
            assert httpx.post(f"{gateway.url}/v1/rank", json=BODY, timeout=20).status_code == 200
            assert gateway.process.wait(20) == 0
            assert time.monotonic() - told >= DRAIN_SECONDS
    finally:
        triton.close()


class Running:
    """A server that runs until it is stopped."""

    def __init__(self) -> None:
        self.said: list[str] = []

    http_url = grpc_url = metrics_url = ""

    def check(self) -> None:
        if not self.said:
            self.said.append("runs")
            threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM]).start()

    def drain(self) -> None:
        self.said.append("drains")

    def stop(self) -> None:
        self.said.append("stops")


@pytest.mark.parametrize("again", [False, True], ids=["in its time", "told again"])
def test_a_server_drains_before_it_stops(again: bool) -> None:
    server, seconds = Running(), 30.0 if again else 0.2

    def unready() -> None:
        server.drain()
        if again:
            threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM]).start()

    began = time.monotonic()
    run_until_signalled(server, seconds, unready)
    assert server.said == ["runs", "drains", "stops"]
    assert again or time.monotonic() - began >= seconds
    assert time.monotonic() - began < 20
