"""A night as a run in MLflow, Weights & Biases or TensorBoard, where the recipe's ``tracking`` names one.

Beside the training's own run (``train/tracking.py``) and that of the build that came out: what was learnt of which data
from which parent, how it was judged, what came of it and why, and the page with its plots. By default nothing is logged
anywhere, and ``nights.html`` is the record.

A run is a file beside the ledger until the tracker has taken it: one that is away gets it after a later night.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tritonrank.artifacts import read_manifest, write_whole
from tritonrank.artifacts.flat import flat
from tritonrank.errors import ArtifactError
from tritonrank.learn.ledger import Ledger, Night, StepName
from tritonrank.learn.lists.windows import Span, Windows
from tritonrank.learn.page import PAGE_FILE, judged
from tritonrank.pipeline.tracking import NONE, TrackedRun, in_short, log_run
from tritonrank.recipe import Recipe

UNTRACKED = "untracked"
"""Folder beside the nights': runs that no tracker has taken yet."""
COUNTS: dict[StepName, str] = {"collect": "events", "inspect": "left_out", "examples": "training"}
"""Counts that steps told of."""
SECTIONS = {"seed", "learn", "finetune", "model"}
DIGITS = 12
"""Of a hash."""


def keep_for_tracker(ledger: Ledger, night: Night, recipe: Recipe) -> None:
    """Write down what a tracker is to get of an ended night that learnt something; raises StorageError."""
    if recipe.tracking == NONE or night.outcome == "nothing":
        return
    told = asdict(tracked_night(ledger, night, recipe))
    write_whole(ledger.folder / UNTRACKED / f"{night.id}.json", json.dumps(told, default=str) + "\n")


def track_nights(ledger: Ledger, tracking: str) -> None:
    """Log the nights that the tracker has not taken yet, oldest first; what fails costs a warning.

    Args:
        ledger: of the nights.
        tracking: the recipe's setting.
    """
    if tracking == NONE:
        return
    for path in sorted((ledger.folder / UNTRACKED).glob("*.json")):
        if not log_run(partial(_read, path), tracking, f"night {path.stem}", "tritonrank learn"):
            return  # the others would wait for the same tracker
        path.unlink()


def tracked_night(ledger: Ledger, night: Night, recipe: Recipe) -> TrackedRun:
    """What a night tells a tracker."""
    settings = recipe.model_dump(mode="json", include=SECTIONS)
    page = ledger.folder / PAGE_FILE
    return TrackedRun(
        experiment=recipe.name,
        name=f"night-{night.id}",
        parameters={name: in_short(value) for name, value in flat(settings)},
        metrics=dict(_metrics(night)),
        tags=dict(_tags(ledger, night)),
        files=[page] if page.is_file() else [],
        kind="learn",
        note=f"{night.outcome}: {night.reason}",
    )


def _read(path: Path) -> TrackedRun:
    """What ``keep_for_tracker`` wrote."""
    told = json.loads(path.read_text(encoding="utf-8"))
    return TrackedRun(**told | {"files": [Path(name) for name in told["files"]]})


def _metrics(night: Night) -> Iterator[tuple[str, float]]:
    """``<set>.<figure>`` of each judged set, seconds of each step, and the outcome as 0 or 1."""
    for row in judged(night):
        name = re.sub(r"[^\w-]+", "_", row.name)  # MLflow takes no other characters in names
        yield from (
            (f"{name}.{one}", float(getattr(row, one))) for one in ("live_ndcg", "new_ndcg", "drop", "low", "high")
        )
    yield from ((f"seconds.{step}", float(told["seconds"])) for step, told in night.steps.items())
    for step, name in COUNTS.items():
        if name in night.told(step):
            yield f"{step}.{name}", float(night.told(step)[name])
    yield "accepted", float(night.outcome == "accepted")


def _tags(ledger: Ledger, night: Night) -> Iterator[tuple[str, str]]:
    yield "tritonrank.night", night.id
    yield "tritonrank.parent", night.parent or "build"
    yield "tritonrank.outcome", night.outcome
    if night.decision:
        yield "tritonrank.decision", night.decision
    if (build := night.told("build").get("build")) is not None:
        yield "tritonrank.build", str(build)
    collected = night.told("collect")
    if "log" in collected:
        windows = Windows.of_json(dict(collected["windows"]))
        yield "tritonrank.log", str(collected["log"])[:DIGITS]
        yield "tritonrank.log_read", _in_utc(windows.read)
        yield "tritonrank.learnt", _in_utc(windows.new)
        yield "tritonrank.judged", _in_utc(windows.newest)
    home = ledger.workspace_of(night)
    for name, folder in (("dataset", home.dataset), ("ranker", home.teacher)):
        with suppress(ArtifactError):
            yield f"tritonrank.{name}", read_manifest(folder).artifact[:DIGITS]


def _in_utc(span: Span) -> str:
    """An interval of ISO 8601, to the minute."""
    start, end = (time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(moment)) for moment in (span.start, span.end))
    return f"{start}/{end}"
