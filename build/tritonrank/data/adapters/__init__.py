"""Public data sets, each in the files that its publishers give out: ``data.source`` -> the adapter that reads them.

An adapter finds the files of its data set in a folder and turns them into the two tables that every source gives. One
file per data set; a new one is its file and a line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonrank.data.adapters import esci, hm, kuairec, mind, movielens, recbole, yoochoose
from tritonrank.data.loading import Tables
from tritonrank.errors import DataError
from tritonrank.recipe import PublicData


@dataclass(frozen=True)
class Adapter:
    """How one public data set is found and read."""

    files: Callable[[Path], list[Path]]
    """the files of the data set in a folder, or in one right below it; none where it is not there"""
    load: Callable[[PublicData, list[Path]], Tables]
    expected: str
    """the files, in words"""
    where: str
    """where to get them"""
    template: Callable[[list[Path]], str]
    """an item template for a start"""
    has_queries: bool


ADAPTERS: Mapping[str, Adapter] = {
    name: Adapter(module.files, module.load, module.EXPECTED, module.WHERE, module.template, has_queries=name == "esci")
    for name, module in {
        "movielens": movielens,
        "recbole": recbole,
        "mind": mind,
        "esci": esci,
        "hm": hm,
        "kuairec": kuairec,
        "yoochoose": yoochoose,
    }.items()
}


def load(settings: PublicData) -> Tables:
    """Read a public data set.

    Raises:
        DataError: its files are not there, or have faults.
    """
    adapter = ADAPTERS[settings.source]
    files = adapter.files(settings.path)
    if not files:
        there = sorted(path.name for path in settings.path.iterdir())[:12] if settings.path.is_dir() else []
        found = f"holds {', '.join(there) or 'nothing'}" if settings.path.is_dir() else "is no folder"
        raise DataError(
            f"{settings.path}: {found}; expected {adapter.expected}. Looked in {settings.path.absolute()}. "
            f"{adapter.where}, unpack it, and set data.path to the folder"
        )
    return adapter.load(settings, files)


def files_of(settings: PublicData) -> dict[str, Path]:
    """The files that are read, by their names below ``data.path``; none where the data set is not there."""
    files = ADAPTERS[settings.source].files(settings.path)
    return {file.relative_to(settings.path).as_posix(): file for file in files}


def recognise(path: Path) -> str | None:
    """The source that reads a folder, or the folder of a file; None where it is no public data set that is known."""
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return None
    return next((name for name, adapter in ADAPTERS.items() if adapter.files(folder)), None)
