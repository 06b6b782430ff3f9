"""The plots of a run's page, each with its legend and what has to be said beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup
from tritonrank.report.plots.axes import Band, Series, bars, line_plot, stacked_bars

from loadtests.page_server import REST, ServerFigures, server_figures
from loadtests.results import FailureKind, PerfLevel, Phase, Run, Second, ServerSecond

MOST_POINTS = 200
"""Of a line over time. Longer runs are drawn in steps, each with its worst second."""
RUN_COLOUR, BASELINE_COLOUR = 1, 5
"""Where a plot has nothing but the two runs in it."""
FAILURE_MEANINGS: dict[FailureKind, str] = {
    "wrong": "an answer that is not right",
    "rejected": "refused, because the server had too much to do",
    "expired": "no answer within the deadline",
    "unavailable": "no connection, or the model was not served",
    "fault": "the server failed",
    "invalid": "the server refused the request itself",
    "unanswered": "due, and still open at the end",
}

Point = tuple[float, float | None]
"""(x, y) of a plot; None: unknown"""


@dataclass(frozen=True)
class Figure:
    """A plot with what belongs to it; without a plot, the reason why there is none."""

    title: str
    plot: Markup
    legend: Sequence[tuple[int, bool, str]] = ()
    """(colour, is dashed, name)"""
    note: str = ""


def latency_over_throughput(run: Run, baseline: Run | None, perf: Run | None) -> Figure:
    """One point per phase or level: how latency grows with what is answered."""
    lines: list[Series] = []
    for whose, source, dashed in (("", run, False), ("baseline ", baseline, True)):
        if source is None:
            continue
        phases = [phase for phase in source.phases if phase.counts and not source.perf and phase.totals.answered]
        # In order of what was offered: beyond saturation the line turns back.
        phases.sort(key=lambda phase: phase.totals.offered_per_second)
        for percentile, colour in (("p50", 1), ("p99", 2)):
            ramp, others = _by_kind(phases, percentile)
            # Steps of a ramp are a line, other phases are points: between them nothing was measured.
            values = ramp + [point for x, y in others for point in ((x, None), (x, y))]
            lines.append(Series(f"{whose}{percentile}", values, colour, dashed=dashed, dots=True))
    for source, dashed in ((perf, False), (run if run is not perf else None, False), (baseline, True)):
        for mode, colour, what in (("concurrency", 3, "clients that wait"), ("rate", 4, "Poisson arrivals")):
            levels = [one for one in levels_of(source) if one.mode == mode and not one.failed]
            values = [(level.answered_per_second, level.latency.p50) for level in levels]
            name = f"{'baseline ' if dashed else ''}perf_analyzer p50, {what}"
            lines.append(Series(name, values, colour, dashed=dashed, dots=True))
    lines = [line for line in lines if line.points]
    plot = line_plot(lines, x_label="answered requests per second", y_label="latency in ms")
    return Figure("Latency against throughput", plot, _legend(lines), "" if plot else "No phase was answered.")


def over_time(run: Run, baseline: Run | None) -> list[Figure]:
    """Percentiles, and rates with failures, second by second."""
    if not run.per_second:
        return [Figure("Latency over time", Markup(""), note="perf_analyzer gives no figures second by second.")]
    bands = [Band(phase.start_second, phase.end_second, phase.name) for phase in run.phases]
    step = _step(run.per_second)
    latencies = [
        Series("p50", _line(run.per_second, step, lambda one: one.latency.p50), 1),
        Series("p99", _line(run.per_second, step, lambda one: one.latency.p99), 2),
    ]
    if baseline and baseline.per_second:
        latencies.append(Series("baseline p99", _line(baseline.per_second, step, lambda one: one.latency.p99), 2, True))
    rates = [
        Series("offered", _line(run.per_second, step, lambda one: one.offered, mean=True), 5),
        Series("answered", _line(run.per_second, step, lambda one: one.answered, mean=True), 1),
    ]
    kinds = [kind for kind in FAILURE_MEANINGS if run.totals.failed.get(kind)]
    if kinds:
        failed = _line(run.per_second, step, lambda one: sum(one.failed.values()), mean=True)
        rates.append(Series("failed", failed, 2))
    note = "By the second in which a request was due." + (
        f" The run is long: each point is the worst of {step} seconds (rates: their mean)." if step > 1 else ""
    )
    plot = partial(line_plot, x_label="seconds", bands=bands)
    limit = run.deadline_ms or None
    highest = max((y for line in latencies for _, y in line.points if y is not None), default=0.0)
    shown_limit = limit if limit and limit <= 2 * highest else None
    deadline = " The red line is the deadline." if shown_limit else ""
    latency_plot = plot(latencies, y_label="latency in ms", y_limit=shown_limit)
    return [
        Figure("Latency over time", latency_plot, _legend(latencies), note + deadline),
        Figure("Offered and answered over time", plot(rates, y_label="requests per second"), _legend(rates), note),
    ]


def server_breakdown(run: Run, baseline: Run | None) -> Figure:
    """Where the mean request's time in the server went, phase by phase."""
    rows: list[tuple[str, dict[str, float]]] = []
    for phase in run.phases:
        before = baseline.phase(phase.name) if baseline else None
        for label, source, there in ((phase.name, run, phase), (f"{phase.name}, baseline", baseline, before)):
            figures = server_in(source, there) if there and phase.counts else None
            if figures and figures.milliseconds:
                rows.append((label, figures.milliseconds))
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    note = "Means of the requests answered in each phase, by Triton's own clocks."
    if REST in parts:
        note += " Rest: between the steps."
    legend = [(colour, False, part) for colour, part in enumerate(parts, 1)]
    plot = stacked_bars(rows, parts, "ms")
    return Figure(
        "Where the time goes in the server", plot, legend, note if plot else "The server's statistics are unknown."
    )


def batch_sizes(run: Run, baseline: Run | None) -> Figure:
    """How many requests (of a joint ranker: rows) the scorer computed together."""
    found = [counted_server(source) for source in (run, baseline) if source]
    batches = [figures.batches if figures else {} for figures in found]
    sizes = sorted({size for one in batches for size in one})
    shares = [
        (str(size), [100 * one.get(size, 0) / sum(one.values()) if one else None for one in batches]) for size in sizes
    ]
    plot = bars(
        _gathered(shares),
        colours=(RUN_COLOUR, BASELINE_COLOUR),
        x_label="requests in one execution of the scorer",
        y_label="% of executions",
    )
    legend = [(RUN_COLOUR, False, "this run"), (BASELINE_COLOUR, False, "baseline")] if baseline else []
    return Figure("Batches formed", plot, legend, "" if plot else "The scorer's batch sizes are unknown.")


def resources(run: Run, baseline: Run | None) -> list[Figure]:
    """CPU and memory of all the server's processes together."""
    figures = []
    bands = [Band(phase.start_second, phase.end_second, phase.name) for phase in run.phases]
    readings: list[tuple[str, str, Callable[[ServerSecond], float | None]]] = [
        ("CPU", "cores in use", _cores),
        ("Memory", "resident MB", lambda one: megabytes(one.rss_bytes)),
    ]
    for title, label, read in readings:
        lines = [Series("this run", _thinned([(one.second, read(one)) for one in run.server]), RUN_COLOUR)]
        if baseline:
            before = _thinned([(one.second, read(one)) for one in baseline.server])
            lines.append(Series("baseline", before, BASELINE_COLOUR, dashed=True))
        plot = line_plot(lines, x_label="seconds", y_label=label, bands=bands)
        note = "" if plot else "Unknown: the server runs elsewhere, or its processes were not found."
        figures.append(Figure(f"{title} of the server", plot, _legend(lines) if baseline else (), note))
    return figures


def levels_of(run: Run | None) -> list[PerfLevel]:
    """What perf_analyzer measured; nothing of another run."""
    return list(run.perf) if run else []


def _by_kind(phases: Sequence[Phase], percentile: str) -> tuple[list[Point], list[Point]]:
    """(answered per second, latency) of the steps of a ramp, and of all other phases."""
    points: tuple[list[Point], list[Point]] = ([], [])
    for phase in phases:
        point = (phase.totals.answered_per_second, getattr(phase.totals.latency, percentile))
        points[not phase.name.startswith("ramp ")].append(point)
    return points


def server_in(run: Run | None, phase: Phase) -> ServerFigures | None:
    return server_figures(run.server, phase.start_second, phase.end_second, run.target.model) if run else None


def counted_server(run: Run) -> ServerFigures | None:
    """Of the phases that count, which follow each other."""
    counted = [phase for phase in run.phases if phase.counts]
    if not counted:
        return None
    return server_figures(run.server, counted[0].start_second, counted[-1].end_second, run.target.model)


def _step(seconds: Sequence[Second]) -> int:
    return max(1, -(-len(seconds) // MOST_POINTS))


def _line(
    seconds: Sequence[Second], step: int, read: Callable[[Second], float | None], *, mean: bool = False
) -> list[tuple[float, float | None]]:
    """One point for every ``step`` seconds, in their middle: the largest value, or the mean."""
    points: list[tuple[float, float | None]] = []
    for start in range(0, len(seconds), step):
        values = [value for value in map(read, seconds[start : start + step]) if value is not None]
        y = (sum(values) / len(values) if mean else max(values)) if values else None
        points.append((seconds[start].second + step / 2, y))
    return points


def _thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """So many points that a line shows them; of those that share a place the largest."""
    step = max(1, -(-len(points) // MOST_POINTS))
    thinned: list[tuple[float, float | None]] = []
    for start in range(0, len(points), step):
        values = [value for _, value in points[start : start + step] if value is not None]
        thinned.append((points[start][0], max(values, default=None)))
    return thinned


def _gathered(
    shares: Sequence[tuple[str, list[float | None]]], most: int = 12
) -> Sequence[tuple[str, Sequence[float | None]]]:
    """At most so many bars: of a joint ranker, whose batches are rows, neighbouring sizes share one."""
    if len(shares) <= most:
        return shares
    step = -(-len(shares) // most)
    groups = [shares[start : start + step] for start in range(0, len(shares), step)]
    return [
        (
            group[0][0] if len(group) == 1 else f"{group[0][0]}-{group[-1][0]}",
            [sum(value or 0.0 for value in column) for column in zip(*(one[1] for one in group), strict=True)],
        )
        for group in groups
    ]


def _legend(lines: Sequence[Series]) -> list[tuple[int, bool, str]]:
    return [(line.colour, line.dashed, line.name) for line in lines]


def _cores(sample: ServerSecond) -> float | None:
    if sample.cpu_seconds is None or not sample.interval_seconds:
        return None
    return sample.cpu_seconds / sample.interval_seconds


def megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6
