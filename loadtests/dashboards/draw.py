"""A panel as a picture: lines, stacked areas, a heat map, bars, or a large number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.over_time import heat_map, stacked_areas
from tritonrank.report.plots.rows import BarRow, bar_plot
from tritonrank.report.plots.svg import figure

from loadtests.dashboards.ask import Asked, Line, Period

COLOURS = 6
MINUTE = 60.0
UNITS: Mapping[str, tuple[float, str]] = {
    "bytes": (1e-6, "MB"),
    "percentunit": (1e2, "%"),
    "reqps": (1.0, "per second"),
    "ops": (1.0, "per second"),
    "short": (1.0, ""),
}
"""Grafana's unit -> factor and name here."""
MANY = 20_000
"""From here on plots count in thousands."""
TIMES = ((2.0, 1e3, "ms"), (7_200.0, 1.0, "s"), (172_800.0, 1 / 3_600, "hours"), (math.inf, 1 / 86_400, "days"))
"""Grafana's unit s: up to so many seconds -> factor and name."""


@dataclass(frozen=True)
class Picture:
    """What the page shows of a panel.

    Attributes:
        drawn: SVG; empty for a number and where nothing was found.
        number: large, where the panel is one.
        is_bad: the number is on the bad side of its limit.
        legend: (colour, is dashed, name).
    """

    asked: Asked
    drawn: Markup
    number: str = ""
    is_bad: bool = False
    legend: Sequence[tuple[int, bool, str]] = ()


def draw(asked: Asked, period: Period) -> Picture:
    """The picture of a panel that was asked for."""
    panel, lines = asked.panel, asked.lines
    if not lines:
        return Picture(asked, Markup(""))
    factor, unit = _unit(panel.unit, lines)
    if panel.kind == "stat":
        value = lines[-1].found.points[-1][1]
        is_bad = panel.limit is not None and (value >= panel.limit if panel.is_bad_above else value < panel.limit)
        told = unit.replace("per second", "/ s")
        return Picture(asked, Markup(""), f"{figure(factor * value)} {told}".strip(), is_bad)
    if panel.kind == "bargauge":
        rows = [BarRow(line.name, factor * line.found.points[-1][1], _colour(at)) for at, line in enumerate(lines)]
        return Picture(asked, bar_plot(rows, unit))
    in_minutes = period.end - period.start > 5 * MINUTE
    x_label = "minutes" if in_minutes else "seconds"
    if panel.kind == "heatmap":
        return Picture(asked, _heat(asked, period, in_minutes, factor, unit or "value"))
    series = [
        Series(
            line.name,
            _points(line, period, in_minutes, factor),
            _colour(place),
            dashed=not panel.is_stacked and place >= COLOURS,
        )
        for place, line in enumerate(lines)
    ]
    legend = [(one.colour, one.dashed, one.name) for one in series]
    if panel.is_stacked:
        return Picture(asked, stacked_areas(series, x_label=x_label, y_label=unit), legend=legend)
    highest = max(y for line in series for _, y in line.points if y is not None)
    limit = None if panel.limit is None or factor * panel.limit > 3 * highest else factor * panel.limit
    return Picture(asked, line_plot(series, x_label=x_label, y_label=unit, y_limit=limit), legend=legend)


def _unit(unit: str, lines: Sequence[Line]) -> tuple[float, str]:
    if any("le" in line.found.labels for line in lines):  # a histogram: its bounds are the values
        return 1.0, "s" if unit == "s" else UNITS[unit][1]
    highest = max(value for line in lines for _, value in line.found.points)
    if unit != "s":
        factor, name = UNITS[unit]
        return (factor, name) if factor * highest < MANY else (factor / 1e3, f"thousand {name}".strip())
    return next((factor, name) for most, factor, name in TIMES if highest <= most)


def _colour(place: int) -> int:
    return place % COLOURS + 1


def _points(line: Line, period: Period, in_minutes: bool, factor: float) -> list[tuple[float, float | None]]:
    """At each step of the period; None where the series has no value."""
    found = {round((at - period.start) / period.step): value for at, value in line.found.points}
    steps = round((period.end - period.start) / period.step)
    first, last = min(found), max(found)
    scale = period.step / (MINUTE if in_minutes else 1.0)
    return [
        (step * scale, factor * found[step] if step in found else None)
        for step in range(steps + 1)
        if first <= step <= last
    ]


def _heat(asked: Asked, period: Period, in_minutes: bool, factor: float, unit: str) -> Markup:
    """Prometheus' buckets hold what lies below them, too; a cell holds what lies in it alone."""
    buckets = sorted(asked.lines, key=lambda line: float(line.found.labels["le"]))
    bounds = [float(line.found.labels["le"]) for line in buckets]
    below = [dict(_points(line, period, in_minutes, 1.0)) for line in buckets]
    columns = []
    for x in sorted(set().union(*below)):
        counts = [of.get(x) or 0.0 for of in below]
        columns.append((x, [max(0.0, count - less) for count, less in zip(counts, [0.0, *counts], strict=False)]))
    names = [figure(factor * bound) if math.isfinite(bound) else "more" for bound in bounds]
    x_label = "minutes" if in_minutes else "seconds"
    return heat_map(columns, names, x_label=x_label, y_label=unit, unit="counted")
