"""The metrics of versions: of the same sums that ``GET /versions/comparison`` tells."""

from collections.abc import Iterator

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tritonrank_gateway.versions.comparison import SECONDS, Compared, SideSums
from tritonrank_gateway.versions.versions import Versions
from tritonrank_gateway.versions.wire import SHARED_ROLES, Role

NAME = "tritonrank_version_"
EVERY = 4
"""Of the buckets of times: one that is twice the one before."""
LOST = ("failed", "refused", "late", "invalid", "resting")


class VersionMetrics(Collector):
    """Looks whenever the page is read; a version that takes a role begins at 0."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' page."""
        told = self._versions.told()
        generation = GaugeMetricFamily(f"{NAME}generation", "Rises with every change of versions", told.generation)
        info = GaugeMetricFamily(
            f"{NAME}info", "1: what serves in which role", labels=("version", "name", "model", "artifact")
        )
        share = GaugeMetricFamily(
            f"{NAME}share", "Of the requests (shadow), of the users (canary)", labels=("version",)
        )
        for role in ("live", *SHARED_ROLES):
            if (arm := self._versions.arm(role)) is not None:
                info.add_metric((role, arm.version.name, arm.version.model, arm.model.artifact), 1.0)
                if role != "live":
                    share.add_metric((role,), arm.version.share)
        yield from (generation, info, share)
        comparison = self._versions.compared()
        shared: list[tuple[Role, Compared]] = [
            (role, one) for role in SHARED_ROLES if (one := getattr(comparison, role)) is not None
        ]
        yield from _of_sides(shared)
        yield from _of_pairs(shared)


def _of_sides(shared: list[tuple[Role, Compared]]) -> Iterator[Metric]:
    """What live and another did, label ``beside``: for the same requests (shadow), or for other users (canary)."""
    labels = ("beside", "version")
    rankings = CounterMetricFamily(f"{NAME}rankings", "Rankings that were given", labels=labels)
    candidates = CounterMetricFamily(f"{NAME}candidates", "Candidates of these rankings", labels=labels)
    lost = CounterMetricFamily(
        f"{NAME}lost", "Rankings that a version did not give; live gives those of a canary", labels=(*labels, "reason")
    )
    calls = CounterMetricFamily(
        f"{NAME}calls", "Calls of users: all, failed, refused, degraded", labels=(*labels, "outcome")
    )
    seconds = HistogramMetricFamily(f"{NAME}seconds", "That rankings took, but for cached ones", labels=labels)
    for role, one in shared:
        for version, sums in (("live", one.live), (role, one.version)):
            rankings.add_metric((role, version), sums.rankings)
            candidates.add_metric((role, version), sums.candidates)
            for reason in LOST:
                lost.add_metric((role, version, reason), getattr(sums, reason))
            if role == "canary":
                calls.add_metric((role, version, "all"), sums.calls)
                for outcome in ("failed", "refused", "degraded"):
                    calls.add_metric((role, version, outcome), getattr(sums, f"calls_{outcome}"))
            seconds.add_metric((role, version), _buckets(sums), sums.seconds_sum)
    yield from (rankings, candidates, lost, calls, seconds)


def _buckets(sums: SideSums) -> list[tuple[str, float]]:
    counts = np.cumsum(sums.seconds).tolist()
    coarse = [(repr(SECONDS[place]), counts[place]) for place in range(EVERY - 1, len(SECONDS), EVERY)]
    return [*coarse, ("+Inf", counts[-1])]


def _of_pairs(shared: list[tuple[Role, Compared]]) -> Iterator[Metric]:
    """What the shadow's pairs say, which both have ranked."""
    pairs = CounterMetricFamily(f"{NAME}pairs", "Requests that live and the shadow have ranked")
    dropped = CounterMetricFamily(
        f"{NAME}dropped", "Requests that the shadow was to get: the gateway was busy, or enough were waiting",
        labels=("reason",),
    )  # fmt: skip
    overlap = GaugeMetricFamily(f"{NAME}overlap", "Mean rank-biased overlap of the shadow's order and the live one")
    top_ten = GaugeMetricFamily(f"{NAME}top_ten", "Mean share of the live ten best among the shadow's ten best")
    lists = GaugeMetricFamily(f"{NAME}list_overlap", "The same of the lists that /v1/recommend makes of both")
    drift = GaugeMetricFamily(
        f"{NAME}drift", "Mean difference of the shadow's scores and the live ones, in their standard deviations"
    )
    for role, one in shared:
        if role != "shadow":
            continue
        pairs.add_metric((), one.pairs.count)
        for reason in ("busy", "waiting"):
            dropped.add_metric((reason,), one.dropped.get(reason, 0))
        for gauge, total, count in (
            (overlap, one.pairs.rbo, one.pairs.count),
            (top_ten, one.pairs.top_ten, one.pairs.top_ten_count),
            (lists, one.pairs.list_rbo, one.pairs.list_count),
            (drift, one.pairs.drift, one.pairs.drift_count),
        ):
            if count:
                gauge.add_metric((), total / count)
    yield from (pairs, dropped, overlap, top_ten, lists, drift)
