"""The words that dashboards are written in: a panel says what it shows, which question that answers, and the query.

Grafana's own builders (grafana-foundation-sdk) make the JSON, so a misspelt option is an error here and not an empty
panel there. Queries name metrics and labels of ours alone, never a scrape job: whoever scrapes may name that as he
likes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    Panel,
    Threshold,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "tritonrank"
SOURCE = DataSourceRef("prometheus", "${datasource}")
GRID_COLUMNS = 24
PLOT_WIDTH, PLOT_HEIGHT, NUMBER_WIDTH, NUMBER_HEIGHT = 8, 8, 4, 4
REFRESH = "30s"
PERIOD = "now-1h"


@dataclass(frozen=True)
class Query:
    """PromQL, and the name of each of its series; ``{{label}}`` in it is that label's value."""

    expression: str
    legend: str = ""
    has_exemplars: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What all panels have.

    Attributes:
        title: of the panel.
        asks: the question that it answers, and what to make of the answer.
        unit: Grafana's id of it, such as s, bytes, reqps, percentunit, short.
        queries: whose series it shows.
        width: in 24ths of the page.
        bad_from: values from here on are bad (a line, or red).
        bad_below: values below this are bad.
    """

    title: str
    asks: str
    unit: str
    queries: Sequence[Query]
    width: int = PLOT_WIDTH
    bad_from: float | None = None
    bad_below: float | None = None

    def thresholds(self) -> dashboard.ThresholdsConfig:
        """Green, and red on the bad side."""
        first, second = ("red", "green") if self.bad_below is not None else ("green", "red")
        steps = [Threshold(None, first)]
        if (at := self.bad_from if self.bad_below is None else self.bad_below) is not None:
            steps.append(Threshold(at, second))
        return dashboard.ThresholdsConfig().steps(steps)


@dataclass(frozen=True, kw_only=True)
class Lines(Shown):
    """Series over time, from 0 upwards; stacked where they are parts of a whole, and both ways where they say so."""

    is_stacked: bool = False
    has_negatives: bool = False

    def panel(self) -> Builder[Panel]:
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        made = timeseries.Panel().title(self.title).description(self.asks).unit(self.unit).datasource(SOURCE)
        made.legend(legend.show_legend(True)).grid_pos(GridPos(PLOT_HEIGHT, self.width))
        if not self.has_negatives:
            made.min(0)
        made.fill_opacity(30 if self.is_stacked else 0).thresholds(self.thresholds())
        if self.is_stacked:
            made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        for query in _targets(self.queries):
            made.with_target(query)
        return made


@dataclass(frozen=True, kw_only=True)
class Number(Shown):
    """The value now, large."""

    width: int = NUMBER_WIDTH

    def panel(self) -> Builder[Panel]:
        made = stat.Panel().title(self.title).description(self.asks).unit(self.unit).datasource(SOURCE)
        made.grid_pos(GridPos(NUMBER_HEIGHT, self.width)).thresholds(self.thresholds())
        made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        judged = self.bad_from is not None or self.bad_below is not None
        made.color_mode(BigValueColorMode.VALUE if judged else BigValueColorMode.NONE)
        for query in _targets(self.queries):
            made.with_target(query)
        return made


@dataclass(frozen=True, kw_only=True)
class Bars(Shown):
    """The value now of each series, as horizontal bars."""

    def panel(self) -> Builder[Panel]:
        made = bargauge.Panel().title(self.title).description(self.asks).unit(self.unit).datasource(SOURCE)
        made.grid_pos(GridPos(PLOT_HEIGHT, self.width)).thresholds(self.thresholds()).min(0)
        made.orientation(VizOrientation.HORIZONTAL)
        made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        for query in _targets(self.queries, is_instant=True):
            made.with_target(query)
        return made


@dataclass(frozen=True, kw_only=True)
class Heat(Shown):
    """A histogram over time; its one query sums the buckets' growth by ``le``."""

    def panel(self) -> Builder[Panel]:
        made = heatmap.Panel().title(self.title).description(self.asks).unit(self.unit).datasource(SOURCE)
        made.grid_pos(GridPos(PLOT_HEIGHT, self.width)).calculate(False).show_tooltip()
        made.y_axis(heatmap.YAxisConfig().unit(self.unit))
        for query in _targets(self.queries, PromQueryFormat.HEATMAP):
            made.with_target(query.legend_format("{{le}}"))
        return made


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Lines | Number | Bars | Heat]


@dataclass(frozen=True)
class Choice:
    """A variable of the page: the values of a label of a metric, any number of which can be chosen."""

    name: str
    label: str
    metric: str
    of: str


GATEWAYS = Choice("gateway", "Gateway", "tritonrank_gateway_in_flight", "instance")
SERVERS = Choice("server", "Triton", "nv_inference_count", "instance")
RECIPES = Choice("recipe", "Recipe", "tritonrank_learn_nights", "recipe")
MODELS = Choice("model", "Model", "nv_inference_count", "model")


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        name: of the file, and part of the address.
        title: of the page.
        asks: the questions it is opened with.
        rows: top to bottom.
        choices: variables besides the data source.
    """

    name: str
    title: str
    asks: str
    rows: Sequence[Row]
    choices: Sequence[Choice] = field(default=(GATEWAYS,))

    def build(self) -> Dashboard:
        """As Grafana reads it."""
        made = dashboard.Dashboard(f"tritonrank: {self.title}").uid(f"{TAG}-{self.name}").description(self.asks)
        made.tags([TAG]).refresh(REFRESH).time(PERIOD, "now").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
        others = dashboard.DashboardLink("All of tritonrank").type(DashboardLinkType.DASHBOARDS).tags([TAG])
        made.link(others.as_dropdown(True).keep_time(True))
        made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        for choice in self.choices:
            made.with_variable(_variable(choice))
        for row in self.rows:
            made.with_row(dashboard.Row(row.title))
            for shown in row.panels:
                made.with_panel(shown.panel())
        built = made.build()
        for number, panel in enumerate(built.panels or (), 1):
            panel.id_val = number
        return built


def _variable(choice: Choice) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(choice.name).label(choice.label).datasource(SOURCE)
    made.query(f"label_values({choice.metric}, {choice.of})").sort(VariableSort.ALPHABETICAL_ASC)
    made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True).all_value(".*")
    return made.current(VariableOption(True, ["All"], ["$__all"]))


def _targets(
    queries: Sequence[Query], form: PromQueryFormat = PromQueryFormat.TIME_SERIES, *, is_instant: bool = False
) -> list[prometheus.Dataquery]:
    made = []
    for place, query in enumerate(queries):
        one = prometheus.Dataquery().expr(query.expression).ref_id("ABCDEFGH"[place]).format(form).datasource(SOURCE)
        one.legend_format(query.legend or "__auto").exemplar(query.has_exemplars)
        made.append(one.instant() if is_instant else one.range())
    return made
