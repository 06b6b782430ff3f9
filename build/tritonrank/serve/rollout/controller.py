"""The controller of rollouts: what people ask of it, and the look that it takes every second.

What should be is written down (``state.py``), and what is, is compared with it at each look: so a gateway that was
started again gets its versions again, a Triton that lost one loads it again, and a controller that was killed goes on.
Nothing here is on the way of a request. When the controller is away, the gateways go on with what they have.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrank.errors import ServerError, TritonRankError
from tritonrank.serve.rollout.book import PERSON, Book, NotNowError
from tritonrank.serve.rollout.gateways import Gateways
from tritonrank.serve.rollout.journey import Journey
from tritonrank.serve.rollout.places import pinned
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.state import Rollout
from tritonrank.serve.rollout.status import status_of
from tritonrank.serve.rollout.tritons import Tritons
from tritonrank.serve.supervisor import tell
from tritonrank.serve.versions.shapes import NAME

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """A version that runs already, which nobody has to load.

    Attributes:
        triton: its addresses.
        model: its ensemble.
    """

    triton: Sequence[str]
    model: str = "rank"


class Controller:
    """One rollout at a time; its methods may be called by several threads.

    Args:
        gateways: all of them.
        tritons: all of them; empty where every version runs already.
        folder: of the state and the ledger; one controller at a time has it.
        rules: of a rollout that names none.
        clock: unix seconds.

    Raises:
        ServerError: another controller has the folder, or the state cannot be read.
    """

    def __init__(
        self,
        gateways: Gateways,
        tritons: Tritons,
        folder: Path,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.book = Book(folder, clock)
        self._gateways, self._tritons = gateways, tritons
        self._journey = Journey(self.book, gateways, tritons)
        self._rules = rules or Rules()
        self._lock = threading.RLock()
        self.problem = ""
        """why the last look came to nothing"""
        self._tell()

    def start(
        self, source: str, name: str = "", rules: Mapping[str, Any] | None = None, running: Running | None = None
    ) -> Rollout:
        """Begin to roll a version out.

        Args:
            source: path or URL of an artifact, which every Triton loads.
            name: of the version; by default made of the source and the time.
            rules: those that are to differ.
            running: the version runs already, and there is no source.

        Raises:
            NotNowError: another rollout is under way.
            ServerError: the name or a rule is wrong, or there is no Triton that could load it.
        """
        made = Rules.made(self._rules.told() | dict(rules or {}), "rules")
        if bool(source) == (running is not None):
            raise ServerError(
                "name either an artifact to load or the addresses where the version runs already: --triton"
            )
        if source and not self._tritons:
            raise ServerError("no Triton is known that could load it: tritonrank rollout run --triton-admin URL")
        version_source = pinned(source)
        with self._lock:
            if self.book.is_under_way:
                assert self.book.rollout is not None
                raise NotNowError(f"rollout {self.book.rollout.id} is under way: tritonrank rollout status, or back")
            now = self.book.clock()
            name = name or _name_of(source, now)
            if not NAME.fullmatch(name):
                raise ServerError(f"name {name!r}: expected a to z, 0 to 9 and -, 32 characters at most")
            if self.book.state.live is not None and self.book.state.live["name"] == name:
                raise NotNowError(f"version {name} is live already; choose another name: --name")
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            rollout = Rollout(f"{stamp}-{name}", name, version_source, made.told(), began=now)
            if running is not None:
                rollout.version = {"name": name, "triton": list(running.triton), "model": running.model}
            self.book.state.rollout = rollout
            for kept in self.book.state.unload:  # two versions at a time are memory enough
                self.book.state.unload[kept] = now
            self.book.state.unload.pop(name, None)
            self.book.readings = []
            self.book.decide(
                "start", f"asked for, from {version_source or ', '.join(running.triton if running else ())}", PERSON
            )
            self._tell()
            return rollout

    def promote(self, *, to_live: bool = False) -> Rollout:
        """Go a step on, or to live, whatever the rules say; ends a hold.

        Raises:
            NotNowError: nothing is under way, or the version is not loaded yet.
        """
        with self._lock:
            rollout = self.book.under_way()
            if rollout.phase not in ("shadow", "canary"):
                raise NotNowError(f"version {rollout.name} is {rollout.phase}: there is no step to go on from yet")
            rollout.is_held = False
            self._journey.step_on("asked for", PERSON, to_live=to_live)
            self._tell()
            return rollout

    def hold(self) -> Rollout:
        """Stay at this step until somebody says ``promote``; the rules may still take it back.

        Raises:
            NotNowError: nothing is under way.
        """
        with self._lock:
            rollout = self.book.under_way()
            rollout.is_held = True
            self.book.decide("hold", "asked for", PERSON)
            self._tell()
            return rollout

    def back(self) -> Rollout:
        """Take the version back: from its step, or, after it was promoted, from live.

        Raises:
            NotNowError: there is none.
        """
        with self._lock:
            rollout = self.book.rollout
            if rollout is None or rollout.phase in ("back", "returning"):
                raise NotNowError("there is no version to take back: tritonrank rollout status")
            self._journey.go_back("asked for", PERSON)
            self._tell()
            return rollout

    def look(self) -> None:
        """Look once, and do what is due. What goes wrong is told in the status, and tried again at the next look."""
        with self._lock:
            try:
                self._journey.look()
                self.problem = ""
            except (OSError, TritonRankError) as error:
                self.problem = f"{type(error).__name__}: {error}"
            self._tell()

    def run(self, stopping: threading.Event) -> None:
        """Look every second until it is told to stop."""
        said = ""
        while not stopping.wait(LOOK_SECONDS):
            self.look()
            if self.problem != said:
                tell(f"rollout: {self.problem or 'all is well again'}")
                said = self.problem

    def status(self) -> dict[str, Any]:
        """As of the last look or request, see ``status_of``; it does not wait for a look that is under way."""
        return self._told

    def _tell(self) -> None:
        self._told = status_of(self.book, self._journey.views, self._journey.triton_views, self.problem)

    def close(self) -> None:
        """Let another controller have the folder; the gateways keep what they have."""
        self._gateways.close()
        self._tritons.close()
        self.book.close()


def _name_of(source: str, now: float) -> str:
    """A name for a version: the end of its source, as far as a name may have it, and the minute."""
    last = re.sub(r"[^a-z0-9]+", "-", source.lower().rstrip("/").rpartition("/")[2]).strip("-")[:16].strip("-")
    stamp = time.strftime("%m%d-%H%M%S", time.gmtime(now))
    return f"{last}-{stamp}" if last else f"v{stamp}"
