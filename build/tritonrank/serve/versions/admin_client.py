"""The other side of the private API for versions: what a rollout, a fleet or a person's script asks a server for.

    with_key = TritonAdmin("http://127.0.0.1:8003", key)
    with_key.put("20261127", "s3://models/shop@latest")   # returns when it is ready, or raises with the reason
    with_key.live("20261127")
    with_key.delete("20261126")

The standard library alone: whoever rolls out needs no gateway. Never through a proxy that the environment names.
"""

import json
import ssl
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from tritonrank.errors import ServerError
from tritonrank.serve.versions.shapes import UNDER_WAY, Live, Version, Versions

ANSWER_SECONDS = 30.0
"""For one answer; loading is not waited for inside of one."""
LOAD_SECONDS = 600.0
LEAVE_SECONDS = 120.0
POLL_SECONDS = 0.1
LONGEST_ANSWER = 1_000_000
"""Bytes."""


class AdminError(ServerError):
    """The server said no, or nothing.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: what went wrong, in one word.
    """

    def __init__(self, message: str, status: int = 0, code: str = "unreachable") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class PrivateApi:
    """What asks a private API, of a Triton or a gateway; may be used by several threads.

    Args:
        url: ``http://HOST:PORT``.
        key: what TRITONRANK_ADMIN_KEY is there.
        tls: for https; None: what the system trusts.
        answer_seconds: for one answer.

    Raises:
        ServerError: the URL is none.
    """

    told_by = "the program that has it"

    def __init__(
        self, url: str, key: str, tls: ssl.SSLContext | None = None, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ServerError(f"{url}: expected http://HOST:PORT, as {self.told_by} tells it")
        self.url = url.rstrip("/")
        self._key = key
        self._open: Callable[[], HTTPConnection] = lambda: HTTPConnection(place.netloc, timeout=answer_seconds)
        if place.scheme == "https":
            self._open = lambda: HTTPSConnection(place.netloc, timeout=answer_seconds, context=tls)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request; gives what the answer says.

        Raises:
            AdminError: no answer, or it was refused.
        """
        connection = self._open()
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            told = json.loads(answer.read(LONGEST_ANSWER) or b"{}")
        except (OSError, HTTPException, ValueError) as error:
            raise AdminError(f"{self.url}: no answer ({error or type(error).__name__})") from error
        finally:
            connection.close()
        if answer.status >= 400:
            fault = told.get("error", {}) if isinstance(told, dict) else {}
            fault = fault if isinstance(fault, dict) else {"message": fault}
            said = fault.get("message", f"HTTP status {answer.status}")
            raise AdminError(f"{self.url}: {said}", answer.status, fault.get("code", "refused"))
        return told


class TritonAdmin(PrivateApi):
    """One server's versions: ``TritonAdmin(URL of --admin-port, key)``."""

    told_by = "`tritonrank serve --admin-port PORT`"

    def list(self) -> Versions:
        """All versions.

        Raises:
            AdminError: no answer, or the key is another one.
        """
        told = self.ask("GET", "/versions")
        return Versions(told["live"], tuple(Version(**one) for one in told["versions"]), told.get("grpc", ""))

    def put(self, name: str, source: str, *, wait_seconds: float = LOAD_SECONDS) -> Version:
        """Load a version beside what serves; gives it when it is ready.

        Args:
            name: of the version, ``[a-z0-9-]``, 32 characters at most.
            source: a path on the server's machine, or a model store's URL.
            wait_seconds: 0 only asks for it.

        Raises:
            AdminError: it was refused, it failed (with the reason), or it takes longer.
        """
        version = Version(**self.ask("PUT", _path(name), {"source": source}))
        deadline = time.monotonic() + wait_seconds
        while wait_seconds and version.state in UNDER_WAY:
            if time.monotonic() > deadline:
                raise AdminError(f"{self.url}: version {name} is still {version.state} after {wait_seconds:g} s")
            time.sleep(POLL_SECONDS)
            version = self._found(name)
        if version.state == "failed":
            raise AdminError(f"{self.url}: version {name}: {version.reason}", 200, "failed")
        return version

    def delete(self, name: str, *, wait_seconds: float = LEAVE_SECONDS) -> None:
        """Unload a version once its requests in flight are answered; returns when it is gone. It may be gone already.

        Raises:
            AdminError: it is live, or it takes longer.
        """
        try:
            self.ask("DELETE", _path(name))
        except AdminError as error:
            if error.status == 404:
                return
            raise
        deadline = time.monotonic() + wait_seconds
        while wait_seconds and self.list().find(name) is not None:
            if time.monotonic() > deadline:
                raise AdminError(f"{self.url}: version {name} is still there after {wait_seconds:g} s")
            time.sleep(POLL_SECONDS)

    def live(self, name: str) -> Live:
        """Let the ensemble ``rank`` be a version that is ready.

        Raises:
            AdminError: it is not ready, or the server could not.
        """
        return Live(**self.ask("PUT", "/live", {"name": name}))

    def _found(self, name: str) -> Version:
        version = self.list().find(name)
        if version is None:
            raise AdminError(f"{self.url}: version {name} was taken away while it was loaded", 404, "gone")
        return version


def _path(name: str) -> str:
    return f"/versions/{quote(name, safe='')}"
