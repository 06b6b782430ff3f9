"""One version on a server's shelf: what was asked for, how far it is, and the processes that compute for it."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonrank.artifacts import MANIFEST
from tritonrank.artifacts.named import BLEND, CATALOGUE
from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.server_processes import Part, resident_bytes
from tritonrank.serve.serving import GOLDEN_FILE, CheckedRepository, artifact_name
from tritonrank.serve.versions import layout
from tritonrank.serve.versions.shapes import State, Version

MOST_LOSSES, LOSS_WINDOW_SECONDS = 3, 60.0
"""A version that loses its processes so often in so short a time is given up."""


@dataclass(eq=False)
class Slot:
    """A version; whoever changes it holds the shelf's lock.

    Attributes:
        name: of the version.
        source: where it was asked for from.
        state: see ``shapes.State``.
        checked: its repository; None until it was fetched.
        is_first: the server started with it, and its models have the plain names.
        is_asked_for: somebody named it: it stays when another one is live.
        reason: why it failed.
        parts: the stubs of its models.
        seconds: that it took to be ready.
    """

    name: str
    source: str
    state: State = "waiting"
    checked: CheckedRepository | None = None
    is_first: bool = False
    is_asked_for: bool = True
    reason: str | None = None
    parts: Sequence[Part] = ()
    seconds: float = 0.0
    _artifact: str = ""
    _lost_at: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LOSSES))

    @property
    def repository(self) -> Path:
        assert self.checked is not None
        return self.checked.folder

    @property
    def ensemble(self) -> str:
        """What callers ask."""
        return f"{ENSEMBLE}-{self.name}"

    def names(self) -> dict[str, str]:
        """Its models as the server has them, by their names in the repository."""
        names = layout.names_of(self.repository, self.name)
        return (
            {name: name for name in names if name != ENSEMBLE} | {ENSEMBLE: self.ensemble} if self.is_first else names
        )

    def models(self) -> list[str]:
        """The server's names of them, the ensemble last."""
        return [*self.names().values()]

    def _artifact_name(self) -> str:
        self._artifact = self._artifact or artifact_name(self.repository)
        return self._artifact

    def lost(self) -> Part | None:
        """A process of it that has ended."""
        return next((part for part in self.parts if part.state() is None), None)

    def note_loss(self) -> bool:
        """Remember that it was lost; False where that happened too often to try again."""
        self._lost_at.append(time.monotonic())
        return len(self._lost_at) < MOST_LOSSES or time.monotonic() - self._lost_at[0] > LOSS_WINDOW_SECONDS

    def told(self) -> Version:
        """What is said of it."""
        if self.checked is None:
            return Version(self.name, self.state, self.source, model=self.ensemble, reason=self.reason)
        build = self.repository.resolve().parent
        blend, catalogue = (
            str(folder) if (folder / MANIFEST).is_file() else None for folder in (build / BLEND, build / CATALOGUE)
        )
        return Version(
            name=self.name,
            state=self.state,
            source=self.source,
            artifact=self._artifact_name(),
            model=self.ensemble,
            golden=str(self.repository.resolve() / GOLDEN_FILE),
            blend=blend,
            catalogue=catalogue,
            reason=self.reason,
            seconds=round(self.seconds, 3),
            resident_bytes=sum(resident_bytes(part.pid) for part in self.parts),
        )
