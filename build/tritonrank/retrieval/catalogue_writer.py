"""Writes the folder of a catalogue: indexes, lists, columns (its files: ``tritonrank_recommend/catalogue/layout.py``).

The stage calls it with a recipe's items, the load tests with a million generated ones, tests with a dozen.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_recommend.catalogue.encoder import ENCODER_FILES
from tritonrank_recommend.catalogue.layout import (
    CATALOGUE,
    COLUMNS,
    DEFAULT_WEIGHTS,
    ENCODER,
    FIRST_SEEN,
    ITEMS,
    NEW_ORDER,
    POPULAR_ORDER,
    POPULARITY,
    VECTORS,
    Facts,
)

from tritonrank.judge.counted import NEIGHBOUR_HISTORY
from tritonrank.retrieval.catalogue_columns import write_columns
from tritonrank.retrieval.catalogue_vectors import write_index
from tritonrank.retrieval.catalogue_words import write_lexical
from tritonrank.retrieval.counts import NEXT_HISTORY, RECENCY, Neighbours, ease, following, knn, likes, sequences
from tritonrank.system.progress import step, track

NEIGHBOURS = 50
"""Of each item, in the lists of kNN, EASE and what comes next."""
ROWS_AT_ONCE = 10_000
DAY = 86_400.0


@dataclass(frozen=True)
class Contents:
    """What a catalogue is written of.

    Attributes:
        items: item_id, then the fields; numbers are numbers, lists are tags.
        texts: of the items, by the ranker's template.
        template: that template.
        vectors: [items, dimensions] float16 of unit length.
        encoder: folder of the encoder that made them.
        events: user_id, item_id, timestamp and label of training events.
        half_life_days: of an event in popularity.
        sources: what will be asked for candidates.
        queries: what people searched for, from which the language is guessed beside the texts.
    """

    items: pl.DataFrame
    texts: Sequence[str]
    template: str
    vectors: NDArray[np.float16]
    encoder: Path
    events: pl.DataFrame
    half_life_days: float
    sources: Sequence[str]
    queries: Sequence[str] = ()


def write_catalogue(
    contents: Contents, folder: Path, *, exact_items: int | None = None, work: Path | None = None
) -> dict[str, Any]:
    """Fill an empty folder.

    Args:
        contents: what of.
        folder: of the draft.
        exact_items: up to so many vectors there is no index, because all are looked at; default: the reader's limit.
        work: as ``write_index``.

    Returns:
        Metrics for the manifest.
    """
    ids = contents.items["item_id"]
    np.save(folder / VECTORS, contents.vectors)
    index = write_index(contents.vectors, folder, exact_items, work)
    _write_items(contents, folder / ITEMS)
    lexical = write_lexical(contents.texts, contents.queries, folder)
    listed = _write_neighbours(contents, folder)
    _write_times(contents.events, ids, contents.half_life_days, folder)
    (folder / COLUMNS).mkdir()
    columns = write_columns(contents.items.drop("item_id"), folder / COLUMNS)
    (folder / ENCODER).mkdir()
    for name in ENCODER_FILES:
        shutil.copyfile(contents.encoder / name, folder / ENCODER / name)
    facts = Facts(
        items=len(ids),
        dimensions=contents.vectors.shape[1],
        template=contents.template,
        fields=contents.items.columns[1:],
        index=index,
        lexical=lexical,
        columns=columns,
        neighbour_history=NEIGHBOUR_HISTORY,
        next_history=NEXT_HISTORY,
        recency=RECENCY,
        weights=DEFAULT_WEIGHTS,
        sources=list(contents.sources),
        sizes=_sizes(folder),
    )
    (folder / CATALOGUE).write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    return {
        "items": facts.items,
        "dimensions": facts.dimensions,
        "index": msgspec.to_builtins(index) if index else "none: every vector is looked at",
        "stemmer": (lexical.stemmer or "none") if lexical else "no words",
        "items_with_neighbours": listed,
        "filters": [column.field for column in columns if not column.why_not],
        "bytes": sum(facts.sizes.values()),
        "bytes_per_item": round(sum(facts.sizes.values()) / facts.items, 1),
    }


def _write_items(contents: Contents, path: Path) -> None:
    rows = zip(_fields(contents.items), contents.texts, strict=True)
    with closing(sqlite3.connect(path)) as database:
        # Nobody sees the draft before it is whole, so that there is nothing to protect from a crash.
        database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        database.execute(
            "CREATE TABLE items (place INTEGER PRIMARY KEY, id TEXT NOT NULL, fields TEXT NOT NULL, text TEXT NOT NULL)"
        )
        numbered = enumerate(track(rows, "items", total=contents.items.height))
        database.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?)",
            ((place, item_id, fields, text) for place, ((item_id, fields), text) in numbered),
        )
        database.execute("CREATE UNIQUE INDEX items_by_id ON items (id)")
        database.commit()


def _fields(items: pl.DataFrame) -> Iterator[tuple[str, str]]:
    """Of each item its id and its fields as JSON, without those that it does not have."""
    encode = msgspec.json.Encoder().encode
    names = items.columns[1:]
    for start in range(0, items.height, ROWS_AT_ONCE):
        for item_id, *values in items.slice(start, ROWS_AT_ONCE).iter_rows():
            held = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            yield item_id, encode(held).decode()


def _write_neighbours(contents: Contents, folder: Path) -> dict[str, int]:
    """By kind of list how many items have one: EASE takes the most popular ones where there are many."""
    listed = {}
    ids = contents.items["item_id"].to_list()
    liked = likes(contents.events, ids)
    counts: dict[str, Callable[[], Neighbours]] = {
        "knn": lambda: knn(liked, NEIGHBOURS),
        "ease": lambda: ease(liked, NEIGHBOURS),
        "next": lambda: following(sequences(contents.events, ids), liked, NEIGHBOURS),
    }
    for name, count in counts.items():
        with step(f"{name}: neighbour lists"):
            lists = count()
        _save_lists(lists, folder, name)
        listed[name] = int(np.count_nonzero(np.diff(lists.starts)))
    return listed


def _save_lists(lists: Neighbours, folder: Path, name: str) -> None:
    np.save(folder / f"{name}.starts.npy", lists.starts)
    np.save(folder / f"{name}.places.npy", lists.places)
    np.save(folder / f"{name}.weights.npy", lists.weights)


def _write_times(events: pl.DataFrame, ids: pl.Series, half_life_days: float, folder: Path) -> None:
    """Popularity counts a positive the less, the longer before the newest event it was."""
    newest = events["timestamp"].max() if events.height else 0
    age_days = (pl.lit(newest) - pl.col("timestamp")) / DAY
    by_item = events.group_by("item_id").agg(
        pl.col("timestamp").min().cast(pl.Float64).alias("first_seen"),
        (0.5 ** (age_days / half_life_days)).filter(pl.col("label") > 0).sum().alias("popularity"),
    )
    joined = ids.to_frame("item_id").join(by_item, on="item_id", how="left", maintain_order="left")
    popularity = joined["popularity"].fill_null(0.0).to_numpy().astype(np.float32)
    first_seen = joined["first_seen"].fill_null(np.nan).to_numpy()
    known = np.flatnonzero(~np.isnan(first_seen))
    np.save(folder / POPULARITY, popularity)
    np.save(folder / POPULAR_ORDER, np.argsort(-popularity, kind="stable").astype(np.int32))
    np.save(folder / FIRST_SEEN, first_seen)
    np.save(folder / NEW_ORDER, known[np.argsort(-first_seen[known], kind="stable")].astype(np.int32))


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
