"""The versions of one running Triton: loaded beside what serves, proved, made live, and taken away again.

One thread does the slow work, one version after the other: fetch, compare with the hashes, serve it by itself once
(``rehearsal.py``), link beside under names of its own, load, ask the golden requests through the live ensemble, and
only then call it ready. Whatever goes wrong ends with the version unloaded and its reason told; what serves is not
touched. Making a version live is a matter of milliseconds and waits for nobody: Triton loads the ensemble ``rank`` with
other steps, and requests in flight end where they began.

To the supervisor the shelf is what it starts, and what it asks golden requests of: the live version, whichever that is.
A server that is brought back starts with that one, and gets all others back one after the other.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.model_names import ENSEMBLE
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import CheckedRepository, artifact_name, check_golden_cases
from tritonrank.serve.supervisor import Succession, tell
from tritonrank.serve.versions import layout
from tritonrank.serve.versions.live_models import LiveModels
from tritonrank.serve.versions.rehearsal import rehearse
from tritonrank.serve.versions.shapes import NAME, UNDER_WAY, Live, State, Version, Versions
from tritonrank.serve.versions.slot import Slot

LOOK_SECONDS = 0.2
MOST_VERSIONS = 8
"""Each is a copy of a model in memory."""


class RefusedError(ServerError):
    """What was asked for cannot be done.

    Attributes:
        status: of HTTP.
        code: in one word.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class LeavingError(Exception):
    """Somebody took the version away while it was being loaded."""


class VersionShelf:
    """All versions of one server; a context, in which its thread works.

    Args:
        first: what the server starts with.
        source: where that was named.
        open_source: makes of a path or URL what can be served.
        record: writes down what is live for a restart; gives it in words, or None where nothing can remember it.
        succession: says what else is to be live now, such as a build that was promoted.
    """

    def __init__(
        self,
        first: CheckedRepository,
        source: str,
        open_source: Callable[[str], CheckedRepository],
        record: Callable[[Path], str | None],
        succession: Succession | None = None,
    ) -> None:
        name = artifact_name(first.folder)
        self._slots = {name: Slot(name, source, "ready", first, is_first=True, is_asked_for=False)}
        self._live = name
        self._open_source = open_source
        self._record = record
        self._succession = succession
        self._models: LiveModels | None = None
        """those of the server that runs; None while it is being brought back"""
        self._lock = threading.RLock()
        """of slots, and of who is live"""
        self._switching = threading.Lock()
        """one after the other becomes live"""
        self._turn = threading.Lock()
        """of what ``rank`` is: held while it changes, and while a golden request is asked"""
        self._work = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="versions", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._work.set()

    # ---- what the supervisor starts and asks

    @property
    def folder(self) -> Path:
        """The repository that is live."""
        return self._slots[self._live].repository

    def make(self, **options: Any) -> LocalTriton:
        """A server, not yet started, for the version that is live; the others wait until it answers."""
        with self._lock:
            self._models = None
            live = self._slots[self._live]
            for slot in [*self._slots.values()]:
                slot.is_first, slot.parts = slot is live, ()
                if slot.state == "leaving":
                    del self._slots[slot.name]
                elif slot is not live and slot.state != "failed":
                    slot.state = "waiting"
        assert live.checked is not None
        return live.checked.make(**options, more=self)

    def lay_out(self, models: Path) -> Sequence[str]:
        """See MoreModels."""
        live = self._slots[self._live]
        ensemble = layout.read_config(live.repository / ENSEMBLE)
        for name in (ENSEMBLE, live.ensemble):
            layout.point(ensemble, models, name)
        for model in models.iterdir():
            layout.keep_byte_code_out(model)
        layout.lay_out_steward(models)
        return [*layout.model_names(live.repository), live.ensemble, layout.STEWARD]

    def prove(self, server: LocalTriton, cancelled: threading.Event) -> None:
        """See GoldenCheck."""
        live = self._slots[self._live]
        assert live.checked is not None
        live.checked.prove(server, cancelled)
        models = LiveModels(server)
        models.need(live)
        with self._lock:
            live.parts = models.stubs(live.models())
            self._models = models
        self._work.set()

    def ask(self, server: LocalTriton, seconds: float) -> None:
        """See GoldenCheck."""
        with self._turn:
            checked = self._slots[self._live].checked
            assert checked is not None
            checked.ask(server, seconds)

    # ---- what callers ask for

    def told(self) -> Versions:
        """All versions as they are now."""
        with self._lock:
            place = urlsplit(self._models.server.grpc_url).netloc if self._models else ""
            return Versions(self._live, tuple(slot.told() for slot in self._slots.values()), place)

    def put(self, name: str, source: str) -> Version:
        """Have a version loaded; says how far it is.

        Raises:
            RefusedError: its name cannot be one, or another source has it, or there are too many.
        """
        if not NAME.fullmatch(name):
            raise RefusedError(422, "name", f"version {name!r}: expected [a-z0-9-], 32 characters at most")
        with self._lock:
            slot = self._slots.get(name)
            if slot is not None and slot.state == "leaving":
                raise RefusedError(409, "leaving", f"version {name} is being taken away; try again in a moment")
            if slot is not None and slot.state != "failed":
                if slot.source != source:
                    raise RefusedError(
                        409, "taken", f"version {name} is {slot.source}. Choose another name, or delete it first"
                    )
                slot.is_asked_for = True
                return slot.told()
            if slot is None and len(self._slots) >= MOST_VERSIONS:
                raise RefusedError(
                    409, "full", f"{MOST_VERSIONS} versions are there already, which is the most. Delete one first"
                )
            slot = self._slots[name] = Slot(name, source)
        self._work.set()
        return slot.told()

    def delete(self, name: str) -> Version:
        """Have a version taken away once its requests in flight are answered.

        Raises:
            RefusedError: there is none of that name, or it is live.
        """
        with self._lock:
            slot = self._found(name)
            if name == self._live:
                raise RefusedError(409, "live", f"version {name} is live. Make another one live first: PUT /live")
            slot.state, slot.reason = "leaving", None
        self._work.set()
        return slot.told()

    def make_live(self, name: str) -> Live:
        """Let ``rank`` and ``recommend`` be a version that is ready.

        Raises:
            RefusedError: there is none of that name, it is not ready, or the server is being brought back.
            ServerError: the server could not; what was live still is.
        """
        before, slot = self._switch(name)
        recorded = None
        if before is not slot:
            tell(f"version {slot.name} is live, {before.name} was before")
            try:
                recorded = self._record(slot.repository)
            except TritonRankError as error:
                tell(f"version {slot.name} is live, but a restart will not know: {error}")
        return Live(slot.name, before.name, recorded)

    def _switch(self, name: str) -> tuple[Slot, Slot]:
        """Make it live; gives what was before, and what is now."""
        with self._switching:
            with self._lock:
                slot, before, models = self._found(name), self._slots[self._live], self._models
            if models is None:
                raise RefusedError(409, "not-ready", "the server is being brought back; try again in a moment")
            if slot is before:
                return before, slot
            try:
                self._rank_with(slot, before, models)
                try:
                    models.recommend_with(slot, before)
                except BaseException:
                    self._rank_with(before, slot, models)
                    models.need(before)
                    raise
            except OSError as error:  # its run folder is gone
                raise ServerError(f"version {name} cannot be live: the server ended meanwhile ({error})") from None
            return before, slot

    def _rank_with(self, slot: Slot, before: Slot, models: LiveModels) -> None:
        with self._turn, self._lock:
            if slot.state != "ready" or self._models is not models:
                raise RefusedError(409, "not-ready", f"version {slot.name} is not ready: {slot.reason or slot.state}")
            models.rank_with(slot, before)
            self._live = slot.name

    def _found(self, name: str) -> Slot:
        slot = self._slots.get(name)
        if slot is None:
            raise RefusedError(404, "unknown", f"there is no version {name!r}; there are: {', '.join(self._slots)}")
        return slot

    # ---- the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            self._work.wait(LOOK_SECONDS)
            self._work.clear()
            try:
                while not self._closed.is_set() and self._step():
                    pass
            except Exception as error:  # noqa: BLE001 - whatever it is, the next version must find somebody who works
                tell(f"versions: {type(error).__name__}: {error}")

    def _step(self) -> bool:
        """Do one thing; False where there is nothing to do."""
        with self._lock:
            models = self._models
            slots = [*self._slots.values()]
        if models is None or models.is_ending:
            return False
        for slot in slots:
            if slot.state == "leaving":
                self._take_away(slot, models)
                return True
        for slot in slots:
            if slot.state == "waiting":
                self._bring(slot, models)
                return True
            if slot.state == "ready" and slot.name != self._live and (lost := slot.lost()):
                self._lose(slot, models, f"{lost} ended")
                return True
        return self._follow()

    def _bring(self, slot: Slot, models: LiveModels) -> None:
        """From ``waiting`` to ``ready``, or to ``failed``; back to waiting where the server is lost meanwhile."""
        began = time.monotonic()
        try:
            if slot.checked is None:
                self._advance(slot, "fetching")
                slot.checked = self._open_source(slot.source)
            slot.checked.check()
            self._advance(slot, "loading")
            rehearse(slot.checked, models.server, self._closed)
            slot.parts = models.load(slot)
            self._advance(slot, "proving")
            check_golden_cases(slot.repository, models.server.checked_at, self._closed, slot.ensemble)
            with self._lock:
                self._advance(slot, "ready")
                slot.seconds = time.monotonic() - began
            tell(f"version {slot.name} is ready after {slot.seconds:.1f} s")
        except LeavingError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a version, what serves goes on
            self._give_up(slot, models, f"{error}" if isinstance(error, TritonRankError) else f"{error!r}")

    def _give_up(self, slot: Slot, models: LiveModels, reason: str) -> None:
        if slot.checked is not None:
            with suppress(ServerError):  # it may be what is wrong
                models.unload(slot)
        with self._lock:
            slot.parts = ()
            if self._closed.is_set() or self._models is not models or models.is_ending:  # not this version's fault
                slot.state = "waiting" if slot.state in UNDER_WAY else slot.state
                return
            if slot.state != "leaving":
                slot.state, slot.reason = "failed", reason
        tell(f"version {slot.name} is not served: {reason}")

    def _advance(self, slot: Slot, state: State) -> None:
        with self._lock:
            if slot.state == "leaving" or self._slots.get(slot.name) is not slot:
                raise LeavingError
            slot.state = state

    def _take_away(self, slot: Slot, models: LiveModels) -> None:
        if slot.checked is not None:
            with suppress(ServerError):  # the server is lost, and with it the version
                models.unload(slot)
        with self._lock:
            if self._slots.get(slot.name) is slot:
                del self._slots[slot.name]
        tell(f"version {slot.name} was taken away")

    def _lose(self, slot: Slot, models: LiveModels, reason: str) -> None:
        """A version that is not live has lost a process: it is loaded again, a few times."""
        with self._lock:
            if slot.state != "ready" or slot.name == self._live:
                return
            slot.state = "loading"
        if not slot.note_loss():
            self._give_up(slot, models, f"{reason}, again and again")
            return
        with suppress(ServerError):
            models.unload(slot)
        with self._lock:
            if slot.state == "loading":
                slot.state = "waiting"
        tell(f"version {slot.name}: {reason}; it is loaded again")

    def _follow(self) -> bool:
        """What somebody promoted is loaded beside what serves, made live, and what was live leaves."""
        successor = self._succession.successor() if self._succession else None
        if successor is None or self._succession is None:
            return False
        checked = successor.golden
        assert isinstance(checked, CheckedRepository)
        with self._lock:
            known = [slot for slot in self._slots.values() if slot.checked and slot.state != "leaving"]
            slot = next((slot for slot in known if slot.repository.resolve() == checked.folder.resolve()), None)
            if slot is not None and slot.state == "failed":  # promoted once more
                slot.state, slot.reason = "loading", None
            if slot is None:
                name = artifact_name(checked.folder)
                if (other := self._slots.get(name)) is not None:  # the same artifact, at another place
                    slot = other
                else:
                    slot = self._slots[name] = Slot(name, str(checked.folder), "loading", checked, is_asked_for=False)
                    self._work.set()
        if slot.state == "loading" and self._models:
            self._bring(slot, self._models)
        if slot.state in UNDER_WAY or slot.state == "leaving":
            return False
        try:
            before, _ = self._switch(slot.name)
        except ServerError as error:
            self._succession.failed(successor)
            tell(f"{successor.name} is not served, what was live still is: {error}")
            return True
        self._succession.took_over(successor)
        if before is not slot:
            tell(f"{successor.name} is live, and no request was lost")
            if not before.is_asked_for:
                self.delete(before.name)
        return True
