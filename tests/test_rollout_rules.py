"""What a rollout may say of its figures: looked at all the time, added up over gateways, and held against rules."""

import math
import random
import re
from bisect import bisect_left
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonrank.errors import ServerError
from tritonrank.serve.rollout.confidence import bounded_mean, mean
from tritonrank.serve.rollout.histogram import Histogram
from tritonrank.serve.rollout.judge import Figures, readings
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.state import Seen
from tritonrank.serve.rollout.sums import added, note, total

SECONDS = [0.001 * 1.2**step for step in range(58)]
ERROR, RUNS, LOOKS = 0.1, 150, 40


def looked_at_all_the_time(interval: Any, draw: Any, true: float) -> float:
    """Which share of runs has, at one look at least, an interval without the true mean."""
    wrong = 0
    for _ in range(RUNS):
        total, squares, looks_wrong = 0.0, 0.0, False
        for count in range(1, 1 + 10 * LOOKS):
            value = draw()
            total, squares = total + value, squares + value * value
            if count % 10 == 0 and count >= 100:
                low, high = interval(total, squares, count)
                looks_wrong |= not low <= true <= high
        wrong += looks_wrong
    return wrong / RUNS


def test_an_interval_that_is_looked_at_all_the_time_holds_and_an_ordinary_one_does_not() -> None:
    chance = random.Random(7)

    def ordinary(total: float, squares: float, count: int) -> tuple[float, float]:
        found = total / count
        half = 1.645 * math.sqrt(max(0.0, squares / count - found * found) / count)
        return found - half, found + half

    def of_shares(total: float, _: float, count: int) -> tuple[float, float]:
        bounds = bounded_mean(total, count, ERROR)
        return bounds.low, bounds.high

    def of_means(total: float, squares: float, count: int) -> tuple[float, float]:
        bounds = mean(total, squares, count, ERROR)
        return bounds.low, bounds.high

    assert looked_at_all_the_time(ordinary, lambda: chance.random() < 0.3, 0.3) > 2 * ERROR
    assert looked_at_all_the_time(of_shares, lambda: chance.random() < 0.3, 0.3) <= ERROR
    assert looked_at_all_the_time(of_shares, lambda: chance.betavariate(2, 1), 2 / 3) <= ERROR
    assert looked_at_all_the_time(of_means, lambda: chance.expovariate(1), 1.0) <= ERROR


@pytest.mark.parametrize(("total", "count"), [(0, 0), (0, 400), (400, 400), (30, 400), (399.7, 400)])
def test_bounds_are_around_what_was_found_and_narrow(total: float, count: float) -> None:
    bounds = bounded_mean(total, count, 0.01)
    assert 0 <= bounds.low <= bounds.high <= 1
    if count:
        assert bounds.low <= total / count <= bounds.high
        assert bounds.high - bounds.low < 0.2
        more = bounded_mean(100 * total, 100 * count, 0.01)
        assert bounds.low <= more.low <= more.high <= bounds.high


def test_quantiles_of_buckets_are_those_of_the_times() -> None:
    times = np.random.default_rng(3).gamma(4, 0.01, 20_000)
    counts = [*np.histogram(times, [0, *SECONDS])[0].tolist(), 0]
    found = Histogram(SECONDS, counts)
    for share in (0.5, 0.9, 0.99):
        true = float(np.quantile(times, share))
        estimate, bounds = found.quantile(share), found.quantile_bounds(share, 0.01)
        assert estimate == pytest.approx(true, rel=0.05)
        assert bounds.low <= true <= bounds.high <= 1.5 * bounds.low
    assert Histogram(SECONDS, [0] * 59).quantile(0.5) is None
    assert Histogram(SECONDS, []).quantile_bounds(0.5, 0.01).high == math.inf


def test_sums_of_gateways_add_up_and_outlive_their_restarts() -> None:
    one = {"pairs": {"count": 3, "rbo": 2.5}, "live": {"seconds": [1, 2], "clicks": {"1": 4}}}
    other = {"pairs": {"count": 4, "rbo": 3.5}, "live": {"seconds": [5, 0, 1], "clicks": {"2": 1}}}
    both = {"pairs": {"count": 7, "rbo": 6.0}, "live": {"seconds": [6, 2, 1], "clicks": {"1": 4, "2": 1}}}
    assert added(one, other) == both
    assert added(both, other, -1)["pairs"] == one["pairs"]
    seen = Seen()
    for mark, sums in (("a", one), ("a", both), ("b", other), ("b", other)):
        note(seen, mark, sums)
    assert total({"x": seen, "y": Seen()}) == added(both, other)


def side(**more: Any) -> dict[str, Any]:
    times = [0] * 59
    times[12] = more.pop("count", 1_000)
    return {"rankings": 1_000, "calls": 1_000, "seconds": times} | more


def figures(**more: Any) -> Figures:
    """Of a version that is as live is."""
    bins = [0.0, 10.0, 100.0, 480.0, 310.0, 90.0, 10.0]
    pairs = {"count": 1_000, "rbo": 900.0, "rbo_squares": 820.0, "top_ten_count": 1_000, "top_ten": 900.0}
    pairs |= {"drift_count": 1_000, "drift": 200.0, "drift_squares": 50.0, "live_bins": bins, "version_bins": bins}
    sums: dict[str, Any] = {"pairs": pairs | more.pop("pairs", {})}
    for name in ("live", "version"):
        shown = {"impressions": {"1": 20_000, "2": 20_000}, "clicks": {"1": 3_000, "2": 1_500}}
        sums[name] = side(**shown) | more.pop(name, {})
    assert not more
    return Figures(sums, sums, sums, sums, SECONDS)


SLOW = [0] * 20 + [1_000] + [0] * 38
CASES = {
    "least_overlap": {"pairs": {"rbo": 300.0}},
    "least_top_ten": {"pairs": {"top_ten": 100.0}},
    "most_score_difference": {"pairs": {"drift": 1_300.0, "drift_squares": 1_900.0}},
    "most_score_psi": {"pairs": {"version_bins": [300.0, 300.0, 200.0, 100.0, 50.0, 30.0, 20.0]}},
    "most_latency_ratio": {"version": {"seconds": SLOW}},
    "most_not_ranked": {"version": {"late": 100}},
    "most_fallbacks": {"version": {"refused": 1_001, "rankings": 1_000_000}},
    "most_error_excess": {"version": {"calls_failed": 60}},
    "most_degraded_excess": {"version": {"calls_degraded": 200}},
    "least_click_ratio": {"version": {"clicks": {"1": 2_000, "2": 1_000}}},
}


def test_a_version_that_is_as_live_is_passes_every_rule() -> None:
    found = readings(Rules(), figures(), is_canary=True)
    assert {one.rule for one in found} == set(CASES)
    assert {one.verdict for one in found} == {"good"}
    assert {one.what for one in readings(Rules(), figures(), is_canary=False)} == {
        "pairs",
        "shadow",
        "shadow p50",
        "shadow p99",
    }


@pytest.mark.parametrize("rule", CASES)
def test_each_rule_takes_back_what_breaks_it(rule: str) -> None:
    found = readings(Rules(), figures(**CASES[rule]), is_canary=True)
    assert {one.rule for one in found if one.verdict == "bad"} == {rule}


@pytest.mark.parametrize("rule", sorted(CASES.keys() - {"most_fallbacks", "least_click_ratio"}))
def test_little_is_known_of_few_requests(rule: str) -> None:
    few = {"count": 3, "drift_count": 3, "top_ten_count": 3, "rbo": 2.7, "top_ten": 2.7, "drift": 0.6}
    times = [0] * 12 + [3] + [0] * 46
    seen = {"rankings": 3, "calls": 0, "seconds": times, "impressions": {}, "clicks": {}}
    found = readings(Rules(), figures(pairs=few, live=seen, version=seen), is_canary=True)
    assert {one.verdict for one in found if one.rule == rule} == {"unsure"}


def test_chance_alone_takes_no_sound_version_back() -> None:
    """Both sides drawn alike, and looked at again and again: of 60 rollouts at most one in twenty may go wrong."""
    chance, wrong = random.Random(11), 0
    for _ in range(60):
        sums: dict[str, Any] = {}
        for _ in range(25):
            drawn: dict[str, Any] = {}
            for name in ("live", "version"):
                counts = [0] * 59
                for _ in range(20):
                    counts[bisect_left(SECONDS, chance.expovariate(20))] += 1
                failed = sum(chance.random() < 0.02 for _ in range(20))
                drawn[name] = {"rankings": 20, "calls": 20, "calls_failed": failed, "seconds": counts}
            sums = added(sums, drawn)
            found = readings(Rules(), Figures({}, sums, {}, sums, SECONDS), is_canary=True)
            if any(one.verdict == "bad" for one in found):
                wrong += 1
                break
    assert wrong <= 3


def test_the_page_says_every_rule_and_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rollout.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+_\w+|confidence)` \| ([^|]+ \| [^|]+) \|$", page, re.MULTILINE))
    told = Rules().told()
    assert rows == {one.name: f"{told[one.name]} | {one.metadata['said']}" for one in fields(Rules)}


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text("least_overlap = 0.8\ncanary_shares = [0.1, 1]\nwhen_undecided = 'back'\n")
    read = Rules.read(path)
    assert (read.least_overlap, read.canary_shares, read.when_undecided) == (0.8, (0.1, 1), "back")
    assert Rules.made(read.told(), "told") == read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("least_overlop = 1", "least_overlop: is no rule; least_overlap is"),
        ("least_overlap = 2", "least_overlap: is 2, expected a number from 0 to 1"),
        ("least_pairs = true", "least_pairs"),
        ("confidence = nan", "confidence"),
        ("canary_shares = [0.5, 0.1]", "canary_shares: expected each share larger"),
        ("canary_shares = []", "canary_shares"),
        ("canary_shares = ['x']", "canary_shares"),
        ("when_undecided = 'maybe'", "when_undecided"),
        ("least_overlap = ", "no rules file"),
        ("\xff", "no rules file"),
        ("#" * 70_000, "bytes"),
    ],
    ids=["unknown", "bounds", "bool", "nan", "falling", "none", "text", "choice", "toml", "encoding", "size"],
)
def test_a_fault_in_a_rules_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ServerError, match=said) as raised:
        Rules.read(path)
    assert str(path) in str(raised.value)


def test_lists_that_a_blend_spoilt_are_found_though_the_ranker_is_the_same() -> None:
    lists = {"list_count": 1_000, "list_rbo": 300.0, "list_top_ten_count": 1_000, "list_top_ten": 900.0}
    found = readings(Rules(), figures(pairs=lists), is_canary=False)
    assert [(one.rule, one.what) for one in found if one.verdict == "bad"] == [("least_overlap", "lists")]
