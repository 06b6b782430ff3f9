"""A controller's book: the state of the rollout, what gateways have counted for it, and its decisions."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonrank.artifacts.locks import release, take
from tritonrank.errors import ServerError
from tritonrank.serve.rollout.gateways import View
from tritonrank.serve.rollout.judge import Figures, Reading, of
from tritonrank.serve.rollout.state import ENDED, Phase, Rollout, Seen, State, Store
from tritonrank.serve.rollout.sums import added, note, total
from tritonrank.serve.supervisor import tell

PARTS = ("live", "version", "pairs", "dropped")
RULES, PERSON = "rules", "person"
"""Who decides."""


class NotNowError(ServerError):
    """What was asked for does not go with where the rollout is."""


class Book:
    """Kept in a folder; used by one thread at a time.

    Args:
        folder: of the state and the ledger; one controller at a time has it.
        clock: unix seconds.

    Raises:
        ServerError: another controller has the folder, or the state cannot be read.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._locked = take(folder, wait=False)
        if self._locked is False:
            raise ServerError(f"{folder}: another rollout controller has it. Choose another folder: --state FOLDER")
        self._folder = folder
        self._store = Store(folder)
        self._seconds: Sequence[float] = ()
        self.clock = clock
        self.readings: list[Reading] = []
        """of the last look"""
        self.decided: Counter[tuple[str, str]] = Counter()
        """by decision and rule, since this process began"""

    @property
    def state(self) -> State:
        return self._store.state

    @property
    def rollout(self) -> Rollout | None:
        return self._store.state.rollout

    @property
    def is_under_way(self) -> bool:
        return self.rollout is not None and self.rollout.phase not in ENDED

    def close(self) -> None:
        """Let another controller have the folder."""
        if self._locked:
            release(self._folder)

    def save(self) -> None:
        """Write the state; raises StorageError."""
        self._store.save()

    def lines(self, rollout: str = "") -> list[dict[str, Any]]:
        """The ledger, or what is there of one rollout."""
        return self._store.lines(rollout)

    def figures(self, rollout: Rollout) -> Figures:
        """What the gateways say together."""
        whole = {role: total(rollout.seen.get(role, {})) for role in ("shadow", "canary")}
        step = {role: added(whole[role], rollout.at_step.get(role, {}), -1) for role in whole}
        return Figures(whole["shadow"], whole["canary"], step["shadow"], step["canary"], self._seconds)

    def count(self, rollout: Rollout, views: Sequence[View]) -> None:
        """Take the sums of the gateways that compare this version."""
        for view in views:
            self._seconds = view.compared.get("seconds") or self._seconds
            for role in ("shadow", "canary"):
                compared = view.compared.get(role)
                if compared and compared.get("name") == rollout.name:
                    mark = f"{view.compared.get('started')}:{compared.get('since_generation')}"
                    seen = rollout.seen.setdefault(role, {}).setdefault(view.url, Seen())
                    note(seen, mark, {part: compared.get(part) or {} for part in PARTS})

    def enter(self, phase: Phase, step: int, share: float, views: Sequence[View]) -> None:
        """Go to a phase; its figures begin with what the gateways say now."""
        rollout = self.rollout
        assert rollout is not None
        self.count(rollout, views)
        rollout.phase, rollout.step, rollout.share = phase, step, share
        rollout.began, rollout.since = self.clock(), 0.0
        rollout.at_step = {role: total(gateways) for role, gateways in rollout.seen.items()}

    def decide(
        self, decision: str, reason: str, by: str, rule: str = "", exposure: Mapping[str, float] | None = None
    ) -> None:
        """Write a decision down, with the figures that it was made by.

        Args:
            decision: what is done.
            reason: why, for people.
            by: RULES or PERSON.
            rule: the one that made it.
            exposure: of the users, where it is not that of now.
        """
        rollout = self.rollout
        assert rollout is not None
        rollout.reason = reason
        figures = self.figures(rollout)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock())),
            "rollout": rollout.id,
            "decision": decision,
            "phase": rollout.phase,
            "share": rollout.share,
            "by": by,
            "reason": reason,
            "rule": rule,
            "pairs": of(figures.shadow, "pairs", "count"),
            "exposure": dict(exposure or figures.exposure),
            "readings": [reading.told() for reading in self.readings],
        }
        self._store.decide(line)
        self.decided[decision, rule or by] += 1
        tell(f"rollout {rollout.id}: {decision} ({by}): {reason}")

    def under_way(self) -> Rollout:
        """The rollout that goes on; raises NotNowError where none does."""
        rollout = self.rollout
        if rollout is None or rollout.phase in ENDED:
            raise NotNowError("no rollout is under way: tritonrank rollout start SOURCE")
        return rollout
