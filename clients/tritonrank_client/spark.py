"""Ranking the rows of a Spark data frame, where they outgrow one machine.

    from tritonrank_client.spark import RANKING_SCHEMA, rank_in_pandas

    ranked = requests.mapInPandas(rank_in_pandas("/models/demo", top_k=10), RANKING_SCHEMA)

`requests` has one row per request: `request_id`, `items` (an array of texts, or of structs with the template's fields),
and where there are any `query`, `history` and `item_ids` (arrays as well). Long tables are grouped first::

    pairs.groupBy("request_id").agg(first("query").alias("query"), collect_list("title").alias("items"))

Each Python worker of Spark opens the artifact once and ranks with one thread, because Spark runs a worker per core. The
folder has to lie at the same path on every executor (`SparkContext.addArchive`, a shared disk, or the executors'
image); a URL of a server works as well. Needs `tritonrank[spark]` on driver and executors.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ._errors import InvalidRequest
from ._open import open
from ._rows import AskedRow, RowRanker, asked_row

if TYPE_CHECKING:
    import pandas

RANKING_SCHEMA = "request_id string, rank int, index int, item_id string, score float, unscored string"
"""What `rank_in_pandas` gives: one row per ranked item, best first within a request; `rank` counts from 1, `index` is
the item's position in the request, from 0. A row that could not be read has no rank, and `unscored` says why."""
COLUMNS = ("request_id", "query", "history", "items", "item_ids")
WAIT_SECONDS = 600.0
"""For a server; a folder has its own deadline, and what it stops is asked for in smaller pieces."""


def rank_in_pandas(
    target: str, *, top_k: int = 0, strict: bool = False, columns: Mapping[str, str] | None = None
) -> "Callable[[Iterator[pandas.DataFrame]], Iterator[pandas.DataFrame]]":
    """The function for `DataFrame.mapInPandas`, with RANKING_SCHEMA.

    Args:
        target: an artifact's folder or a URL, as for `tritonrank_client.open`.
        top_k: how many items of a request to give; 0 is all.
        strict: a request with an item that cannot be scored is not ranked; its one row says which item it was.
        columns: the data frame's names for request_id, query, history, items, item_ids, where they differ.

    Raises:
        ValueError: `columns` names something else.
    """
    names = {name: name for name in COLUMNS} | dict(columns or {})
    if unknown := names.keys() - set(COLUMNS):
        raise ValueError(f"columns: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(COLUMNS)}")

    def rank(frames: "Iterator[pandas.DataFrame]") -> "Iterator[pandas.DataFrame]":
        for frame in frames:
            yield _ranked(frame, names, _ranker(target, top_k, strict))

    return rank


@lru_cache(maxsize=4)
def _ranker(target: str, top_k: int, strict: bool) -> RowRanker:
    """Opened once in each of Spark's Python workers."""
    return RowRanker(open(target, threads=1, timeout=WAIT_SECONDS), top_k, strict)


def _ranked(frame: "pandas.DataFrame", names: Mapping[str, str], ranker: RowRanker) -> "pandas.DataFrame":
    import pandas

    for needed in ("request_id", "items"):
        if names[needed] not in frame.columns:
            raise ValueError(
                f"no column {names[needed]!r} among {', '.join(frame.columns)}; name it: columns={{{needed!r}: NAME}}"
            )
    rows: list[tuple[Any, ...]] = []
    for cells in frame.to_dict("records"):
        request_id = str(cells[names["request_id"]])
        try:
            row = asked_row({name: cells.get(column) for name, column in names.items()})
            rows += _places(request_id, row, ranker)
        except InvalidRequest as error:
            rows.append((request_id, None, None, None, None, str(error)))
    return pandas.DataFrame(rows, columns=["request_id", "rank", "index", "item_id", "score", "unscored"]).astype(
        {"rank": "Int32", "index": "Int32", "score": "Float32"}
    )


def _places(request_id: str, row: AskedRow, ranker: RowRanker) -> Iterator[tuple[Any, ...]]:
    ranked = ranker.rank(row)
    for rank, place in enumerate(ranked.places, start=1):
        item_id = None if place.item_id is None else str(place.item_id)
        yield request_id, rank, place.index, item_id, place.score, ranked.unscored.get(place.index)
