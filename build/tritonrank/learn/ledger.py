"""What every night did, in ``artifacts/<recipe>/learn/ledger.jsonl``: lines that are only added.

    {"night": "20261127T020000Z", "time": ..., "event": "began", "parent": "20261126T020000Z", "base": "9f..."}
    {"night": ..., "event": "step", "step": "collect", "seconds": 1.2, "told": {"windows": {...}}}
    {"night": ..., "event": "ended", "outcome": "accepted", "reason": "..."}
    {"night": ..., "event": "decided", "decision": "live", "reason": "..."}

A step is done when its line is there, which is written after all that the step leaves behind: whoever is killed before
does it again, whoever is killed after goes on behind it. A night without an end is under way, or was cut off.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tritonrank.artifacts.lines import append_line, read_lines
from tritonrank.artifacts.workspace import Workspace

LEARN = "learn"
"""In the recipe's folder of artifacts: the ledger, its page, and a folder for each night."""
LEDGER_FILE = "ledger.jsonl"
NIGHTS = "nights"
ID = "%Y%m%dT%H%M%SZ"
StepName = Literal["collect", "inspect", "examples", "finetune", "judge", "build", "publish", "release"]
STEPS: tuple[StepName, ...] = get_args(StepName)
"""In the order in which a night takes them."""
Outcome = Literal["accepted", "refused", "failed", "nothing"]
"""How a night ended. accepted: published as the next version; refused: by inspection, judge or gate; failed: by a
fault, or its budget; nothing: there were no new hours. Hours of a night that was not accepted are the next one's."""
Decision = Literal["live", "back"]
"""What became of an accepted version: it serves, or it was taken back."""


@dataclass(frozen=True)
class Night:
    """One run of ``tritonrank learn``, over all its attempts.

    Attributes:
        id: when it began, UTC, to the second.
        began: unix seconds.
        parent: id of the accepted night whose checkpoint it starts from; "" for that of the recipe's build.
        base: content of the build's checkpoint that the first of its parents started from.
        steps: what each finished step told, by name in their order; ``seconds`` beside it.
        attempts: how often it was begun or resumed since it got a step further.
        outcome: see Outcome; "" as long as it has not ended.
        reason: of the outcome, in a sentence.
        decision: see Decision; "" as long as none is known.
        ended: unix seconds; 0 as long as it has not ended.
    """

    id: str
    began: float
    parent: str = ""
    base: str = ""
    steps: Mapping[StepName, Mapping[str, Any]] = field(default_factory=dict)
    attempts: int = 1
    outcome: Outcome | Literal[""] = ""
    reason: str = ""
    decision: Decision | Literal[""] = ""
    ended: float = 0.0

    def told(self, step: StepName) -> Mapping[str, Any]:
        """What a finished step told; empty where it has not finished."""
        return self.steps.get(step, {})

    @property
    def stands(self) -> bool:
        """Whether the next night may start from it: it was accepted, and nobody took its version back."""
        return self.outcome == "accepted" and self.decision != "back"

    @property
    def is_open(self) -> bool:
        """Whether it is under way or was cut off."""
        return not self.outcome


class Ledger:
    """The nights of one recipe; one process at a time writes (``lock.py``), any number read.

    Args:
        root: ``artifacts/<recipe>``.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / LEARN
        self._path = self.folder / LEDGER_FILE

    def nights(self) -> list[Night]:
        """All nights, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for line in read_lines(self._path):
            if {"night", "time", "event"} <= line.keys():
                found.setdefault(line["night"], []).append(line)
        return [_night_of(name, lines) for name, lines in found.items()]

    def night(self, name: str) -> Night:
        """One by its id; KeyError where there is none."""
        return {night.id: night for night in self.nights()}[name]

    def standing(self, base: str) -> list[Night]:
        """The accepted nights that the newest one stands on, itself last: each started from the one before.

        What was taken back is none of them, nor what was learnt on top of that, nor what began with another build.

        Args:
            base: content of the build's checkpoint as it is now.
        """
        nights = {night.id: night for night in self.nights() if night.base == base}
        for night in reversed(nights.values()):
            if chain := _chain(night, nights):
                return chain
        return []

    def folder_of(self, night: Night | str) -> Path:
        """Where a night's files are."""
        return self.folder / NIGHTS / (night if isinstance(night, str) else night.id)

    def workspace_of(self, night: Night | str) -> Workspace:
        """A night's artifacts: dataset, teacher and what a build makes of them."""
        return Workspace(self.folder_of(night))

    def begin(self, parent: str, base: str, now: float | None = None) -> Night:
        """Open a night.

        Args:
            parent, base: see Night.
            now: unix seconds; default: the clock's.

        Raises:
            StorageError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        at = time.time() if now is None else now
        known = {night.id for night in self.nights()}
        while (name := time.strftime(ID, time.gmtime(at))) in known:
            at += 1
        self._append(name, "began", parent=parent, base=base)
        return self.night(name)

    def resume(self, night: Night) -> Night:
        """Say that a night that was cut off goes on; raises StorageError."""
        self._append(night.id, "resumed")
        return self.night(night.id)

    def finish_step(self, night: Night, step: StepName, seconds: float, told: Mapping[str, Any]) -> Night:
        """Write down that a step is done; raises StorageError.

        Args:
            night: whose.
            step: which.
            seconds: that it took.
            told: JSON-able; what later steps, later nights and the page need of it.
        """
        self._append(night.id, "step", step=step, seconds=round(seconds, 3), told=dict(told))
        return self.night(night.id)

    def end(self, night: Night, outcome: Outcome, reason: str) -> Night:
        """Close a night; raises StorageError."""
        self._append(night.id, "ended", outcome=outcome, reason=reason)
        return self.night(night.id)

    def decide(self, night: Night, decision: Decision, reason: str) -> Night:
        """Write down what became of an accepted version; raises StorageError."""
        self._append(night.id, "decided", decision=decision, reason=reason)
        return self.night(night.id)

    def _append(self, night: str, event: str, **more: Any) -> None:
        append_line(self._path, {"night": night, "time": round(time.time(), 3), "event": event} | more)


def _night_of(name: str, lines: Sequence[Mapping[str, Any]]) -> Night:
    told: dict[str, Any] = {"id": name, "began": float(lines[0]["time"]), "steps": {}, "attempts": 0}
    for line in lines:
        match line["event"]:
            case "began":
                told |= {"parent": line["parent"], "base": line["base"], "attempts": told["attempts"] + 1}
            case "resumed":
                told["attempts"] += 1
            case "step":
                told["steps"][line["step"]] = {**line["told"], "seconds": line["seconds"]}
                told["attempts"] = 1
            case "ended":
                told |= {"outcome": line["outcome"], "reason": line["reason"], "ended": float(line["time"])}
            case "decided":
                told |= {"decision": line["decision"]}
    return Night(**told)


def _chain(last: Night, nights: Mapping[str, Night]) -> list[Night]:
    """The nights from the first to this one, each the parent of the next; empty where one of them does not stand."""
    chain: list[Night] = []
    night: Night | None = last
    while night is not None:
        if not night.stands:
            return []
        chain.insert(0, night)
        night = nights.get(night.parent)
    return chain
