"""Candidates and the rows that are scored for them: equal texts once, and none for a candidate without text.

A request of many candidates is scored in blocks of so many, in the order of the request, each by itself. So whoever
cuts a request where its blocks end, and sends the parts to several servers, gets the scores of the whole, to the last
bit: how rows are grouped and padded is decided within a block.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NO_ROW = -1
"""The place of an item without text among the rows: it has none."""
PARTING: tuple[int, ...] = (-1,)
"""Between the rows of two blocks: a row of padding alone, which has no score."""
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


def rows_in_blocks(rows: Sequence[tuple[int, ...]], block: int) -> tuple[list[tuple[int, ...]], NDArray[np.int32]]:
    """As ``unique_rows`` of each block, with PARTING between two of them.

    Args:
        rows: of the candidates, in the order of the request.
        block: candidates of one; 0 = all are one block.
    """
    if not block or len(rows) <= block:
        return unique_rows(rows)
    found: list[tuple[int, ...]] = []
    places: list[NDArray[np.int32]] = []
    for start in range(0, len(rows), block):
        unique, place_of_row = unique_rows(rows[start : start + block])
        has_row = place_of_row != NO_ROW
        if has_row.any():
            found += [PARTING] * bool(found)
            place_of_row[has_row] += len(found)
            found += unique
        places.append(place_of_row)
    return found or [()], np.concatenate(places)


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
