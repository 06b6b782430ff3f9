"""What nights came to, for Prometheus: a file beside the ledger, because a night is no process that could be scraped.

node_exporter reads such files (``--collector.textfile.directory artifacts/RECIPE/learn``), and so does whoever serves
them. Figures are those of the ledger; docs/metrics.md says what each is, and docs/alerts.md which alerts look at them.
"""

from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from tritonrank.artifacts import write_whole
from tritonrank.learn.judging import Compared
from tritonrank.learn.ledger import Ledger, Night, Outcome

METRICS_FILE = "nights.prom"
"""node_exporter reads files that end so."""
NAME = "tritonrank_learn_"
RANKERS = ("live", "new")


def write_metrics(ledger: Ledger, recipe: str) -> Path:
    """Write the file of all nights; raises StorageError."""
    page = generate_latest(metrics_of(ledger.nights(), recipe))
    return write_whole(ledger.folder / METRICS_FILE, page.decode())


def metrics_of(nights: list[Night], recipe: str) -> CollectorRegistry:
    """The metrics of a recipe's nights, oldest first."""
    registry = CollectorRegistry()

    def gauge(name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"{NAME}{name}", help_text, ("recipe", *labels), registry=registry)

    count = gauge("nights", "Nights that ended so, in all", "outcome")
    for outcome in get_args(Outcome):
        count.labels(recipe, outcome).set(sum(night.outcome == outcome for night in nights))
    ended = [night for night in nights if night.outcome and night.outcome != "nothing"]
    gauge("since_accepted", "Nights since the last accepted one that were refused or failed").labels(recipe).set(
        _since_accepted(ended)
    )
    at = gauge("ended_timestamp_seconds", "When the last night ended that was so", "outcome")
    for night in nights:
        if night.outcome:
            at.labels(recipe, night.outcome).set(night.ended)
    if not ended:
        return registry
    last = ended[-1]
    seconds = gauge("step_seconds", "How long the last night took, step by step", "step")
    for step, told in last.steps.items():
        seconds.labels(recipe, step).set(told["seconds"])
    inspected = last.told("inspect")
    days = inspected.get("days", [])
    events = gauge("events", "Events that the last night looked through, and left out", "of")
    events.labels(recipe, "seen").set(sum(day["events"] for day in days))
    events.labels(recipe, "left_out").set(sum(day["left_out"] for day in days))
    findings = gauge("findings", "What the inspection of the last night found", "check", "refuses")
    for one in inspected.get("findings", []):
        findings.labels(recipe, one["check"], str(bool(one["refuses"])).lower()).inc()
    ndcg = gauge("ndcg_at_10", "NDCG@10 on a judged set, by the last night's judge", "set", "ranker")
    drop = gauge("drop", "Relative drop of NDCG@10 from the live ranker to the new one", "set", "end")
    for row in last.told("judge").get("compared", []):
        one = Compared(**row)
        for ranker, value in zip(RANKERS, (one.live_ndcg, one.new_ndcg), strict=True):
            ndcg.labels(recipe, one.name, ranker).set(value)
        for end, value in (("low", one.low), ("mean", one.drop), ("high", one.high)):
            drop.labels(recipe, one.name, end).set(value)
    return registry


def _since_accepted(ended: list[Night]) -> int:
    """How many of the last nights came to nothing."""
    return next((number for number, night in enumerate(reversed(ended)) if night.stands), len(ended))
