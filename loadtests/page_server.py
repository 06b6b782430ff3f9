"""The server's samples as figures of a stretch of time: where a request's time went, batches, kept contexts, resources.

Times are means over the requests that each model answered, so tokenize + queue + score + select + rest is the mean time
that a request spent in the server. The rest is what lies between the steps.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadtests.results import RANKER, ServerSecond, in_order_of_flow, step_counter

REJECTED = "tritonrank_requests_rejected_total"
EXPIRED = "tritonrank_requests_expired_total"
COMPUTED = "tritonrank_tokens_computed_total"
NEEDED = "tritonrank_tokens_needed_total"
SCORER = "score"
QUEUE, REST = "queue", "rest"
STEPS = ("tokenize", QUEUE, SCORER, "select")
"""Of a process that does every one, in their order."""
SCORED, RUNS = "tritonrank_requests_scored_total", "tritonrank_runs_total"


@dataclass(frozen=True)
class ServerFigures:
    """What a server did in a stretch of time."""

    requests: int
    """that the ensemble answered"""
    milliseconds: dict[str, float]
    """of the mean request: tokenize, queue, score, select, rest"""
    batches: dict[int, int] = field(default_factory=dict)
    """of a scorer that is a model of its own: batch size -> executions"""
    together: float | None = None
    """requests of a run, where one process does every step"""
    hits: int = 0
    misses: int = 0
    rejected: int = 0
    expired: int = 0
    computed_per_needed: float | None = None
    """tokens; above 1 is padding"""
    cores: float | None = None
    """CPU seconds per second, all of the server's processes"""
    rss_bytes: int | None = None
    """the most at once"""

    @property
    def hit_share(self) -> float | None:
        """Of all looked-up contexts; None where none was."""
        looked_up = self.hits + self.misses
        return self.hits / looked_up if looked_up else None


def server_figures(
    samples: Sequence[ServerSecond], start: float = float("-inf"), end: float = float("inf"), model: str = "rank"
) -> ServerFigures | None:
    """All samples whose middle lies in the stretch together; None where there is none.

    Args:
        samples: of a run.
        start, end: seconds of the run.
        model: the ensemble.
    """
    chosen = [one for one in samples if start <= one.second - one.interval_seconds / 2 < end]
    if not chosen:
        return None
    requests: Counter[str] = Counter()
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    batches: Counter[int] = Counter()
    counters: defaultdict[str, float] = defaultdict(float)
    for sample in chosen:
        for one in sample.models:
            requests[one.model] += one.requests
            computing = one.compute_input_us + one.compute_us + one.compute_output_us
            sums[one.model].update(
                {"duration": int(one.duration_us), "queue": int(one.queue_us), "compute": int(computing)}
            )
            if one.model == SCORER:
                batches.update(one.batch_sizes)
        for name, value in sample.counters.items():
            counters[name] += value
    cpu = [(one.cpu_seconds, one.interval_seconds) for one in chosen if one.cpu_seconds is not None]
    resident = [one.rss_bytes for one in chosen if one.rss_bytes is not None]
    measured_seconds = sum(seconds for _, seconds in cpu)
    return ServerFigures(
        requests=requests[model],
        milliseconds=_milliseconds(requests, sums, counters, model),
        batches=dict(sorted(batches.items())),
        together=counters[SCORED] / counters[RUNS] if counters[RUNS] else None,
        hits=sum(one.context_cache_hits for one in chosen),
        misses=sum(one.context_cache_misses for one in chosen),
        rejected=int(counters[REJECTED]),
        expired=int(counters[EXPIRED]),
        computed_per_needed=counters[COMPUTED] / counters[NEEDED] if counters[NEEDED] else None,
        cores=sum(used for used, _ in cpu) / measured_seconds if measured_seconds else None,
        rss_bytes=max(resident, default=None),
    )


def _milliseconds(
    requests: Counter[str], sums: dict[str, Counter[str]], counters: Mapping[str, float], model: str
) -> dict[str, float]:
    if not requests[model]:
        return {}

    def mean(name: str, kind: str) -> float:
        return sums[name][kind] / requests[name] / 1_000 if requests[name] else 0.0

    parts: dict[str, float] = {}
    if RANKER in sums:
        parts = {step: 1e3 * counters[step_counter(step)] / requests[model] for step in STEPS}
        return parts | {REST: max(0.0, mean(model, "duration") - sum(parts.values()))}
    steps = in_order_of_flow(name for name in sums if name != model)
    for name in steps:
        if name == SCORER:
            parts[QUEUE] = sum(mean(step, "queue") for step in steps)
        parts[name] = mean(name, "compute")
    if steps:
        parts[REST] = max(0.0, mean(model, "duration") - sum(parts.values()))
    return parts
