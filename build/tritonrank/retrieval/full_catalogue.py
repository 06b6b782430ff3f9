"""Who is judged against the whole catalogue: every item is a candidate, those that the user met before left out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.data.dataset import Dataset, Example

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class JudgedUser:
    """One example; items are numbered as in ``Dataset.items``.

    Attributes:
        example: which.
        chosen: the positives, ascending.
        met: items of the user's events before, in any way, ascending; none of them is chosen.
    """

    example: Example
    chosen: Numbers
    met: Numbers


def judged_users(dataset: Dataset, folder: Path, examples: Sequence[Example]) -> list[JudgedUser]:
    """Judged examples with what their users had met until then.

    Args:
        dataset: read from ``folder``.
        folder: the artifact of ``prepare``; its events say who met what.
        examples: validation or test.
    """
    place = {item: number for number, item in enumerate(dataset.items)}
    users = {example.user_id for example in examples}
    events = pl.read_parquet(folder / "events.parquet", columns=["user_id", "item_id"], glob=False)
    events = events.filter(pl.col("user_id").is_in(list(users)))
    by_user: dict[str, list[int]] = {}
    for user, item in events.iter_rows():
        by_user.setdefault(user, []).append(place.get(item, -1))
    judged = []
    for example in examples:
        chosen = {place[item] for item, gain in zip(example.candidates, example.labels, strict=True) if gain > 0}
        # An example is named by the place of its event among the user's; events lie in order of user and time.
        before = by_user.get(example.user_id, [])[: int(example.example_id.rpartition(":")[2])]
        met = set(before) - chosen - {-1}
        judged.append(JudgedUser(example, _ascending(chosen), _ascending(met)))
    return judged


def recalls(
    users: NDArray[np.float32], items: NDArray[np.float32], judged: Sequence[JudgedUser], at: Sequence[int]
) -> dict[int, NDArray[np.float64]]:
    """Per user the share of the chosen items that are found among the first k, for each k.

    Args:
        users: [judged, dimension]; zeros find nothing.
        items: [items, dimension].
        judged: who.
        at: the numbers k.
    """
    found = {k: np.zeros(len(judged)) for k in at}
    for number, one in enumerate(judged):
        if not users[number].any():
            continue
        scores = items @ users[number]
        of_chosen = scores[one.chosen]
        scores[one.met] = -np.inf
        scores[one.chosen] = -np.inf  # what was chosen too does not stand before
        better = (scores[None, :] > of_chosen[:, None]).sum(axis=1)
        for k in at:
            found[k][number] = float((better < k).mean())
    return found


def _ascending(items: Iterable[int]) -> Numbers:
    return np.array(sorted(items), dtype=np.int64)
