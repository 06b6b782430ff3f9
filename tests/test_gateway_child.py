"""The gateway beside a Triton: one that is killed comes back at the same ports; one that cannot start is gone."""

import time
import urllib.request

import psutil
import pytest
from misbehaving_server import MisbehavingServer
from tritonrank.errors import ServerError
from tritonrank.serve import gateway_child
from tritonrank.serve.gateway_child import GatewayChild


class Server:
    """A server that runs on, as far as the gateway's keeper sees."""

    def __init__(self, server: MisbehavingServer) -> None:
        self.grpc_url = server.urls["grpc"]
        self.http_url = server.urls["http"]

    def check(self) -> None:
        pass

    def stop(self) -> None:
        pass


def gateways() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "tritonrank_gateway" in one.cmdline()]


def answers(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/docs", timeout=10) as answer:
        return bool(answer.status == 200)


def test_a_killed_gateway_comes_back_at_the_same_address(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gateway_child, "MOST_RESTARTS", 1)
    server = MisbehavingServer()
    try:
        with GatewayChild(Server(server), 0) as gateway:  # type: ignore[arg-type]  # of a server only these are asked
            url = gateway.url
            for process in gateways():
                process.kill()
            deadline = time.monotonic() + 30
            while "it is back" not in capfd.readouterr().err:
                gateway.check()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert gateway.url == url
            assert answers(url)
    finally:
        server.close()


def test_a_gateway_that_cannot_start_is_an_error_with_its_last_words() -> None:
    server = MisbehavingServer()
    try:
        with (
            pytest.raises(ServerError, match="--max-documents"),
            GatewayChild(Server(server), 0, further=("--max-documents", "0")),  # type: ignore[arg-type]
        ):
            pass
    finally:
        server.close()
