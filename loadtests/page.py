"""The page of a run: verdicts first and in words, then where the figures come from, then what made them.

One HTML file without scripts and without anything from elsewhere: it can be mailed, archived beside the run, opened
anywhere. Everything that is text (item texts reach it through error messages) is escaped by the template. With a
baseline each figure has its ratio, the baseline's lines are dashed, and what makes the two runs incomparable is said
before the first ratio.
"""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tritonrank.report.plots.svg import figure

from loadtests.page_figures import (
    FAILURE_MEANINGS,
    batch_sizes,
    counted_server,
    latency_over_throughput,
    levels_of,
    megabytes,
    over_time,
    resources,
    server_breakdown,
    server_in,
)
from loadtests.page_server import ServerFigures
from loadtests.results import Phase, Run, Spread

TEMPLATE = "page.html.j2"
ABOUT_THE_SAME = 0.05
"""Ratios this close to 1 are called that: two runs on an idle machine differ by as much."""


@dataclass(frozen=True)
class Compared:
    """A figure of the run, and of the baseline if there is one."""

    name: str
    found: str
    before: str = ""
    ratio: str = ""
    judged: str = ""
    """better, worse, about the same; nothing without a baseline"""


def render(run: Run, baseline: Run | None = None, perf: Run | None = None) -> str:
    """The page as HTML.

    Args:
        run: what it is about.
        baseline: an earlier run to lay beside it.
        perf: a run of perf_analyzer, whose levels join the plot of latency against throughput.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = figure
    figures = [
        latency_over_throughput(run, baseline, perf),
        *over_time(run, baseline),
        server_breakdown(run, baseline),
        batch_sizes(run, baseline),
        *resources(run, baseline),
    ]
    return environment.get_template(TEMPLATE).render(
        run=run,
        baseline=baseline,
        headline=headline(run),
        differences=differences(run, baseline) if baseline else [],
        compared=compared(run, baseline),
        phases=phase_rows(run, baseline),
        figures=[figure for figure in figures if figure.plot],
        missing=[figure for figure in figures if not figure.plot and figure.note],
        server=server_rows(run),
        failures=failure_rows(run),
        levels=levels_of(perf) + ([] if perf is run else levels_of(run)),
    )


def headline(run: Run) -> tuple[str, str]:
    """(style, sentence): good, bad or plain, and the whole run in one sentence."""
    missed = len(run.missed)
    objectives = f"{len(run.verdicts)} objective{'s' if len(run.verdicts) != 1 else ''}"
    if not run.client.valid:
        return "bad", f"This run does not count: {run.client.why or 'the generator did not keep its schedule'}."
    reasons = "; ".join(run.shortcomings)
    if missed:
        return "bad", f"{missed} of {objectives} missed." + (f" Also: {reasons}." if reasons else "")
    if reasons:
        return "bad", f"Not passed: {reasons}."
    if run.verdicts:
        return "good", f"All {objectives} met."
    return "plain", "Measured without objectives: nothing was judged."


def differences(run: Run, baseline: Run) -> list[str]:
    """What is not the same in both runs, besides what they measured; such ratios compare more than the server."""
    pairs: list[tuple[str, object, object]] = [
        ("processor", run.machine.processor, baseline.machine.processor),
        ("cores", run.machine.cores, baseline.machine.cores),
        ("workload", run.workload.sha256[:12], baseline.workload.sha256[:12]),
        ("shape", run.shape.name, baseline.shape.name),
        ("protocol", run.target.protocol, baseline.target.protocol),
        ("model", run.target.artifact, baseline.target.artifact),
        ("deadline ms", run.deadline_ms, baseline.deadline_ms),
    ]
    for kind, now, before in (
        ("shape:", run.shape.parameters, baseline.shape.parameters),
        ("setting", run.target.settings, baseline.target.settings),
        ("version of", run.versions, baseline.versions),
    ):
        names = sorted({*now, *before})
        pairs += [(f"{kind} {name}", now.get(name, "none"), before.get(name, "none")) for name in names]
    return [f"{name}: {now}, baseline {before}" for name, now, before in pairs if now != before]


def compared(run: Run, baseline: Run | None) -> list[Compared]:
    """The run in a dozen figures, each beside the baseline's; not of perf_analyzer's levels, whose sum says nothing."""
    if run.perf:
        return []
    rows = []
    now, before = _figures_of(run), _figures_of(baseline) if baseline else None
    for name, (found, higher_is_better, unit) in now.items():
        if found is not None:
            earlier = before[name][0] if before else None
            rows.append(_compared(name, found, earlier, higher_is_better, unit, has_baseline=baseline is not None))
    return rows


def phase_rows(run: Run, baseline: Run | None) -> list[tuple[Phase, Compared, Compared]]:
    """Every phase with its p50 and p99 beside those of the baseline's phase of the same name."""
    rows = []
    for phase in run.phases:
        other = baseline.phase(phase.name) if baseline else None
        now, before = phase.totals.latency, other.totals.latency if other else Spread()
        p50 = _compared("p50", now.p50, before.p50, False, "", has_baseline=baseline is not None)
        p99 = _compared("p99", now.p99, before.p99, False, "", has_baseline=baseline is not None)
        rows.append((phase, p50, p99))
    return rows


def server_rows(run: Run) -> list[tuple[str, ServerFigures]]:
    """The server's counts, phase by phase."""
    rows = [(phase.name, server_in(run, phase)) for phase in run.phases]
    return [(name, figures) for name, figures in rows if figures]


def failure_rows(run: Run) -> list[tuple[str, int, str]]:
    """(kind, count, meaning) of everything that failed in phases that count, most first."""
    failed = sorted(run.totals.failed.items(), key=lambda item: -item[1])
    return [(kind, count, FAILURE_MEANINGS[kind]) for kind, count in failed if count]


def _figures_of(run: Run) -> dict[str, tuple[float | None, bool | None, str]]:
    """By name: the figure, whether more of it is better (None: neither), and its unit."""
    totals, served = run.totals, counted_server(run) or ServerFigures(0, {})
    return {
        "offered per second": (totals.offered_per_second, None, ""),
        "answered per second": (totals.answered_per_second, True, ""),
        "goodput per second": (totals.goodput_per_second, True, ""),
        "candidates per second": (totals.candidates_per_second, True, ""),
        "p50 latency": (totals.latency.p50, False, " ms"),
        "p90 latency": (totals.latency.p90, False, " ms"),
        "p99 latency": (totals.latency.p99, False, " ms"),
        "slowest": (totals.latency.max, False, " ms"),
        "p99 of a rejection": (totals.rejection.p99, False, " ms"),
        "failed": (100 * totals.error_rate, False, " %"),
        "saturation per second": (run.saturation_per_second, True, ""),
        "cores in use": (served.cores, None, ""),
        "memory at most": (megabytes(served.rss_bytes), False, " MB"),
        "contexts found in the cache": (_percent(served.hit_share), None, " %"),
        "tokens computed per needed": (served.computed_per_needed, False, ""),
    }


def _compared(
    name: str,
    found: float | None,
    before: float | None,
    higher_is_better: bool | None,
    unit: str,
    *,
    has_baseline: bool,
) -> Compared:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{figure(value)}{unit}"

    if not has_baseline:
        return Compared(name, shown(found))
    if found is None or before is None or before == 0:
        return Compared(name, shown(found), shown(before))
    ratio = found / before
    if higher_is_better is None:
        judged = ""
    elif abs(ratio - 1) <= ABOUT_THE_SAME:
        judged = "about the same"
    else:
        judged = "better" if (ratio > 1) == higher_is_better else "worse"
    return Compared(name, shown(found), shown(before), f"{ratio:.2f} x", judged)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
