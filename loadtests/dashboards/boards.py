"""A dashboard as Grafana's JSON has it, as far as it is looked at here: variables, panels, queries, units, limits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("timeseries", "stat", "bargauge", "heatmap")
SOURCES_OF_VARIABLES = ("query", "datasource")


class BoardError(ValueError):
    """A dashboard's file cannot be read, or has something in it that is not known here."""


@dataclass(frozen=True)
class Target:
    """One query of a panel; ``legend`` names its series, and ``__auto`` leaves that to their labels."""

    expression: str
    legend: str
    is_instant: bool


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        kind: one of KINDS.
        unit: Grafana's id of it.
        width: in 24ths of the page.
        limit: a value that is marked.
        is_bad_above: which side of the limit is bad.
    """

    title: str
    kind: str
    asks: str
    unit: str
    width: int
    targets: Sequence[Target]
    is_stacked: bool
    limit: float | None
    is_bad_above: bool


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """A choice above the page.

    Attributes:
        query: what its values come from, such as label_values(metric, label); empty for the choice of a data source.
    """

    name: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    name: str
    title: str
    asks: str
    variables: Sequence[Variable]
    rows: Sequence[Row]


def read_boards(folder: Path) -> list[Dashboard]:
    """All dashboards of a folder, by name.

    Raises:
        BoardError: there is none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise BoardError(f"{folder}: no dashboards there; deploy/grafana/dashboards of a checkout has them")
    return [_read(path) for path in paths]


def _read(path: Path) -> Dashboard:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        variables = [_variable(one) for one in told["templating"]["list"]]
        return Dashboard(path.stem, told["title"], told["description"], variables, _rows(told["panels"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BoardError(
            f"{path}: not a dashboard of ours ({type(error).__name__}: {error}); type: python -m deploy.grafana"
        ) from error


def _variable(told: Mapping[str, Any]) -> Variable:
    if told["type"] not in SOURCES_OF_VARIABLES:
        raise BoardError(f"variable {told['name']}: its type {told['type']} is not known here")
    return Variable(told["name"], told["query"] if told["type"] == "query" else "")


def _rows(told: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows: list[tuple[str, list[Panel]]] = []
    for panel in told:
        if panel["type"] == "row":
            rows.append((panel["title"], []))
        else:
            rows[-1][1].append(_panel(panel))
    return [Row(title, panels) for title, panels in rows]


def _panel(told: Mapping[str, Any]) -> Panel:
    if told["type"] not in KINDS:
        raise BoardError(f"panel {told['title']}: its type {told['type']} is not known here")
    defaults = told["fieldConfig"]["defaults"]
    first, *further = defaults.get("thresholds", {}).get("steps") or [{"color": "green"}]
    return Panel(
        title=told["title"],
        kind=told["type"],
        asks=told["description"],
        unit=defaults["unit"],
        width=told["gridPos"]["w"],
        targets=[Target(one["expr"], one["legendFormat"], bool(one.get("instant"))) for one in told["targets"]],
        is_stacked=defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal",
        limit=further[0]["value"] if further else None,
        is_bad_above=first["color"] == "green",
    )
