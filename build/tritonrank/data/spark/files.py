"""An events table in files, read by the executors: each takes some files, or some rows of a large one.

The files are read twice. First every unit is looked at: what its columns are like, what is wrong with them, which rows
are no events. What only the whole of a column tells is put together of that, and with it the units are converted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tritonrank.data import dirt, tables
from tritonrank.data.dropped import Dropped, Loss, add_up
from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells, row_number
from tritonrank.data.formats.files import kind_of
from tritonrank.data.parts import Part
from tritonrank.data.source import SourceTable, as_table, check_rows, joined, nothing, read_part
from tritonrank.data.spark.frames import Schema, as_batches, sql_schema
from tritonrank.data.whole_columns import WholeColumns
from tritonrank.recipe import TablesData
from tritonrank.system.database_url import AnyLocation

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS_PER_UNIT = 2_000_000
"""Of a Parquet file: larger ones are read in pieces."""
LARGE_BYTES = 64 << 20
"""From here on a Parquet file may have so many."""
ORDER: Schema = {"source_unit": pl.Int32(), "source_row": pl.Int64()}
"""Columns that give the order of the source."""


@dataclass(frozen=True)
class Unit:
    """What one task reads."""

    number: int
    """in the order of the table"""
    part: Part
    rows: tuple[int, int] | None = None
    """of Parquet, from which row on how many; None: all of the file"""


@dataclass
class _Shape:
    """What a unit has for columns, without its rows."""

    kind: str
    header: list[str]
    schema: dict[str, pl.DataType]
    rows: int
    decimal_comma: bool
    complete: bool
    notes: tuple[str, ...]


@dataclass
class _Looked:
    """What was found in a unit."""

    unit: Unit
    reading: Faults
    shape: _Shape | None
    """None where nothing could be read"""
    whole: WholeColumns
    cells: Faults
    losses: list[Loss]
    usable: int
    """rows whose cells are values of their columns"""


@dataclass(frozen=True)
class _Reader:
    """How the units of a table are read; goes to the executors."""

    location: AnyLocation
    settings: TablesData
    columns: frozenset[str]
    catalogue: pl.DataFrame
    """item_id, and from when an item existed where that is known"""
    latest: int
    types: dict[str, pl.DataType] | None = None
    """of the columns of the whole table, once they are known"""
    whole: WholeColumns | None = None
    decimal_comma: bool = False
    header: tuple[str, ...] = ()

    def table(self, unit: Unit, faults: Faults) -> SourceTable:
        """A unit as a part of the table."""
        read = read_part(self.location, unit.part, faults, self.columns, unit.rows)
        if not read.readable:
            return read
        read = replace(read, parts=(read.parts[0]._replace(file=unit.part.location),))  # rows are named by their file
        if self.types is None:
            return read
        frame = read.frame.select(pl.col(name).cast(dtype) for name, dtype in self.types.items())
        return replace(read, frame=frame, header=list(self.header), decimal_comma=self.decimal_comma, whole=self.whole)

    def look(self, unit: Unit) -> _Looked:
        """First pass: everything but the events."""
        reading, cells = Faults(), Faults()
        table = self.table(unit, reading)
        if not table.readable:
            return _Looked(unit, reading, None, WholeColumns(), cells, [], 0)
        table = replace(table, whole=table.whole or WholeColumns())
        _, losses, usable = self._events(table, cells)
        shape = _Shape(
            table.kind,
            table.header,
            dict(table.frame.schema),
            table.frame.height,
            table.decimal_comma,
            table.complete,
            table.notes,
        )
        cells.forget_cells()
        return _Looked(unit, reading, shape, table.whole or WholeColumns(), cells, losses, usable)

    def events(self, unit: Unit) -> pl.DataFrame:
        """Second pass: the events of a unit that can have happened, with ORDER."""
        events, _, _ = self._events(self.table(unit, Faults()), Faults())
        return events.with_columns(pl.lit(unit.number, pl.Int32).alias("source_unit"))

    def _events(self, table: SourceTable, faults: Faults) -> tuple[pl.DataFrame, list[Loss], int]:
        events = tables.events_of(table, self.settings, faults).with_row_index("source_row")
        events = events.with_columns(pl.col("source_row").cast(pl.Int64)).filter(tables.usable(table, faults))
        usable = events.height
        return *dirt.possible(events, self.catalogue, self.settings.items.name, self.latest), usable


@dataclass(frozen=True)
class FileEvents:
    """The events of a table in files, on the cluster."""

    table: "DataFrame"
    """columns of ``Tables.events`` without rows that cannot be events, and ORDER; copies are still there"""
    schema: dict[str, pl.DataType]
    """without ORDER"""
    rows: int
    """about how many there are, at the most"""
    usable: int
    """rows whose cells are values of their columns, of which events were lost"""
    losses: list[Loss]
    notes: tuple[str, ...]
    dropped: list[Dropped]
    """rows that could not be read or had cells that are no values"""


def read_events(
    spark: "SparkSession",
    settings: TablesData,
    units: Sequence[Unit],
    columns: Iterable[str],
    catalogue: pl.DataFrame,
    faults: Faults,
    latest: int,
) -> FileEvents:
    """Read the events table of a recipe on the executors.

    Args:
        spark: where.
        settings: the recipe's ``data`` section.
        units: of the table, at least one.
        columns: of the table that are needed.
        catalogue: item_id, and from when an item existed where that is known.
        faults: of what was read before; takes those of the events.
        latest: the last second that an event may have.

    Raises:
        DataError: as ``tables.load``.
    """
    reader = _Reader(settings.events, settings, frozenset(columns), catalogue, latest)
    looked = _on_executors(spark, reader.look, units)
    for one in looked:
        faults.take(one.reading)
    table = _together(reader, looked, faults)
    rows = sum(one.shape.rows for one in looked if one.shape)
    if not rows:
        check_rows(table, faults)
    whole = WholeColumns()
    for one in looked:
        whole += one.whole
    types: dict[str, pl.DataType] = dict(table.frame.schema)
    reader = replace(reader, types=types, whole=whole, decimal_comma=table.decimal_comma, header=tuple(table.header))
    looked = [one for one in looked if table.readable and one.shape and types.keys() <= one.shape.schema.keys()]
    if again := [one.unit for one in looked if _differs(one, types, whole)]:
        others = {one.unit.number: one for one in _on_executors(spark, reader.look, again)}
        looked = [others.get(one.unit.number, one) for one in looked]
    for one in looked:
        faults.take(one.cells)
    tables.raise_faults(faults, settings)
    schema: dict[str, pl.DataType] = dict(tables.events_of(table, settings, Faults()).schema)
    return FileEvents(
        _distributed(spark, reader, units, schema),
        schema,
        rows,
        sum(one.usable for one in looked),
        add_up(one.losses for one in looked),
        table.notes,
        faults.dropped(settings.events, settings.events.name, rows),
    )


def units_of(parts: Sequence[Part]) -> list[Unit]:
    """What the tasks read: large Parquet files in pieces."""
    found: list[Unit] = []
    for part in parts:
        rows = 0 if part.url else _rows_of_large(part.file)
        pieces = [(first, ROWS_PER_UNIT) for first in range(0, rows, ROWS_PER_UNIT)] if rows else [None]
        found += [Unit(len(found) + place, part, piece) for place, piece in enumerate(pieces)]
    return found


def _rows_of_large(file: Path) -> int:
    """Of a Parquet file that is worth being cut; 0: of another one."""
    try:
        if file.stat().st_size < LARGE_BYTES or kind_of(file) != "parquet":
            return 0
        return int(pl.scan_parquet(file, glob=False, hive_partitioning=False).select(pl.len()).collect().item())
    except (OSError, pl.exceptions.PolarsError):
        return 0  # who reads it says what is wrong


def _differs(looked: _Looked, types: dict[str, pl.DataType], whole: WholeColumns) -> bool:
    """Whether a unit was read in another way by itself than the whole table is."""
    return looked.shape is None or looked.shape.schema != types or not whole.reads_alike(looked.whole)


def _together(reader: _Reader, looked: Sequence[_Looked], faults: Faults) -> SourceTable:
    """The whole table without its rows."""
    of_files = {one.unit.part.location: one for one in reversed(looked)}  # of each file the first unit
    files = list(dict.fromkeys(one.unit.part.location for one in looked))
    shells = []
    for file in files:
        shape = of_files[file].shape
        if shape is None:
            shells.append(nothing(reader.location))
            continue
        cells = Cells(
            pl.DataFrame(schema=shape.schema),
            shape.header,
            row_number,
            complete=shape.complete,
            decimal_comma=shape.decimal_comma,
            notes=shape.notes,
        )
        shells.append(as_table(file if len(files) > 1 else reader.location, cells, shape.kind))
    return joined(reader.location, files, shells, faults, reader.columns)


def _on_executors(spark: "SparkSession", function: Callable[[Unit], _Looked], units: Sequence[Unit]) -> list[_Looked]:
    return spark.sparkContext.parallelize(units, len(units)).map(function).collect()


def _distributed(
    spark: "SparkSession", reader: _Reader, units: Sequence[Unit], schema: Mapping[str, pl.DataType]
) -> "DataFrame":
    columns = {**schema, **ORDER}

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from as_batches(reader.events(units[number]), columns)

    return spark.range(0, len(units), 1, len(units)).mapInArrow(run, sql_schema(columns))
