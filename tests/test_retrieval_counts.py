"""Item kNN and EASE against their formulas."""

import numpy as np
import polars as pl
import pytest
from tritonrank.data.dataset import Example
from tritonrank.judge.counted import neighbour_baseline
from tritonrank.retrieval.counts import Neighbours, ease, ease_matrix, knn, likes

ITEMS = [f"i{number}" for number in range(12)]


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    random = np.random.default_rng(3)
    rows = [(f"u{user}", ITEMS[item], 1) for user in range(30) for item in random.choice(10, 4, replace=False)]
    rows += [("u0", ITEMS[10], 0), ("u1", "elsewhere", 1), rows[0]]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "label"], orient="row")


def dense(neighbours: Neighbours) -> np.ndarray:
    matrix = np.zeros((len(ITEMS), len(ITEMS)))
    for row, (begin, end) in enumerate(zip(neighbours.starts[:-1], neighbours.starts[1:], strict=True)):
        assert (np.diff(neighbours.weights[begin:end]) <= 0).all()
        matrix[row, neighbours.places[begin:end]] = neighbours.weights[begin:end]
    return matrix


def test_likes_count_a_positive_once_and_nothing_else(events: pl.DataFrame) -> None:
    liked = likes(events, ITEMS)
    assert liked.shape == (30, 12)
    assert liked.sum() == 30 * 4
    assert set(liked.data) == {1.0}


def test_neighbours_score_as_the_baseline_does(events: pl.DataFrame) -> None:
    similar = dense(knn(likes(events, ITEMS), most=12))
    score = neighbour_baseline(events)
    for item in range(10):
        others = [other for other in ITEMS if other != ITEMS[item]]
        expected = score(Example("e", "u", "", [ITEMS[item]], others, [0.0] * len(others)))
        np.testing.assert_allclose(np.delete(similar[item], item), expected, rtol=1e-5)


def test_ease_solves_what_it_is_defined_by(events: pl.DataFrame) -> None:
    liked = likes(events, ITEMS)
    places, weights = ease_matrix(liked, regularization=5.0)
    assert places.tolist() == list(range(10))  # the others have no two positives
    assert (np.diag(weights) == 0).all()
    x = liked.toarray()[:, :10].astype(np.float64)
    # The gradient of |X - XB|^2 + 5 |B|^2 is zero everywhere but on the diagonal, which is held at zero.
    gradient = x.T @ (x @ weights - x) + 5.0 * weights
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-4)
    np.testing.assert_allclose(dense(ease(liked, 12, regularization=5.0))[:10, :10], weights, rtol=1e-5)


def test_lists_keep_what_weighs_most(events: pl.DataFrame) -> None:
    liked = likes(events, ITEMS)
    whole, short = dense(ease(liked, 12)), dense(ease(liked, 3))
    for row in range(10):
        assert (short[row] != 0).sum() == 3
        assert np.abs(short[row]).sum() == pytest.approx(np.sort(np.abs(whole[row]))[-3:].sum())


def test_of_few_events_there_is_nothing_to_learn() -> None:
    none = pl.DataFrame({"user_id": ["u"], "item_id": ["i0"], "label": [1]})
    assert len(ease(likes(none, ITEMS), 5).places) == 0
    assert len(knn(likes(none, ITEMS), 5).places) == 0
