"""Ask Prometheus what the panels of a dashboard ask, with the variables filled as Grafana fills them."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.dashboards.boards import Dashboard, Panel, Target
from loadtests.dashboards.prometheus import Found, Prometheus, PrometheusError

POINTS = 120
"""Steps of a plot."""
SCRAPES_PER_RATE = 4
"""A rate looks at so many scrapes at least, as Grafana's $__rate_interval does."""
LABEL_VALUES = re.compile(r"label_values\((\w+), (\w+)\)")


@dataclass(frozen=True)
class Period:
    """Unix seconds, and seconds between two points and between two scrapes."""

    start: float
    end: float
    step: float
    scrape: float

    @classmethod
    def before(cls, end: float, seconds: float, scrape: float) -> "Period":
        """So many seconds before a moment; steps are no shorter than scrapes."""
        return cls(end - seconds, end, max(seconds / POINTS, scrape), scrape)

    @classmethod
    def until_now(cls, seconds: float, scrape: float) -> "Period":
        return cls.before(time.time(), seconds, scrape)

    @property
    def rate_interval(self) -> str:
        """Of Grafana: https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/"""
        return f"{max(self.step + self.scrape, SCRAPES_PER_RATE * self.scrape):g}s"


@dataclass(frozen=True)
class Line:
    """A series and what its panel calls it."""

    name: str
    found: Found


@dataclass(frozen=True)
class Asked:
    """A panel and what it shows.

    Attributes:
        queries: as they were sent.
        lines: of all queries.
        empty: queries that brought nothing.
    """

    panel: Panel
    queries: Sequence[str]
    lines: Sequence[Line]
    empty: Sequence[str]


def filled_variables(board: Dashboard, prometheus: Prometheus) -> dict[str, str]:
    """Name -> what stands for it in queries when each of its values is chosen, as a regular expression in PromQL.

    Raises:
        PrometheusError: a variable has no values, or Prometheus does not answer.
    """
    filled = {}
    for variable in board.variables:
        if not variable.query:
            continue
        matched = LABEL_VALUES.fullmatch(variable.query)
        if matched is None:
            raise PrometheusError(f"{board.name}: variable {variable.name}: {variable.query} is not known here")
        values = prometheus.label_values(*matched.groups())
        if not values:
            raise PrometheusError(f"{board.name}: variable {variable.name}: {variable.query} has no values")
        filled[variable.name] = "|".join(re.escape(value).replace("\\", "\\\\") for value in values)
    return filled


def ask(panel: Panel, variables: Mapping[str, str], prometheus: Prometheus, period: Period) -> Asked:
    """Send a panel's queries.

    Raises:
        PrometheusError: Prometheus does not answer, or not to this query.
    """
    queries, lines, empty = [], [], []
    for target in panel.targets:
        query = fill(target.expression, variables, period)
        queries.append(query)
        if target.is_instant:
            found = prometheus.now(query, period.end)
        else:
            found = prometheus.over_time(query, period.start, period.end, period.step)
        if not found:
            empty.append(query)
        lines += [Line(name_of(one, target, panel), one) for one in found]
    return Asked(panel, queries, lines, empty)


def fill(expression: str, variables: Mapping[str, str], period: Period) -> str:
    """The query that is sent; names that nothing stands for are left as they are, and Prometheus refuses them."""
    known = dict(variables) | {"__rate_interval": period.rate_interval, "__range": f"{period.end - period.start:.0f}s"}
    return re.sub(r"\$(\w+)", lambda matched: known.get(matched[1], matched[0]), expression)


def name_of(found: Found, target: Target, panel: Panel) -> str:
    """As the legend has it."""
    if target.legend != "__auto":
        return re.sub(r"\{\{(\w+)\}\}", lambda matched: found.labels.get(matched[1], ""), target.legend)
    return ", ".join(f"{name}={value}" for name, value in found.labels.items() if name != "__name__") or panel.title
