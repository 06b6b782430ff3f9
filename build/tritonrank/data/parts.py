"""Which files a table consists of: one, or the parts of a folder as Spark, BigQuery, Athena and Hive write them.

Files and folders whose names begin with ``_`` or ``.`` are no data (``_SUCCESS``, ``_metadata``, ``.part-0.crc``).
Folders called ``day=2020-01-01`` are partitions: each gives its parts a column with one value.
"""

import glob
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote

from tritonrank.system.database_url import FileLocation
from tritonrank.system.table_url import TableUrl

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
FOREIGN = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table", "metadata": "an Iceberg table"}
"""What a folder holds besides its Parquet files when these do not tell by themselves which rows hold."""


@dataclass(frozen=True)
class Part:
    """One file of a table."""

    file: Path
    partition: dict[str, str | None]
    """column -> value, from the names of the folders around it"""
    url: TableUrl | None = None
    """of a file in an object store, of which ``file`` is the path below the table"""

    @property
    def location(self) -> FileLocation:
        """The file as it is named to people."""
        return self.url or self.file


def parts_at(location: FileLocation) -> list[Part]:
    """The files of a table here or in an object store: as ``find_parts``.

    Raises:
        OSError: a folder cannot be listed.
        StoreError: an object store does not answer, or refuses.
    """
    if isinstance(location, Path):
        return find_parts(location)
    from tritonrank.data.formats.objects import find_objects  # for those who read from one

    return [Part(Path(below), _named_by(below), url) for url, below in find_objects(location)]


def find_parts(path: Path) -> list[Part]:
    """The files of a table in the order of their names; none where nothing is there.

    Args:
        path: a file, a folder, or a pattern with ``*``, ``?`` or ``[...]``; ``**`` is any number of folders.

    Raises:
        OSError: a folder cannot be listed.
    """
    if path.is_file():
        return [Part(path, {})]
    if path.is_dir():
        return _below(path, path)
    if not has_wildcard(path):
        return []
    fixed = path
    while has_wildcard(fixed):
        fixed = fixed.parent
    found: dict[Path, Part] = {}
    for match in fixed.glob(str(path.relative_to(fixed))):
        if _is_hidden(match.name) and not path.name.startswith(match.name[0]):
            continue
        parts = _below(match, fixed) if match.is_dir() else [Part(match, _partition(match, fixed))]
        found |= {part.file: part for part in parts}
    return sorted(found.values(), key=lambda part: part.file.as_posix())


def files_of(path: FileLocation) -> dict[str, FileLocation]:
    """The files whose content a table depends on, by their names below it. Where nothing is there, the path itself;
    of an object store, nothing.

    Raises:
        StoreError: an object store does not answer, or refuses.
    """
    if isinstance(path, TableUrl):
        return {part.file.as_posix(): part.location for part in parts_at(path)}
    fixed = path.parent if path.is_file() else path
    while has_wildcard(fixed):
        fixed = fixed.parent
    return {part.file.relative_to(fixed).as_posix(): part.file for part in find_parts(path)} or {path.name: path}


def is_there(file: FileLocation) -> bool:
    """Whether a file of ``files_of`` can be read: of an object store it names only what is there."""
    return not isinstance(file, Path) or file.is_file()


def has_wildcard(path: Path) -> bool:
    """Whether a path that does not exist is a pattern."""
    return glob.has_magic(str(path)) and not path.exists()


def foreign_table(folder: Path) -> str | None:
    """What kind of table with a log of its own a folder is, if any."""
    for name, kind in FOREIGN.items():
        if (folder / name).is_dir() and (name != "metadata" or any((folder / name).glob("*.metadata.json"))):
            return kind
    return None


def _below(folder: Path, root: Path) -> list[Part]:
    parts: list[Part] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            parts += _below(entry, root)
        else:
            parts.append(Part(entry, _partition(entry, root)))
    return parts


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))


def _partition(file: Path, root: Path) -> dict[str, str | None]:
    return _named_by(file.relative_to(root))


def _named_by(below: PurePath) -> dict[str, str | None]:
    """Column -> value, by the folders around a file."""
    named = (folder.partition("=") for folder in below.parent.parts if "=" in folder)
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, _, value in named}
