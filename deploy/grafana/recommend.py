"""What do users see, what does it take, and does what they do arrive? Pages, store, events and their log."""

from pathlib import Path

import yaml

from deploy.grafana.board import Board, Heat, Lines, Number, Query, Row
from deploy.grafana.expressions import GATEWAY, growth, mean, quantile, rate, share

SLO = Path(__file__).parents[2] / "loadtests" / "slo-recommend.yaml"
OBJECTIVES = yaml.safe_load(SLO.read_text(encoding="utf-8"))["steady"]
DEGRADED = f'{GATEWAY}, degraded="yes"'
PAGES = "tritonrank_gateway_recommendations_total"
STEP = "tritonrank_gateway_recommend_step_seconds"
TOTAL, PARTS = f'{GATEWAY}, step="total"', f'{GATEWAY}, step!="total"'
STORE = "tritonrank_gateway_store_seconds"
LOG = "tritonrank_gateway_events_log_"

NOW = Row(
    "Now",
    [
        Number(title="Pages", asks="How many lists are made?", unit="reqps", queries=[Query(rate(PAGES))]),
        Number(title="p99 of a page", asks="How long does the slowest hundredth take? Red: beyond the objective.",
               unit="s", queries=[Query(quantile(0.99, STEP, TOTAL))], bad_from=OBJECTIVES["p99_ms"] / 1_000),
        Number(title="In full", asks="Which share of the pages was made with all parts?", unit="percentunit",
               queries=[Query(f"1 - ({share(PAGES, DEGRADED, GATEWAY)})")], bad_below=0.99),
        Number(title="Unknown users", asks="Of which share of the pages' users was nothing known?",
               unit="percentunit", queries=[Query(share(PAGES, f'{GATEWAY}, cold="yes"', GATEWAY))]),
        Number(title="Store", asks="Does the store answer?", unit="percentunit",
               queries=[Query(f"min(tritonrank_gateway_store_up{{{GATEWAY}}})")], bad_below=1),
        Number(title="Newest event", asks="How long ago did the newest event of any user come?", unit="s",
               queries=[Query(f"time() - max(tritonrank_gateway_last_event_seconds{{{GATEWAY}}})")], bad_from=900),
    ],
)  # fmt: skip
MAKING = Row(
    "Making a page",
    [
        Heat(
            title="Seconds of a page",
            asks="How are pages' times distributed?",
            unit="s",
            queries=[Query(growth(STEP, TOTAL))],
        ),
        Lines(
            title="Mean seconds, by step",
            asks="What is a page's time spent on?",
            unit="s",
            queries=[Query(mean(STEP, PARTS, "step"), "{{step}}")],
            is_stacked=True,
        ),
        Lines(
            title="p95, by step",
            asks="Which step makes slow pages slow?",
            unit="s",
            queries=[Query(quantile(0.95, STEP, PARTS, "step"), "{{step}}")],
        ),
        Lines(
            title="Pages, by known and unknown users",
            asks="Who comes? A rise of unknown users while nobody advertises is a store that lost its profiles.",
            unit="reqps",
            queries=[
                Query(rate(PAGES, f'{GATEWAY}, cold="no"'), "known"),
                Query(rate(PAGES, f'{GATEWAY}, cold="yes"'), "unknown"),
            ],
            is_stacked=True,
        ),
        Lines(
            title="Pages without a part",
            asks="Which part was missing? Users saw a list nevertheless.",
            unit="reqps",
            queries=[
                Query(
                    rate("tritonrank_gateway_degraded_total", f'{GATEWAY}, route="/v1/recommend"', "reason"),
                    "{{reason}}",
                )
            ],
        ),
        Lines(
            title="Age of the artifacts",
            asks="When was what serves made: ranker, catalogue, blend? What is newer is unknown to it.",
            unit="s",
            queries=[
                Query(f"time() - max by (part) (tritonrank_gateway_artifact_created_seconds{{{GATEWAY}}})", "{{part}}")
            ],
        ),
    ],
)
STORING = Row(
    "Store and events",
    [
        Lines(
            title="p95 of the store, by operation",
            asks="Is the store slow, and at what?",
            unit="s",
            queries=[Query(quantile(0.95, STORE, GATEWAY, "operation"), "{{operation}}")],
        ),
        Lines(
            title="Calls of the store, by operation",
            asks="What is asked of it?",
            unit="ops",
            queries=[Query(rate(f"{STORE}_count", by="operation"), "{{operation}}")],
            is_stacked=True,
        ),
        Lines(
            title="Store without an answer",
            asks="Late, failed, or not even asked because it failed before?",
            unit="ops",
            queries=[
                Query(rate("tritonrank_gateway_store_errors_total", by="operation, kind"), "{{operation}} {{kind}}")
            ],
        ),
        Lines(
            title="Events",
            asks="Does what users do arrive? Events known already are clients that send again: their answers get lost.",
            unit="ops",
            queries=[
                Query(rate("tritonrank_gateway_events_total", f'{GATEWAY}, known="no"'), "new"),
                Query(rate("tritonrank_gateway_events_total", f'{GATEWAY}, known="yes"'), "known already"),
            ],
            is_stacked=True,
        ),
        Lines(
            title="Training log",
            asks="Is what arrives written down for the next training?",
            unit="ops",
            queries=[
                Query(rate(f"{LOG}events_total"), "events"),
                Query(rate(f"{LOG}lists_total"), "lists"),
                Query(rate(f"{LOG}lists_lost_total"), "lists lost"),
                Query(rate(f"{LOG}failures_total"), "failures"),
            ],
        ),
        Lines(
            title="Training log behind",
            asks="How long has the oldest event waited that is not in the log?",
            unit="s",
            queries=[Query(f"max({LOG}waiting_seconds{{{GATEWAY}}})", "oldest")],
            bad_from=300,
        ),
    ],
)

BOARD = Board(
    "recommend",
    "recommend",
    "What do users see, what does it take, and does what they do arrive?",
    [NOW, MAKING, STORING],
)
