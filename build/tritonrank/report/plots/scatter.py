"""Dots over a numeric, logarithmic or named x axis; the y axis begins where the values do, so that small gains show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from tritonrank.report.plots.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes
from tritonrank.report.plots.svg import Scale, drawing, figure, text, ticks

MOST_NAMES = 12
"""Names below the axis; more would run into each other, and are left to the dots' titles."""


@dataclass(frozen=True)
class Dot:
    """One thing that was measured."""

    x: float | str
    """a number, or one of the names of the axis"""
    y: float
    told: str
    """what it is, in words"""
    colour: int = 1


def scatter(
    dots: Sequence[Dot],
    *,
    x_label: str,
    y_label: str,
    is_log: bool = False,
    names: Sequence[str] = (),
    steps: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Dots, and a line in steps among them.

    Args:
        dots: empty where there are none.
        x_label, y_label: with units.
        is_log: the x axis is logarithmic; all x are above 0.
        names: the x axis has these instead of numbers.
        steps: (x, y) from which on a line has that height, such as the best so far.
    """
    if not dots:
        return Markup("")
    y_ticks = ticks(min(dot.y for dot in dots), max(dot.y for dot in dots), 5)
    place_y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    xs = [_place(dot.x, names, is_log=is_log) for dot in dots]
    low, high = (-0.5, len(names) - 0.5) if names else (min(xs), max(xs))
    margin = 0.0 if names else 0.04 * (high - low) or 0.5
    place_x = Scale(low - margin, high + margin, LEFT, WIDTH - RIGHT)
    drawn = axes(place_y, y_ticks, x_label, y_label)
    for x, shown in _x_ticks(low, high, names, is_log=is_log):
        drawn.append(text("", place_x(x), HEIGHT - BOTTOM + 15, shown, "middle"))
    if len(steps) > 1:
        path = [f"{place_x(steps[0][0])},{place_y(steps[0][1])}"]
        for (_, before), (x, y) in pairwise(steps):
            path += [f"{place_x(x)},{place_y(before)}", f"{place_x(x)},{place_y(y)}"]
        drawn.append(f'<polyline class="line stroke3" fill="none" points="{" ".join(path)}"/>')
    for dot, x in zip(dots, xs, strict=True):
        place = f'cx="{place_x(x)}" cy="{place_y(dot.y)}"'
        drawn.append(f'<circle class="fill{dot.colour}" {place} r="4"><title>{escape(dot.told)}</title></circle>')
    return drawing(drawn, WIDTH, HEIGHT, f"{y_label} by {x_label}")


def _place(x: float | str, names: Sequence[str], *, is_log: bool) -> float:
    if names:
        return float(names.index(str(x)))
    return math.log10(float(x)) if is_log else float(x)


def _x_ticks(low: float, high: float, names: Sequence[str], *, is_log: bool) -> list[tuple[float, str]]:
    if names:
        return [(float(place), name) for place, name in enumerate(names)] if len(names) <= MOST_NAMES else []
    if not is_log:
        return [(value, figure(value)) for value in ticks(low, high, 5) if low <= value <= high]
    powers = [float(power) for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    shown = powers if len(powers) > 1 else [low, high]
    return [(power, f"{10**power:.2g}") for power in shown]
