"""The history of builds for people and for scripts: one row per build, and what differs between two of them.

All of it is read from what was recorded, without anything that models need.
"""

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritonrank.artifacts.builds import (
    SUMMARY,
    RecordedBuild,
    recorded_builds,
    served_name,
)
from tritonrank.artifacts.flat import flat
from tritonrank.artifacts.manifest import Manifest, read_manifest
from tritonrank.artifacts.promotions import served_before
from tritonrank.artifacts.record_builds import STAGES, current_build
from tritonrank.errors import ArtifactError
from tritonrank.judge.metrics import interval

RANKED = "served.parquet"
"""In a summary: each test request with the metrics of the ranker that is served (example_id, ndcg@10 ...)."""
NOT_COUNTED = ("text.", "skipped_users.")
VALUE_SHOWN = 60
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
HASH_SHOWN = 8

console = Console()


def build_rows(root: Path) -> list[dict[str, Any]]:
    """Every build of a recipe, newest first, as JSON has it.

    ``against_served`` is the paired difference of NDCG@10 to what is served now; null where the two were never judged
    on the same requests.
    """
    builds = recorded_builds(root)
    served, before = served_name(root), served_before(root)
    champion = next((build for build in builds if build.name == served), None)
    current = current_build(root)
    rows = []
    for build in reversed(builds):
        row: dict[str, Any] = {
            "build": build.name,
            "is_served": build.name == served,
            "was_served_before": build.name == before,
            "is_current": current is not None and build.name == current.name,
        }
        try:
            told = build.told
        except ArtifactError as error:
            rows.append(row | {"damaged": str(error)})
            continue
        kept = ("success", "rung", "ndcg@10", "megabytes", "milliseconds_per_100", "parameters", "test_requests", "git")
        row |= {name: told.get(name) for name in kept}
        rows.append(row | {"against_served": against(build, champion)})
    return rows


def against(build: RecordedBuild, champion: RecordedBuild | None) -> dict[str, Any] | None:
    """How much better a build ranks than another, paired, as far as both were judged on the same requests."""
    if champion is None or champion.name == build.name:
        return None
    with suppress(ArtifactError, OSError, pl.exceptions.PolarsError):  # what is damaged is not compared
        kept = build.told.get("against_served")
        if kept and kept["build"] == champion.name:
            return dict(kept)
        if _test_hash(build) == _test_hash(champion):
            own, other = (pl.read_parquet(one.folder / SUMMARY / RANKED, glob=False) for one in (build, champion))
            found = interval(own["ndcg@10"].to_numpy() - other["ndcg@10"].to_numpy())
            return comparison_of(champion.name, found.mean, found.low, found.high)
    return None


def comparison_of(champion: str, difference: float, low: float, high: float) -> dict[str, Any]:
    """As summary.json has it: ``better`` is true or false beyond doubt, null where the interval holds 0."""
    better = True if low > 0 else False if high < 0 else None
    return {"build": champion, "difference": difference, "low": low, "high": high, "better": better}


def show_builds(root: Path) -> None:
    """Print the table of builds."""
    rows = build_rows(root)
    if not rows:
        _say(f"{root}: no build is recorded here yet. A finished build records itself: tritonrank build RECIPE")
        return
    # Narrow enough for 80 columns, which is what a pipe gets.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "build", "UTC", "NDCG@10 [95%]", "vs served [95%]", "MB", "ms/100"):
        table.add_column(column, justify="left" if column in ("", "build", "UTC") else "right", no_wrap=True)
    for row in rows:
        time, _, short = row["build"].partition("-")
        when = f"{time[2:4]}-{time[4:6]}-{time[6:8]} {time[9:11]}:{time[11:13]}"
        mark = ">" if row["is_served"] else "<" if row["was_served_before"] else ""
        if "damaged" in row:
            table.add_row(mark, short, when, "damaged")
            continue
        compared = row["against_served"]
        table.add_row(
            mark,
            short,
            when,
            in_brackets(row["ndcg@10"]) if row["ndcg@10"] else "",
            in_brackets({**compared, "mean": compared["difference"]}, "+") if compared else "",
            f"{row['megabytes']:.0f}" if row["megabytes"] else "",
            f"{row['milliseconds_per_100']:.0f}" if row["milliseconds_per_100"] else "",
        )
    console.print(table)
    lost = [row["build"].rpartition("-")[2] for row in rows if row.get("success") is False]
    _say(
        "> is served, < was served before"
        + (f"; no success: {', '.join(lost)} (see their report.html)" if lost else "")
    )
    quoted = shlex.quote(str(root))
    _say(f"Serve another one: tritonrank promote {quoted} ID; the one before: tritonrank back {quoted}")
    _say(f"What differs between two: tritonrank builds {quoted} ID ID")


def differences(first: RecordedBuild, second: RecordedBuild) -> dict[str, dict[str, list[Any]]]:
    """What differs, by ``settings``, ``data`` and ``code``: name -> the value in either; null where it has none."""
    pairs = {
        "settings": (first.manifest.settings, second.manifest.settings),
        "data": (_data(first), _data(second)),
        "code": (_code(first), _code(second)),
    }
    return {what: _different(dict(flat(one)), dict(flat(other))) for what, (one, other) in pairs.items()}


def show_differences(first: RecordedBuild, second: RecordedBuild) -> None:
    """Print what differs between two builds, and how they rank."""
    compared = against(second, first) or _turned(against(first, second))
    if compared:
        said = in_brackets({**compared, "mean": compared["difference"]}, "+")
        _say(f"{second.name} against {first.name}: {said} NDCG@10, on the same requests")
    else:
        _say(f"{second.name} and {first.name} were not judged on the same requests")
    for what, found in differences(first, second).items():
        if not found:
            _say(f"\n{what}: the same")
            continue
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for column in (what, first.name, second.name):
            table.add_column(column, overflow="fold")
        for name, values in found.items():
            table.add_row(Text(name), *(Text(_shown(value)) for value in values))
        console.print(table)


def in_brackets(value: Mapping[str, float], sign: str = "") -> str:
    """Mean and interval, such as ``+0.012 [-0.003 +0.027]``."""
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f} {value['high']:{sign}.3f}]"


def served_in_words(root: Path) -> list[str]:
    """What is served of a recipe, and what stands beside it: the last lines of a build."""
    current = current_build(root)
    if current is None:
        return []
    promote = f"tritonrank promote {shlex.quote(str(root))} {current.name}"
    served = served_name(root)
    if served == current.name:
        return [f"build {current.name} is the one that is served"]
    if served is None:
        return [
            f"build {current.name} is recorded, but not served by itself, as it is no success. To serve it all the "
            f"same: {promote}"
        ]
    compared = against(current, RecordedBuild(current.folder.with_name(served)))
    how = "they were not judged on the same requests"
    if compared:
        word = {True: "better", False: "worse", None: "no difference beyond doubt"}[compared["better"]]
        how = f"{in_brackets({**compared, 'mean': compared['difference']}, '+')} NDCG@10 against it: {word}"
    return [
        f"build {current.name} is recorded beside the one that is served, {served}; {how}",
        f"the served build stays; to serve the new one: {promote}",
    ]


def serve_command(root: Path) -> str:
    """What to type so that the build that stands in the stages' folders is served."""
    current, quoted = current_build(root), shlex.quote(str(root))
    serve = f"tritonrank serve {quoted}"
    if current is None or served_name(root) == current.name:
        return serve
    return f"tritonrank promote {quoted} {current.name} && {serve}"


def against_served_now(root: Path, at_first: dict[str, Any]) -> dict[str, Any] | None:
    """The current build against what is served by now, as far as that is known.

    Args:
        root: ``artifacts/<recipe>``.
        at_first: against what was served when it was built.
    """
    current, served = current_build(root), served_name(root)
    if current is None or served == at_first["build"]:
        return at_first
    return against(current, RecordedBuild(current.folder.with_name(served))) if served else None


def _test_hash(build: RecordedBuild) -> str | None:
    """Of the requests that it was judged on; their candidates may differ where their names do not."""
    return _stage(build, "dataset").files.get("test.parquet")


def _stage(build: RecordedBuild, name: str) -> Manifest:
    """The manifest of a stage as it was when the build was recorded."""
    return read_manifest(build.folder / STAGES, f"{name}.json")


def _data(build: RecordedBuild) -> dict[str, Any]:
    dataset = _stage(build, "dataset")
    counts = {name: value for name, value in flat(dataset.metrics) if not name.startswith(NOT_COUNTED)}
    return {**counts, "sha256": dataset.files}


def _code(build: RecordedBuild) -> dict[str, Any]:
    sources = _stage(build, "repository").settings.get("sources") or {}
    return {
        "versions": build.manifest.tools,
        "git": build.told.get("git") or {"commit": None},
        "revision": build.told.get("revisions"),
        # The models have the same files beside them.
        "server": {
            place if place.endswith("model.py") else Path(place).name: hash_ for place, hash_ in sources.items()
        },
    }


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [first.get(name), second.get(name)]
        for name in {**first, **second}
        if json.dumps(first.get(name), default=str) != json.dumps(second.get(name), default=str)
    }


def _turned(compared: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return comparison_of(compared["build"], -compared["difference"], -compared["high"], -compared["low"])


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)
    if HASH.fullmatch(text):
        return f"{text[:HASH_SHOWN]}..."
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}..."


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
