"""A night, from its first step to its last, however often it is cut off between them.

    with only_night(...): the open night goes on, or a new one begins -> steps -> ended, with a reason

A step whose line is in the ledger is not taken again. A refusal (of the inspection, the judge or a gate) ends the night
and leaves what serves alone; the hours stay unlearnt, and the next night reads them. A fault (a store or a controller
that is away) ends the process and not the night: the next run goes on with it, until it was begun so often without
getting a step further that it counts as failed.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, GateError, TritonRankError
from tritonrank.learn.budget import bounded
from tritonrank.learn.ledger import NIGHTS, STEPS, Ledger, Night, StepName
from tritonrank.learn.lock import only_night
from tritonrank.learn.metrics import write_metrics
from tritonrank.learn.page import write_page
from tritonrank.learn.release import write_decisions
from tritonrank.learn.run import NothingNewError, Run
from tritonrank.learn.tracking import keep_for_tracker, track_nights
from tritonrank.recipe import Recipe

MOST_ATTEMPTS = 3
"""To take one and the same step."""
SECONDS_PER_HOUR = 3_600
Step = Callable[[Run], Mapping[str, Any]]

console = Console()


def run_night(
    recipe: Recipe,
    workspace: Workspace,
    steps: Mapping[StepName, Step],
    *,
    controller: str,
    now: float | None = None,
) -> Night:
    """Go on with the open night, or begin one, and take all steps that are left.

    Args:
        recipe: with its section ``learn``.
        workspace: of its build, which the first night starts from.
        steps: what each does, see ``steps.py``.
        controller: URL of the rollout controller.
        now: unix seconds by the clock of the log; default: this machine's.

    Returns:
        The night, ended.

    Raises:
        ArtifactError: there is no build yet, or another process learns here.
        TritonRankError: a step came upon a fault; the night stays open.
    """
    base = base_of(workspace)
    ledger = Ledger(workspace.root)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    with only_night(ledger.folder, recipe.learn.store):
        for said in write_decisions(ledger, workspace.root, controller):
            _say(said)
        night = _open_night(ledger, base, recipe) or _begin(ledger, base, now)
        _say(f"night {night.id}, from {f'night {night.parent}' if night.parent else 'the build'}")
        run = Run(recipe, workspace, ledger, night, time.time() if now is None else now, controller)
        closing = threading.Lock()

        def failed(reason: str) -> None:
            with closing:
                console.print(f"failed: {reason}", markup=False, highlight=False)
                _write_down(ledger, ledger.end(night, "failed", reason), recipe)

        spent = sum(float(told["seconds"]) for told in night.steps.values())
        with bounded(recipe.learn.memory_gb, recipe.learn.hours * SECONDS_PER_HOUR - spent, failed):
            night = _take_steps(run, steps)
        _write_down(ledger, night, recipe)
        track_nights(ledger, recipe.tracking)
        _tidy(ledger, base, recipe.learn.keep_nights)
    return night


def base_of(workspace: Workspace) -> str:
    """Content of the build's checkpoint, from which nights begin.

    Raises:
        ArtifactError: there is none.
    """
    try:
        return read_manifest(workspace.teacher).artifact
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}. A night trains further what was built: tritonrank build RECIPE, serve it, and then learn"
        ) from None


def _open_night(ledger: Ledger, base: str, recipe: Recipe) -> Night | None:
    """The night that was cut off, if it can go on."""
    for night in [one for one in ledger.nights() if one.is_open]:
        if night.base != base:
            reason = "another build came while it was cut off: it started from the one before"
        elif night.attempts >= MOST_ATTEMPTS:
            step = next((name for name in STEPS if name not in night.steps), STEPS[-1])
            reason = f"begun {night.attempts} times without getting beyond the step {step}"
        else:
            _sweep(ledger)
            return ledger.resume(night)
        _write_down(ledger, ledger.end(night, "failed", reason), recipe)
    return None


def _write_down(ledger: Ledger, night: Night, recipe: Recipe) -> None:
    """What is read of an ended night elsewhere: the page, metrics, and its run for a tracker."""
    write_page(ledger, recipe.name)
    write_metrics(ledger, recipe.name)
    keep_for_tracker(ledger, night, recipe)


def _sweep(ledger: Ledger) -> None:
    """Remove half-written files of whoever was killed; those of folders go when the folder is written again."""
    for draft in ledger.folder.rglob("*.tmp"):
        if draft.is_file():
            draft.unlink(missing_ok=True)


def _begin(ledger: Ledger, base: str, now: float | None) -> Night:
    standing = ledger.standing(base)
    return ledger.begin(standing[-1].id if standing else "", base, now)


def _take_steps(run: Run, steps: Mapping[StepName, Step]) -> Night:
    """All that are left; the night is ended when this returns."""
    night, ledger = run.night, run.ledger
    for name in STEPS:
        if name not in night.steps:
            started = time.monotonic()
            try:
                told = steps[name](replace(run, night=night))
            except NothingNewError as nothing:
                return ledger.end(night, "nothing", str(nothing))
            except GateError as refusal:
                return ledger.end(night, "refused", f"{name}: {refusal}")
            except TritonRankError as fault:
                _say(f"cut off at the step {name}; run the command again, and it goes on there")
                raise fault
            night = ledger.finish_step(night, name, time.monotonic() - started, told)
        if refused := night.told(name).get("refused"):
            return ledger.end(night, "refused", f"{name}: {refused}")
    night = ledger.end(night, "accepted", str(night.told("judge").get("said", "all steps passed")))
    if decision := night.told("release").get("decision"):
        night = ledger.decide(night, decision, str(night.told("release")["reason"]))
    return night


def _tidy(ledger: Ledger, base: str, keep: int) -> None:
    """Remove the folders of nights that nobody needs: not the newest, nor those that the next night or a way back
    starts from."""
    nights = ledger.nights()
    needed = {night.id for night in (*nights[-keep:], *ledger.standing(base)[-2:])}
    folder = ledger.folder / NIGHTS
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_dir() and entry.name not in needed:
            shutil.rmtree(entry, ignore_errors=True)


def _say(text: str) -> None:
    console.print(f"{'learn':<10} {text}", markup=False, highlight=False, soft_wrap=True)
