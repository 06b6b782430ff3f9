"""The page of ``adapt``: the ledger of both runs beside each other, and what happened second by second."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tritonrank.report.plots.axes import Band, Series, line_plot
from tritonrank.report.plots.svg import figure
from tritonrank_gateway.adapt import Level

from loadtests.levels_ledger import FULL, Ledger
from loadtests.page_figures import Figure
from loadtests.results import NO_ROOM, Run, Second, Verdict

TEMPLATE = "adapt_page.html.j2"
Value = Callable[[Mapping[str, int], float | None, Second], float | None]
COLOURS = {"off": 2, "act": 1}
CURVES: Sequence[tuple[str, Value]] = (
    ("lists without room, %", lambda lists, _, __: _share(lists, NO_ROOM)),
    ("lists ranked in full, %", lambda lists, _, __: _share(lists, FULL)),
    ("NDCG of what was served, % of full", lambda _, quality, __: None if quality is None else 100 * quality),
    ("p99 latency, ms", lambda _, __, row: row.latency.p99),
    ("pages due per second", lambda _, __, row: float(row.offered)),
)


def render(
    runs: Mapping[str, Run], ledgers: Mapping[str, Ledger], levels: Sequence[Level], verdicts: Sequence[Verdict]
) -> str:
    """The page as HTML.

    Args:
        runs: by mode of the gateway.
        ledgers: of these runs.
        levels: of the gateway, best first.
        verdicts: on the run with levels.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = figure
    run = runs["act"]
    return environment.get_template(TEMPLATE).render(
        run=run,
        verdicts=verdicts,
        ledgers=ledgers,
        levels=levels,
        names=[*(level.name for level in levels), NO_ROOM],
        without_ranker=levels[-1].quality,
        figures=[_figure(title, value, runs, ledgers) for title, value in CURVES],
    )


def _figure(title: str, value: Value, runs: Mapping[str, Run], ledgers: Mapping[str, Ledger]) -> Figure:
    bands = [Band(phase.start_second, phase.end_second, phase.name) for phase in runs["act"].phases]
    lines = []
    for mode, run in runs.items():
        rows = zip(ledgers[mode].by_second, run.per_second, strict=True)
        points = [(float(second), value(lists, quality, row)) for (second, lists, quality), row in rows]
        lines.append(Series(f"--adapt {mode}", points, COLOURS[mode]))
    legend = [(line.colour, False, line.name) for line in lines]
    return Figure(title, line_plot(lines, x_label="seconds", y_label=title, bands=bands), legend)


def _share(lists: Mapping[str, int], name: str) -> float | None:
    """In %, of the second's lists."""
    count = sum(lists.values())
    return 100 * lists.get(name, 0) / count if count else None
