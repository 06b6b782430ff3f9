"""For whom does it rank well? Test requests by what is known of them: query, history, item and category.

A ranker that is better on average may be worse for people who search with one word, or for items that are new. Each
segment has its own NDCG@10 and its own paired difference to the best baseline; where a segment is small, or its
interval includes 0, nothing is decided.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritonrank.data.dataset import Dataset, Example
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import FEWEST_EXAMPLES
from tritonrank.judge.metrics import Interval, interval

QUERY_WORDS = ((0, "no query"), (1, "1 word"), (2, "2 words"), (3, "3 or 4 words"), (5, "5 words or more"))
HISTORY_ITEMS = ((0, "none"), (1, "1 or 2 items"), (3, "3 to 9 items"), (10, "10 items or more"))
TRAINING_POSITIVES = ((0, "never liked in training"), (1, "liked 1 to 4 times"), (5, "liked 5 times or more"))
"""From so many on; each up to the next."""
MOST_CATEGORIES = 20
"""Different values of a text field that still are categories."""
KINDS = QUERY, HISTORY, ITEM = "query", "user's history", "liked item"
"""What tells requests apart in every data set; text fields with few values come after these."""
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


@dataclass(frozen=True)
class Segment:
    """Some of the test requests."""

    kind: str
    """what they are told apart by"""
    name: str
    examples: int
    ndcg: Interval
    gain: Interval
    """NDCG@10 of the ranker minus the baseline's"""

    @property
    def verdict(self) -> str:
        if self.examples < FEWEST_EXAMPLES or self.gain.low <= 0 <= self.gain.high:
            return UNDECIDED
        return BETTER if self.gain.low > 0 else WORSE

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "examples": self.examples,
            "ndcg@10": vars(self.ndcg),
            "gain": vars(self.gain),
            "verdict": self.verdict,
        }


def segments(dataset: Dataset, ranker: Judgement, baseline: Judgement) -> list[Segment]:
    """All segments of the test examples, kind by kind; a kind that tells nobody apart is left out.

    Args:
        dataset: whose test examples both were judged on.
        ranker, baseline: their judgements, example by example.
    """
    examples = dataset.test
    values, gains = ranker.values(), ranker.values() - baseline.values()
    found = []
    for kind, names, order in _kinds(dataset, examples):
        there = [name for name in order if name in set(names)]
        if len(there) < 2:
            continue
        for name in there:
            places = np.array([one == name for one in names])
            found.append(Segment(kind, name, int(places.sum()), interval(values[places]), interval(gains[places])))
    return found


def _kinds(dataset: Dataset, examples: Sequence[Example]) -> Iterable[tuple[str, list[str], list[str]]]:
    """What tells requests apart: the kind, the segment of each example, and all segments in order."""
    events = dataset.training_events
    trained = Counter(events.filter(events["label"] > 0)["item_id"].to_list())
    counted: list[tuple[str, Callable[[Example], int], tuple[tuple[int, str], ...]]] = [
        (QUERY, lambda example: len(example.query.split()), QUERY_WORDS),
        (HISTORY, lambda example: len(example.history), HISTORY_ITEMS),
        (ITEM, lambda example: trained[_liked(example)], TRAINING_POSITIVES),
    ]
    for kind, count, steps in counted:
        yield kind, [_step(count(example), steps) for example in examples], [name for _, name in steps]
    for field in _category_fields(dataset):
        of_item = [dataset.items[_liked(example)][field] or "(empty)" for example in examples]
        yield field, of_item, [name for name, _ in Counter(of_item).most_common()]


def _step(count: int, steps: Sequence[tuple[int, str]]) -> str:
    return [name for start, name in steps if count >= start][-1]


def _liked(example: Example) -> str:
    """What the user went on to like; of several the one with the largest gain."""
    return example.candidates[int(np.argmax(example.labels))]


def _category_fields(dataset: Dataset) -> list[str]:
    """Text fields with few different values."""
    items = list(dataset.items.values())
    distinct = {field: {item[field] for item in items} for field in items[0]} if items else {}
    return [field for field, values in distinct.items() if 2 <= len(values) <= MOST_CATEGORIES < len(items)]
