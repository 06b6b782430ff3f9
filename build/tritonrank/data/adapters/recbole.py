"""RecBole's atomic files: a folder with NAME.inter and NAME.item, tab-separated, with headers such as item_id:token.

https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import as_tables, read_plain
from tritonrank.data.faults import Faults
from tritonrank.data.formats.files import open_unpacked
from tritonrank.data.loading import Tables
from tritonrank.data.meanings import likely_columns
from tritonrank.data.source import SourceTable
from tritonrank.errors import DataError
from tritonrank.recipe import PublicData
from tritonrank.system.dates import FIRST_SECOND

EXPECTED = "RecBole's atomic files, NAME.inter and NAME.item (one data set in the folder)"
WHERE = "Get one of the data sets that https://recbole.io/dataset_list.html lists"
POSITIVE_RATING = 4.0
TEXT_TYPES = ("token", "token_seq", "float")


def files(folder: Path) -> list[Path]:
    """NAME.inter and NAME.item, where there is one of each."""
    events, items = sorted(folder.glob("*.inter")), sorted(folder.glob("*.item"))
    return [*events, *items] if len(events) == len(items) == 1 else []


def template(files: list[Path]) -> str:
    """All words that are known of an item."""
    _, types = _header(files[1])
    item = next(iter(likely_columns("item_id", list(types))), "item_id")
    return " ".join(f"{{{name}}}" for name, kind in types.items() if kind in TEXT_TYPES and name != item)


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read both files; the item's fields are all its columns of words and numbers, under the names they have.

    Raises:
        DataError: a header has no type, a column is missing, or lines have faults.
    """
    faults = Faults()
    events, event_types = _read(files[0], faults)
    items, item_types = _read(files[1], faults)
    user = (likely_columns("user_id", events.header) or ["user_id"])[0]
    item = (likely_columns("item_id", events.header) or ["item_id"])[0]
    user_ids = columns.identifiers(events, user, faults)
    event_items = columns.identifiers(events, item, faults)
    item_ids = columns.identifiers(items, item if item in items.header else "item_id", faults)
    notes = []
    time = next(iter(likely_columns("timestamp", events.header)), "")
    if time:
        seconds = columns.timestamps(events, time, faults)
    else:
        notes.append(f"{files[0].name} has no times; the order of its lines is taken for the order of time")
        seconds = pl.Series(range(FIRST_SECOND, FIRST_SECOND + events.frame.height), dtype=pl.Int64)
    rating = next((name for name in ("rating", "label", "stars") if name in event_types), "")
    least = settings.positive_rating or (POSITIVE_RATING if rating != "label" else 1.0)
    gain = (
        (columns.numbers(events, rating, faults) >= least).cast(pl.Float32)
        if rating
        else pl.repeat(1.0, events.frame.height, eager=True)
    )
    fields = [name for name, kind in item_types.items() if kind in TEXT_TYPES and name != item_ids.name]
    return as_tables(
        pl.DataFrame([item_ids.alias("item_id"), *(columns.texts(items, name, faults) for name in fields)]),
        pl.DataFrame(
            {"user_id": user_ids, "item_id": event_items, "timestamp": seconds, "gain": gain},
        ),
        files[1].name,
        faults,
        notes,
    )


def _read(file: Path, faults: Faults) -> tuple[SourceTable, dict[str, str]]:
    first, types = _header(file)
    if len(types) != first.count("\t") + 1:
        raise DataError(f"{file}:1: the header is {first!r}; expected NAME:TYPE cells such as item_id:token, by tabs")
    return read_plain(file, "\t", list(types), faults, header_lines=1), types


def _header(file: Path) -> tuple[str, dict[str, str]]:
    """The first line, and the type of each column by its name."""
    with open_unpacked(file) as opened:
        first = opened.readline().decode("utf-8-sig").strip("\r\n")
    return first, dict(cell.split(":", 1) for cell in first.split("\t") if ":" in cell)
