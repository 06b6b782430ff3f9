"""Quality online: what the gateway sees of each ranking and each click, as metrics.

One call per ranking, which is put aside; some dozens are looked at together, by NumPy, when there are enough of them or
when Prometheus' page is made. At most MOST_PER_SECOND rankings are looked at in a second, so that quality never costs
more than some tenths of a percent of a core; what is looked at is counted. Used from one event loop, which is also
where the page is made.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from tritonrank_client import NO_TEXT_SCORE
from tritonrank_recommend.events import Event

from tritonrank_gateway.quality.clicks import Clicks
from tritonrank_gateway.quality.counted import Distribution, Rows
from tritonrank_gateway.quality.drift import Drift
from tritonrank_gateway.quality.figures import entropies, overlaps
from tritonrank_gateway.quality.reference import Feature, RankingKind, Reference, ReferenceFile
from tritonrank_gateway.ranking import Ranking

LOG = logging.getLogger("tritonrank_gateway")
NAME = "tritonrank_quality_"
MOST_PER_SECOND = 50
BATCH_RANKINGS, BATCH_CANDIDATES = 32, 4_000
"""That are put aside before they are looked at: fewer cost more each, more hold up the event loop for longer."""
MOST_SERIES = 8
"""Artifacts, each by kind: a rollout has two. The one that came first goes."""
LOOK_SECONDS = 10.0
"""Between two looks at the reference's file while an artifact ranks that it does not describe."""
LOGITS = (-20.0, -10.0, -5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
GAPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
HISTOGRAMS = {
    "score": ("Scores (logits) of candidates, of rankings that were given whole", LOGITS),
    "entropy": ("Of the softmax of a ranking's scores: 0 one candidate has all, 1 all are alike", SHARES),
    "margin": ("Score of the first minus score of the second", GAPS),
    "overlap": ("Rank-biased overlap of the order that came in (of retrieval) and the ranker's: 1 is the same", SHARES),
}
COUNTS = {
    "rankings": "Rankings that were looked at",
    "candidates": "Candidates of these rankings",
    "candidates_truncated": "Candidates that lost text to a budget",
    "tokens": "Tokens of query, history and candidates",
    "tokens_unknown": "Tokens that the vocabulary does not have",
}
LABELS = ("kind", "artifact")
SCORES: frozenset[Feature] = frozenset({"score", "top_score"})


class Quality(Collector):
    """Takes rankings, shown pages and events; gives metrics.

    Args:
        reference: file that drift is measured against; None measures none.
        clock: seconds that never go back.

    Raises:
        ValueError: the reference cannot be read; the message names it.
    """

    def __init__(self, reference: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = reference, clock
        self._seen: OrderedDict[tuple[RankingKind, str], _Seen] = OrderedDict()
        self._clicks = Clicks()
        self._next_at = self._looked_at = -math.inf
        self._aside: list[_Ranked] = []
        self._candidates_aside = 0
        self._reference: Reference | None = None
        self._drift: dict[RankingKind, Drift] = {}
        if reference is not None:
            self._take(Reference.read(reference))

    def ranked(self, kind: RankingKind, ranking: Ranking, candidates: int, *, is_head: bool = False) -> None:
        """Look at a ranking.

        Args:
            kind: of request; recommendations rank other candidates than callers bring.
            ranking: best first; ``indices`` are places in the order that came in.
            candidates: that were ranked, which may be more than were given back.
            is_head: for want of time these are the first of more, which have other scores than all of them.
        """
        now = self._clock()
        self._next_at = max(self._next_at, now - 1.0)
        if self._next_at > now or not ranking.indices:
            return
        self._next_at += 1 / MOST_PER_SECOND
        self._aside.append(_Ranked(kind, ranking, candidates, is_head))
        self._candidates_aside += len(ranking.indices)
        if len(self._aside) >= BATCH_RANKINGS or self._candidates_aside >= BATCH_CANDIDATES:
            self._look(now)

    def shown(self, positions: Iterable[int]) -> None:
        """A page was shown with items at these positions of the whole list, from 0."""
        self._clicks.shown(positions)

    def took(self, events: Sequence[Event]) -> list[tuple[Event, NDArray[np.float64]]]:
        """Events were accepted that were not known before; the clicks among them that say where, each with what it adds
        to the sums of the estimate."""
        return self._clicks.took(events, self._clock())

    def reference_now(self) -> ReferenceFile | None:
        """A reference of what was served lately, for whoever's requests are rightly unlike those of the data;
        where too little is known it says what the artifact's own does. None without that."""
        if self._reference is None:
            return None
        now = self._clock()
        self._look(now)
        file = self._reference.file
        spreads = {kind: of | self._drift[kind].spreads_now(now) for kind, of in file.spreads.items()}
        return replace(file, spreads=spreads)

    def follow(self, path: Path) -> None:
        """Another version ranks from here on, and drift is measured against its reference; where it has none the one
        before stays, and says nothing of another artifact."""
        self._look(self._clock())
        self._path, self._looked_at = path, -math.inf
        if path.is_file():
            self._look_again(self._clock())

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' page."""
        self._look(self._clock())
        for name, said in COUNTS.items():
            counter = CounterMetricFamily(NAME + name, said, labels=LABELS)
            for labels, seen in self._seen.items():
                counter.add_metric(labels, seen.counts[name])
            yield counter
        for name, (said, _) in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(NAME + name, said, labels=LABELS)
            for labels, seen in self._seen.items():
                histogram.add_metric(labels, *seen.spreads[name].exposed())
            yield histogram
        yield from self._clicks.collect(self._clock())
        yield from self._collect_drift()

    def _look(self, now: float) -> None:
        """Look at what was put aside."""
        aside, self._aside, self._candidates_aside = self._aside, [], 0
        series: dict[tuple[RankingKind, str], list[_Ranked]] = {}
        for one in aside:
            series.setdefault((one.kind, one.ranking.artifact), []).append(one)
        for (kind, artifact), ranked in series.items():
            values = self._seen.setdefault((kind, artifact), _Seen()).add(ranked)
            while len(self._seen) > MOST_SERIES:
                self._seen.popitem(last=False)
            if self._reference is not None and artifact != self._reference.file.artifact:
                self._look_again(now)
            # The scores of another artifact are on another scale.
            if self._reference is not None and artifact == self._reference.file.artifact and kind in self._drift:
                alike = [not one.is_head and self._reference.compares_scores(kind, one.candidates) for one in ranked]
                for feature in SCORES & values.keys():
                    values[feature] = values[feature].kept(np.repeat(alike, values[feature].sizes))
                self._drift[kind].add(len(ranked), values, now)

    def _collect_drift(self) -> Iterator[Metric]:
        labels = ["kind", "feature"]
        psi = GaugeMetricFamily(
            f"{NAME}drift_psi",
            "Population stability index against the reference, less what is chance",
            labels=labels,
        )
        ks = GaugeMetricFamily(
            f"{NAME}drift_ks", "Largest difference of the cumulated shares, now and in the reference", labels=labels
        )
        rankings = GaugeMetricFamily(
            f"{NAME}drift_rankings",
            "Newest rankings behind both, which need 200 of them",
            labels=labels,
        )
        info = GaugeMetricFamily(
            f"{NAME}reference_info", "1: drift is measured against this reference", labels=["artifact", "sha256"]
        )
        now = self._clock()
        for kind, drift in self._drift.items():
            for feature, count in drift.seen(now).items():
                rankings.add_metric([kind, feature], count)
            for one in drift.measured(now):
                psi.add_metric([kind, one.feature], one.psi)
                ks.add_metric([kind, one.feature], one.ks)
        if self._reference is not None:
            info.add_metric([self._reference.file.artifact, self._reference.sha256], 1.0)
        yield from (psi, ks, rankings, info)

    def _take(self, reference: Reference) -> None:
        self._reference = reference
        self._drift = {kind: Drift(spreads) for kind, spreads in reference.file.spreads.items()}
        self._clicks.propensities = reference.file.propensities

    def _look_again(self, now: float) -> None:
        """Another artifact ranks: what lies beside its golden requests may describe it by now."""
        if self._path is None or now < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            reference = Reference.read(self._path)
        except ValueError as error:
            LOG.warning("%s", error)
            return
        if self._reference is None or reference.sha256 != self._reference.sha256:
            self._take(reference)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A ranking that is put aside; see ``Quality.ranked``."""

    kind: RankingKind
    ranking: Ranking
    candidates: int
    is_head: bool


class _Seen:
    """What was seen of the rankings of one kind and artifact."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.spreads = {name: Distribution(edges) for name, (_, edges) in HISTOGRAMS.items()}

    def add(self, ranked: Sequence[_Ranked]) -> dict[Feature, Rows]:
        """Count rankings; the values of the features that drift is measured by, a row for each ranking."""
        counts, rankings = self.counts, [one.ranking for one in ranked]
        counts["rankings"] += len(ranked)
        counts["candidates"] += sum(one.candidates for one in ranked)
        counts["candidates_truncated"] += sum(sum(ranking.truncated or ()) for ranking in rankings)
        items, contexts, unknowns = [], [], []
        for ranking in rankings:
            is_told = ranking.item_tokens is not None and ranking.context_tokens is not None
            items.append(ranking.item_tokens if is_told and ranking.item_tokens is not None else ())
            contexts.append((ranking.context_tokens,) if is_told and ranking.context_tokens is not None else ())
            tokens = sum(contexts[-1]) + sum(items[-1])
            counts["tokens"] += tokens
            unknown = sum(ranking.unknown_tokens) if is_told and ranking.unknown_tokens is not None else None
            counts["tokens_unknown"] += unknown or 0
            unknowns.append(() if unknown is None else (unknown / max(1, tokens),))
        values: dict[Feature, Rows] = {
            "item_tokens": Rows.of(items),
            "context_tokens": Rows.of(contexts),
            "unknown_tokens": Rows.of(unknowns),
        }
        return values | self._add_orders(ranked, rankings)

    def _add_orders(self, ranked: Sequence[_Ranked], rankings: Sequence[Ranking]) -> dict[Feature, Rows]:
        self.spreads["overlap"].add(overlaps(Rows.of([ranking.indices for ranking in rankings])))
        logits = Rows.of([ranking.logits for ranking in rankings])
        is_whole = logits.sizes == [one.candidates for one in ranked]
        logits = logits.kept(logits.values != NO_TEXT_SCORE)  # they come last, and nothing was said of them
        has_two = logits.sizes > 1
        starts = logits.starts
        self.spreads["margin"].add(logits.values[starts[has_two]] - logits.values[starts[has_two] + 1])
        is_whole &= has_two
        if is_whole.any():
            whole = logits.chosen(is_whole)
            self.spreads["score"].add(whole.values)
            self.spreads["entropy"].add(entropies(whole))
        return {
            "top_score": Rows(logits.values[starts[logits.sizes > 0]], np.minimum(logits.sizes, 1)),
            "score": logits.kept(np.repeat(is_whole, logits.sizes)),
        }
