"""All dashboards on one page that needs nothing from elsewhere: to be looked at without Grafana, mailed or kept."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loadtests.dashboards.ask import Period
from loadtests.dashboards.draw import Picture

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class DrawnRow:
    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class DrawnBoard:
    name: str
    title: str
    asks: str
    rows: Sequence[DrawnRow]


def render(boards: Sequence[DrawnBoard], period: Period) -> str:
    """The page as HTML; every text in it is escaped by the template."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    started, ended = (
        datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        for at in (period.start, period.end)
    )
    return environment.get_template(TEMPLATE).render(boards=boards, started=started, ended=ended)
