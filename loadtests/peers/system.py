"""What the runner wants of a system."""

from collections.abc import Sequence
from typing import Protocol

from loadtests.peers.cases import Case

REQUEST_SECONDS = 120.0
"""Longer than any answer takes that is worth waiting for; a system that stalls must not stall the run."""


class System(Protocol):
    """Something that ranks. The runner calls prepare once, then start, rank ... and stop in each turn.

    Attributes:
        name: what the tables call it.
        kind: "peer" or "ours".
        settings: what a reader needs to know to judge the figures.
    """

    name: str
    kind: str
    settings: dict[str, str]

    def prepare(self) -> None:
        """Install and convert whatever is needed; not measured."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the packages that do the work; after prepare."""
        ...

    def start(self) -> None:
        """Return when a request can be answered."""
        ...

    def rank(self, case: Case) -> Sequence[float]:
        """One score per item in the order of the items; called from several threads. Raises if there is no answer."""
        ...

    def memory_bytes(self) -> int:
        """Resident now, all processes of the server or worker together."""
        ...

    def stop(self) -> None:
        """Leave nothing running; may be called in any state."""
        ...
