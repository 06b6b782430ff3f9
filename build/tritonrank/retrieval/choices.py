"""The examples as the towers learn from them: numbers in place of ids.

A choice is one positive of an example: what was asked, what was liked before (newest first), what was chosen then, and
what else the user has met in training, which is never held against the choice as a negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonrank.data.dataset import Dataset, Example

HISTORY = 50
"""Items of a history that count, the newest; w by recency has so many weights."""
NOTHING = -1
"""In place of a query or of an item where there is none."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """Rows of equal length; items are numbered as in ``Dataset.items``.

    Attributes:
        queries: the different texts.
        query: per choice the number of its query, or NOTHING.
        history: [choices, HISTORY], newest first, NOTHING behind the oldest.
        chosen: the item.
        weight: what the choice counts, 1 on average.
        user: the number of its user.
        met: by number of user the items met in training, ascending.
    """

    queries: list[str]
    query: Numbers
    history: Numbers
    chosen: Numbers
    weight: NDArray[np.float32]
    user: Numbers
    met: list[Numbers]

    def __len__(self) -> int:
        return len(self.chosen)

    @classmethod
    def of(cls, dataset: Dataset, examples: Sequence[Example]) -> "Choices":
        """The positives of examples, in their order."""
        place = {item: number for number, item in enumerate(dataset.items)}
        rows = [
            (example, item, gain * (example.weights[number] if example.weights else 1.0))
            for example in examples
            for number, (item, gain) in enumerate(zip(example.candidates, example.labels, strict=True))
            if gain > 0
        ]
        queries = {query: number for number, query in enumerate(sorted({e.query for e in examples} - {""}))}
        users = {user: number for number, user in enumerate(dict.fromkeys(e.user_id for e in examples))}
        history = np.full((len(rows), HISTORY), NOTHING, dtype=np.int64)
        for row, (example, _, _) in enumerate(rows):
            newest_first = [place[item] for item in example.history[: -HISTORY - 1 : -1]]
            history[row, : len(newest_first)] = newest_first
        weight = np.array([gain for _, _, gain in rows], dtype=np.float32)
        met: list[set[int]] = [set() for _ in users]
        events = dataset.training_events
        for user, item in zip(events["user_id"], events["item_id"], strict=True):
            if user in users and item in place:
                met[users[user]].add(place[item])
        return cls(
            queries=list(queries),
            query=np.array([queries.get(example.query, NOTHING) for example, _, _ in rows], dtype=np.int64),
            history=history,
            chosen=np.array([place[item] for _, item, _ in rows], dtype=np.int64),
            weight=weight / max(float(weight.mean()) if len(weight) else 1.0, 1e-9),
            user=np.array([users[example.user_id] for example, _, _ in rows], dtype=np.int64),
            met=[np.array(sorted(items), dtype=np.int64) for items in met],
        )

    def is_met(self, rows: Numbers, items: Numbers) -> NDArray[np.bool_]:
        """Whether the user of a choice has met an item in training, its own choice left out, [rows, items].

        Args:
            rows: numbers of choices.
            items: numbers of items, ascending, each once.
        """
        found = np.zeros((len(rows), len(items)), dtype=bool)
        for place, row in enumerate(rows):
            met = self.met[self.user[row]]
            places = np.minimum(np.searchsorted(items, met), len(items) - 1)
            found[place, places[items[places] == met]] = True
        found &= items[None, :] != self.chosen[rows][:, None]
        return found
