"""Fields of items as columns for filters: numbers, or codes of tags."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from tritonrank_recommend.catalogue.layout import ColumnFacts

MOST_TAGS = 50_000
"""Different tags of a field; with more it is rather a text than something to filter by."""


def write_columns(fields: pl.DataFrame, folder: Path) -> list[ColumnFacts]:
    """Write every field that filters may name.

    Args:
        fields: of the items, without their ids.
        folder: empty; files are called by the numbers of their fields, because names of fields are anybody's.
    """
    return [_write(column, folder, f"{number:03}") for number, column in enumerate(fields.iter_columns())]


def _write(column: pl.Series, folder: Path, file: str) -> ColumnFacts:
    if column.dtype.is_numeric():
        np.save(folder / f"{file}.npy", column.cast(pl.Float64).fill_null(np.nan).to_numpy())
        return ColumnFacts(column.name, "number", file)
    lists = column if column.dtype == pl.List else None
    tags = (lists.explode() if lists is not None else column).cast(pl.String)
    tags = tags.set(tags == "", None)
    if lists is None and column.dtype == pl.Null:
        tags = pl.Series([None] * len(column), dtype=pl.String)
    values = tags.drop_nulls().unique().sort()
    if len(values) > MOST_TAGS:
        why_not = f"it has {len(values)} different texts; a filter can have up to {MOST_TAGS}"
        return ColumnFacts(column.name, "tag", file, why_not)
    codes = pl.DataFrame({"tag": tags}).join(
        pl.DataFrame({"tag": values, "code": np.arange(len(values), dtype=np.int32)}),
        on="tag",
        how="left",
        maintain_order="left",
    )["code"]
    if lists is None:
        np.save(folder / f"{file}.npy", codes.fill_null(-1).to_numpy().astype(np.int32))
    else:
        rows = pl.DataFrame({"row": np.arange(len(lists)), "tags": lists}).explode("tags")["row"]
        present = codes.is_not_null()
        np.save(folder / f"{file}.npy", codes.filter(present).to_numpy().astype(np.int32))
        counts = np.bincount(rows.filter(present).to_numpy(), minlength=len(lists))
        np.save(folder / f"{file}.ends.npy", np.cumsum(counts).astype(np.int64))
    (folder / f"{file}.values.json").write_bytes(msgspec.json.encode(values.to_list()))
    return ColumnFacts(column.name, "tag", file)
