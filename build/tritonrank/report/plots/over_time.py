"""Parts of a whole over time, and a distribution over time. Both break where nothing was measured."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from tritonrank.report.plots.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, axes
from tritonrank.report.plots.svg import Scale, drawing, figure, text, ticks

FAINTEST, DARKEST = 0.12, 1.0


def stacked_areas(series: Sequence[Series], *, x_label: str, y_label: str) -> Markup:
    """Areas on top of each other, the first one at the bottom; a value that is missing counts as none.

    Args:
        series: all over the same x; empty where none has a value.
        x_label, y_label: with units.
    """
    xs = sorted({x for line in series for x, y in line.points if y is not None})
    if not xs:
        return Markup("")
    heights = [{x: y for x, y in line.points if y is not None} for line in series]
    y_ticks = ticks(0.0, 1.05 * max(sum(one.get(x, 0.0) for one in heights) for x in xs) or 1.0, 5)
    place_x, place_y = across_time(xs), Scale(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    drawn = [*axes(place_y, y_ticks, x_label, y_label), *time_ticks(xs, place_x)]
    below = dict.fromkeys(xs, 0.0)
    for line, of in zip(series, heights, strict=True):
        above = {x: below[x] + of.get(x, 0.0) for x in xs}
        edge = [f"{place_x(x)},{place_y(above[x])}" for x in xs] + [
            f"{place_x(x)},{place_y(below[x])}" for x in reversed(xs)
        ]
        drawn.append(
            f'<polygon class="fill{line.colour}" points="{" ".join(edge)}"><title>{escape(line.name)}</title></polygon>'
        )
        below = above
    return drawing(drawn, WIDTH, HEIGHT, f"{y_label} over {x_label}, in parts")


def heat_map(
    columns: Sequence[tuple[float, Sequence[float]]], bounds: Sequence[str], *, x_label: str, y_label: str, unit: str
) -> Markup:
    """A distribution over time: the darker a cell, the more values lie in it, by the square root of their number.

    Args:
        columns: x, and how many values lie in each bucket.
        bounds: the buckets' upper bounds, from the lowest up.
        x_label, y_label: with units.
        unit: of what is counted.
    """
    fullest = max((count for _, counts in columns for count in counts), default=0.0)
    if not fullest:
        return Markup("")
    filled = [place for place in range(len(bounds)) if any(counts[place] for _, counts in columns)]
    shown = range(filled[0], filled[-1] + 1)
    xs = [x for x, _ in columns]
    row = (HEIGHT - BOTTOM - TOP) / len(shown)
    width = (WIDTH - RIGHT - LEFT) / len(xs)
    place_x = across_time(xs, WIDTH - RIGHT - width)
    drawn = [*axes(Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP), (), x_label, y_label), *time_ticks(xs, place_x)]
    for level, place in enumerate(shown):
        bottom = HEIGHT - BOTTOM - level * row
        if level % max(1, len(shown) // 8) == 0:
            drawn.append(text("", LEFT - 5, bottom - row + 4, bounds[place], "end"))
        for x, counts in columns:
            if not counts[place]:
                continue
            darkness = FAINTEST + (DARKEST - FAINTEST) * (counts[place] / fullest) ** 0.5
            told = escape(f"up to {bounds[place]}: {figure(counts[place])} {unit}")
            drawn.append(
                f'<rect class="fill1" opacity="{darkness:.2f}" x="{place_x(x):.2f}" y="{bottom - row:.2f}" '
                f'width="{width:.2f}" height="{row:.2f}"><title>{told}</title></rect>'
            )
    return drawing(drawn, WIDTH, HEIGHT, f"{y_label} over {x_label}, distribution")


def across_time(xs: Sequence[float], end: float = WIDTH - RIGHT) -> Scale:
    """The places of an x axis that has no other room than from the first value to the last, which stands at ``end``."""
    return Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, end)


def time_ticks(xs: Sequence[float], place_x: Scale) -> list[str]:
    """The numbers below the x axis."""
    return [
        text("", place_x(value), HEIGHT - BOTTOM + 15, figure(value), "middle")
        for value in ticks(min(xs), max(xs), 6)
        if min(xs) <= value <= max(xs)
    ]
