"""Segments hold the requests that they name, and decide nothing where there are few."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from tritonrank.data.dataset import Dataset, Example
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import FEWEST_EXAMPLES
from tritonrank.judge.segments import UNDECIDED, Segment, segments

COUNT = 120


def example(number: int) -> Example:
    """Of the candidates, item ``number % 4`` was liked."""
    query = " ".join(["word"] * (number % 2))
    return Example(f"u{number}:1", f"u{number}", query, ["i0"] * (1 + 9 * (number % 3 == 0)), ["i0", "i1", "i2", "i3"],
                   [float(place == number % 4) for place in range(4)])  # fmt: skip


@pytest.fixture
def dataset() -> Dataset:
    colours = ["red", "red", "blue", ""]
    items = {f"i{n}": {"title": f"item {n}", "colour": colours[n]} for n in range(4)}
    items |= {f"more{n}": {"title": f"more {n}", "colour": "red"} for n in range(30)}
    liked = ["i1"] + ["i2"] * 4 + ["i3"] * 5
    events = pl.DataFrame({"user_id": ["u"] * 11, "item_id": ["i0", *liked], "label": [0] + [1] * 10})
    return Dataset(items, [], [], [example(n) for n in range(COUNT)], events)


def judged(name: str, values: np.ndarray) -> Judgement:
    columns = {"example_id": [f"u{n}:1" for n in range(COUNT)], "ndcg@10": values}
    return Judgement(name, pl.DataFrame(columns))


def by_name(found: list[Segment]) -> dict[tuple[str, str], Segment]:
    return {(one.kind, one.name): one for one in found}


def test_every_kind_splits_all_requests_by_what_is_known_of_them(dataset: Dataset) -> None:
    values = np.random.default_rng(3).random(COUNT)
    found = by_name(segments(dataset, judged("INT8", values), judged("item kNN", np.full(COUNT, 0.5))))
    places = np.arange(COUNT)
    expected = {
        ("query", "no query"): places % 2 == 0,
        ("query", "1 word"): places % 2 == 1,
        ("user's history", "1 or 2 items"): places % 3 != 0,
        ("user's history", "10 items or more"): places % 3 == 0,
        ("liked item", "never liked in training"): places % 4 == 0,  # an event that was no positive does not count
        ("liked item", "liked 1 to 4 times"): np.isin(places % 4, [1, 2]),
        ("liked item", "liked 5 times or more"): places % 4 == 3,
        ("colour", "red"): np.isin(places % 4, [0, 1]),
        ("colour", "blue"): places % 4 == 2,
        ("colour", "(empty)"): places % 4 == 3,
    }  # fmt: skip
    assert set(found) == set(expected)  # titles are all different: no category
    for name, chosen in expected.items():
        assert found[name].examples == chosen.sum()
        assert found[name].ndcg.mean == pytest.approx(values[chosen].mean())
        assert found[name].gain.mean == pytest.approx(values[chosen].mean() - 0.5)
        assert found[name].gain.low < found[name].gain.mean < found[name].gain.high


def test_what_tells_nobody_apart_is_left_out(dataset: Dataset) -> None:
    asked = replace(dataset, test=[replace(one, query="two words") for one in dataset.test])
    values = np.full(COUNT, 0.5)
    assert "query" not in {one.kind for one in segments(asked, judged("INT8", values), judged("item kNN", values))}


def test_a_segment_is_decided_where_it_is_large_and_its_interval_excludes_0(dataset: Dataset) -> None:
    asks = np.arange(COUNT) % 2
    found = by_name(
        segments(dataset, judged("INT8", np.where(asks, 0.2, 0.8)), judged("item kNN", np.full(COUNT, 0.5)))
    )
    assert found["query", "no query"].verdict == "better"
    assert found["query", "1 word"].verdict == "worse"
    assert found["user's history", "1 or 2 items"].verdict == UNDECIDED  # half of it is better, half is worse
    one = found["query", "no query"]
    assert replace(one, examples=FEWEST_EXAMPLES).verdict == "better"
    assert replace(one, examples=FEWEST_EXAMPLES - 1).verdict == UNDECIDED
