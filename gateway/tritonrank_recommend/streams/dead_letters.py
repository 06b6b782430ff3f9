"""Messages that nobody can take: a line of JSON each, with the reason and the offset, in a file for people.

    {"offset": "1795744000123-0", "reason": "Object missing required field `user_id`", "deliveries": 1,
     "appended_at": 1795744000.123, "at": 1795744000.2, "kept": false, "body": "{...}"}

``body`` is what came, as text (bytes that are no UTF-8 as ``\\xNN``), at most 64 kB of it. The file is readable for its
owner alone. When it has grown to 64 MB it becomes ``FILE.1``, in place of the one before.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from tritonrank_recommend.log.layout import flush_folder
from tritonrank_recommend.streams.interface import Message

MOST_BODY_BYTES = 64 << 10
MOST_FILE_BYTES = 64 << 20


class DeadLetters:
    """Appends to a file that other processes may append to, too.

    Args:
        file: it and its folder are made when the first letter comes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()

    def add(self, message: Message, reason: str) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        told = {
            "offset": message.offset,
            "reason": reason,
            "deliveries": message.deliveries,
            "appended_at": message.appended_at,
            "at": time.time(),
            "kept": message.kept,
            "body": message.body[:MOST_BODY_BYTES].decode("utf-8", "backslashreplace"),
        }
        # The newline comes first, so that a line that was torn before does not tear this one.
        line = b"\n" + json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._locked():
            if self.file.exists() and self.file.stat().st_size + len(line) > MOST_FILE_BYTES:
                self.file.replace(self._older)
            target = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                while line:
                    line = line[os.write(target, line) :]
                os.fsync(target)
            finally:
                os.close(target)

    def erase(self, names: Collection[str]) -> int:
        """Remove the letters whose bodies hold one of these texts; how many.

        Raises:
            OSError: a file cannot be read or written anew.
        """
        if not self.file.exists() and not self._older.exists():
            return 0
        removed = 0
        with self._locked():
            for file in (self.file, self._older):
                with suppress(FileNotFoundError):
                    removed += _rewrite(file, names)
        return removed

    @property
    def _older(self) -> Path:
        return self.file.with_name(f"{self.file.name}.1")

    def _locked(self) -> "_Locked":
        return _Locked(self.file, self._lock)


class _Locked:
    """One thread of one process on this machine."""

    def __init__(self, file: Path, lock: threading.Lock) -> None:
        self._file, self._lock = file, lock

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._file.with_name(f".{self._file.name}.lock")
            self._opened = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._opened, fcntl.LOCK_EX)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._opened)
        self._lock.release()


def _rewrite(file: Path, names: Collection[str]) -> int:
    lines = [line for line in file.read_bytes().split(b"\n") if line]
    kept = [line for line in lines if not _holds(line, names)]
    if len(kept) == len(lines):
        return 0
    draft = file.with_name(f".{file.name}.tmp")
    target = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(target, "wb") as opened:
        opened.write(b"".join(line + b"\n" for line in kept))
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)
    flush_folder(file.parent)
    return len(lines) - len(kept)


def _holds(line: bytes, names: Collection[str]) -> bool:
    try:
        body = str(json.loads(line)["body"])
    except (ValueError, TypeError, KeyError):  # torn: what it says cannot be told, so it goes with the first erasure
        return True
    escaped = (json.dumps(name)[1:-1] for name in names)  # a body may write é as \u00e9
    return any(name in body for name in (*names, *escaped))
