"""A night as a run in MLflow, Weights & Biases or TensorBoard, where the recipe's ``tracking`` names one.

Beside the training's own run (``train/tracking.py``) and that of the build that came out: what was learnt of which data
from which parent, how it was judged, and the page with its plots. By default nothing is logged anywhere, and
``nights.html`` is the record.
"""

from collections.abc import Iterator
from contextlib import suppress

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.flat import flat
from tritonrank.errors import ArtifactError
from tritonrank.learn.ledger import Ledger, Night, StepName
from tritonrank.learn.page import PAGE_FILE, judged
from tritonrank.pipeline.tracking import NONE, TrackedRun, in_short, log_run
from tritonrank.recipe import Recipe

COUNTS: dict[StepName, str] = {"collect": "events", "inspect": "left_out", "examples": "training"}
"""Counts that steps told of."""
SECTIONS = {"seed", "learn", "finetune", "model"}


def track_night(ledger: Ledger, night: Night, recipe: Recipe) -> None:
    """Log an ended night that learnt something; what fails costs a warning."""
    if recipe.tracking == NONE or night.outcome == "nothing":
        return
    log_run(lambda: tracked_night(ledger, night, recipe), recipe.tracking, f"night {night.id}", "tritonrank learn")


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
    )


def _metrics(night: Night) -> Iterator[tuple[str, float]]:
    """``<set>.<figure>`` of each judged set, seconds of each step, and the outcome as 0 or 1."""
    for row in judged(night):
        name = row.name.replace(" ", "_")
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
    if (build := night.told("build").get("build")) is not None:
        yield "tritonrank.build", str(build)
    home = ledger.workspace_of(night)
    for name, folder in (("dataset", home.dataset), ("ranker", home.teacher)):
        with suppress(ArtifactError):
            yield f"tritonrank.{name}", read_manifest(folder).artifact[:12]
