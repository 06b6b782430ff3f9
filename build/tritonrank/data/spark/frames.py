"""Polars on the partitions of a Spark table: frames go in and out as Arrow, without a copy in Python objects."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Schema = Mapping[str, pl.DataType]
ROWS_PER_BATCH = 65_536
SQL_TYPES: dict[Any, str] = {
    pl.String: "string",
    pl.Binary: "binary",
    pl.Int8: "tinyint",
    pl.Int32: "int",
    pl.UInt32: "bigint",
    pl.Int64: "bigint",
    pl.Float32: "float",
}
"""Spark has no unsigned numbers."""


def sql_schema(schema: Schema) -> str:
    """As Spark has it."""
    return ", ".join(f"`{name}` {SQL_TYPES[type(dtype)]}" for name, dtype in schema.items())


def map_frames(
    table: "DataFrame", function: Callable[[pl.DataFrame], Iterable[pl.DataFrame]], inner: Schema, outer: Schema
) -> "DataFrame":
    """What a function makes of each partition.

    Args:
        table: with the columns ``inner``.
        function: gets all rows of a partition that has any; runs on the executors.
        inner: columns and types of what it gets.
        outer: of what it gives.
    """
    inner, outer = dict(inner), dict(outer)

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        frame = as_frame(batches, inner)
        for made in function(frame) if frame.height else ():
            yield from as_batches(made, outer)

    return table.mapInArrow(run, sql_schema(outer))


def as_frame(batches: Iterable[Any], schema: Schema) -> pl.DataFrame:
    """Record batches as one frame of these types."""
    frames = [pl.from_arrow(batch) for batch in batches]
    rows = [frame for frame in frames if isinstance(frame, pl.DataFrame) and frame.height]
    if not rows:
        return pl.DataFrame(schema=dict(schema))
    return pl.concat(rows).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def as_batches(frame: pl.DataFrame, schema: Schema) -> Iterator[Any]:
    """A frame as record batches of types that Spark takes: its strings count bytes with 32 bits."""
    import pyarrow as pa

    arrow: dict[Any, Any] = {
        pl.String: pa.string(),
        pl.Binary: pa.binary(),
        pl.Int8: pa.int8(),
        pl.Int32: pa.int32(),
        pl.UInt32: pa.int64(),
        pl.Int64: pa.int64(),
        pl.Float32: pa.float32(),
    }
    wanted = pa.schema([(name, arrow[type(dtype)]) for name, dtype in schema.items()])
    for part in frame.select(schema.keys()).iter_slices(ROWS_PER_BATCH):
        yield from part.to_arrow().cast(wanted).to_batches()


def collected(table: "DataFrame", schema: Schema) -> pl.DataFrame:
    """All rows of a table that is small enough for the driver."""
    return as_frame(table.select(*schema).toArrow().to_batches(), schema)
