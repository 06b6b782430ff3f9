"""How a version compares with the live one, as sums: those of several gateways, added up, are those of the fleet.

Every number below ``live``, ``version``, ``pairs`` and ``dropped`` is a sum from when the version took its role; two
answers are added number by number, and a difference of two answers of one gateway is what happened between them.

The two roles fill other parts. A shadow's sums are of pairs: of requests that both ranked, ``live.seconds`` and
``version.seconds`` of the same ones. A canary's are of two groups of users, each by whom the hash has given it to: what
the canary could not answer counts as the canary's, though the live version answered it (intention to treat).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import field
from numpy.typing import NDArray

from tritonrank_gateway.ranking import Ranking
from tritonrank_gateway.versions.figures import SCORE_EDGES, Agreement

SECONDS: tuple[float, ...] = tuple(round(0.001 * 1.2**step, 6) for step in range(58))
"""Upper bounds of the times' buckets, 1 ms to 33 s, each a fifth above the one before; one more bucket is above all.
A ratio of two quantiles is known to a fifth."""
CLICK_SUMS = 6
"""See ``quality.clicks``: the sums of w, wd, w2, w2d, w2d2 and 1 over clicks, with weight w and discount d."""


class SideSums(msgspec.Struct, kw_only=True):
    """Of one of the two that are compared.

    Attributes:
        rankings: that it gave. Of a canary those that users were given: exposure is ``version.rankings`` of the
            ``rankings`` of both.
        candidates: of these rankings: what they cost.
        seconds: how many took as long, by the buckets ``seconds`` of ``Comparison``; cached ones are in none, and late
            ones where nobody waited any more.
        seconds_sum: of the same.
        failed, refused, late, invalid, resting: rankings that it did not give, by why: a fault, no room, not in its
            time, the request was wrong to it, or it was not asked because it had failed again and again. A canary's
            were given by the live version in its place.
        calls: of HTTP, with their answers' fate: ``calls_failed`` (by no fault of the caller's), ``calls_refused`` (no
            room), ``calls_degraded`` (answered without a part).
        impressions, clicks: by position in the list, as the metrics of quality name positions; of users who are named.
        click_sums: of the estimate of NDCG by clicks.
    """

    rankings: int = 0
    candidates: int = 0
    seconds: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    seconds_sum: float = 0.0
    failed: int = 0
    refused: int = 0
    late: int = 0
    invalid: int = 0
    resting: int = 0
    calls: int = 0
    calls_failed: int = 0
    calls_refused: int = 0
    calls_degraded: int = 0
    impressions: dict[str, int] = field(default_factory=dict)
    clicks: dict[str, int] = field(default_factory=dict)
    click_sums: list[float] = field(default_factory=lambda: [0.0] * CLICK_SUMS)

    @property
    def fallen_back(self) -> int:
        """Rankings that it did not give."""
        return self.failed + self.refused + self.late + self.invalid + self.resting

    def ranked(self, ranking: Ranking, candidates: int, seconds: float) -> None:
        """It gave a ranking."""
        self.rankings += 1
        self.candidates += candidates
        if not ranking.is_cached:
            self.took(seconds)

    def took(self, seconds: float) -> None:
        """A ranking took so long."""
        self.seconds[int(np.searchsorted(SECONDS, seconds))] += 1
        self.seconds_sum += seconds

    def quantile_seconds(self, share: float, least: int) -> float | None:
        """The upper bound of the time that a share of the rankings took; None where fewer than ``least`` are known."""
        counts = np.cumsum(self.seconds)
        if counts[-1] < least:
            return None
        place = int(np.searchsorted(counts, share * counts[-1]))
        return SECONDS[min(place, len(SECONDS) - 1)]

    def clicked(self, position: str, sums: NDArray[np.float64]) -> None:
        """Somebody clicked."""
        self.clicks[position] = self.clicks.get(position, 0) + 1
        self.click_sums = [before + now for before, now in zip(self.click_sums, sums.tolist(), strict=True)]

    def shown(self, positions: Sequence[str]) -> None:
        """A page was shown."""
        for position in positions:
            self.impressions[position] = self.impressions.get(position, 0) + 1


class Pairs(msgspec.Struct, kw_only=True):
    """Of requests that both have ranked.

    Attributes:
        count: pairs.
        rbo, rbo_squares: rank-biased overlap (p = 0.9), 1: the same order. Mean and variance follow from both.
        top_ten_count: pairs of more than ten items.
        top_ten, top_ten_squares: the share of the live ten best that are among the version's ten best, of these pairs.
        drift_count: pairs with two items at least that both have scored, and live scores that differ.
        drift, drift_squares: mean absolute difference of an item's two scores, in standard deviations of the live ones.
        list_count, list_rbo, list_rbo_squares, list_top_ten_count, list_top_ten, list_top_ten_squares: the same of the
            lists that users are shown: with the version's blend and the shop's rules. Of recommendations alone.
        live_bins, version_bins: how scores are spread over the buckets ``scores`` of ``Comparison``, less the mean of
            the live scores of the request and in their standard deviations. Each pair adds 1 to the sum of all bins.
    """

    count: int = 0
    rbo: float = 0.0
    rbo_squares: float = 0.0
    top_ten_count: int = 0
    top_ten: float = 0.0
    top_ten_squares: float = 0.0
    drift_count: int = 0
    drift: float = 0.0
    drift_squares: float = 0.0
    list_count: int = 0
    list_rbo: float = 0.0
    list_rbo_squares: float = 0.0
    list_top_ten_count: int = 0
    list_top_ten: float = 0.0
    list_top_ten_squares: float = 0.0
    live_bins: list[float] = field(default_factory=lambda: [0.0] * (len(SCORE_EDGES) + 1))
    version_bins: list[float] = field(default_factory=lambda: [0.0] * (len(SCORE_EDGES) + 1))

    def add_lists(self, rbo: float, top_ten: float | None) -> None:
        """Take what was made of a pair; see ``figures.alike``."""
        self.list_count += 1
        self.list_rbo += rbo
        self.list_rbo_squares += rbo**2
        if top_ten is not None:
            self.list_top_ten_count += 1
            self.list_top_ten += top_ten
            self.list_top_ten_squares += top_ten**2

    def add(self, one: Agreement) -> None:
        """Take a pair."""
        self.count += 1
        self.rbo += one.rbo
        self.rbo_squares += one.rbo**2
        if one.top_ten is not None:
            self.top_ten_count += 1
            self.top_ten += one.top_ten
            self.top_ten_squares += one.top_ten**2
        if one.drift is not None:
            self.drift_count += 1
            self.drift += one.drift
            self.drift_squares += one.drift**2
            self.live_bins = [before + now for before, now in zip(self.live_bins, one.live_bins, strict=True)]
            self.version_bins = [before + now for before, now in zip(self.version_bins, one.version_bins, strict=True)]


class Compared(msgspec.Struct, kw_only=True):
    """One version beside the live one.

    Attributes:
        name: of the version.
        artifact: that its last ranking bore; "" before the first.
        since_generation, since: when it took its role, and when the live version was the one it is compared with; a
            change of its share alone begins nothing anew.
        share: now.
        live, version, pairs: see there.
        dropped: requests that the shadow was to get and did not: ``busy`` (the gateway had enough to do), ``waiting``
            (enough of them were on their way).
    """

    name: str
    since_generation: int
    since: float
    share: float
    artifact: str = ""
    live: SideSums = field(default_factory=SideSums)
    version: SideSums = field(default_factory=SideSums)
    pairs: Pairs = field(default_factory=Pairs)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, why: str) -> None:
        """The shadow did not get a request."""
        self.dropped[why] = self.dropped.get(why, 0) + 1


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What ``GET /versions/comparison`` says.

    Attributes:
        generation, started: see ``wire.Versions``.
        seconds: upper bounds of the buckets of times.
        scores: upper bounds of the bins of scores.
        shadow, canary: None where there is none.
    """

    generation: int
    started: float
    seconds: Sequence[float] = SECONDS
    scores: Sequence[float] = SCORE_EDGES
    shadow: Compared | None = None
    canary: Compared | None = None
