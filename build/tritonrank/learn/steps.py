"""The steps of a night: each does one thing, leaves it in the night's folder, and tells of it in the ledger.

    collect -> inspect -> examples -> finetune -> judge -> build -> publish -> release

Each may be begun again after it was cut off anywhere: artifacts appear whole or not at all, a version is pushed by its
content, a rollout has the night's name, by which it is found again. What would end the night raises: ``GateError`` where
the night is refused, ``NothingNewError`` where there is nothing to learn.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrank.artifacts import read_manifest, write_whole
from tritonrank.artifacts.stage import Stage, bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.event_log import first_hour, read_rows
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.learn import examples
from tritonrank.learn.compress import compress
from tritonrank.learn.ledger import Ledger, Night, StepName
from tritonrank.learn.release import publish, release
from tritonrank.learn.windows import Span, Windows, plan_windows
from tritonrank.recipe import EventsData, Recipe

BASELINE = "baseline"
"""Folder of a night: what days are compared with, once this one is accepted."""
INSPECTION, VERDICT = "inspection.json", "verdict.json"
REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "numpy")


class NothingNewError(Exception):
    """There is nothing to learn yet; says why."""


@dataclass(frozen=True)
class Run:
    """What a step works with.

    Attributes:
        recipe: with its section ``learn``.
        workspace: of the recipe's own build.
        ledger: of its nights.
        night: the one that runs, as the ledger has it.
        now: unix seconds, by the clock of the log.
        controller: URL of the rollout controller.
    """

    recipe: Recipe
    workspace: Workspace
    ledger: Ledger
    night: Night
    now: float
    controller: str

    @property
    def home(self) -> Workspace:
        """The night's own artifacts."""
        return self.ledger.workspace_of(self.night)

    @property
    def live(self) -> Workspace:
        """Where the last accepted ranker is: that of the parent night, or of the recipe's build."""
        return self.ledger.workspace_of(self.night.parent) if self.night.parent else self.workspace

    @property
    def windows(self) -> Windows:
        """What ``collect`` chose."""
        return Windows.of_json(dict(self.night.told("collect")["windows"]))


def log_of(recipe: Recipe) -> Path:
    """The training log.

    Raises:
        RecipeError: the recipe names none.
    """
    if recipe.learn.log is not None:
        return recipe.learn.log
    if isinstance(recipe.data, EventsData) and isinstance(recipe.data.events, Path):
        return recipe.data.events
    raise RecipeError(
        f"{recipe.name}: nothing says where the training log is. Name the folder of the gateway's --events-log: "
        "learn.log, or data.events with data.source events"
    )


def collect(run: Run) -> dict[str, Any]:
    """Choose the hours, once: whatever is written meanwhile is the next night's."""
    log = log_of(run.recipe)
    start = first_hour(log)
    if start is None:
        raise NothingNewError(f"{log}: the log has no hour yet. Start gateways with --events-log {log}")
    standing = run.ledger.standing(run.night.base)
    learnt = (
        Windows.of_json(dict(standing[-1].told("collect")["windows"])).learnt_until
        if standing
        else examples.learnt_until(run.recipe, run.workspace.dataset)
    )
    windows = plan_windows(run.recipe.learn, run.now, start, learnt_until=learnt, frozen=_frozen(run))
    if windows.new.is_empty:
        raise NothingNewError(
            f"no hour is new: the log was learnt up to {_utc(windows.new.start)}, and what came in the "
            f"{run.recipe.learn.newest_hours} hours before the last whole one is judged first"
        )
    rows = read_rows(log, windows.new.start, windows.new.end)
    return {
        "log": str(log),
        "windows": windows.as_json(),
        "hours": windows.new.hours,
        "events": rows.events.height,
        "pages": rows.shown.height,
    }
