"""Candidates and the rows that are scored for them: equal texts once, and none for a candidate without text."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NO_ROW = -1
"""The place of an item without text among the rows: it has none."""
NO_TEXT_SCORE = float(np.finfo(np.float32).min)
"""The score of an item without text, below that of any other: such items come last, in the order of the request."""


def unique_rows(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], NDArray[np.int32]]:
    """Equal rows once, in order of first appearance, and for each given row its place among them.

    A row without tokens has no place but NO_ROW. Where no row has any, one of them stays, so that there is something to
    score; nothing refers to it.
    """
    places: dict[tuple[int, ...], int] = {}
    place_of_row = [places.setdefault(row, len(places)) if row else NO_ROW for row in rows]
    nothing: tuple[int, ...] = ()
    return list(places) or [nothing][: len(rows)], np.array(place_of_row, dtype=np.int32)


def candidate_scores(logits: NDArray[np.float32], row_of_candidate: NDArray[np.int32]) -> NDArray[np.float32]:
    """The score of each candidate: the logit of its row, or NO_TEXT_SCORE for one that has none.

    Args:
        logits: (rows,); those that no candidate refers to do not matter.
        row_of_candidate: (candidates,), as ``unique_rows`` gives it.
    """
    scores = np.full(len(row_of_candidate), NO_TEXT_SCORE, dtype=np.float32)
    has_row = row_of_candidate != NO_ROW
    scores[has_row] = logits[row_of_candidate[has_row]]
    return scores
