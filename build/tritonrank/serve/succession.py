"""Follow the link ``served``: another build that it leads to is checked while the one before goes on to answer."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tritonrank.artifacts.builds import RecordedBuild, served_build
from tritonrank.errors import TritonRankError
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_watch import GoldenCheck
from tritonrank.serve.supervisor import Successor, tell

LOOK_SECONDS = 0.3


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

    def __init__(self, build: RecordedBuild, checked: Checkable) -> None:
        self.name = f"build {build.name}"
        self.repository = build.repository
        self.golden: GoldenCheck = checked
        self.make = checked.make


class ServedLink:
    """A Succession of the supervisor's; the link is looked at, and builds are checked, in a thread of its own.

    A build that is damaged or did not start is told once, and tried again only after the link has moved.

    Args:
        root: ``artifacts/<recipe>``.
        repository: what is served at first.
        open_repository: makes of a repository what can be checked and served.
    """

    def __init__(self, root: Path, repository: Path, open_repository: Callable[[Path], Checkable]) -> None:
        self._root = root
        self._serves = repository.resolve()
        self._open = open_repository
        self._refused: Path | None = None
        self._told: str | None = None
        self._next: PromotedBuild | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="served link", daemon=True)

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
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self._look()
            except (TritonRankError, OSError) as error:
                if (said := str(error)) != self._told:
                    self._told = said
                    tell(f"what is served stays: {said}")

    def _look(self) -> None:
        build = served_build(self._root)
        if build is None:
            return
        place = build.repository.resolve()
        if place == self._serves:
            self._refused = self._next = self._told = None
            return
        if place == self._refused or (self._next and self._next.repository.resolve() == place):
            return
        self._next = None
        checked = self._open(build.repository)
        try:
            checked.check()
        except (TritonRankError, OSError):
            self._refused = place
            raise
        with suppress(TritonRankError):
            if served_build(self._root) == build:
                self._next = PromotedBuild(build, checked)
