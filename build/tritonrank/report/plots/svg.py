"""What every plot is drawn with: scales, round ticks, figures for people, and SVG text and lines.

Plots are inline SVG, drawn here and not by a plotting library: the page's style sheet colours them, so they follow
light and dark, their text is text, and a page of ten plots stays below 200 kB. Every text is escaped where it is put
in.
"""

import math
from collections.abc import Iterable

from markupsafe import Markup, escape


class Scale:
    """From values to places, rounded to hundredths."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self._low) * self._factor, 2)


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


def text(style: str, x: float, y: float, written: str, anchor: str = "start", more: str = "") -> str:
    """Text at a place; ``more`` are further attributes, each with a space before it."""
    style = f' class="{style}"' if style else ""
    return f'<text{style} x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{more}>{escape(written)}</text>'


def vertical(style: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{style}" x1="{x:.2f}" x2="{x:.2f}" y1="{top}" y2="{bottom}"/>'


def drawing(parts: Iterable[str], width: float, height: float, told: str) -> Markup:
    """The whole picture.

    Args:
        parts: SVG; every value in it is a number or was escaped where it was put in.
        width, height: of the coordinates; the page decides how large it is shown.
        told: what the picture shows, for those who cannot see it.
    """
    body = "\n".join(parts)
    return Markup(f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(told)}">\n{body}\n</svg>')
