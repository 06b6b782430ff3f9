"""The metrics agree with scikit-learn and with counting by hand; the intervals cover what they claim."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score
from tritonrank.judge.metrics import (
    METRICS,
    Interval,
    all_metrics,
    auc,
    bootstrap_means,
    interval,
    mrr,
    ndcg,
    ranking,
    recall,
)
from tritonrank.rankers.agreement import top_overlap


def lists(labels: str, ties: bool, count: int = 200) -> Iterator[tuple[list[float], list[int], int]]:
    """(scores, labels, k) of random lists of 1 to 40 candidates."""
    random = np.random.default_rng(11)
    for _ in range(count):
        size = int(random.integers(1, 41))
        scores = random.integers(0, 6, size) if ties else random.permutation(size) - 7.5
        drawn = {
            "one": lambda size=size: np.arange(size) == random.integers(0, size),
            "several": lambda size=size: random.random(size) < 0.3,
            "none": lambda size=size: np.zeros(size),
            "all": lambda size=size: np.ones(size),
        }[labels]()
        yield scores.tolist(), drawn.astype(int).tolist(), int(random.integers(1, 45))


def order_by_hand(scores: list[float]) -> list[int]:
    """Insert candidates one by one, each behind all that are as good: stable by construction."""
    order: list[int] = []
    for candidate, score in enumerate(scores):
        better = sum(scores[other] >= score for other in order)
        order.insert(better, candidate)
    return order


EVERY_KIND = [(labels, ties) for labels in ("one", "several", "none", "all") for ties in (False, True)]


@pytest.mark.parametrize(("labels", "ties"), EVERY_KIND)
def test_equal_scores_keep_their_order(labels: str, ties: bool) -> None:
    for scores, _, _ in lists(labels, ties):
        assert ranking(scores).tolist() == order_by_hand(scores)


@pytest.mark.parametrize("labels", ["one", "several", "none", "all"])
def test_ndcg_is_that_of_scikit_learn(labels: str) -> None:
    for scores, relevant, k in lists(labels, ties=False):
        if len(scores) > 1:  # scikit-learn refuses lists of one
            assert ndcg(scores, relevant, k) == pytest.approx(ndcg_score([relevant], [scores], k=k), abs=1e-12)


def test_ndcg_of_graded_labels_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        grades, scores = random.integers(0, 5, 30), random.permutation(30)
        assert ndcg(scores, grades) == pytest.approx(ndcg_score([grades], [scores], k=10), abs=1e-12)


@pytest.mark.parametrize("labels", ["one", "several"])
def test_ndcg_with_ties_is_that_of_the_order_served(labels: str) -> None:
    """scikit-learn breaks no ties when ranks are given instead of scores."""
    for scores, relevant, k in lists(labels, ties=True):
        ranks = [-order_by_hand(scores).index(candidate) for candidate in range(len(scores))]
        if len(scores) > 1:
            assert ndcg(scores, relevant, k) == pytest.approx(ndcg_score([relevant], [ranks], k=k), abs=1e-12)


def test_mrr_of_one_positive_is_its_average_precision() -> None:
    for scores, relevant, _ in lists("one", ties=False):
        expected = label_ranking_average_precision_score([relevant], [scores])
        assert mrr(scores, relevant, k=len(scores)) == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "ties"), EVERY_KIND)
def test_mrr_and_recall_by_hand(labels: str, ties: bool) -> None:
    for scores, relevant, k in lists(labels, ties):
        shown = [relevant[candidate] for candidate in order_by_hand(scores)][:k]
        assert mrr(scores, relevant, k) == (1 / (shown.index(1) + 1) if 1 in shown else 0)
        assert recall(scores, relevant, k) == pytest.approx(sum(shown) / max(1, sum(relevant)))


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_that_of_scikit_learn(ties: bool) -> None:
    compared = 0
    for scores, relevant, _ in lists("several", ties):
        if 0 < sum(relevant) < len(relevant):
            assert auc(scores, relevant) == pytest.approx(roc_auc_score(relevant, scores), abs=1e-12)
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_auc_without_both_kinds_is_a_coin(labels: list[int]) -> None:
    assert auc([3, 2, 1], labels) == 0.5


def test_no_positive_gives_zero() -> None:
    assert all_metrics([3, 2, 1], [0, 0, 0]) == {"ndcg@10": 0, "mrr@10": 0, "recall@10": 0, "auc": 0.5}


def test_a_constant_score_gains_nothing_from_ties() -> None:
    """A broken model that says the same of all must not look good: on shuffled lists it is as good as chance."""
    random = np.random.default_rng(2)
    labels = [np.eye(1, 100, random.integers(0, 100), dtype=int)[0] for _ in range(2_000)]
    assert np.mean([recall(np.zeros(100), one) for one in labels]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([auc(np.zeros(100), one) for one in labels]) == 0.5


def test_all_metrics_are_those_of_the_tables() -> None:
    scores, labels = [0.1, 0.9, 0.5, 0.7] * 4, [0, 0, 0, 1] + [0] * 12
    found = all_metrics(scores, labels)
    assert tuple(found) == METRICS
    assert found["mrr@10"] == 1 / 5
    assert found["recall@10"] == 1
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(6))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 1)), min_size=1, max_size=30))
def test_only_the_order_of_the_scores_counts(pairs: list[tuple[int, int]]) -> None:
    scores, labels = np.array([pair[0] for pair in pairs]), [pair[1] for pair in pairs]
    assert all_metrics(scores, labels) == all_metrics(scores * 3.7 - 100, labels)


@pytest.mark.parametrize(
    ("second", "overlap"),
    [([4, 3, 2, 1], 1), ([1, 2, 3, 4], 0), ([4, 1, 3, 2], 0.5)],
)
def test_overlap_of_two_rankings(second: list[float], overlap: float) -> None:
    assert top_overlap([4, 3, 2, 1], second, k=2) == overlap
    assert top_overlap([4, 3, 2, 1], second) == 1  # all four are among the first ten
    assert top_overlap([], []) == 0


# Intervals


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """300 samples of 60 lists each, from a skewed law like NDCG's, with the mean known."""
    random = np.random.default_rng(3)
    draws = random.beta(0.6, 1.0, size=(300, 60))
    true_mean = 0.6 / 1.6
    found = [interval(draw, samples=300, seed=seed) for seed, draw in enumerate(draws)]
    covered = np.mean([each.low <= true_mean <= each.high for each in found])
    assert 0.91 <= covered <= 0.98
    missed_below = np.mean([each.high < true_mean for each in found])
    missed_above = np.mean([each.low > true_mean for each in found])
    assert max(missed_below, missed_above) < 0.06  # both tails, not one


def test_bootstrap_means_spread_as_the_standard_error() -> None:
    values = np.random.default_rng(4).normal(size=200)
    means = bootstrap_means(values, samples=2_000, seed=1)
    assert means.shape == (2_000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.1)


def test_the_paired_interval_is_narrower_for_correlated_lists() -> None:
    random = np.random.default_rng(6)
    difficulty = random.random(150)
    first, second = difficulty + 0.05 * random.random(150), difficulty + 0.05 * random.random(150)
    paired = interval(first - second)
    widths = [each.high - each.low for each in (paired, interval(first), interval(second))]
    assert widths[0] < 0.2 * min(widths[1:])
    assert paired.mean == pytest.approx(first.mean() - second.mean())


def test_intervals_are_reproducible_and_hold_their_mean() -> None:
    values = np.random.default_rng(7).random(40)
    assert interval(values) == interval(list(values))
    assert interval(values, seed=1) != interval(values, seed=2)
    found = interval(values)
    assert found.low < found.mean < found.high
    assert interval([0.25] * 5) == Interval(0.25, 0.25, 0.25)
    assert str(Interval(0.5, 0.25, 0.7504)) == "0.500 [0.250, 0.750]"
