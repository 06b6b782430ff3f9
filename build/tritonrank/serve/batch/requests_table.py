"""A table of requests as Parquet files, cut into pieces that are ranked one by one.

Two forms are understood. Wide: a row is a request, with lists of items. Long: a row is a request's item, and the rows
of one request stand together. Parquet is read where it lies, slice by slice; anything else that ``data/source.py``
reads becomes Parquet once, a file at a time, and each of its rows keeps the line that it came from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tritonrank.artifacts import whole_file
from tritonrank.data.faults import Faults
from tritonrank.data.formats.files import kind_of
from tritonrank.data.parts import find_parts
from tritonrank.data.source import SourceTable, read_source
from tritonrank.errors import DataError
from tritonrank.serve.batch.faults import RowFaults
from tritonrank.system.database_url import DatabaseUrl, Location

WIDE = ("items", "item_ids")
LONG = ("item", "item_id")
COLUMNS = ("request_id", "query", "history", "history_ids", *WIDE, *LONG)
"""What a column may mean, and what it is called unless ``--column`` says otherwise."""
PLACE = "__place"
"""In a file that was made of another: where a row came from."""
PIECES = 400
"""Of a table, about: the share that is done again after a stop is one of them per process."""
REQUESTS_PER_PIECE = (20, 2_000)
PAIRS_PER_PIECE = (2_000, 200_000)
"""At least and at most, in the wide and in the long form: what a process holds at a time."""
ROWS_PER_LOOK = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Rows of one file that are ranked together and written together."""

    number: int
    file: str
    first: int
    rows: int


@dataclass(frozen=True)
class RequestsTable:
    """A table of requests.

    Attributes:
        files: Parquet.
        names: what a column means -> its name in the table, for those that are there.
        fields: of the template, that are columns of their own (long form).
        is_long: whether a row is an item.
        is_looked_up: whether items have to be found by their ids.
        faults: rows that were broken in their file.
    """

    files: Sequence[Path]
    names: Mapping[str, str]
    fields: Sequence[str] = ()
    is_long: bool = False
    is_looked_up: bool = False
    faults: RowFaults = field(default_factory=RowFaults)

    @property
    def columns(self) -> list[str]:
        """Of the files, those that are read."""
        return [*dict.fromkeys([*self.names.values(), *self.fields])]

    def pieces(self) -> list[Piece]:
        """The pieces in the order of the rows; the same ones for the same files.

        Raises:
            DataError: the rows of a request do not stand together.
        """
        counts = [pl.scan_parquet(file, glob=False).select(pl.len()).collect().item() for file in self.files]
        least, most = PAIRS_PER_PIECE if self.is_long else REQUESTS_PER_PIECE
        size = min(most, max(least, -(-sum(counts) // PIECES)))
        starts = self._starts_of_requests() if self.is_long else {}
        pieces: list[Piece] = []
        for file, rows in zip(self.files, counts, strict=True):
            bounds = [*range(0, rows, size), rows] if rows else []
            if self.is_long and rows:
                begins = starts[file]
                bounds = [*dict.fromkeys(int(begins[np.searchsorted(begins, bound, "right") - 1]) for bound in bounds)]
                bounds = [*dict.fromkeys([*bounds, rows])]
            for first, end in pairwise(bounds):
                pieces.append(Piece(len(pieces), str(file), first, end - first))
        return pieces

    def _starts_of_requests(self) -> dict[Path, NDArray[np.int64]]:
        """Per file the rows at which requests begin. Kept are 16 bytes per request, never the ids."""
        column = self.names["request_id"]
        starts: dict[Path, NDArray[np.int64]] = {}
        hashes = []
        for file in self.files:
            last: object = None
            found = []
            for first, ids in _slices(file, column):
                begins = (ids != ids.shift(1)).fill_null(True)
                begins[0] = not first or ids[0] != last
                last = ids[-1]
                places = begins.arg_true().to_numpy()
                found.append(places.astype(np.int64) + first)
                hashes.append(ids.gather(begins.arg_true()).hash(seed=0).to_numpy())
            starts[file] = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        if hashes:
            self._check_together(np.concatenate(hashes), starts)
        return starts

    def _check_together(self, hashes: NDArray[np.uint64], starts: Mapping[Path, NDArray[np.int64]]) -> None:
        _, firsts = np.unique(hashes, return_index=True)
        if len(firsts) == len(hashes):
            return
        again = int(np.setdiff1d(np.arange(len(hashes)), firsts)[0])
        for file, begins in starts.items():
            if again < len(begins):
                row = int(begins[again])
                column = self.names["request_id"]
                found = pl.scan_parquet(file, glob=False).select(column).slice(row, 1).collect().item()
                raise DataError(
                    f"{file}: row {row + 1}: request {found!r} begins again; the rows of a request have to stand "
                    f"together. Write the table in this order: ORDER BY {column}"
                )
            again -= len(begins)


def open_requests(
    source: Location, folder: Path, names: Mapping[str, str], fields: Sequence[str], has_item_table: bool
) -> RequestsTable:
    """Look at a table, and make Parquet of what is none.

    Args:
        source: of the requests.
        folder: where Parquet that has to be made is put, and found again.
        names: what a column means -> its name, where that is another than in ``COLUMNS``.
        fields: of the artifact's template.
        has_item_table: whether items can be found by their ids.

    Raises:
        DataError: there is nothing, it cannot be read, or the columns that are needed are not there.
    """
    files, faults = _as_parquet(source, folder)
    header = [*pl.read_parquet_schema(files[0])]
    called = dict(zip(COLUMNS, COLUMNS, strict=True)) | dict(names)
    elsewhere = {"item_id"} if has_item_table else set()  # it may name the column of the items' own table alone
    if missing := [
        f"{meaning}={name}" for meaning, name in names.items() if name not in {*header} and meaning not in elsewhere
    ]:
        raise DataError(f"{source}: no column for {', '.join(missing)} among {', '.join(header)}; mend --column")
    there = {meaning: name for meaning, name in called.items() if name in header}
    is_wide = bool(there.keys() & set(WIDE))
    own_fields = [name for name in fields if name in header]
    if not is_wide and not (there.keys() & set(LONG) or own_fields):
        raise DataError(
            f"{source}: no items among the columns {', '.join(header)}. Expected a column items (a list of texts or of "
            "fields per request) or item (one per row), or item_ids or item_id with --item-table; name yours with "
            "--column, such as --column items=candidates"
        )
    if not is_wide and "request_id" not in there:
        raise DataError(
            f"{source}: a row is one item, so a column has to say which request it belongs to; expected request_id "
            f"among {', '.join(header)}; name yours with --column request_id=NAME"
        )
    used = WIDE if is_wide else LONG
    has_texts = used[0] in there or (not is_wide and bool(own_fields))
    needs = "item_ids" if is_wide and not has_texts else "item_id" if not has_texts else ""
    if (needs or "history_ids" in there) and not has_item_table:
        raise DataError(
            f"{source}: column {there[needs or 'history_ids']!r} holds ids of items whose texts are elsewhere; say "
            "where: --item-table ITEMS.parquet"
        )
    kept = {meaning: name for meaning, name in there.items() if meaning not in (LONG if is_wide else WIDE)}
    if PLACE in header:
        kept[PLACE] = PLACE
    as_columns = own_fields if not is_wide and "item" not in there and not needs else []
    return RequestsTable(files, kept, as_columns, not is_wide, bool(needs), faults)


def write_items(source: Location, target: Path, id_columns: Sequence[str], fields: Sequence[str]) -> None:
    """Write the items that ids are looked up in: ids as text, in order, and the template's fields.

    Args:
        source: of the items.
        target: the Parquet file to write.
        id_columns: what the ids' column may be called; the first that is there.
        fields: of the template.

    Raises:
        DataError: the table cannot be read, or has no such column.
    """
    faults = Faults()
    table = read_source(source, faults, {*id_columns, *fields})
    faults.raise_any()
    found = [name for name in fields if name in table.header]
    id_column = next((name for name in id_columns if name in table.header), None)
    if id_column is None or not found:
        missing = f"id column {id_columns[0]!r}" if id_column is None else f"field ({', '.join(fields)})"
        raise DataError(
            f"{source}: no {missing} among {', '.join(table.header)}; the ids' column is named with "
            "--column item_id=NAME, the fields are those of the artifact's template"
        )
    frame = table.frame.select(text_ids(pl.col(id_column), table.frame.schema[id_column]).alias("item_id"), *found)
    with whole_file(target) as draft:
        frame.unique("item_id", keep="last", maintain_order=True).sort("item_id").write_parquet(draft)


def text_ids(ids: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Ids as text; 7.0, which a column with gaps makes of 7, is 7."""
    if dtype.is_float():
        return pl.when(ids == ids.round(0)).then(ids.cast(pl.Int64).cast(pl.String)).otherwise(ids.cast(pl.String))
    return ids.cast(pl.String)


def _as_parquet(source: Location, folder: Path) -> tuple[list[Path], RowFaults]:
    if isinstance(source, DatabaseUrl):
        found: list[Location] = [source]
    else:
        try:
            found = [part.file for part in find_parts(source)]
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror})") from error
        if not found:
            raise DataError(f"{source}: no such file or folder. Looked for {source.absolute()}")
    files, faults = [], RowFaults()
    for number, one in enumerate(found):
        if isinstance(one, Path) and kind_of(one) == "parquet":
            files.append(one)
            continue
        target = folder / f"input-{number:05}.parquet"
        told = target.with_suffix(".json")
        if not target.is_file():
            _write_parquet(one, target, told)
        faults.add_all(RowFaults.read(told))
        files.append(target)
    return files, faults


def _write_parquet(source: Location, target: Path, told: Path) -> None:
    problems = Faults()
    table = read_source(source, problems)
    if not table.readable:
        problems.raise_any()
        raise DataError(f"{source}: has no columns")
    faults = RowFaults()
    for place in (~table.sound).arg_true().to_list():
        faults.add("broken row", _place_of(table, place))
    faults.save(told)
    places = pl.Series(PLACE, [_place_of(table, row) for row in range(table.frame.height)], dtype=pl.String)
    with whole_file(target) as draft:
        table.frame.with_columns(places).filter(table.sound).write_parquet(draft)


def _place_of(table: SourceTable, row: int) -> str:
    file, place = table.place_of(row)
    return f"{file}{place}"


def _slices(file: Path, column: str) -> Iterator[tuple[int, pl.Series]]:
    first = 0
    while True:
        ids = pl.scan_parquet(file, glob=False).select(column).slice(first, ROWS_PER_LOOK).collect().to_series()
        if ids.is_empty():
            return
        yield first, ids
        first += len(ids)
