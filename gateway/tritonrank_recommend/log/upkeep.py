"""What is done to files that are written already: parts joined by the hour, erased users taken out.

Each of these may be killed at any moment and done again. All of them hold the log's lock.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from tritonrank_recommend.log import layout
from tritonrank_recommend.log.parquet import (
    SCHEMAS,
    conformed,
    read_in_pieces,
    replaced_by,
    without_users,
    write_whole,
)

MOST_PARTS = 100
"""In the running hour; then they are joined, so that taking a user out does not mean opening thousands of files."""

DRAFT_SECONDS = 60.0
"""A hidden file of that age belongs to a process that was killed: appending takes less, and joining holds the lock."""


def join_parts(log: Path, now: float, hours: Iterable[tuple[str, Path]] | None = None) -> int:
    """Join the parts of hours that are over, and of those with many, without the users that were erased.

    Args:
        log: the log's folder.
        now: unix seconds.
        hours: kind and folder of those to look at; all by default.

    Returns:
        How many hours were joined.

    Raises:
        OSError: a file cannot be read or written; what was there counts as before.
    """
    if hours is None:
        hours = [(kind, hour) for kind in layout.KINDS for hour in layout.hour_folders(log, kind)]
    joined = 0
    for kind, hour in hours:
        files = layout.files_of(hour)
        if len(files) < 2 or (not layout.is_over(hour, now) and _parts(files) < MOST_PARTS):
            continue
        with layout.locked(log):
            joined += _join(hour, kind, layout.is_over(hour, now), layout.tombstones(log))
    return joined


def erase_from_running_hour(log: Path, users: Mapping[str, float]) -> int:
    """Take users out of the files of the hour in which they were erased and of later ones, and bury them in the others.

    Args:
        log: the log's folder.
        users: id -> when they were erased, unix seconds.

    Returns:
        Files that held them.

    Raises:
        OSError: a file cannot be read or written; done again it goes on.
    """
    if not users:
        return 0
    erased = {layout.digest_of(user): at for user, at in users.items()}
    with layout.locked(log):
        layout.add_tombstones(log, users)
        changed = 0
        for kind in layout.KINDS:
            first = layout.hour_folder(log, kind, min(users.values()))
            for hour in layout.hour_folders(log, kind):
                if hour >= first:
                    changed += _without(hour, kind, erased)
    return changed


def sweep(log: Path) -> int:
    """Take all users that were ever erased out of all files.

    Returns:
        Files that held them.

    Raises:
        OSError: a file cannot be read or written; done again it goes on.
    """
    erased = layout.tombstones(log)
    changed = 0
    for kind in layout.KINDS:
        for hour in layout.hour_folders(log, kind):
            with layout.locked(log):
                changed += _without(hour, kind, erased)
    return changed


def forget(log: Path, before: float) -> int:
    """Remove the hours that had ended by then: what is kept no longer cannot be lost.

    Args:
        log: the log's folder.
        before: unix seconds, in the past.

    Returns:
        How many files went.

    Raises:
        OSError: a file cannot be removed; done again it goes on.
    """
    removed = 0
    for kind in layout.KINDS:
        for hour in layout.hour_folders(log, kind):
            if not layout.is_over(hour, before, grace_seconds=0.0):
                continue
            with layout.locked(log):
                for file in [*layout.files_of(hour), *hour.glob(".*.tmp")]:
                    file.unlink(missing_ok=True)
                    removed += not file.name.startswith(".")
                with suppress(OSError):  # what else lies there is not ours
                    hour.rmdir()
                    hour.parent.rmdir()
    return removed


def _parts(files: Iterable[Path]) -> int:
    return sum(one.name.startswith("part-") for one in files)


def _join(hour: Path, kind: str, whole: bool, erased: Mapping[str, float]) -> bool:
    """Join the files of an hour: all, or the parts alone while more will come."""
    chosen = [one for one in _tidied(hour) if whole or one.name.startswith("part-")]
    if len(chosen) < 2:
        return False
    numbers = [layout.numbers_of(one) for one in chosen]
    name = layout.file_name("hour", min(one[0] for one in numbers), max(one[1] for one in numbers))
    write_whole(hour / name, _rows(chosen, kind, erased), SCHEMAS[kind], [one.name for one in chosen])
    for file in chosen:
        file.unlink()
    layout.flush_folder(hour)
    return True


def _without(hour: Path, kind: str, erased: Mapping[str, float]) -> int:
    """Rewrite the files of an hour that hold erased users."""
    changed = 0
    for file in _tidied(hour):
        before = after = 0
        for table in read_in_pieces(file):
            before += table.num_rows
            after += without_users(table, kind, erased).num_rows
        if after < before:
            write_whole(file, _rows([file], kind, erased), SCHEMAS[kind], replaced_by(file))
            changed += 1
    return changed


def _tidied(hour: Path) -> list[Path]:
    """The files of an hour that count; what a kill left beside them is removed.

    Replaced files have to be gone before the file that names them is replaced itself: nothing would name them then.
    """
    counting = layout.counting_files(hour, replaced_by)
    leftovers = set(layout.files_of(hour)) - set(counting)
    leftovers |= {one for one in hour.glob(".*.tmp") if time.time() - one.stat().st_mtime > DRAFT_SECONDS}
    for file in leftovers:
        file.unlink(missing_ok=True)
    if leftovers:
        layout.flush_folder(hour)
    return counting


def _rows(files: Iterable[Path], kind: str, erased: Mapping[str, float]) -> Iterator[pa.Table]:
    for file in files:
        for table in read_in_pieces(file):
            yield without_users(conformed(table, SCHEMAS[kind]), kind, erased)
