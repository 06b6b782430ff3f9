"""Plots as inline SVG that the page's style sheet colours, so that they follow light and dark and stay text.

They are drawn for the width of a phone and grow with the page. Every text is escaped where it is put in.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 360
LABEL_WIDTH = 130
"""Left of horizontal bars and intervals; longer labels stand above their row."""
ROW, TICK_ROOM, HISTOGRAM_HEIGHT = 22, 20, 96
MOST_LABEL_LETTERS = 20
NEURON_CELLS = 48


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
    place = _Scale(places[0], places[-1], LABEL_WIDTH + 8, WIDTH - 20)
    top = 16 if any(mark.name for mark in marks) else 4
    bottom = top + len(rows) * ROW
    drawn = _ticks(places, place, top, bottom, x_label)
    drawn += _marks(marks, place, top, bottom)
    for number_, row in enumerate(rows):
        y = top + number_ * ROW + ROW / 2
        told = f"{row.label}: {figure(row.value)}"
        if row.low < row.high:
            told += f" [{figure(row.low)}, {figure(row.high)}]"
        drawn.append(_text("label", 0, y + 4, _short(row.label)))
        drawn.append(f"<g><title>{escape(told)}</title>")
        line = f'x1="{place(row.low)}" x2="{place(row.high)}" y1="{y}" y2="{y}"'
        drawn.append(f'<line class="interval stroke{row.colour}" {line}/>')
        if row.bound is not None:
            drawn.append(_vertical(f"interval stroke{row.colour}", place(row.bound), y - 5, y + 5))
        drawn.append(f'<circle class="fill{row.colour}" cx="{place(row.value)}" cy="{y}" r="4"/></g>')
    return _svg(drawn, bottom + TICK_ROOM + 16, x_label)


def bar_plot(rows: Sequence[BarRow], x_label: str, marks: Sequence[Mark] = ()) -> Markup:
    """Horizontal bars from 0."""
    if not rows:
        return Markup("")
    places = ticks(0.0, max([row.value for row in rows] + [mark.at for mark in marks]) or 1.0, 4)
    place = _Scale(0.0, places[-1], LABEL_WIDTH, WIDTH - 44)
    top = 16 if any(mark.name for mark in marks) else 2
    bottom = top + len(rows) * (ROW - 4)
    drawn = _ticks(places, place, top, bottom, x_label)
    for number_, row in enumerate(rows):
        y = top + number_ * (ROW - 4)
        shown = row.told or figure(row.value)
        drawn.append(_text("label", 0, y + 13, _short(row.label)))
        width = f"{place(row.value) - LABEL_WIDTH:.2f}"
        drawn.append(
            f'<rect class="fill{row.colour}" x="{LABEL_WIDTH}" y="{y + 3}" width="{width}" height="{ROW - 9}">'
            f"<title>{escape(f'{row.label}: {shown}')}</title></rect>"
        )
        drawn.append(_text("", place(row.value) + 4, y + 13, shown))
    drawn += _marks(marks, place, top, bottom)
    return _svg(drawn, bottom + TICK_ROOM + 16, x_label)


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
    drawn.append(_text("", 0, HISTOGRAM_HEIGHT + 14, figure(low)))
    drawn.append(_text("", WIDTH, HISTOGRAM_HEIGHT + 14, figure(high), "end"))
    if low < 0 < high:
        zero = WIDTH * -low / (high - low)
        drawn.append(_vertical("grid", zero, 0, HISTOGRAM_HEIGHT))
        if 40 < zero < WIDTH - 40:
            drawn.append(_text("", zero, HISTOGRAM_HEIGHT + 14, "0", "middle"))
    return _svg(drawn, HISTOGRAM_HEIGHT + 20, label)


@dataclass(frozen=True)
class LayerParts:
    """What stayed of one layer of the unpruned ranker; of a layer that was removed no head did."""

    layer: int
    heads: Sequence[int]
    neurons: Sequence[int]


def kept_matrix(layers: Sequence[LayerParts], heads: int, neurons: int) -> Markup:
    """One row per layer: a square per attention head, and a strip whose cells are as full as neurons stayed in them.

    Args:
        layers: all of the unpruned ranker.
        heads, neurons: how many each layer had.
    """
    left, row = 50, 24
    square = min(16.0, 130 / max(1, heads))
    strip_start = left + heads * square + 14
    cells = min(NEURON_CELLS, neurons)
    cell = (WIDTH - 56 - strip_start) / cells
    in_cell = Counter(neuron * cells // neurons for neuron in range(neurons))
    drawn = [
        _text("", left, 11, f"{heads} heads"),
        _text("", strip_start, 11, f"{neurons:,} FFN neurons"),
    ]
    for number_, parts in enumerate(layers):
        y = 18 + number_ * row
        gone = not parts.heads
        drawn.append(_text("" if gone else "label", 0, y + 13, f"layer {parts.layer}"))
        kept_heads = set(parts.heads)
        for head in range(heads):
            is_kept = head in kept_heads
            drawn.append(
                f'<rect class="{"fill1" if is_kept else "cut"}" x="{left + head * square + 1:.2f}" y="{y + 1}" '
                f'width="{square - 2:.2f}" height="14"><title>layer {parts.layer}, head {head}: '
                f"{'kept' if is_kept else 'removed'}</title></rect>"
            )
        there = Counter(neuron * cells // neurons for neuron in parts.neurons)
        drawn.append(
            f'<rect class="cut" x="{strip_start:.2f}" y="{y + 1}" width="{cell * cells:.2f}" height="14">'
            f"<title>layer {parts.layer}: {len(parts.neurons)} of {neurons} neurons kept</title></rect>"
        )
        for place, kept in there.items():
            height = 14 * kept / in_cell[place]
            drawn.append(
                f'<rect class="fill3" x="{strip_start + place * cell:.2f}" y="{y + 15 - height:.2f}" '
                f'width="{cell:.2f}" height="{height:.2f}"/>'
            )
        drawn.append(_text("", WIDTH, y + 13, "removed" if gone else f"{len(parts.neurons):,}", "end"))
    return _svg(drawn, 20 + len(layers) * row, "what stayed of each layer")


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers that cover the range: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def figure(value: float) -> str:
    """For people: three significant digits, thousands separated."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    shown = f"{value:.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _ticks(places: Sequence[float], place: "_Scale", top: float, bottom: float, x_label: str) -> list[str]:
    drawn = []
    digits = max(0, -math.floor(math.log10(places[1] - places[0]) + 1e-9))  # enough to tell neighbours apart
    for value in places:
        drawn.append(_vertical("grid", place(value), top, bottom))
        drawn.append(_text("", place(value), bottom + 14, f"{value:,.{digits}f}", "middle"))
    return [*drawn, _text("", WIDTH, bottom + 30, x_label, "end")]


def _marks(marks: Sequence[Mark], place: "_Scale", top: float, bottom: float) -> list[str]:
    drawn = []
    for mark in marks:
        x = place(mark.at)
        drawn.append(_vertical(mark.style, x, top, bottom))
        if mark.name:  # ends at the line where it would leave the plot
            drawn.append(_text("", x, top - 5, mark.name, "end" if x > WIDTH - 40 else "middle"))
    return drawn


def _vertical(style: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{style}" x1="{x:.2f}" x2="{x:.2f}" y1="{top}" y2="{bottom}"/>'


def _text(style: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    style = f' class="{style}"' if style else ""
    return f'<text{style} x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(label: str) -> str:
    return label if len(label) <= MOST_LABEL_LETTERS else f"{label[: MOST_LABEL_LETTERS - 1]}…"


class _Scale:
    """From values to places, rounded to hundredths."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self._low) * self._factor, 2)


def _svg(parts: Iterable[str], height: float, told: str) -> Markup:
    # Every value in the parts is a number or was escaped where it was put in.
    body = "\n".join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(told)}">\n{body}\n</svg>')
