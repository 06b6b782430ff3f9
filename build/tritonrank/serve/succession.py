"""Follow what is to be served: another build is checked while the one before goes on to answer.

What says so is the link ``served`` in a recipe's folder, or the tag of a model store's URL.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tritonrank.artifacts.builds import served_build
from tritonrank.artifacts.store.cache import fetch_version, resolve
from tritonrank.artifacts.store.faults import UnreachableStoreError
from tritonrank.artifacts.store.index import SHOWN
from tritonrank.artifacts.store.urls import Source
from tritonrank.errors import TritonRankError
from tritonrank.serve.servable import repository_of
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_watch import GoldenCheck
from tritonrank.serve.supervisor import Successor, tell

LOOK_SECONDS = 0.3
STORE_LOOK_SECONDS = 10.0
"""Between two looks at a tag; each is one listing of a few objects."""


@dataclass(frozen=True)
class Wanted:
    """What is to be served."""

    name: str
    """for the line that says that it is"""
    repository: Path


class Followed(Protocol):
    """What says what is to be served."""

    seconds: float
    """between two looks"""

    def now(self) -> Wanted | None:
        """What is to be served now; None: what is served. Cheap where that is what it was.

        Raises:
            TritonRankError: nobody can say; what is served stays.
        """
        ...


class ServedLink:
    """The link ``served`` of a recipe's folder; see Followed."""

    def __init__(self, root: Path) -> None:
        self.seconds = LOOK_SECONDS
        self._root = root

    def now(self) -> Wanted | None:
        """See Followed."""
        build = served_build(self._root)
        return None if build is None else Wanted(f"build {build.name}", build.repository)


class StoreTag:
    """A tag in a model store; see Followed. What it leads to is fetched and verified before it is said."""

    def __init__(self, source: Source, seconds: float = STORE_LOOK_SECONDS) -> None:
        self.seconds = seconds
        self._source = source
        self._seen: tuple[str, Wanted] | None = None

    def now(self) -> Wanted | None:
        """See Followed."""
        digest = resolve(self._source)
        if self._seen is None or self._seen[0] != digest:
            found = fetch_version(self._source)
            if found.away:
                raise UnreachableStoreError(found.away)
            wanted = Wanted(f"version {found.digest[:SHOWN]} ({found.version.name})", repository_of(found.folder))
            self._seen = found.digest, wanted
        return self._seen[1]


class Checkable(GoldenCheck, Protocol):
    """A repository that can be checked and served."""

    def check(self) -> None:
        """Raise ArtifactError when it is damaged."""
        ...

    def make(self, **options: Any) -> LocalTriton:
        """A server for it, not yet started."""
        ...


class PromotedBuild:
    """A build that is to be served now; a Successor of the supervisor's."""

    def __init__(self, wanted: Wanted, checked: Checkable) -> None:
        self.name = wanted.name
        self.repository = wanted.repository
        self.golden: GoldenCheck = checked
        self.make = checked.make


class Following:
    """A Succession of the supervisor's; it looks, and checks builds, in a thread of its own.

    A build that is damaged or did not start is told once, and tried again only after another one was wanted.

    Args:
        followed: is asked what is to be served.
        repository: what is served at first.
        open_repository: makes of a repository what can be checked and served.
    """

    def __init__(self, followed: Followed, repository: Path, open_repository: Callable[[Path], Checkable]) -> None:
        self._followed = followed
        self._serves = repository.resolve()
        self._open = open_repository
        self._refused: Path | None = None
        self._told: str | None = None
        self._next: PromotedBuild | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()

    def successor(self) -> Successor | None:
        """See Succession."""
        return self._next

    def took_over(self, successor: Successor) -> None:
        """See Succession."""
        assert isinstance(successor, PromotedBuild)
        self._serves, self._refused, self._next = successor.repository.resolve(), None, None

    def failed(self, successor: Successor) -> None:
        """See Succession."""
        assert isinstance(successor, PromotedBuild)
        self._refused, self._next = successor.repository.resolve(), None

    def _follow(self) -> None:
        while not self._closed.wait(self._followed.seconds):
            try:
                self._look()
            except (TritonRankError, OSError) as error:
                if (said := str(error)) != self._told:
                    self._told = said
                    tell(f"what is served stays: {said}")

    def _look(self) -> None:
        wanted = self._followed.now()
        if wanted is None:
            return
        place = wanted.repository.resolve()
        if place == self._serves:
            self._refused = self._next = self._told = None
            return
        if place == self._refused or (self._next and self._next.repository.resolve() == place):
            return
        self._next = None
        checked = self._open(wanted.repository)
        try:
            checked.check()
        except (TritonRankError, OSError):
            self._refused = place
            raise
        with suppress(TritonRankError):
            if self._followed.now() == wanted:
                self._next = PromotedBuild(wanted, checked)
