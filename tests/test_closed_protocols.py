"""What closes Triton's own doors can be read by every account of the machine, so nobody must be able to send it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from conftest import Served
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonrank.serve.server_command import UNSENDABLE

OPTION = "--http-restricted-api="
GRPC_PREFIX = b"triton-grpc-protocol-"
IS_LIVE = bytes([0, 0, 0, 0, 2, 8, 1])
"""A message of two bytes, whose first field is true."""
PATIENCE_SECONDS = 0.5


@pytest.fixture(scope="module")
def header(served: Served) -> tuple[bytes, bytes]:
    """Name and value, as another account reads them."""
    arguments = Path(f"/proc/{served.triton.pid}/cmdline").read_bytes().decode().split("\0")
    closed = next(argument for argument in arguments if argument.startswith(OPTION))
    name, _, value = closed.partition(":")[2].partition("=")
    assert name == UNSENDABLE
    assert len(value) > 40
    return name.encode(), value.encode()


def as_written(name: bytes) -> list[bytes]:
    return [
        name,
        name.replace(b"\n", b"\r\n"),
        name.replace(b"\n", b"\n "),
        name.replace(b"\n", b""),
        b"%0A".join([name]),
    ]


def test_not_even_who_reads_the_arguments_gets_in_over_http(served: Served, header: tuple[bytes, bytes]) -> None:
    name, value = header
    for written in as_written(name):
        for path in (b"/v2/repository/index", b"/v2/repository/models/rank/load"):
            sent = b"POST %b HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n%b: %b\r\nConnection: close\r\n\r\n"
            with connected(served.triton.http_url) as connection:
                connection.sendall(sent % (path, written, value))
                answer = everything(connection)
            assert b" 200 " not in answer.split(b"\r\n")[0], (written, path, answer[:200])


def test_not_even_who_reads_the_arguments_gets_in_over_grpc(served: Served, header: tuple[bytes, bytes]) -> None:
    name, value = header
    for written in as_written(name):
        answer = called(served.triton.grpc_url, GRPC_PREFIX + written, value)
        assert answer, "the server does not speak with us at all"
        assert b"READY" not in answer, (written, answer)


def test_the_probe_of_the_door_sees_an_open_one(served: Served) -> None:
    """The same words at an open door: it is the header that is refused, not how these tests ask."""
    assert IS_LIVE in called(served.triton.grpc_url, b"any", b"value", method="ServerLive")
    with grpc.insecure_channel(urlsplit(served.triton.grpc_url).netloc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="restricted"):
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=10)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    place = urlsplit(url)
    assert place.hostname
    assert place.port
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_SECONDS) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Until it is closed, or nothing comes."""
    answer = b""
    try:
        while some := connection.recv(65_536):
            answer += some
    except (TimeoutError, ConnectionResetError):
        pass
    return answer


def called(url: str, name: bytes, value: bytes, method: str = "RepositoryIndex") -> bytes:
    """All bytes of the answer to a call without arguments. grpc's own client checks what it sends, a caller who means
    harm does not, so the frames are made here (RFC 9113, and RFC 7541 without its compression)."""
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/inference.GRPCInferenceService/{method}".encode(),
        b":authority": b"here",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        name: value,
    }
    block = b"".join(b"\0%c%b%c%b" % (len(one), one, len(other), other) for one, other in headers.items())
    assert max(map(len, [*headers, *headers.values()])) < 127, "a longer one has its length in two bytes"
    with connected(url) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))
        )
        return everything(connection)


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
