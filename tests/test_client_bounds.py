"""What a hostile or broken server, and a proxy in the environment, cannot do to a client."""

import gzip
import http.server
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from misbehaving_server import (
    RIGHT,
    Behaviour,
    Compressed,
    Endless,
    Fail,
    Foreign,
    Malformed,
    MisbehavingServer,
    Raw,
)
from refused_ports import refused_address
from test_client_calls import Face, face, http_face, server  # noqa: F401 - fixtures
from tritonrank_client import DeadlineExceeded, InvalidRequest, Retry, ServerFault, Unavailable

HTTP_FACES = pytest.mark.parametrize("http_face", ["sync", "async"], indirect=True)
KEYS = {"Authorization": "Bearer secret", "X-Api-Key": "secret"}


# --- answers belong to their requests --------------------------------------------------------------------------------


def test_the_answer_to_another_request_is_refused_and_asked_again(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Foreign("somebody-elses"), RIGHT)
    client = face.open(server)
    result = client.rank(items=["a", "bb"])
    assert (result.indices, result.attempts) == ((1, 0), 2)
    first, second = server.asked
    assert first.request_id
    assert second.request_id
    assert first.request_id != second.request_id
    if face.protocol == "http":
        assert server.connections == 2, "the connection that brought it is dropped"


def test_an_answer_that_stays_foreign_is_a_server_fault(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Foreign("somebody-elses"))
    with pytest.raises(ServerFault, match="another request") as caught:
        face.open(server, retry=Retry(initial_seconds=0, max_seconds=0)).rank(items=["a"], request_id="mine")
    assert "'mine'" in str(caught.value)
    assert caught.value.retryable
    assert caught.value.attempts == len(server.asked) == 3
    assert {asked.request_id for asked in server.asked} == {"mine"}


def test_an_answer_without_an_id_breaks_the_contract(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Foreign(""))
    with pytest.raises(ServerFault, match="id: missing"):
        face.open(server).rank(items=["a"])
    assert len(server.asked) == 1


# --- redirections ----------------------------------------------------------------------------------------------------


@pytest.fixture
def thief() -> Iterator[tuple[str, list[str]]]:
    """Another host, and what was sent to it."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_error(500)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"127.0.0.1:{listener.server_address[1]}", seen
    listener.shutdown()
    listener.server_close()


@HTTP_FACES
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirection_is_followed(
    server: MisbehavingServer,  # noqa: F811
    http_face: Face,  # noqa: F811
    thief: tuple[str, list[str]],
    status: int,
) -> None:
    host, seen = thief
    location = f"Location: http://user:password@{host}/v2/models/rank/infer?key=private"
    sent = f"HTTP/1.1 {status} Elsewhere\r\n{location}\r\nContent-Length: 0\r\n\r\n".encode()
    server.behave(Raw(sent))
    server.page = sent
    client = http_face.open(server, headers=KEYS)
    for call in (lambda: client.rank(items=["private"]), client.model_info):
        with pytest.raises(ServerFault) as caught:
            call()
        assert host in str(caught.value)
        assert "password" not in str(caught.value)
        assert "key=private" not in str(caught.value)
    assert host in client.health().reason
    assert seen == []


@HTTP_FACES
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_health_tells_refused_credentials(server: MisbehavingServer, http_face: Face, status: str) -> None:  # noqa: F811
    server.page = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    health = http_face.open(server).health()
    assert not health
    assert "credentials" in health.reason


# --- bytes -----------------------------------------------------------------------------------------------------------

MEBIBYTE = 2**20
FLOODS = {
    "announced": Endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"a" * MEBIBYTE),
    "chunks": Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"a" * 65536 + b"\r\n"),
    "until it closes": Endless(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a" * 65536),
    "of an error": Endless(b"HTTP/1.1 500 Oops\r\nConnection: close\r\n\r\n", b"a" * 65536),
    "headers": Endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 6000 + b"\r\n"),
}


@HTTP_FACES
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_an_endless_answer_ends_early_and_takes_no_memory(
    server: MisbehavingServer,  # noqa: F811
    http_face: Face,  # noqa: F811
    flood: Endless,
) -> None:
    server.behave(flood)
    client = http_face.open(server, largest_answer_bytes=4 * MEBIBYTE)
    tracemalloc.start()
    try:
        started = time.monotonic()
        with pytest.raises(ServerFault) as caught:
            client.rank(items=["a"], timeout=8)
        assert time.monotonic() - started < 6
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MEBIBYTE
    assert caught.value.attempts == 1
    assert flood is FLOODS["headers"] or "largest_answer_bytes" in str(caught.value)
    server.behave(RIGHT)
    assert client.rank(items=["a"]).indices == (0,)


@HTTP_FACES
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n", b""], ids=["body", "interim"])
def test_the_deadline_holds_while_data_come(
    server: MisbehavingServer,  # noqa: F811
    http_face: Face,  # noqa: F811
    head: bytes,
) -> None:
    piece = b"a" if head else b"HTTP/1.1 100 Continue\r\n\r\n"
    server.behave(Endless(head, piece))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        http_face.open(server).rank(items=["a"], timeout=0.4)
    assert time.monotonic() - started < 2


def test_a_ranking_that_is_too_large_is_a_server_fault(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Malformed(lambda outputs: outputs | {"artifact": ("BYTES", [b"x" * 200_000])}))
    with pytest.raises(ServerFault, match="largest_answer_bytes") as caught:
        face.open(server, largest_answer_bytes=100_000).rank(items=["a"])
    assert caught.value.attempts == 1
    assert len(face.open(server).rank(items=["a"]).artifact) == 200_000


def test_a_request_too_large_for_the_server_is_the_callers_fault(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Fail(413, "RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)"))
    with pytest.raises(InvalidRequest, match="too large"):
        face.open(server).rank(items=["a"])


def test_a_compressed_answer_is_not_unpacked(server: MisbehavingServer, face: Face) -> None:  # noqa: F811
    server.behave(Compressed())
    items = ["the same text again"] * 500  # worth packing
    with pytest.raises(ServerFault, match="compressed") as caught:
        face.open(server).rank(items=items)
    assert caught.value.attempts == 1
    asked = server.asked[0].headers
    accepted = {name.lower(): value for name, value in asked.items()}
    assert "gzip" not in accepted.get("accept-encoding", "") + accepted.get("grpc-accept-encoding", "")


@HTTP_FACES
def test_a_gzip_bomb_takes_no_memory(server: MisbehavingServer, http_face: Face) -> None:  # noqa: F811
    bomb = gzip.compress(b"\0" * 100 * MEBIBYTE)
    headers = f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}"
    client = http_face.open(server)
    for status in ("200 OK", "500 Oops"):
        server.behave(Raw(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + bomb))
        tracemalloc.start()
        try:
            with pytest.raises(ServerFault, match="compressed"):
                client.rank(items=["a"])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MEBIBYTE


@HTTP_FACES
@pytest.mark.parametrize("body", [b"[" * 1_000_000, b'{"outputs":' + b"[" * 1_000_000], ids=["all", "outputs"])
def test_a_deep_answer_is_a_server_fault(server: MisbehavingServer, http_face: Face, body: bytes) -> None:  # noqa: F811
    for status in ("200 OK", "400 Bad Request"):
        server.behave(Raw(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body))
        with pytest.raises((ServerFault, InvalidRequest)):
            http_face.open(server).rank(items=["a"])


@HTTP_FACES
def test_an_answer_that_ends_with_its_connection_is_read(server: MisbehavingServer, http_face: Face) -> None:  # noqa: F811
    """As from an HTTP/1.0 proxy: no length, and the end of the data is that of the answer."""
    body = b" " * 300_000 + b'{"id": "mine", "outputs": []}'
    server.behave(Raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body))
    with pytest.raises(ServerFault, match="indices: missing"):
        http_face.open(server).rank(items=["a"], request_id="mine")


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "grpc_proxy", "ALL_PROXY"])
def test_no_proxy_of_the_environment_is_used(
    server: MisbehavingServer,  # noqa: F811
    face: Face,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, f"http://{refused_address()}")
    assert face.open(server).rank(items=["a"]).indices == (0,)
    with pytest.raises(Unavailable, match="no connection") as caught:
        face.open(refused_address()).rank(items=["a"])
    assert variable in str(caught.value)
    monkeypatch.delenv(variable)
    with pytest.raises(Unavailable) as caught:
        face.open(refused_address()).rank(items=["a"])
    assert variable not in str(caught.value)


# --- outages ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_default_settings_ride_out_an_outage(face: Face) -> None:  # noqa: F811
    first = MisbehavingServer()
    client = face.open(first, retry=None, timeout=10.0)
    client.rank(items=["a"])
    first.close()
    second: list[MisbehavingServer] = []
    restart = threading.Timer(2.0, lambda: second.append(MisbehavingServer(ports=first.ports)))
    restart.start()
    try:
        result = client.rank(items=["a"])
        assert result.attempts > 3
        assert 1.5 < result.seconds < 6
    finally:
        restart.join()
        second[0].close()


@pytest.mark.parametrize("ends", [Fail(503, "UNAVAILABLE", "starting"), Raw()], ids=["refusing", "hanging up"])
@HTTP_FACES
def test_an_outage_costs_no_retry_budget(server: MisbehavingServer, http_face: Face, ends: Behaviour) -> None:  # noqa: F811
    server.behave(*[ends] * 12, RIGHT)
    quick = Retry(initial_seconds=0, max_seconds=0, budget_ratio=0, budget_burst=0)
    result = http_face.open(server, retry=quick).rank(items=["a"])
    assert result.attempts == 13


@pytest.mark.slow
def test_a_restarted_server_is_found_soon(face: Face) -> None:  # noqa: F811
    first = MisbehavingServer()
    client = face.open(first, retry=Retry(attempts=1))
    first.close()
    ends = time.monotonic() + 2.5  # so long that gRPC's own pauses would have grown
    while time.monotonic() < ends:
        with pytest.raises(Unavailable):
            client.rank(items=["a"], timeout=1)
        time.sleep(0.05)
    second = MisbehavingServer(ports=first.ports)
    try:
        started = time.monotonic()
        health = client.health(timeout=1)
        while not health and time.monotonic() - started < 5:
            time.sleep(0.01)
            health = client.health(timeout=1)
        assert time.monotonic() - started < 1
    finally:
        second.close()
