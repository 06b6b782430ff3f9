"""A column that is read in parts comes out as the whole does, whatever a part looks like by itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.data import columns
from tritonrank.data.faults import Faults
from tritonrank.data.formats.cells import Cells, row_number
from tritonrank.data.source import SourceTable, as_table
from tritonrank.data.whole_columns import WholeColumns

Read = Callable[[SourceTable, str, Faults], pl.Series]
SECOND = 1_500_000_000
SHORT_YEARS = [1_501_011_200 + 10_000 * day for day in range(28)]

CASES: dict[str, tuple[Read, list[Any]]] = {
    "ids that are whole numbers": (columns.identifiers, ["1.0", "2", "3", "4.0", "5", "6"]),
    "ids whose points mean something": (columns.identifiers, ["1.0", "2", "3", "4.0", "A1.0", "6"]),
    "texts that are floats": (columns.texts, ["1", "2", "3", "", "2.50", "1e3"]),
    "texts of which one is a word": (columns.texts, ["1.50", "2", "3", "", "2.50", "word"]),
    "seconds": (columns.timestamps, [SECOND, SECOND + 1, None, SECOND + 2, SECOND + 3, SECOND + 4]),
    "seconds, and a date in them": (columns.timestamps, [SECOND, SECOND + 1, 20200913, SECOND + 2, SECOND, SECOND]),
    "milliseconds": (columns.timestamps, [SECOND * 1000 + n for n in range(6)]),
    "milliseconds and seconds": (columns.timestamps, [SECOND * 1000, SECOND * 1000, SECOND, SECOND, SECOND, SECOND]),
    "dates as numbers": (columns.timestamps, [20200913, 20200914, 20200915, 20200916, 20200917, 20200918]),
    "two-digit years": (columns.timestamps, SHORT_YEARS),
    "two-digit years and a second": (columns.timestamps, [*SHORT_YEARS, SECOND + 99]),
    "times as text": (columns.timestamps, ["20200913", "20200914", "20200915", "2020-09-16", "20200917", "20200918"]),
    "numbers": (columns.numbers, ["1", "word", "word", "word", "5", "6"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_parts_are_read_as_the_whole_is(case: str, rows: int) -> None:
    read, cells = CASES[case]
    whole = pl.Series("column", cells)
    faults = Faults()
    expected = read(table_of(whole), "column", faults)
    parts = [table_of(part.to_series()) for part in whole.to_frame().iter_slices(rows)]
    together = WholeColumns()
    for part in parts:
        found = WholeColumns()
        read(replace(part, whole=found), "column", Faults())
        together += found
    of_parts = Faults()
    converted = []
    for part in parts:
        of_part = Faults()
        converted.append(read(replace(part, whole=together), "column", of_part))
        of_parts.take(of_part)
    assert pl.concat(converted).equals(expected)
    (one,) = faults.dropped(Path("t"), "t", len(whole)) or [None]
    (other,) = of_parts.dropped(Path("t"), "t", len(whole)) or [None]
    assert (one and (one.count, one.kind)) == (other and (other.count, other.kind))


def table_of(column: pl.Series) -> SourceTable:
    return as_table(Path("t"), Cells(column.to_frame(), [column.name], row_number), "parquet")
