"""Splits and negatives, on a few events where the right answer can be read off."""

import numpy as np
import polars as pl
import pytest
from tritonrank.data.negatives import NegativeSampler, example_random
from tritonrank.data.splits import mark_splits
from tritonrank.recipe import ExampleSettings

PER_USER = ExampleSettings()


def events(*rows: tuple[str, str, int, int]) -> pl.DataFrame:
    """(user, item, timestamp, label) rows as an events table."""
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "label"], orient="row")
    return frame.select("user_id", "item_id", pl.lit("").alias("query"), "timestamp", pl.col("label").cast(pl.Int8))


def marked(table: pl.DataFrame, settings: ExampleSettings = PER_USER) -> list[str]:
    return mark_splits(table, settings)["split"].to_list()


def test_last_positive_is_test_and_second_last_is_validation() -> None:
    labels = [1, 0, 1, 0, 1, 0, 1, 0]
    table = events(*(("u", f"i{n}", n, label) for n, label in enumerate(labels)))
    assert marked(table) == ["train", "train", "train", "train", "validation", "", "test", ""]


def test_two_positives_are_too_few_to_judge() -> None:
    table = events(("u", "a", 1, 1), ("u", "b", 2, 1), ("u", "c", 3, 0))
    assert marked(table) == ["train", "train", "train"]


def test_time_decides_and_then_the_row() -> None:
    table = events(("u", "late", 9, 1), ("u", "first", 5, 1), ("u", "second", 5, 1), ("u", "early", 1, 1))
    ordered = mark_splits(table, PER_USER)
    assert ordered["item_id"].to_list() == ["early", "first", "second", "late"]
    assert ordered["split"].to_list() == ["train", "train", "validation", "test"]


def test_users_do_not_mix() -> None:
    table = events(*((user, f"i{n}", n, 1) for n in range(3) for user in "ba"))
    ordered = mark_splits(table, PER_USER)
    assert ordered["user_id"].to_list() == list("aaabbb")
    assert ordered["split"].to_list() == ["train", "validation", "test"] * 2
    assert ordered["position"].to_list() == ordered["positives_before"].to_list() == [0, 1, 2] * 2


def test_the_same_item_does_not_count_as_history() -> None:
    ordered = mark_splits(events(("u", "a", 1, 1), ("u", "a", 2, 1), ("u", "b", 3, 1), ("u", "a", 4, 1)), PER_USER)
    assert ordered["others_before"].to_list() == [0, 0, 2, 1]


CUT = ExampleSettings(cutoff="1970-01-02")  # second 86,400


@pytest.mark.parametrize(
    ("seconds_and_labels", "expected"),
    [
        (
            [(1, 1), (2, 0), (3, 1), (4, 0), (86_400, 0), (86_401, 1), (86_402, 1)],
            ["train", "train", "validation", "", "", "test", ""],
        ),
        ([(86_399, 1), (86_400, 1)], ["train", "test"]),  # one positive before the date stays the history
        ([(1, 1), (2, 1)], ["train", "validation"]),
        ([(1, 0), (90_000, 1)], ["train", "test"]),
    ],
)
def test_a_cutoff_date(seconds_and_labels: list[tuple[int, int]], expected: list[str]) -> None:
    table = events(*(("u", f"i{n}", second, label) for n, (second, label) in enumerate(seconds_and_labels)))
    assert marked(table, CUT) == expected


@pytest.mark.parametrize("cutoff", ["1970-01-02T00:00:00Z", "1970-01-02T02:00:00+02:00"])
def test_a_cutoff_may_name_its_time_zone(cutoff: str) -> None:
    table = events(("u", "a", 86_399, 1), ("u", "b", 86_400, 1))
    assert marked(table, ExampleSettings(cutoff=cutoff)) == ["train", "test"]


@pytest.mark.parametrize("count", [1, 5, 90])
def test_negatives_are_different_and_unseen(count: int) -> None:
    sampler = NegativeSampler(np.arange(100) ** 3, exponent=2)  # so uneven that the quick rounds cannot fill the list
    seen = np.arange(90, 100)
    for number in range(50):
        drawn = sampler.draw(example_random(1, str(number)), seen, count)
        assert len(set(drawn)) == len(drawn) == count
        assert not set(drawn) & set(seen.tolist())


@pytest.mark.parametrize("exponent", [0.0, 0.75, 1.0])
def test_negatives_follow_popularity(exponent: float) -> None:
    popularity = np.array([0, 1, 3, 15, 40, 1000])
    sampler = NegativeSampler(popularity, exponent)
    draws = [sampler.draw(example_random(1, str(number)), np.array([5]), 1)[0] for number in range(8_000)]
    weights = (popularity[:5] + 1.0) ** exponent
    assert np.bincount(draws, minlength=6)[:5] / len(draws) == pytest.approx(weights / weights.sum(), abs=0.02)


def test_both_ways_of_drawing_agree() -> None:
    """The race must continue the distribution of the quick rounds; numpy's own sampler is the reference."""
    popularity = np.array([0, 4, 9, 50, 400])
    sampler = NegativeSampler(popularity, exponent=1)
    mine = np.zeros(5)
    reference = np.zeros(5)
    chances = (popularity[:4] + 1) / (popularity[:4] + 1).sum()
    generator = np.random.default_rng(2)
    for number in range(6_000):
        mine[sampler.draw(example_random(1, str(number)), np.array([4]), 2)] += 1
        reference[generator.choice(4, size=2, replace=False, p=chances)] += 1
    assert mine / 6_000 == pytest.approx(reference / 6_000, abs=0.03)


def test_streams_depend_on_seed_and_example_only() -> None:
    first, again, other_seed, other_example = (
        example_random(seed, name).random() for seed, name in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    )
    assert first == again
    assert len({first, other_seed, other_example}) == 3
