"""The page: requests, where their time goes, what waits, what caches give, whether quality moves, and the last alerts.

Only what a server tells is shown: a gateway without a catalogue has no steps of a recommendation, one Triton no
replicas. All figures but those called "now" are of the time between the two looks.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tritonrank.serve.watch.alerts import Alert
from tritonrank.serve.watch.scrape import Scrape, Span

STEPS = ("profile", "retrieve", "rank", "blend", "explain")
MODEL_STEPS = {"tokenize": "tokenize", "queue": "wait", "score": "score", "select": "select"}
"""Of a model, by the name of its counter."""
BAR = 24
COLOURS = ("cyan", "blue", "magenta", "green", "yellow")
ROW_WIDTH = 34
"""Of the names and values beside each other in one of the small panels."""


def render(span: Span, pages: Mapping[str, Scrape], alerts: Sequence[Alert]) -> RenderableType:
    """The whole page.

    Args:
        span: between the looks.
        pages: the later look at each, by URL.
        alerts: newest first.
    """
    small = [_waiting(span), _caches(span), _quality(span), _adapt(span), _users(span), _process(span)]
    return Group(
        _head(span, pages),
        _requests(span),
        _split(span),
        Columns([Panel(one, title=title, width=ROW_WIDTH + 4) for title, one in small if one.row_count]),
        _alerts(alerts),
    )


def _head(span: Span, pages: Mapping[str, Scrape]) -> RenderableType:
    lines = [Text.assemble((time.strftime("%H:%M:%S"), "bold"), f"  the last {span.seconds:.0f} s")]
    for page in pages.values():
        answers = page.problem or "answers"
        lines.append(Text.assemble("  ", (page.url, "bold"), "  ", (answers, "red" if page.problem else "green")))
    served = {labels.get("artifact", "") for labels, _ in span.now("tritonrank_gateway_info")}
    versions = {labels.get("version", "") for labels, _ in span.now("tritonrank_gateway_info")}
    if served - {""}:
        lines.append(Text(f"  artifact {', '.join(sorted(served))}, release {', '.join(sorted(versions))}"))
    return Group(*lines)


def _requests(span: Span) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="requests", title_justify="left", expand=False)
    for name, justify in (("route", "left"), *((name, "right") for name in ("per s", "p50", "p99", "otherwise"))):
        table.add_column(name, justify="left" if justify == "left" else "right")
    rates = span.raised("tritonrank_gateway_requests_total", "route")
    for route in sorted(route for route, count in rates.items() if count):
        outcomes = span.raised("tritonrank_gateway_requests_total", "outcome", route=route)
        name = "tritonrank_gateway_request_seconds"
        table.add_row(
            route,
            f"{rates[route] / span.seconds:.1f}",
            *(_milliseconds(span.quantile(name, share, route=route)) for share in (0.5, 0.99)),
            ", ".join(
                f"{count / rates[route]:.1%} {outcome}"
                for outcome, count in sorted(outcomes.items())
                if outcome != "answered" and count
            ),
        )
    if not table.row_count:
        table.add_row("none came" if span.seconds else "one look tells no rates", "", "", "", "")
    return table


def _split(span: Span) -> RenderableType:
    """Where the time of a mean request goes."""
    table = Table(box=box.SIMPLE_HEAD, title="time of a mean request", title_justify="left", show_header=False)
    recommend = {step: span.mean("tritonrank_gateway_recommend_step_seconds", step=step) for step in STEPS}
    _add_bars(table, "recommendation", {step: mean for step, mean in recommend.items() if mean})
    for model in sorted(span.raised("tritonrank_requests_scored_total", "model")):
        scored = span.rose("tritonrank_requests_scored_total", model=model)
        if scored:
            means = {
                shown: span.rose(f"tritonrank_{step}_seconds_total", model=model) / scored
                for step, shown in MODEL_STEPS.items()
            }
            _add_bars(table, f"model {model}", means)
    return table if table.row_count else Text()


def _add_bars(table: Table, name: str, means: Mapping[str, float]) -> None:
    whole = sum(means.values())
    if not whole:
        return
    bar, said = Text(), []
    for colour, (step, mean) in zip(COLOURS, means.items(), strict=False):
        bar.append("█" * round(BAR * mean / whole), colour)
        said.append(Text.assemble((step, colour), f" {_milliseconds(mean)}"))
    bar.append(" " * max(0, BAR - len(bar)))
    table.add_row(name, bar, Text("  ").join(said))


def _waiting(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    _tell(rows, "gateway, queued work", span.gauge("tritonrank_gateway_queued_seconds"), _milliseconds)
    _tell(rows, "gateway, in flight", span.gauge("tritonrank_gateway_in_flight"), _count)
    _tell(rows, "models, queued work", span.gauge("tritonrank_queued_seconds"), _milliseconds)
    _tell(rows, "models, waiting", span.gauge("tritonrank_queued_requests"), _count)
    lanes = span.gauge("tritonrank_lanes")
    if lanes and span.seconds:
        _tell(rows, "lanes busy", span.rate("tritonrank_lane_busy_seconds_total") / lanes, _share)
    for labels, value in span.now("tritonrank_gateway_replica_up"):
        version = labels.get("version", "live")
        of = "" if version == "live" else f" ({version})"
        rows.append((f"replica {labels.get('replica', '')}{of}", "in rotation" if value else "OUT"))
    runs = span.rose("tritonrank_runs_total")
    if runs:
        rows.append(("requests in a run", f"{span.rose('tritonrank_requests_scored_total') / runs:.2f}"))
    return "queue, now", _rows(rows)


def _caches(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    results = span.raised("tritonrank_gateway_cache_requests_total", "result")
    if asked := sum(results.get(result, 0.0) for result in ("hit", "miss", "shared")):
        rows.append(("rankings, hits", _share((results.get("hit", 0.0) + results.get("shared", 0.0)) / asked)))
    _tell(rows, "rankings, size", span.gauge("tritonrank_gateway_cache_bytes"), _bytes)
    hits, misses = (span.rose(f"tritonrank_context_cache_{name}_total") for name in ("hits", "misses"))
    if hits + misses:
        rows.append(("contexts, hits", _share(hits / (hits + misses))))
    _tell(rows, "contexts, size", span.gauge("tritonrank_context_cache_bytes"), _bytes)
    if computed := span.rose("tritonrank_tokens_computed_total"):
        rows.append(("tokens, no padding", _share(span.rose("tritonrank_tokens_needed_total") / computed)))
        rows.append(("tokens per s", f"{computed / span.seconds:,.0f}"))
    return "caches and tokens", _rows(rows)


def _quality(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    _tell(rows, "order kept (overlap)", span.mean("tritonrank_quality_overlap"), _number)
    _tell(rows, "entropy", span.mean("tritonrank_quality_entropy"), _number)
    _tell(rows, "margin of the first", span.mean("tritonrank_quality_margin"), _number)
    for said, part, whole in (
        ("candidates truncated", "candidates_truncated", "candidates"),
        ("tokens unknown", "tokens_unknown", "tokens"),
    ):
        if count := span.rose(f"tritonrank_quality_{whole}_total"):
            rows.append((said, _share(span.rose(f"tritonrank_quality_{part}_total") / count)))
    clicks = span.gauge("tritonrank_quality_ips_clicks")
    if clicks:
        _tell(rows, f"NDCG by {clicks:.0f} clicks", span.gauge("tritonrank_quality_ips_ndcg"), _number)
    largest: dict[str, float] = {}
    for labels, value in span.now("tritonrank_quality_drift_psi"):
        if not math.isnan(value):
            feature = labels.get("feature", "")
            largest[feature] = max(value, largest.get(feature, 0.0))
    rows += [(f"drift of {feature}", f"PSI {value:.3f}") for feature, value in sorted(largest.items())]
    return "quality and drift", _rows(rows)


def _adapt(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    level = span.gauge("tritonrank_adapt_level")
    if level is not None:
        acts = "holds" if span.gauge("tritonrank_adapt_acting") else "only told"
        rows.append(("level", f"{level:.0f}, {acts}"))
    _tell(rows, "candidates ranked", span.gauge("tritonrank_adapt_candidates"), _count)
    _tell(rows, "quality of full", span.gauge("tritonrank_adapt_quality"), _share)
    _tell(rows, "comes, of the possible", span.gauge("tritonrank_adapt_utilisation"), _share)
    _tell(rows, "replicas wished", span.gauge("tritonrank_adapt_wished_replicas"), _count)
    for labels, value in span.now("tritonrank_adapt_forecast_arrivals"):
        rows.append((f"comes in {labels.get('ahead', '')} s", f"{value:.1f} per s"))
    return "adapt, now", _rows(rows)


def _users(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    up = span.gauge("tritonrank_gateway_store_up")
    if up is not None:
        rows.append(("store", "answers" if up else "DOWN"))
    _tell(rows, "store, mean call", span.mean("tritonrank_gateway_store_seconds"), _milliseconds)
    if errors := span.rose("tritonrank_gateway_store_errors_total"):
        rows.append(("store, calls in vain", _count(errors)))
    if span.now("tritonrank_gateway_events_total"):
        rows.append(("events per s", f"{span.rate('tritonrank_gateway_events_total'):.1f}"))
    newest = [value for _, value in span.now("tritonrank_gateway_last_event_seconds") if value]
    if newest:
        rows.append(("newest event", f"{max(0.0, time.time() - max(newest)):,.0f} s ago"))
    _tell(rows, "log, oldest event waits", span.gauge("tritonrank_gateway_events_log_waiting_seconds"), _seconds)
    recommended = span.rose("tritonrank_gateway_recommendations_total")
    if recommended:
        cold = span.rose("tritonrank_gateway_recommendations_total", cold="yes")
        rows.append(("lists for the unknown", _share(cold / recommended)))
    return "users", _rows(rows)


def _process(span: Span) -> tuple[str, Table]:
    rows: list[tuple[str, str]] = []
    if span.now("process_cpu_seconds_total") and span.seconds:
        rows.append(("gateway, cores", f"{span.rate('process_cpu_seconds_total'):.2f}"))
    _tell(rows, "gateway, memory", span.gauge("process_resident_memory_bytes"), _bytes)
    _tell(rows, "gateway, open files", span.gauge("process_open_fds"), _count)
    _tell(rows, "gateway, loop late (p99)", span.quantile("tritonrank_gateway_loop_late_seconds", 0.99), _milliseconds)
    _tell(rows, "models, memory", span.gauge("tritonrank_resident_bytes"), _bytes)
    _tell(rows, "machine, processors busy", span.gauge("nv_cpu_utilization"), _share)
    for labels, value in span.now("nv_gpu_utilization"):
        rows.append((f"GPU {labels.get('gpu_uuid', '')[-4:]}", _share(value)))
    return "processes", _rows(rows)


def _alerts(alerts: Sequence[Alert]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="alerts (what to do: docs/alerts.md)", title_justify="left")
    for name in ("since", "until", "alert", "of", "said"):
        table.add_column(name)
    for one in alerts:
        until = time.strftime("%H:%M:%S", time.localtime(one.ended)) if one.ended else "now"
        began = time.strftime("%H:%M:%S", time.localtime(one.began))
        table.add_row(began, until, one.name, Text(one.about), Text(one.said), style="dim" if one.ended else "bold red")
    if not alerts:
        table.add_row("", "", "none", "", "")
    return table


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _tell(rows: list[tuple[str, str]], name: str, value: float | None, shown: Callable[[float], str]) -> None:
    if value is not None:
        rows.append((name, shown(value)))


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1_000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _seconds(value: float) -> str:
    return f"{value:,.0f} s"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"
