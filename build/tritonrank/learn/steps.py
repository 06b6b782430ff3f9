"""The steps of a night: each does one thing, leaves it in the night's folder, and tells of it in the ledger.

    collect -> inspect -> examples -> finetune -> judge -> build -> publish -> release

Each may be begun again after it was cut off anywhere: artifacts appear whole or not at all, a version is pushed by its
content, a rollout has the night's name, by which it is found again. What ends the night is raised (``GateError`` where
it is refused, ``NothingNewError`` where there is nothing to learn) or told as ``refused``, where there is more to tell.
"""

import shlex
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tritonrank.artifacts.builds import find_build
from tritonrank.artifacts.manifest import sha256_json
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.event_log import files_between, first_hour, read_rows
from tritonrank.learn.compress import compress
from tritonrank.learn.guards.baseline import Measure
from tritonrank.learn.inspecting import inspect_hours, left_out_of
from tritonrank.learn.judging import judge_night
from tritonrank.learn.ledger import Night, StepName
from tritonrank.learn.lists import examples
from tritonrank.learn.lists.judging_hours import TooFewJudgesError, hours_to_judge
from tritonrank.learn.lists.night_events import learnt_until, log_of
from tritonrank.learn.lists.night_lists import NothingToLearnError
from tritonrank.learn.lists.windows import Span, Windows, plan_windows
from tritonrank.learn.night import Step
from tritonrank.learn.release import publish, release, require_key
from tritonrank.learn.run import NothingNewError, Run
from tritonrank.learn.training import finetune


def collect(run: Run) -> dict[str, Any]:
    """Choose the hours, once: whatever is written meanwhile is the next night's."""
    require_key(run.recipe)
    log = log_of(run.recipe)
    start = first_hour(log)
    if start is None:
        raise NothingNewError(f"{log}: the log has no hour yet. Start gateways with --events-log {log}")
    standing = run.ledger.standing(run.night.base)
    learnt = (
        Windows.of_json(dict(standing[-1].told("collect")["windows"])).learnt_until
        if standing
        else learnt_until(run.recipe, run.workspace.dataset)
    )
    plan = partial(plan_windows, now=run.now, log_start=start, learnt_until=learnt, frozen=_frozen(run))
    windows = plan(run.recipe.learn)
    if windows.new.is_empty:
        raise NothingNewError(
            f"no hour is new: the log was learnt up to {_utc(windows.new.start)}, and the last "
            f"{run.recipe.learn.newest_hours} whole hours are judged before they are learnt"
        )
    try:
        hours = hours_to_judge(run.recipe, windows)
    except TooFewJudgesError as few:
        raise NothingNewError(str(few)) from None
    windows = plan(run.recipe.learn.model_copy(update={"newest_hours": hours}))
    rows = read_rows(log, windows.new.start, windows.new.end)
    return {
        "windows": windows.as_json(),
        "hours": windows.new.hours,
        "events": rows.events.height,
        "pages": rows.shown.height,
        "log": sha256_json(files_between(log, windows.read.start, windows.read.end)),
        "said": f"{windows.new.hours:,.0f} new hours from {_utc(windows.new.start)}, {rows.events.height:,} events on "
        f"{rows.shown.height:,} pages; judged on {windows.newest.hours:,.0f} newer hours",
    }


def make_examples(run: Run) -> dict[str, Any]:
    """New lists, replayed ones, and those that judge, as a dataset."""
    left_out = left_out_of(run.ledger, run.night)
    stage = examples.stage(run.recipe, run.workspace.dataset, run.windows, run.home.dataset, left_out)
    try:
        metrics = bring_up_to_date(stage).metrics
    except NothingToLearnError as nothing:
        raise NothingNewError(str(nothing)) from None
    counted, sets = metrics["examples"], metrics["sets"]
    told = ", ".join(f"{name} {count:,}" for name, count in sets.items())
    return {
        "training": counted["train"],
        "sets": sets,
        "said": f"{counted['train']:,} lists to learn from, {counted['test']:,} to judge: {told}",
    }


def judge(run: Run) -> dict[str, Any]:
    """The new ranker against the one that it started from, on the same lists."""
    standing = run.ledger.standing(run.night.base)
    earlier = [Measure(**told) for one in standing if (told := one.told("judge").get("live_on_newest"))]
    home = run.home
    verdict = judge_night(run.recipe, home.dataset, run.live.teacher, home.teacher, home.judgements, earlier)
    return verdict.as_json() | {"refused": verdict.refused, "said": "; ".join(verdict.reasons)}


def build(run: Run) -> dict[str, Any]:
    """Compress, gate, learn popularity and blend anew, assemble, and record it among the builds."""
    recorded = compress(run.recipe, run.home, run.live, run.workspace.root)
    rung = recorded.told.get("rung")
    return {
        "build": recorded.name,
        "rung": rung,
        "said": f"build {recorded.name}: {rung}, NDCG@10 {recorded.told['ndcg@10']['mean']:.4f}",
    }


def publish_build(run: Run) -> dict[str, Any]:
    """To the model store, if the recipe names one."""
    told = publish(run.recipe, find_build(run.workspace.root, str(run.night.told("build")["build"])))
    sent = f", {told['uploaded_bytes'] / 1e6:,.1f} MB uploaded, tagged {told['tag']}" if "digest" in told else ""
    return told | {"said": f"{told['source']}{sent}"}


def release_build(run: Run) -> dict[str, Any]:
    """To users, by rules or at once, as the recipe says."""
    told = release(run.recipe, run.night, run.workspace.root, run.controller)
    return told | {"said": f"{told['by']}: {told['reason']}"}


ALL: Mapping[StepName, Step] = {
    "collect": collect,
    "inspect": inspect_hours,
    "examples": make_examples,
    "finetune": finetune,
    "judge": judge,
    "build": build,
    "publish": publish_build,
    "release": release_build,
}


def next_command(night: Night, recipe: Path, workspace: Workspace) -> str:
    """What to type after a night."""
    if night.outcome == "accepted":
        return str(night.told("release")["next"])
    again = f"tritonrank learn {shlex.quote(str(recipe))} --once"
    if night.outcome == "nothing":
        return f"{again}   (when there are new hours)"
    return (
        f"tritonrank learn {shlex.quote(str(recipe))} --show   (what serves is as it was; the next night begins there)"
    )


def _frozen(run: Run) -> Span | None:
    """The frozen window of the last night whose hours were sound."""
    for night in reversed(run.ledger.nights()):
        inspected = night.told("inspect")
        if night.base == run.night.base and inspected and not inspected.get("refused"):
            return Windows.of_json(dict(night.told("collect")["windows"])).frozen
    return None


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))
