"""What a controller knows, in one file: a controller that is killed and started again goes on where it was.

The file is replaced whole. The ledger's line of a decision is part of the state that the decision led to: a controller
that is killed between the two writes finds the line here, and appends it if the ledger lacks it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from tritonrank.artifacts import write_whole
from tritonrank.artifacts.lines import append_line, read_lines
from tritonrank.errors import ServerError

STATE_FILE = "state.json"
LEDGER_FILE = "ledger.jsonl"
Phase = Literal["loading", "shadow", "canary", "promoting", "done", "returning", "back"]
"""Of a rollout. promoting: live is being set at every gateway and Triton; returning: it is being taken away; done and
back are the two ends."""
PHASES: tuple[Phase, ...] = get_args(Phase)
ENDED: frozenset[Phase] = frozenset({"done", "back"})
GatewayVersion = dict[str, Any]
"""A version as a gateway's private API has it: name, triton, model, share, blend, golden."""


@dataclass
class Seen:
    """What one gateway has counted, over its restarts.

    Attributes:
        mark: tells one run of its counters from the next.
        last: its sums at the last look.
        banked: sums of the runs before.
    """

    mark: str = ""
    last: dict[str, Any] = field(default_factory=dict)
    banked: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rollout:
    """One version on its way.

    Attributes:
        id: of this rollout, in the ledger: its start and the version.
        name: of the version.
        source: path or URL that it is loaded from; "" where it runs already, at ``version``'s addresses.
        rules: all of them, as they were at the start.
        version: as gateways are told; empty until it is known.
        before: what was live at the gateways when it began.
        before_in_triton: what was live in the Tritons then: name and source.
        phase: where it is.
        share: the canary's now, or 0.
        step: number of shadow (0) and the canaries (from 1 on).
        since: unix seconds when every gateway had taken the step; 0 until then.
        began: unix seconds when the phase was entered.
        is_held: a person wants it to stay where it is.
        reason: of the last decision, or why it waits.
        seen: per role and gateway.
        at_step: per role: the sums when the step was taken.
    """

    id: str
    name: str
    source: str
    rules: dict[str, Any]
    version: GatewayVersion = field(default_factory=dict)
    before: GatewayVersion = field(default_factory=dict)
    before_in_triton: dict[str, str] = field(default_factory=dict)
    phase: Phase = "loading"
    share: float = 0.0
    step: int = 0
    since: float = 0.0
    began: float = 0.0
    is_held: bool = False
    reason: str = ""
    seen: dict[str, dict[str, Seen]] = field(default_factory=dict)
    at_step: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Self:
        """From JSON."""
        seen = {role: {url: Seen(**one) for url, one in found.items()} for role, found in told["seen"].items()}
        return cls(**{**told, "seen": seen})


@dataclass
class State:
    """Everything.

    Attributes:
        rollout: the one under way, or the last one; None before the first.
        live: what every gateway has to have as live, since a rollout set it; None: whatever it was started with.
        unload: versions in the Tritons that nobody needs any more, and from when on (unix seconds).
        lines: how many decisions there are.
        line: the last one, as it is in the ledger.
    """

    rollout: Rollout | None = None
    live: GatewayVersion | None = None
    unload: dict[str, float] = field(default_factory=dict)
    lines: int = 0
    line: dict[str, Any] = field(default_factory=dict)


class Store:
    """The state and the ledger in a folder.

    Args:
        folder: is made where it is not there.

    Raises:
        ServerError: the state cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._state, self._ledger = folder / STATE_FILE, folder / LEDGER_FILE
        self.state = self._read()
        if self.state.line and self.state.line not in self.lines()[-1:]:
            append_line(self._ledger, self.state.line, 0o600)

    def save(self) -> None:
        """Write the state; raises StorageError."""
        write_whole(self._state, json.dumps(asdict(self.state)))

    def decide(self, line: dict[str, Any]) -> None:
        """Write the state with a decision, and the decision; raises StorageError."""
        self.state.lines += 1
        self.state.line = {"number": self.state.lines} | line
        self.save()
        append_line(self._ledger, self.state.line, 0o600)

    def lines(self, rollout: str = "") -> list[dict[str, Any]]:
        """The ledger's lines, or those of one rollout, oldest first."""
        return [line for line in read_lines(self._ledger) if not rollout or line.get("rollout") == rollout]

    def _read(self) -> State:
        try:
            told = json.loads(self._state.read_text(encoding="utf-8"))
            return State(**(told | {"rollout": Rollout.read(told["rollout"]) if told["rollout"] else None}))
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerError(
                f"{self._state}: cannot be read ({type(error).__name__}: {error}). Move it away: a new one is "
                "written, and the gateways keep what they have"
            ) from error
