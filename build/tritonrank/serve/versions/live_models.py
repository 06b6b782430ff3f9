"""The models of one running tritonserver process, of all versions: linked, loaded, pointed to, unloaded."""

import itertools
import shutil
import time
from collections.abc import Collection, Iterator, Sequence

from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.server import REPOSITORY_LINKS, LocalTriton
from tritonrank.serve.server_processes import Part, children_of, stubs_of
from tritonrank.serve.server_watch import QUEUE_FOLDERS
from tritonrank.serve.sources import RECOMMEND
from tritonrank.serve.versions import layout
from tritonrank.serve.versions.control import ModelControl
from tritonrank.serve.versions.slot import Slot

LEAVE_SECONDS = 60.0
"""For requests in flight of models that leave; then their processes are left to Triton."""
POLL_SECONDS = 0.02
NUMBERS = (2, 3, 4, 1)
"""Of a model's versions in Triton, one after the other."""


class LiveModels:
    """What can be done with the models of a server that answers.

    Args:
        server: was started with a shelf as its ``more``.
    """

    def __init__(self, server: LocalTriton) -> None:
        self.server = server
        self._control = ModelControl(server.run_folder, server.ready_timeout_seconds)
        self._folder = server.run_folder / REPOSITORY_LINKS
        self._numbers: dict[str, Iterator[int]] = {}

    @property
    def is_ending(self) -> bool:
        """Whether the server is being stopped, or has ended."""
        return self.server.is_ending or Part.of("", self.server.pid) is None

    def stubs(self, models: Collection[str]) -> list[Part]:
        """The processes that compute for models."""
        return stubs_of(children_of(self.server.pid), models)

    def need(self, live: Slot, leaving: Collection[Part] = ()) -> None:
        """From now on the server cannot do without what this version needs to be live."""
        self.server.need([*live.models(), layout.STEWARD, *([RECOMMEND] if _recommends(live) else [])], leaving)

    def load(self, slot: Slot) -> Sequence[Part]:
        """Link a version beside what is there, and load it; gives its processes.

        Raises:
            ArtifactError: a config cannot be read.
            ServerError: a model cannot be loaded; says why.
        """
        layout.lay_out(slot.repository, slot.names(), self._folder, self._number(slot.name))
        for model in slot.models():
            self._control.load(model)
        return self.stubs(slot.models())

    def unload(self, slot: Slot) -> None:
        """Let the requests in flight of a version end, and take all of it away: models, processes, links, files.

        Raises:
            ServerError: the server does not answer.
        """
        models = slot.models()
        for model in reversed(models):  # the ensemble first: what it needs has to be there while it answers
            self._control.unload(model)
        self._await_end(self.stubs(models))
        layout.take_away(self._folder, models)
        for queue in self.server.run_folder.glob(f"{QUEUE_FOLDERS}/{slot.ensemble}"):
            shutil.rmtree(queue, ignore_errors=True)

    def rank_with(self, slot: Slot, before: Slot) -> None:
        """Let ``rank`` be a version; where that fails it stays what it was.

        Raises:
            ArtifactError: a config cannot be read.
            ServerError: the server could not.
        """
        ensemble = layout.renamed(layout.read_config(slot.repository / ENSEMBLE), slot.names())
        kept = layout.read_config(self._folder / ENSEMBLE)
        self.need(slot)  # before anything ends that was needed until now
        try:
            layout.point(ensemble, self._folder)
            self._control.load(ENSEMBLE)
        except BaseException:
            layout.point(kept, self._folder)
            self.need(before)
            raise

    def recommend_with(self, slot: Slot, before: Slot) -> None:
        """Let ``recommend`` be that of a version, or of none; where that fails it stays what it was.

        Raises:
            ArtifactError: a config cannot be read.
            ServerError: the server could not.
        """
        leaving = self.stubs([RECOMMEND])
        self.need(slot, leaving)
        if _recommends(slot):
            number = self._number(RECOMMEND)
            layout.lay_out_recommend(slot.repository, self._folder, number)
            self._control.load(RECOMMEND)
            self._await_end(leaving)
            layout.forget_recommend(self._folder, number)
        elif _recommends(before):
            self._control.unload(RECOMMEND)
            self._await_end(leaving)
        self.need(slot, leaving)

    def _number(self, of: str) -> int:
        """Of its next version in Triton. What the server started with has 1."""
        return next(self._numbers.setdefault(of, itertools.cycle(NUMBERS)))

    def _await_end(self, parts: Sequence[Part]) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS
        while any(part.state() for part in parts) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _recommends(slot: Slot) -> bool:
    return (slot.repository / RECOMMEND).is_dir()
