"""Data sources: whatever the origin, the pipeline sees the same two tables.

``items`` says what can be ranked, ``events`` says who met which item when, with which query, and whether they liked
it. One file per source turns its raw files into these tables; all faults of all files are reported in one error,
so that mending the data is one round and not twenty.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tritonrank.artifacts import sha256_file
from tritonrank.data.dropped import Dropped
from tritonrank.recipe import DataSettings, PublicData, SampleData, TablesData
from tritonrank.system.database_url import DatabaseUrl, FileLocation


@dataclass(frozen=True)
class Tables:
    """The two tables every source gives. No value is null."""

    items: pl.DataFrame
    """item_id: String (unique), then the text fields, all String."""
    events: pl.DataFrame
    """user_id: String, item_id: String, query: String ("" when there is none), timestamp: Int64 (unix seconds),
    label: Int8 (1 positive, 0 seen but not liked), gain: Float32 (how much the positive counts: its weight, 1 where
    events have none; 0 where it is no positive). With impressions also impression: String and, where it is
    known, shown_at: Int64, the position; both may be null. Rows keep the order of the source."""
    dropped: tuple[Dropped, ...] = ()
    """what was left out or mended, by kind"""
    notes: tuple[str, ...] = ()
    """what was guessed of the files, such as their encoding, a line each"""


def load_tables(settings: DataSettings, seed: int, template_fields: Sequence[str] = ()) -> Tables:
    """Read or generate the two tables.

    Args:
        settings: the recipe's ``data`` section.
        seed: fixes the generated sample; the other sources do not use it.
        template_fields: what text.item_template names: tables report those that they do not have with all the other
            faults.

    Raises:
        DataError: files are missing or have faults; the message lists the faults of all files.
    """
    # Imported here because the sources themselves import Tables from this module.
    from tritonrank.data import adapters, sample, tables

    match settings:
        case SampleData():
            return sample.generate(settings, seed)
        case PublicData():
            return adapters.load(settings)
        case TablesData():
            return tables.load(settings, template_fields)


def hash_of(file: FileLocation) -> str:
    """The sha256 of a file, here or in an object store."""
    if isinstance(file, Path):
        return sha256_file(file)
    from tritonrank.data.formats.objects import sha256_object

    return sha256_object(file)


def hashes_of(files: Sequence[FileLocation]) -> list[str]:
    """The sha256 of each file, read on this machine."""
    return [hash_of(file) for file in files]


def source_fingerprints(
    settings: DataSettings,
    hashes: Callable[[Sequence[FileLocation]], Sequence[str]] = hashes_of,
    tables_read: Collection[str] = ("items", "events"),
) -> dict[str, str] | None:
    """What the tables are read from, by content: name -> sha256; None where something is not there.

    Names are those of the files below the path of the setting, so that the same data elsewhere are the same. None of
    the generated sample.

    Args:
        settings: the recipe's ``data`` section.
        hashes: reads files; as ``hashes_of``.
        tables_read: which of a shop's own two tables are asked about.

    Raises:
        DataError: a database does not answer.
    """
    from tritonrank.data import adapters, tables
    from tritonrank.data.formats.databases import fingerprint
    from tritonrank.data.parts import files_of, is_there

    found: dict[str, str] = {}
    files: dict[str, FileLocation] = {}
    match settings:
        case PublicData():
            files = dict(adapters.files_of(settings))
            if not files:
                return None
        case TablesData():
            for table, (location, needed) in tables.wanted(settings).items():
                if table not in tables_read:
                    continue
                if isinstance(location, DatabaseUrl):
                    found[table] = fingerprint(location, needed)
                elif there := files_of(location):
                    files |= {f"{table}/{name}": file for name, file in there.items()}
                else:
                    return None
        case _:
            pass
    if not all(is_there(file) for file in files.values()):
        return None
    return found | dict(zip(files, hashes(list(files.values())), strict=True))
