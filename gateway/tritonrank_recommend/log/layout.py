"""Where the log's files lie, and which rows of them count. Python's own library alone, so that readers need no other.

    LOG/events/date=2026-11-27/hour=02/part-<from>-<to>-<lot>.parquet          as written: outbox numbers from .. to
    LOG/events/date=2026-11-27/hour=02/hour-<from>-<to>-<lot>.parquet          parts of that hour joined into one file
    LOG/impressions/date=2026-11-27/hour=02/...                                what was shown, alike
    LOG/tombstones.jsonl                                                       who was erased, by the hash of the id

The hour (UTC) is the one in which a file was written, so that an hour that is over gets no new files, however late its
events come. The lot is random. Files appear whole (written beside under a hidden name, flushed to the disk, renamed). A
joined file names in its metadata the files that it replaces; until they are removed, and after a kill in between, both
are there, and the replaced ones do not count.
"""

import calendar
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EVENTS, IMPRESSIONS = "events", "impressions"
KINDS = (EVENTS, IMPRESSIONS)
TOMBSTONES = "tombstones.jsonl"
REPLACES = "replaces"
"""Key of a joined file's metadata: a JSON list of names in its folder."""
SECONDS_PER_HOUR = 3_600
NAME = re.compile(r"(part|hour)-(\d+)-(\d+)-[0-9a-f]{8}\.parquet")
HOUR = re.compile(r"date=(\d{4}-\d\d-\d\d)/hour=(\d\d)")


def hour_folder(log: Path, kind: str, seconds: float) -> Path:
    """The folder of the hour (UTC) of a unix second."""
    return log / kind / time.strftime("date=%Y-%m-%d/hour=%H", time.gmtime(seconds))


def hour_folders(log: Path, kind: str) -> list[Path]:
    """Those that are there, oldest first."""
    found = (log / kind).glob("date=*/hour=*")
    return sorted(one for one in found if HOUR.fullmatch("/".join(one.parts[-2:])))


def hour_start(hour: Path) -> float:
    """When the hour of a folder began, unix seconds.

    Raises:
        ValueError: it is no folder of an hour.
    """
    told = HOUR.fullmatch("/".join(hour.parts[-2:]))
    if told is None:
        raise ValueError(f"{hour}: no hour of the log")
    return float(calendar.timegm(time.strptime(f"{told[1]} {told[2]}", "%Y-%m-%d %H")))


def is_over(hour: Path, now: float, grace_seconds: float = 60.0) -> bool:
    """Whether nothing is written into an hour's folder any more; a file may be on its way when the hour ends."""
    return "/".join(hour.parts[-2:]) < "/".join(hour_folder(hour, EVENTS, now - grace_seconds).parts[-2:])


def new_lot() -> str:
    """What tells files apart that hold the same numbers."""
    return secrets.token_hex(4)


def file_name(word: str, first: int, last: int, lot: str = "") -> str:
    """A name, a new one unless its lot was drawn; ``word`` is part or hour."""
    return f"{word}-{first:012d}-{last:012d}-{lot or new_lot()}.parquet"


def numbers_of(file: Path) -> tuple[int, int]:
    """The first and last number that a file's name tells.

    Raises:
        ValueError: it is no file of the log.
    """
    told = NAME.fullmatch(file.name)
    if told is None:
        raise ValueError(f"{file}: no file of the log")
    return int(told[2]), int(told[3])


def files_of(hour: Path) -> list[Path]:
    """All files of an hour by their numbers, those that are replaced too."""
    files = (one for one in hour.glob("*.parquet") if NAME.fullmatch(one.name))
    return sorted(files, key=lambda one: (*numbers_of(one), one.name))


def counting_files(hour: Path, replaces: Callable[[Path], Collection[str]]) -> list[Path]:
    """The files of an hour that count.

    Args:
        hour: its folder.
        replaces: reads of a file's metadata which ones it replaces; only asked where that can matter.
    """
    files = files_of(hour)
    joined = [one for one in files if one.name.startswith("hour-")]
    if len(files) == 1 or not joined:
        return files
    replaced = {name for one in joined for name in replaces(one)}
    return [one for one in files if one.name not in replaced]


def digest_of(user_id: str) -> str:
    """What a tombstone knows of a user: the id itself would be a trace."""
    return hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()


def tombstones(log: Path) -> dict[str, float]:
    """By the hash of the id when a user was erased for the last time, in unix seconds."""
    try:
        lines = (log / TOMBSTONES).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    erased: dict[str, float] = {}
    for line in lines:
        try:
            told = json.loads(line)
            digest, at = str(told["user_sha256"]), float(told["erased_at"])
        except (ValueError, TypeError, KeyError):
            continue  # torn by a full disk or a kill; whoever wrote it writes it again
        erased[digest] = max(at, erased.get(digest, 0.0))
    return erased


def add_tombstones(log: Path, users: Mapping[str, float]) -> None:
    """Remember users (id -> when, unix seconds) as erased; on the disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    lines = [json.dumps({"user_sha256": digest_of(user), "erased_at": at}) for user, at in users.items()]
    # The newline comes first, so that a line that was torn before does not tear this one.
    content = "".join(f"\n{line}" for line in lines).encode() + b"\n"
    target = os.open(log / TOMBSTONES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        while content:
            content = content[os.write(target, content) :]
        os.fsync(target)
    finally:
        os.close(target)


@contextmanager
def locked(log: Path) -> Iterator[None]:
    """Only one process on this machine rewrites files of a log at a time. Appending new files needs no lock."""
    log.mkdir(parents=True, exist_ok=True)
    with (log / ".lock").open("a") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def flush_folder(folder: Path) -> None:
    """Names in a folder are on the disk when this returns."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
