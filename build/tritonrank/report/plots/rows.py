"""Plots with one row per thing that is compared, and histograms.

They are drawn for the width of a phone and grow with the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tritonrank.report.plots.svg import Scale, drawing, figure, text, ticks, vertical

WIDTH = 360
LABEL_WIDTH = 130
"""Left of horizontal bars and intervals; longer labels stand above their row."""
ROW, TICK_ROOM, HISTOGRAM_HEIGHT = 22, 20, 96
MOST_LABEL_LETTERS = 20


@dataclass(frozen=True)
class Mark:
    """A vertical line across a plot, such as a limit."""

    at: float
    name: str
    style: str = "limit"


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 1
    bound: float | None = None
    """a second, one-sided bound"""


@dataclass(frozen=True)
class BarRow:
    label: str
    value: float
    colour: int = 1
    told: str = ""
    """what the value is, in words; default: the number"""


def interval_plot(rows: Sequence[IntervalRow], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """One line per row: the interval, its value as a dot, a one-sided bound as a tick; the axis begins anywhere."""
    if not rows:
        return Markup("")
    ends = [one for row in rows for one in (row.low, row.high, row.value, row.bound) if one is not None]
    ends += [mark.at for mark in marks]
    places = ticks(min(ends), max(ends), 4)
    place = Scale(places[0], places[-1], LABEL_WIDTH + 8, WIDTH - 20)
    top = 16 if any(mark.name for mark in marks) else 4
    bottom = top + len(rows) * ROW
    drawn = _ticks(places, place, top, bottom, x_label)
    drawn += _marks(marks, place, top, bottom)
    for number, row in enumerate(rows):
        y = top + number * ROW + ROW / 2
        told = f"{row.label}: {figure(row.value)}"
        if row.low < row.high:
            told += f" [{figure(row.low)}, {figure(row.high)}]"
        drawn.append(text("label", 0, y + 4, _short(row.label)))
        drawn.append(f"<g><title>{escape(told)}</title>")
        line = f'x1="{place(row.low)}" x2="{place(row.high)}" y1="{y}" y2="{y}"'
        drawn.append(f'<line class="interval stroke{row.colour}" {line}/>')
        if row.bound is not None:
            drawn.append(vertical(f"interval stroke{row.colour}", place(row.bound), y - 5, y + 5))
        drawn.append(f'<circle class="fill{row.colour}" cx="{place(row.value)}" cy="{y}" r="4"/></g>')
    return drawing(drawn, WIDTH, bottom + TICK_ROOM + 16, x_label)


def bar_plot(rows: Sequence[BarRow], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """Horizontal bars from 0."""
    if not rows:
        return Markup("")
    places = ticks(0.0, max([row.value for row in rows] + [mark.at for mark in marks]) or 1.0, 4)
    place = Scale(0.0, places[-1], LABEL_WIDTH, WIDTH - 44)
    top = 16 if any(mark.name for mark in marks) else 2
    bottom = top + len(rows) * (ROW - 4)
    drawn = _ticks(places, place, top, bottom, x_label)
    for number, row in enumerate(rows):
        y = top + number * (ROW - 4)
        shown = row.told or figure(row.value)
        drawn.append(text("label", 0, y + 13, _short(row.label)))
        width = f"{place(row.value) - LABEL_WIDTH:.2f}"
        drawn.append(
            f'<rect class="fill{row.colour}" x="{LABEL_WIDTH}" y="{y + 3}" width="{width}" height="{ROW - 9}">'
            f"<title>{escape(f'{row.label}: {shown}')}</title></rect>"
        )
        drawn.append(text("", place(row.value) + 4, y + 13, shown))
    drawn += _marks(marks, place, top, bottom)
    return drawing(drawn, WIDTH, bottom + TICK_ROOM + 16, x_label)


def histogram(counts: Sequence[int], low: float, high: float, label: str) -> Markup:
    """Counts over the range that the steps cover, on a logarithmic axis: a handful of outliers is what matters here."""
    if not counts or not sum(counts):
        return Markup("")
    largest = math.log10(max(counts) + 1)
    width = WIDTH / len(counts)
    drawn = [f'<line class="grid" x1="0" x2="{WIDTH}" y1="{HISTOGRAM_HEIGHT}" y2="{HISTOGRAM_HEIGHT}"/>']
    for place, count in enumerate(counts):
        if count:
            height = max(2.0, math.log10(count + 1) / largest * (HISTOGRAM_HEIGHT - 6))
            start = low + (high - low) * place / len(counts)
            told = f"{count:,} values from {figure(start)} to {figure(start + (high - low) / len(counts))}"
            drawn.append(
                f'<rect class="fill1" x="{place * width:.2f}" y="{HISTOGRAM_HEIGHT - height:.2f}" '
                f'width="{width - 0.8:.2f}" height="{height:.2f}"><title>{told}</title></rect>'
            )
    drawn.append(text("", 0, HISTOGRAM_HEIGHT + 14, figure(low)))
    drawn.append(text("", WIDTH, HISTOGRAM_HEIGHT + 14, figure(high), "end"))
    if low < 0 < high:
        zero = WIDTH * -low / (high - low)
        drawn.append(vertical("grid", zero, 0, HISTOGRAM_HEIGHT))
        if 40 < zero < WIDTH - 40:
            drawn.append(text("", zero, HISTOGRAM_HEIGHT + 14, "0", "middle"))
    return drawing(drawn, WIDTH, HISTOGRAM_HEIGHT + 20, label)


def _ticks(places: Sequence[float], place: Scale, top: float, bottom: float, x_label: str) -> list[str]:
    drawn = []
    digits = max(0, -math.floor(math.log10(places[1] - places[0]) + 1e-9))  # enough to tell neighbours apart
    for value in places:
        drawn.append(vertical("grid", place(value), top, bottom))
        drawn.append(text("", place(value), bottom + 14, f"{value:,.{digits}f}", "middle"))
    return [*drawn, text("", WIDTH, bottom + 30, x_label, "end")]


def _marks(marks: Sequence[Mark], place: Scale, top: float, bottom: float) -> list[str]:
    drawn = []
    for mark in marks:
        x = place(mark.at)
        drawn.append(vertical(mark.style, x, top, bottom))
        if mark.name:  # ends at the line where it would leave the plot
            drawn.append(text("", x, top - 5, mark.name, "end" if x > WIDTH - 40 else "middle"))
    return drawn


def _short(label: str) -> str:
    return label if len(label) <= MOST_LABEL_LETTERS else f"{label[: MOST_LABEL_LETTERS - 1]}…"
