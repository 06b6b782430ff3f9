"""One HTTP connection, with bounds: http.client writes the requests and reads the answers, through a socket that ends
every operation at one deadline and counts what comes in.

A timeout of a socket holds for one operation each, so a server that sends a byte now and then outlasts it, and one
that sends without end fills the memory. Nothing is followed here (a redirection is an answer like any other) and
nothing unpacked.
"""

import codecs
import http.client
import io
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from ._fork import keep_inherited
from ._options import Settings
from ._trust import Trust

# getaddrinfo imports this codec at its first use. A child that is forked amid that import waits for its lock for ever.
codecs.lookup("idna")

PIECE_BYTES = 2**16
HEADER_BYTES = 2**18
"""What status, headers and the frames of chunks may add to the bytes of a body."""


class AnswerTooLargeError(Exception):
    """An answer of more bytes than the client takes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as it came: status, headers by their names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Sends one request after the other. For one thread at a time."""

    def __init__(self, settings: Settings, trust: Trust | None) -> None:
        self._settings = settings
        self._trust = trust
        self._socket: _BoundedSocket | None = None

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        """Send a request and read its answer within `seconds`.

        The connection is kept for the next one only if this answer was read to its end. A server may hang up on a
        kept connection just when it is used again; then the request is sent once more on a new one.

        Raises:
            AnswerTooLargeError: more than the settings' `largest_answer_bytes` came.
            TimeoutError: it took longer.
            OSError, http.client.HTTPException: the connection cannot be made, broke, or does not speak HTTP.
        """
        deadline = time.monotonic() + seconds
        was_kept = self._socket is not None
        try:
            try:
                answer, is_kept = self._exchange(method, path, headers, body, deadline)
            except ConnectionError:
                if not was_kept or self._socket is None or self._socket.is_answering:
                    raise
                self.close()
                answer, is_kept = self._exchange(method, path, headers, body, deadline)
        except TimeoutError as error:
            self.close()
            if time.monotonic() < deadline:  # the system's own: it gave the connection up
                raise ConnectionAbortedError(str(error)) from error
            raise TimeoutError(f"no answer within {seconds:.3f} s") from None
        except BaseException:  # half an answer may be waiting in the socket
            self.close()
            raise
        if not is_kept:
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection, if there is one; the next exchange makes another."""
        if self._socket is not None:
            self._socket.hang_up()
            self._socket = None

    def forget(self) -> None:
        """Close a forked child's copy of the socket and nothing else: the connection is the parent's."""
        if self._socket is not None:
            self._socket.forget()
            self._socket = None

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, deadline: float
    ) -> tuple[Answer, bool]:
        if self._socket is not None and self._socket.has_news():  # hung up, or sent what nobody asked for
            self.close()
        if self._socket is None:
            self._socket = self._connect(deadline)
        largest = self._settings.largest_answer_bytes
        self._socket.begin(deadline, largest + HEADER_BYTES)
        talk = http.client.HTTPConnection(self._settings.host, self._settings.port)
        talk.sock = self._socket  # all that http.client asks of a socket
        talk.request(method, path, body=body, headers=dict(headers))
        try:
            response = talk.getresponse()
        except (http.client.HTTPException, ValueError) as error:
            line = getattr(error, "line", "HTTP/")  # that of a BadStatusLine; '' where there was none
            if self._socket.is_at_end and line.startswith(("HTTP/", "''")):
                raise ConnectionResetError("the server hung up within the headers") from error
            raise
        if self._socket.is_at_end:  # http.client takes the end of the data for that of the headers
            raise ConnectionResetError("the server hung up within the headers")
        if (response.length or 0) > largest:
            raise AnswerTooLargeError(f"{response.length} bytes announced, {largest} allowed")
        announced, pieces, count = response.length, [], 0
        while piece := response.read(PIECE_BYTES):
            pieces.append(piece)
            count += len(piece)
            if count > largest:
                raise AnswerTooLargeError(f"more than {largest} bytes came")
        if announced is not None and count < announced:
            raise ConnectionResetError(f"the server hung up after {count} of {announced} bytes")
        answer = Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, b"".join(pieces)
        )
        return answer, not response.will_close

    def _connect(self, deadline: float) -> "_BoundedSocket":
        failure: OSError = OSError("the name has no address")
        for family, kind, protocol, _, address in _addresses(self._settings.host, self._settings.port, deadline):
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(_left(deadline))
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._trust is not None:
                    plain = self._trust.context().wrap_socket(plain, server_hostname=self._trust.server_name)
                return _BoundedSocket(plain)
            except OSError as error:
                plain.close()
                if isinstance(error, TimeoutError | ssl.SSLError):
                    raise
                failure = error
            except BaseException:
                plain.close()
                raise
        raise failure


class _BoundedSocket:
    """A socket as http.client uses it, within the bounds of the exchange that was begun last."""

    def __init__(self, wrapped: socket.socket) -> None:
        self._wrapped = wrapped
        self._deadline = 0.0
        self._bytes_left = 0
        self.is_answering = False
        self.is_at_end = False

    def begin(self, deadline: float, largest_bytes: int) -> None:
        self._deadline, self._bytes_left, self.is_answering = deadline, largest_bytes, False

    def has_news(self) -> bool:
        """Whether there is something to read already, be it the end."""
        poller = select.poll()
        poller.register(self._wrapped, select.POLLIN)
        return bool(poller.poll(0))

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wrapped.settimeout(_left(self._deadline))
            rest = rest[self._wrapped.send(rest) :]

    def receive_into(self, buffer: Any) -> int:
        self._wrapped.settimeout(_left(self._deadline))
        count = self._wrapped.recv_into(buffer)
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise AnswerTooLargeError("more headers or frames came than there is room for")
        self.is_answering |= count > 0
        self.is_at_end = count == 0
        return count

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self), PIECE_BYTES)

    def close(self) -> None:
        """Nothing: http.client lets go of a connection that ends with its answer before it has read that answer."""

    def hang_up(self) -> None:
        self._wrapped.close()

    def forget(self) -> None:
        if type(self._wrapped).__module__ in ("socket", "ssl"):
            os.close(self._wrapped.detach())
        else:  # gevent's: its destructor would speak to the parent's event loop
            keep_inherited(self._wrapped)


class _Incoming(io.RawIOBase):
    def __init__(self, source: _BoundedSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.receive_into(buffer)


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _addresses(host: str, port: int, deadline: float) -> list[Any]:
    """The addresses of a name, by the deadline: the system's own look-up knows none, so a thread waits for it."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    found: list[Any] = []
    is_done = threading.Event()

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)
        except UnicodeError:  # a name that IDNA cannot write
            found.append(socket.gaierror(socket.EAI_NONAME, "not a host name"))
        finally:
            is_done.set()

    threading.Thread(target=look_up, name="tritonrank-names", daemon=True).start()
    if not is_done.wait(_left(deadline)):
        raise TimeoutError
    if found and isinstance(found[0], OSError):
        raise found[0]
    return found
