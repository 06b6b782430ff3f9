"""The page of a study: both systems day by day, what moved people meanwhile, and what became of each night."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.svg import figure

from loadtests.page_figures import Figure, Point
from loadtests.shoppers.study import FIRST, FROZEN, Study
from loadtests.shoppers.world import World

TEMPLATES = Path(__file__).parents[1]
COLOURS = {FIRST: 1, FROZEN: 2}
MEASURES = {
    "ndcg": "NDCG@10 by the truth",
    "clicks": "clicks to be expected per page",
    "regret": "clicks lost per page",
}
MOST_TRENDS = 5


def render(study: Study, world: World) -> str:
    """The page as HTML.

    Args:
        study: what was found.
        world: the truth.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = figure
    return environment.get_template("shoppers/page.html.j2").render(
        days=study.settings.world.days,
        gain=study.gain(),
        world=study.settings.world,
        night=study.settings.night,
        seconds=study.seconds,
        figures=[*(_measure(study, name, title) for name, title in MEASURES.items()), _gain(study), _trends(world)],
        nights=study.nights,
        estimates=study.estimates,
    )


def _measure(study: Study, name: str, title: str) -> Figure:
    rows = study.as_json()["by_day"]
    lines = [Series(arm, [(row["day"], row[arm][name]) for row in rows], colour) for arm, colour in COLOURS.items()]
    return Figure(title, line_plot(lines, x_label="day", y_label=title), _legend(lines), "Mean over the day's pages.")


def _gain(study: Study) -> Figure:
    rows = study.as_json()["by_day"]
    bounds = (("mean", 1, False), ("low", 5, True), ("high", 5, True))
    lines = [
        Series(bound, [(row["day"], row["gain"]["ndcg"][bound]) for row in rows], colour, dashed=dashed)
        for bound, colour, dashed in bounds
    ]
    plot = line_plot(lines, x_label="day", y_label="difference of NDCG@10")
    return Figure("What learning gained", plot, _legend(lines), "Paired by user, with the 95% interval of each day.")


def _trends(world: World) -> Figure:
    """The words whose fashion changed most."""
    days = list(world.day_range)
    by_day = [world.trend(day)[0] for day in days]
    change = {word: abs(by_day[-1][word] - by_day[world.settings.before][word]) for word in by_day[0]}
    words = sorted(change, key=lambda word: -change[word])[:MOST_TRENDS]
    lines = []
    for colour, word in enumerate(words, 1):
        points: list[Point] = [(float(day), of[word]) for day, of in zip(days, by_day, strict=True)]
        lines.append(Series(word, points, colour))
    plot = line_plot(lines, x_label="day", y_label="logits")
    return Figure("Fashions", plot, _legend(lines), "Of the words that changed most; days before 0 are the past.")


def _legend(lines: list[Series]) -> list[tuple[int, bool, str]]:
    return [(line.colour, line.dashed, line.name) for line in lines]
