"""Plots over two axes: lines, bars in groups, and bars made of parts. A line breaks where a value is missing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tritonrank.report.plots.svg import Scale, drawing, figure, text, ticks

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 14, 40
BAR_HEIGHT, BAR_GAP, LABEL_HEIGHT = 18, 12, 15
MOST_BAND_NAMES = 6
"""Names of phases above the plot; more would run into each other."""


@dataclass(frozen=True)
class Series:
    """A line."""

    name: str
    points: Sequence[tuple[float, float | None]]
    """(x, y); None breaks the line"""
    colour: int
    """1 to 6, of the page's palette"""
    dashed: bool = False
    """the baseline's lines"""
    dots: bool = False
    """for lines of few points, so that each can be read off"""


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis with a name: a phase."""

    start: float
    end: float
    name: str


def line_plot(
    series: Sequence[Series], *, x_label: str, y_label: str, bands: Sequence[Band] = (), y_limit: float | None = None
) -> Markup:
    """Lines over a common x axis; y begins at 0. Empty where no series has a value.

    Args:
        series: what to draw.
        x_label, y_label: with units.
        bands: drawn behind the lines.
        y_limit: a line across, such as an objective.
    """
    xs = [x for line in series for x, y in line.points if y is not None]
    ys = [y for line in series for _, y in line.points if y is not None]
    if not xs:
        return Markup("")
    starts_at_zero = min(xs) >= 0 and min(xs) < max(xs) / 2
    x_ticks = ticks(0.0 if starts_at_zero else min(xs), max(xs), 6)
    y_ticks = ticks(0.0, max([*ys, y_limit or 0.0]) * 1.05, 5)
    x_range = (min(x_ticks[0], min(xs)), max([*xs, *(band.end for band in bands)]) or 1.0)
    place_x = Scale(x_range[0], x_range[1] if x_range[1] > x_range[0] else x_range[0] + 1, LEFT, WIDTH - RIGHT)
    place_y = Scale(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = [*_bands(bands, place_x), *axes(place_y, y_ticks, x_label, y_label)]
    drawn += [
        text("", place_x(value), HEIGHT - BOTTOM + 15, figure(value), "middle")
        for value in x_ticks
        if x_range[0] <= value <= x_range[1]
    ]
    if y_limit is not None:
        drawn.append(across("limit", place_y(y_limit)))
    for line in series:
        drawn += _line(line, place_x, place_y, x_label, y_label)
    return drawing(drawn, WIDTH, HEIGHT, f"{y_label} over {x_label}")


def stacked_bars(rows: Sequence[tuple[str, Mapping[str, float]]], parts: Sequence[str], unit: str) -> Markup:
    """Horizontal bars, one per row, each made of the same parts; every bar says its sum."""
    if not rows:
        return Markup("")
    longest = max((sum(values.values()) for _, values in rows), default=0.0) or 1.0
    place = Scale(0.0, longest, 0, WIDTH - 70)
    height = len(rows) * (BAR_HEIGHT + BAR_GAP + LABEL_HEIGHT)
    drawn = []
    for row, (label, values) in enumerate(rows):
        top = row * (BAR_HEIGHT + BAR_GAP + LABEL_HEIGHT)
        drawn.append(text("label", 0, top + 11, label))
        start = 0.0
        for colour, part in enumerate(parts, 1):
            value = values.get(part, 0.0)
            told = escape(f"{label}: {part} {figure(value)} {unit}")
            drawn.append(
                f'<rect class="fill{colour}" x="{place(start)}" y="{top + LABEL_HEIGHT}" '
                f'width="{place(start + value) - place(start):.2f}" height="{BAR_HEIGHT}"><title>{told}</title></rect>'
            )
            start += value
        drawn.append(text("", place(start) + 5, top + LABEL_HEIGHT + 13, f"{figure(start)} {unit}"))
    return drawing(drawn, WIDTH, height, f"{', '.join(parts)} in {unit}")


def bars(
    values: Sequence[tuple[str, Sequence[float | None]]], *, colours: Sequence[int], x_label: str, y_label: str
) -> Markup:
    """Vertical bars in groups: one group per x, in it one bar per colour."""
    heights = [height for _, group in values for height in group if height is not None]
    if not heights:
        return Markup("")
    y_ticks = ticks(0.0, max(heights) or 1.0, 5)
    place_y = Scale(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    room = (WIDTH - RIGHT - LEFT) / len(values)
    drawn = axes(place_y, y_ticks, x_label, y_label)
    for place, (label, group) in enumerate(values):
        start = LEFT + place * room
        width = min(40.0, 0.8 * room / len(group))
        first = start + (room - width * len(group)) / 2
        for member, height in enumerate(group):
            top = place_y(height or 0.0)
            told = escape(f"{x_label} {label}: {figure(height or 0.0)} {y_label}")
            drawn.append(
                f'<rect class="fill{colours[member]}" x="{first + member * width:.2f}" y="{top}" width="{width:.2f}" '
                f'height="{HEIGHT - BOTTOM - top:.2f}"><title>{told}</title></rect>'
            )
        drawn.append(text("", start + room / 2, HEIGHT - BOTTOM + 15, label, "middle"))
    return drawing(drawn, WIDTH, HEIGHT, f"{y_label} by {x_label}")


def _bands(bands: Sequence[Band], place_x: Scale) -> Iterable[str]:
    for place, band in enumerate(bands):
        start, end = place_x(band.start), place_x(band.end)
        yield (
            f'<rect class="band{place % 2}" x="{start}" y="{TOP}" width="{max(0.0, end - start):.2f}" '
            f'height="{HEIGHT - BOTTOM - TOP}"><title>{escape(band.name)}</title></rect>'
        )
        if len(bands) <= MOST_BAND_NAMES and end - start > 6 * len(band.name):
            yield text("", (start + end) / 2, TOP - 4, band.name, "middle")


def axes(place_y: Scale, y_ticks: Sequence[float], x_label: str, y_label: str) -> list[str]:
    """Both labels, and the y axis with its grid."""
    middle = (TOP + HEIGHT - BOTTOM) / 2
    drawn = [
        text("label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"),
        text("label", 10, middle, y_label, "middle", f' transform="rotate(-90 10 {middle})"'),
    ]
    for value in y_ticks:
        drawn.append(across("grid", place_y(value)))
        drawn.append(text("", LEFT - 5, place_y(value) + 4, figure(value), "end"))
    return drawn


def across(style: str, y: float) -> str:
    return f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'


def _line(line: Series, place_x: Scale, place_y: Scale, x_label: str, y_label: str) -> list[str]:
    drawn = []
    pieces: list[list[str]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
            continue
        pieces[-1].append(f"{place_x(x)},{place_y(y)}")
    style = f"line stroke{line.colour}" + (" dashed" if line.dashed else "")
    drawn += [f'<polyline class="{style}" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1]
    alone = {piece[0] for piece in pieces if len(piece) == 1}
    for x, y in line.points:
        if y is not None and (line.dots or f"{place_x(x)},{place_y(y)}" in alone):
            told = escape(f"{line.name}: {figure(y)} {y_label} at {figure(x)} {x_label}")
            place = f'cx="{place_x(x)}" cy="{place_y(y)}"'
            drawn.append(f'<circle class="fill{line.colour}" {place} r="3"><title>{told}</title></circle>')
    return drawn
