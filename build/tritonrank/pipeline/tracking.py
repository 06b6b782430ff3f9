"""Log a finished build to MLflow, Weights & Biases or TensorBoard, where the recipe's setting ``tracking`` names one.

A build is one run: the recipe's settings as parameters, the metrics of every rung and the verdict, the report as a
file, and the build's id and git commit as tags. Nothing leaves this machine unless a URI or project says so. A server
that is down costs a warning that names it; the next ``tritonrank build`` tries again.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from tritonrank.artifacts.builds import SUMMARY, RecordedBuild
from tritonrank.artifacts.flat import flat
from tritonrank.artifacts.promotions import history, remember
from tritonrank.system.trackers import INSTALL

NONE = "none"
TRACKED = "tracked"
"""What the history calls a build that was logged."""
LONGEST_VALUE = 500
"""Characters of a parameter: MLflow's limit in file stores and older servers."""
REPORTS = ("report.html", "report.md")
METRICS = ("ndcg@10", "mrr@10", "recall@10", "auc")
COSTS = ("megabytes", "milliseconds_per_100", "parameters", "gflop_per_request")

console = Console()


@dataclass(frozen=True)
class TrackedRun:
    """What is logged of a build, or of a night of ``tritonrank learn``."""

    experiment: str
    """the recipe's name"""
    name: str
    """the build's id, or the night's"""
    parameters: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    files: list[Path]
    kind: str = "build"
    note: str = ""
    """a sentence that people read beside the run; empty: none"""


class Tracker(Protocol):
    """Somewhere to log to."""

    def log(self, run: TrackedRun, target: str) -> str:
        """Log a run and say where it is; raises whatever the library raises."""
        ...


def track(build: RecordedBuild, tracking: str) -> None:
    """Log a build once; what fails is told and costs the build nothing.

    Args:
        build: as it was recorded.
        tracking: the recipe's setting.
    """
    if tracking == NONE or _is_tracked(build, tracking):
        return
    if log_run(lambda: tracked_run(build), tracking, f"build {build.name}", "tritonrank build"):
        remember(build.root, TRACKED, build.name, to=tracking)


def log_run(run: Callable[[], TrackedRun], tracking: str, name: str, again: str) -> bool:
    """Log a run; what fails is told and costs nothing else.

    Args:
        run: makes what is logged.
        tracking: the recipe's setting.
        name: of what is logged, for people.
        again: the command whose next run tries again.

    Returns:
        Whether it was logged.
    """
    kind, _, target = tracking.partition(":")
    try:
        where = _tracker(kind).log(run(), target)
    except ModuleNotFoundError as error:
        missing = f"{error.name} is missing" if error.name != kind else f"{kind} is not installed"
        _say(f"tracking: {missing}, so nothing is logged: {INSTALL[kind]}", style="yellow")
        return False
    except Exception as error:  # noqa: BLE001 - of libraries that we do not know; a build is worth its record anyway
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_VALUE]
        _say(
            f"tracking: {target or kind} did not take {name}, which is recorded all the same ({reason}). "
            f"The next {again} tries again",
            style="yellow",
        )
        return False
    _say(f"logged to {where}")
    return True


def tracked_run(build: RecordedBuild) -> TrackedRun:
    """What a recorded build tells a tracker."""
    summary = json.loads((build.folder / SUMMARY / "summary.json").read_text(encoding="utf-8"))
    git = build.told.get("git") or {}
    tags = {"tritonrank.build": build.name, "tritonrank.served_rung": str(build.told.get("rung"))}
    tags |= {"git.commit": git["commit"], "git.changed": str(git.get("changed"))} if "commit" in git else {}
    return TrackedRun(
        experiment=summary["recipe"],
        name=build.name,
        parameters={name: in_short(value) for name, value in flat(build.manifest.settings)},
        metrics=dict(_metrics(summary, build.told)),
        tags=tags,
        files=[build.folder / name for name in REPORTS if (build.folder / name).is_file()],
    )


def _metrics(summary: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``<rung>.<metric>`` of each row, the verdict as 0 or 1, and the difference to what was served."""
    for row in summary["rows"]:
        rung = re.sub(r"[^A-Za-z0-9_-]+", "_", row["name"])
        for name in METRICS:
            if name in row:
                key = name.replace("@", "_at_")
                yield from ((f"{rung}.{key}{end}", row[name][of]) for end, of in _ENDS.items())
        yield from ((f"{rung}.{name}", float(row[name])) for name in COSTS if name in row)
    yield "success", float(told["success"])
    if against := told.get("against_served"):
        yield from ((f"against_served.{name}", float(against[name])) for name in ("difference", "low", "high"))


_ENDS = {"": "mean", ".low": "low", ".high": "high"}


def _is_tracked(build: RecordedBuild, tracking: str) -> bool:
    lines = (line for line in history(build.root) if line["event"] == TRACKED)
    return any(line["build"] == build.name and line.get("to") == tracking for line in lines)


def _tracker(kind: str) -> Tracker:
    if kind == "mlflow":
        from tritonrank.pipeline.tracking_mlflow import MLflowTracker

        return MLflowTracker()
    if kind == "tensorboard":
        from tritonrank.pipeline.tracking_tensorboard import TensorBoardTracker

        return TensorBoardTracker()
    from tritonrank.pipeline.tracking_wandb import WandbTracker

    return WandbTracker()


def in_short(value: Any) -> str:
    """A parameter as trackers take it, without passwords."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # A URL may name a user with a password, wherever a setting takes one.
    text = re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _say(text: str, style: str = "") -> None:
    console.print(f"{'':<10} {text}", style=style, markup=False, highlight=False, soft_wrap=True)
