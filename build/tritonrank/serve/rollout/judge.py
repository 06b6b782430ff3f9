"""What the figures say by the rules: go on, stay, or go back.

Each rule gives a reading: ``bad`` when its limit is broken for certain, ``good`` when what is needed to go on is there,
else ``unsure``. One that is bad takes the version back. All good, and the time at the step over: the next step.

The overlaps are good only when they are above their limit for certain. The others are good when the estimate is: to be
certain of a 99th percentile or of a share of 0.2% takes tens of thousands of requests, and what is worse than it should
be is found out at a later step, which has more of them. docs/rollout.md says what that means.

The chance to be wrong is shared among all readings of all steps (Bonferroni); each may be looked at for ever
(``confidence.py``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tritonrank.serve.rollout.confidence import bounded_mean, mean, widening
from tritonrank.serve.rollout.histogram import Histogram
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.sums import Sums

Verdict = Literal["good", "unsure", "bad"]
OVER_ALL, PER_STEP = 7, 8
"""Readings of all pairs and clicks since the start, and readings that begin anew at each step."""
FULL = 1e-9
NOT_RANKED = ("failed", "refused", "late", "invalid", "resting")


@dataclass(frozen=True)
class Reading:
    """One rule held against the figures.

    Attributes:
        rule: its name.
        what: is read: the rule, and of which requests.
        value: the estimate; None of nothing.
        low, high: where the true value lies for certain.
        limit: of the rule.
        count: observations.
        verdict: see the module.
    """

    rule: str
    what: str
    value: float | None
    low: float | None
    high: float | None
    limit: float
    count: float
    verdict: Verdict

    def told(self) -> dict[str, Any]:
        """As JSON, rounded to what can be read."""
        numbers = {name: _rounded(getattr(self, name)) for name in ("value", "low", "high", "limit")}
        return {"rule": self.rule, "what": self.what, **numbers, "count": int(self.count), "verdict": self.verdict}


@dataclass(frozen=True)
class Figures:
    """What is known of a version: sums as the gateways tell them.

    Attributes:
        shadow, canary: since the rollout began.
        shadow_step, canary_step: since the step was taken.
        seconds: upper bounds of the buckets of times.
    """

    shadow: Sums
    canary: Sums
    shadow_step: Sums
    canary_step: Sums
    seconds: Sequence[float]

    @property
    def exposure(self) -> dict[str, float]:
        """How many rankings users were given by it, of how many while it was a canary."""
        given = of(self.canary, "version", "rankings")
        return {"by_version": given, "in_all": given + of(self.canary, "live", "rankings")}


def readings(rules: Rules, figures: Figures, *, is_canary: bool) -> list[Reading]:
    """Every rule that has a say at this step.

    Args:
        rules: of this rollout.
        figures: as known now.
        is_canary: whether users are given its answers yet.
    """
    error = (1 - rules.confidence) / (OVER_ALL + PER_STEP * (1 + len(rules.canary_shares)))
    found = [
        *_pairs(rules, figures.shadow.get("pairs", {}), error),
        *_latency(rules, figures.shadow_step, figures.seconds, "shadow", rules.least_pairs, error),
        _not_ranked(rules, figures.shadow_step, "shadow", rules.least_pairs, error),
    ]
    if is_canary:
        step = figures.canary_step
        found += _latency(rules, step, figures.seconds, "canary", rules.least_answers, error)
        found.append(_not_ranked(rules, step, "canary", rules.least_answers, error))
        found.append(_budget(rules, figures.canary))
        found.append(_excess("most_error_excess", rules, step, ("calls_failed", "calls_refused"), error))
        found.append(_excess("most_degraded_excess", rules, step, ("calls_degraded",), error))
        found += _clicks(rules, figures.canary, error)
    return found


def of(sums: Mapping[str, Any], *path: str) -> Any:
    """A figure by its path; 0 where nobody has it."""
    for name in path:
        sums = sums.get(name, {}) if isinstance(sums, Mapping) else {}
    return sums or 0


def _pairs(rules: Rules, pairs: Sums, error: float) -> list[Reading]:
    count, enough = of(pairs, "count"), of(pairs, "count") >= rules.least_pairs
    found = []
    orders = [
        ("pairs", "least_overlap", "rbo", count),
        ("pairs", "least_top_ten", "top_ten", of(pairs, "top_ten_count")),
    ]
    if lists := of(pairs, "list_count"):  # of recommendations: what the version's blend and the shop's rules make of it
        orders.append(("lists", "least_overlap", "list_rbo", lists))
        orders.append(("lists", "least_top_ten", "list_top_ten", of(pairs, "list_top_ten_count")))
    for what, rule, total, of_pairs in orders:
        limit = getattr(rules, rule)
        bounds = bounded_mean(of(pairs, total), of_pairs, error)
        # Lists of ten and fewer have no ten best: that they have none is no reason to wait.
        is_good = enough and (bounds.low >= limit or (rule == "least_top_ten" and of_pairs == 0))
        verdict: Verdict = "bad" if bounds.high < limit else "good" if is_good else "unsure"
        value = of(pairs, total) / of_pairs if of_pairs else None
        found.append(Reading(rule, what, value, bounds.low, bounds.high, limit, of_pairs, verdict))
    found.append(_score_difference(rules, pairs, error))
    found.append(_score_psi(rules, pairs, error))
    return found


def _score_difference(rules: Rules, pairs: Sums, error: float) -> Reading:
    count, limit = of(pairs, "drift_count"), rules.most_score_difference
    bounds = mean(of(pairs, "drift"), of(pairs, "drift_squares"), count, error)
    value = of(pairs, "drift") / count if count else None
    is_bad = count >= rules.least_pairs and bounds.low > limit
    is_good = of(pairs, "count") >= rules.least_pairs and (value is None or value <= limit)
    return _reading("most_score_difference", "pairs", value, bounds.low, bounds.high, limit, count, is_bad, is_good)


def _score_psi(rules: Rules, pairs: Sums, error: float) -> Reading:
    """Requests are counted, not scores: those of one request are alike."""
    live, new, limit = of(pairs, "live_bins") or [], of(pairs, "version_bins") or [], rules.most_score_psi
    count = of(pairs, "drift_count")
    if not count:
        is_good = of(pairs, "count") >= rules.least_pairs
        return _reading("most_score_psi", "pairs", None, None, None, limit, 0, False, is_good)
    bins = len(live)
    shares = [[(one + 0.5) / (sum(side) + 0.5 * bins) for one in side] for side in (live, new)]
    psi = sum((right - left) * math.log(right / left) for left, right in zip(*shares, strict=True))
    # Without a difference it is distributed as chi-squared with bins - 1 degrees of freedom, times 2 / count
    # (Yurdakul, 2018); its quantile by Wilson and Hilferty, as many deviations out as the number of looks asks for.
    free = bins - 1
    out = widening(count, error)
    by_chance = free * (1 - 2 / (9 * free) + out * math.sqrt(2 / (9 * free))) ** 3 * 2 / count
    low = max(0.0, math.sqrt(psi) - math.sqrt(by_chance)) ** 2
    high = (math.sqrt(psi) + math.sqrt(by_chance)) ** 2
    is_bad = count >= rules.least_pairs and low > limit
    is_good = of(pairs, "count") >= rules.least_pairs and psi <= limit
    return _reading("most_score_psi", "pairs", psi, low, high, limit, count, is_bad, is_good)


def _latency(
    rules: Rules, sums: Sums, seconds: Sequence[float], role: str, least: float, error: float
) -> list[Reading]:
    """At the quantile of the rules, of which it takes a thousand requests to be sure, and at the median: fifty."""
    limit = rules.most_latency_ratio
    live, new = (Histogram(seconds, of(sums, side, "seconds") or []) for side in ("live", "version"))
    count = min(live.count, new.count)
    found = []
    for share in (0.5, rules.latency_quantile):
        sides = live.quantile(share), new.quantile(share)
        value = sides[1] / sides[0] if sides[0] and sides[1] is not None else None
        live_bounds, new_bounds = live.quantile_bounds(share, error / 2), new.quantile_bounds(share, error / 2)
        low = new_bounds.low / live_bounds.high
        high = new_bounds.high / live_bounds.low if live_bounds.low else math.inf
        is_good = count >= least and value is not None and value <= limit
        what = f"{role} p{100 * share:g}"
        found.append(_reading("most_latency_ratio", what, value, low, high, limit, count, low > limit, is_good))
    return found


def _not_ranked(rules: Rules, sums: Sums, role: str, least: float, error: float) -> Reading:
    lost = sum(of(sums, "version", reason) for reason in NOT_RANKED)
    asked, limit = lost + of(sums, "version", "rankings"), rules.most_not_ranked
    bounds = bounded_mean(lost, asked, error)
    value = lost / asked if asked else None
    is_good = asked >= least and value is not None and value <= limit
    return _reading("most_not_ranked", role, value, bounds.low, bounds.high, limit, asked, bounds.low > limit, is_good)


def _budget(rules: Rules, canary: Sums) -> Reading:
    spent, limit = float(sum(of(canary, "version", reason) for reason in NOT_RANKED)), rules.most_fallbacks
    return _reading("most_fallbacks", "canary", spent, spent, spent, limit, spent, spent > limit, spent <= limit)


def _excess(rule: str, rules: Rules, sums: Sums, names: Sequence[str], error: float) -> Reading:
    limit = getattr(rules, rule)
    shares, bounds, counts = [], [], []
    for side in ("live", "version"):
        hits, count = sum(of(sums, side, name) for name in names), of(sums, side, "calls")
        shares.append(hits / count if count else None)
        bounds.append(bounded_mean(hits, count, error / 2))
        counts.append(count)
    low, high = bounds[1].low - bounds[0].high, bounds[1].high - bounds[0].low
    value = None if shares[0] is None or shares[1] is None else shares[1] - shares[0]
    is_good = value is not None and value <= limit
    return _reading(rule, "canary", value, low, high, limit, min(counts), low > limit, is_good)


def _clicks(rules: Rules, canary: Sums, error: float) -> list[Reading]:
    """Clicks of the canary, by those that live's click rate at each position would give its impressions.

    Both groups are of users whom a hash has chosen, so that they differ in nothing but the version.
    """
    found = {
        (side, what): of(canary, side, what) or {} for side in ("live", "version") for what in ("impressions", "clicks")
    }
    expected = variance = 0.0
    for position, shown in found["version", "impressions"].items():
        seen = found["live", "impressions"].get(position, 0)
        if seen:
            rate = found["live", "clicks"].get(position, 0) / seen
            expected += shown * rate
            variance += shown * shown * rate * (1 - rate) / seen
    shown, clicks = sum(found["version", "impressions"].values()), sum(found["version", "clicks"].values())
    if shown < rules.least_impressions or expected <= 0:
        return []
    ratio = clicks / expected
    spread = math.sqrt(max(1.0, clicks) + ratio * ratio * variance) / expected
    half = spread * widening(shown, error)
    is_bad = ratio + half < rules.least_click_ratio
    limit = rules.least_click_ratio
    return [_reading("least_click_ratio", "canary", ratio, ratio - half, ratio + half, limit, shown, is_bad, True)]


def _reading(
    rule: str,
    what: str,
    value: float | None,
    low: float | None,
    high: float | None,
    limit: float,
    count: float,
    is_bad: bool,
    is_good: bool,
) -> Reading:
    return Reading(rule, what, value, low, high, limit, count, "bad" if is_bad else "good" if is_good else "unsure")


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
