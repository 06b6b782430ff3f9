"""The Tritons of a rollout: that each of them has the version, and which one their plain ensemble ``rank`` is."""

import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tritonrank.serve.rollout.places import urls_of
from tritonrank.serve.versions.admin_client import AdminError, TritonAdmin
from tritonrank.serve.versions.shapes import Version, Versions

MOST_AT_ONCE = 16
ANSWER_SECONDS = 15.0
"""Nothing is waited for inside of an answer but that `rank` becomes another version."""


@dataclass(frozen=True)
class TritonView:
    """One server at one look.

    Attributes:
        url: of its private API.
        problem: why it could not be asked; "" where it was.
        versions: that it has; None where it could not be asked.
    """

    url: str
    problem: str = ""
    versions: Versions | None = None

    def find(self, name: str) -> Version | None:
        return self.versions.find(name) if self.versions else None


class Tritons:
    """All of them, asked side by side; none at all where a rollout's versions run already.

    Args:
        places: of their private APIs (``tritonrank serve --admin-port``), see ``places.py``.
        key: TRITONRANK_ADMIN_KEY of the Tritons.
        tls: for https.
    """

    def __init__(self, places: Sequence[str], key: str, tls: ssl.SSLContext | None = None) -> None:
        self._places, self._key, self._tls = places, key, tls
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE, "tritons")

    def __bool__(self) -> bool:
        return bool(self._places)

    def look(self) -> list[TritonView]:
        """What each has.

        Raises:
            OSError: they cannot be looked up.
        """
        return self._each(lambda admin: TritonView(admin.url, versions=admin.list()))

    def load(self, name: str, source: str) -> list[TritonView]:
        """Let each have a version that does not; returns at once with what each has by then."""

        def ask(admin: TritonAdmin) -> TritonView:
            if admin.list().find(name) is None:
                admin.put(name, source, wait_seconds=0)
            return TritonView(admin.url, versions=admin.list())

        return self._each(ask)

    def keep(self, name: str, source: str) -> list[TritonView]:
        """Let each have a version as ``rank``, one that was started since the version became live, too."""

        def ask(admin: TritonAdmin) -> TritonView:
            has = admin.list()
            version = has.find(name)
            if version is None:
                admin.put(name, source, wait_seconds=0)
            elif version.is_ready and has.live != name:
                admin.live(name)
            return TritonView(admin.url, versions=admin.list())

        return self._each(ask)

    def live(self, name: str) -> list[TritonView]:
        """Let ``rank`` be a version, where it is another one."""

        def ask(admin: TritonAdmin) -> TritonView:
            if admin.list().live != name:
                admin.live(name)
            return TritonView(admin.url, versions=admin.list())

        return self._each(ask)

    def unload(self, name: str) -> list[TritonView]:
        """Let none have a version; returns at once with what each has by then. The live one stays."""

        def ask(admin: TritonAdmin) -> TritonView:
            has = admin.list()
            version = has.find(name)
            if version is not None and version.state != "leaving" and has.live != name:
                admin.delete(name, wait_seconds=0)
            return TritonView(admin.url, versions=admin.list())

        return self._each(ask)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _each(self, ask: Callable[[TritonAdmin], TritonView]) -> list[TritonView]:
        def one(url: str) -> TritonView:
            try:
                return ask(TritonAdmin(url, self._key, self._tls, ANSWER_SECONDS))
            except AdminError as error:
                return TritonView(url, str(error))

        return list(self._pool.map(one, urls_of(self._places, "https" if self._tls else "http")))
