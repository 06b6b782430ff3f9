"""The page of a simulation: for each scenario a table and its curves. One file, nothing from elsewhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.svg import figure

from loadtests.page_figures import Figure
from loadtests.simulate.cost import Cost
from loadtests.simulate.fleet import Floats
from loadtests.simulate.play import LISTS_SHARE, Course, Result
from loadtests.simulate.policies import POLICIES
from loadtests.simulate.scenarios import DAY_SECONDS, Scenario

TEMPLATES = Path(__file__).parents[1]
CURVES: Mapping[str, Callable[[Course, Result], Floats]] = {
    "requests per second": lambda course, _: course.arrived,
    "lists refused, %": lambda course, _: 100 * course.refused,
    "NDCG lost by pages, %": lambda course, _: 100 * (1 - course.ndcg_share),
    "replicas": lambda course, _: course.replicas,
}


@dataclass(frozen=True)
class Part:
    """What the page tells of a scenario."""

    name: str
    said: str
    rows: Sequence[Result]
    figures: Sequence[Figure]


def render(results: Iterable[Result], scenarios: Mapping[str, Scenario], cost: Cost) -> str:
    """The page as HTML.

    Args:
        results: of everything that was played.
        scenarios: by name, those that results name at least.
        cost: of a replica.
    """
    every = list(results)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = figure
    played = [name for name in scenarios if any(one.scenario == name for one in every)]
    return environment.get_template("simulate/page.html.j2").render(
        sizes=sorted({one.replicas for one in every}),
        cost=cost,
        lists_share=LISTS_SHARE,
        policies=[(name, said) for name, (_, said) in POLICIES.items() if any(one.policy == name for one in every)],
        scenarios=[_part(scenarios[name], [one for one in every if one.scenario == name]) for name in played],
    )


def _part(scenario: Scenario, rows: Sequence[Result]) -> Part:
    largest = max(one.replicas for one in rows)
    drawn = [one for one in rows if one.replicas == largest]
    unit, label = (3_600.0, "hours") if scenario.seconds >= DAY_SECONDS else (60.0, "minutes")
    colours = {name: place for place, name in enumerate(POLICIES, 1)}
    figures = []
    for title, curve in CURVES.items():
        lines = [
            Series(
                one.policy,
                list(zip((one.course.seconds / unit).tolist(), curve(one.course, one).tolist(), strict=True)),
                colours[one.policy],
            )
            for one in drawn
        ]
        plot = line_plot(lines, x_label=label, y_label=title)
        legend = [(line.colour, False, line.name) for line in lines]
        figures.append(Figure(title, plot, legend, f"A fleet of {largest} replicas at the start."))
    return Part(scenario.name, scenario.said, rows, figures)
