"""What one process does: rank the requests of a piece, write the answers to a file that appears whole or not at all.

A process ranks with one thread. Several requests side by side need no waiting between threads, so that takes less CPU
time than one request on all cores (docs/batch.md has the figures).
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import tritonrank_client
from tritonrank_client import InvalidRequest, RankError
from tritonrank_client._rows import AskedRow, RankedRow, RowRanker, asked_row

from tritonrank.artifacts import whole_file, write_whole
from tritonrank.serve.batch.faults import RowFaults
from tritonrank.serve.batch.requests_table import PLACE, Piece, RequestsTable, text_ids

UNKNOWN_ID = "unknown_id"
"""Why an item has no score: the table of items does not have its id."""
PATIENT_SECONDS = 86_400.0
NUMBER = "row"


@dataclass(frozen=True)
class Task:
    """What is the same for all pieces.

    Attributes:
        artifacts: what ranks.
        table: of the requests.
        folder: where the answers go.
        items: Parquet with ids and fields, where items are looked up.
        top_k, strict: as for ``RowRanker``.
        first_rows: of each file, counted over all of them; requests without an id are named by their row.
    """

    artifacts: str
    table: RequestsTable
    folder: Path
    items: Path | None
    top_k: int
    strict: bool
    first_rows: Mapping[str, int]

    def part(self, piece: Piece) -> Path:
        """The file with a piece's answers."""
        return self.folder / f"part-{piece.number:06}.parquet"


@dataclass
class Counts:
    """What happened to the requests of a piece, or of all."""

    requests: int = 0
    ranked: int = 0
    pairs: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    missing_fields: Counter[str] = field(default_factory=Counter)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    faults: RowFaults = field(default_factory=RowFaults)

    @classmethod
    def read(cls, part: Path) -> "Counts":
        """Those that were written beside a part."""
        told = json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
        counters = {name: Counter(told[name]) for name in ("unscored", "missing_fields", "unknown_fields")}
        return cls(told["requests"], told["ranked"], told["pairs"], **counters, faults=RowFaults(told["faults"]))

    def save(self, part: Path) -> None:
        told = {name: value for name, value in vars(self).items() if name != "faults"}
        write_whole(part.with_suffix(".json"), json.dumps(told | {"faults": self.faults.plain}))

    def add(self, others: "Counts") -> None:
        self.requests += others.requests
        self.ranked += others.ranked
        self.pairs += others.pairs
        for name in ("unscored", "missing_fields", "unknown_fields"):
            getattr(self, name).update(getattr(others, name))
        self.faults.add_all(others.faults)


class Worker:
    """Ranks pieces; opened once in each process.

    Args:
        task: what to do.
        done: told of each request how many rows it was.
    """

    def __init__(self, task: Task, done: Callable[[int], None]) -> None:
        self._task = task
        self._done = done
        client = tritonrank_client.open(task.artifacts, threads=1, timeout=PATIENT_SECONDS)
        self._ranker = RowRanker(client, task.top_k, task.strict)

    def rank(self, piece: Piece) -> None:
        """Rank a piece and write its answers."""
        table = self._task.table
        scan = pl.scan_parquet(piece.file, glob=False).select(table.columns)
        frame = scan.slice(piece.first, piece.rows).collect()
        first_row = self._task.first_rows[piece.file] + piece.first + 1
        lookup = self._lookup(frame)
        counts, answers = Counts(), _Answers(frame, table)
        for request_id, place, cells, rows in _requests(frame, table, first_row, piece):
            try:
                row, unknown = self._asked(cells, lookup)
                ranked = self._ranker.rank(row)
                answers.add(request_id, row, ranked, unknown)
                _count(counts, ranked, unknown)
            except RankError as error:
                reason = str(error) if isinstance(error, InvalidRequest) else f"{type(error).__name__}: {error}"
                counts.faults.add(_without_folder(reason, self._task.artifacts), place)
            counts.requests += 1
            self._done(rows)
        part = self._task.part(piece)
        counts.save(part)
        with whole_file(part) as draft:
            answers.frame().write_parquet(draft)

    def _asked(self, cells: dict[str, Any], lookup: Mapping[str, dict[str, Any]]) -> tuple[AskedRow, set[int]]:
        """The request, and the positions of items whose ids nobody knows."""
        unknown: set[int] = set()
        if self._task.table.is_looked_up:
            row = asked_row({"items": cells.get("item_ids"), "item_ids": cells.get("item_ids")})
            keys = [_key(item_id) for item_id in row.item_ids or ()]
            cells = cells | {"items": [lookup.get(key, "") for key in keys]}
            unknown = {place for place, key in enumerate(keys) if key not in lookup}
        if "history_ids" in cells:
            ids = asked_row({"items": cells["history_ids"] if cells["history_ids"] is not None else []}).items
            known = [lookup[key] for one in ids if (key := _key(one)) in lookup]
            cells = cells | {"history": known}
        return asked_row(cells), unknown

    def _lookup(self, frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
        """The items that a piece speaks of; the others stay on the disk."""
        if self._task.items is None:
            return {}
        names = self._task.table.names
        wanted: set[str] = set()
        for meaning in ("item_ids", "item_id", "history_ids"):
            if meaning in names:
                wanted |= _ids_in(frame[names[meaning]])
        found = pl.scan_parquet(self._task.items, glob=False).filter(pl.col("item_id").is_in(list(wanted))).collect()
        return {row.pop("item_id"): row for row in found.iter_rows(named=True)}


class _Answers:
    """The rows of a part."""

    def __init__(self, frame: pl.DataFrame, table: RequestsTable) -> None:
        names = table.names
        self._id_type: Any = frame.schema[names["request_id"]] if "request_id" in names else pl.Int64
        self._item_id_type = _item_id_type(frame, names)
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema}

    @property
    def _schema(self) -> dict[str, Any]:
        return {
            "request_id": self._id_type,
            "rank": pl.Int32,
            "index": pl.Int32,
            "item_id": self._item_id_type,
            "score": pl.Float32,
            "unscored": pl.String,
        }

    def add(self, request_id: Any, row: AskedRow, ranked: RankedRow, unknown: set[int]) -> None:
        columns = self._columns
        for rank, place in enumerate(ranked.places, start=1):
            item_id = place.item_id
            columns["request_id"].append(request_id)
            columns["rank"].append(rank)
            columns["index"].append(place.index)
            columns["item_id"].append(
                str(item_id) if self._item_id_type == pl.String and item_id is not None else item_id
            )
            columns["score"].append(place.score)
            columns["unscored"].append(_reason(place.index, ranked, unknown))

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self._columns, schema=self._schema)


def _without_folder(reason: str, artifacts: str) -> str:
    """A message of the client without the artifact that it came from: that is the same for all rows."""
    folder = Path(artifacts).absolute()
    return reason.removeprefix(f"{folder / 'repository'}: ").removeprefix(f"{folder}: ")


def _reason(place: int, ranked: RankedRow, unknown: set[int]) -> str | None:
    return UNKNOWN_ID if place in unknown else ranked.unscored.get(place)


def _count(counts: Counts, ranked: RankedRow, unknown: set[int]) -> None:
    counts.ranked += 1
    counts.pairs += len(ranked.places)
    counts.unscored.update(_reason(place, ranked, unknown) or "" for place in ranked.unscored)
    counts.missing_fields.update(ranked.missing_fields)
    counts.unknown_fields.update(ranked.unknown_fields)


def _requests(
    frame: pl.DataFrame, table: RequestsTable, first_row: int, piece: Piece
) -> Iterator[tuple[Any, str, dict[str, Any], int]]:
    """Id, place, cells by their meaning, and rows of each request."""
    names = dict(table.names)
    id_name = names.pop("request_id", None)
    numbered = enumerate(frame.iter_rows(named=True))
    if not table.is_long:
        for number, row in numbered:
            cells = {meaning: row[name] for meaning, name in names.items()}
            place = row.get(PLACE) or f"{Path(piece.file).name}: row {piece.first + number + 1}"
            yield (row[id_name] if id_name else first_row + number), place, cells, 1
        return
    for request_id, group in groupby(numbered, key=lambda one: one[1][str(id_name)]):
        rows = [*group]
        number, first = rows[0]
        cells = {
            meaning: first[name] for meaning, name in names.items() if meaning in ("query", "history", "history_ids")
        }
        if table.fields:
            cells["items"] = [{name: row[name] for name in table.fields} for _, row in rows]
        elif "item" in names:
            cells["items"] = [row[names["item"]] for _, row in rows]
        if "item_id" in names:
            cells["item_ids"] = [row[names["item_id"]] for _, row in rows]
        place = first.get(PLACE) or f"{Path(piece.file).name}: row {piece.first + number + 1}"
        yield request_id, place, cells, len(rows)


def _item_id_type(frame: pl.DataFrame, names: Mapping[str, str]) -> Any:
    """That of the ids in the table: an answer is joined with it."""
    if "item_id" in names:
        found = frame.schema[names["item_id"]]
    elif "item_ids" in names:
        dtype = frame.schema[names["item_ids"]]
        found = getattr(dtype, "inner", pl.String())
    else:
        return pl.String
    return pl.Int64 if found.is_integer() else pl.String


def _ids_in(cells: pl.Series) -> set[str]:
    if isinstance(cells.dtype, pl.List | pl.Array):
        cells = cells.explode()
    elif cells.dtype == pl.String and cells.str.starts_with("[").any():
        listed = (json.loads(cell) for cell in cells.drop_nulls() if _is_json(cell))
        return {_key(one) for found in listed if isinstance(found, list) for one in found}
    texts = cells.to_frame("id").select(text_ids(pl.col("id"), cells.dtype)).to_series()
    return set(texts.drop_nulls())


def _is_json(cell: str) -> bool:
    try:
        json.loads(cell)
    except ValueError:
        return False
    return True


def _key(item_id: Any) -> str:
    return str(int(item_id)) if isinstance(item_id, float) and item_id.is_integer() else str(item_id)


_worker: Worker | None = None


def start(task: Task, done: Any) -> None:
    """Open the artifact in a new process, which ends when the one that started it does, however that ends.

    Args:
        task: what to do.
        done: a counter of rows that all processes share.
    """
    global _worker
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def add(rows: int) -> None:
        with done.get_lock():
            done.value += rows

    _worker = Worker(task, add)


def rank_piece(piece: Piece) -> int:
    """Rank a piece in a process that was started; gives its number."""
    assert _worker is not None
    _worker.rank(piece)
    return piece.number


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
