"""A SQLite file of ours, a store's or a stream's: opened, checked, made or brought to this version's tables.

``application_id`` says that a file is ours, ``user_version`` how its tables look. A file that is not ours, or that a
newer version wrote, is refused and left as it is.
"""

import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from tritonrank_recommend.stores.interface import StoreError, StoreRefusedError

APPLICATION_ID = int.from_bytes(b"trks", "big")
BUSY_SECONDS = 5.0
"""A write waits so long for a write of another process."""

_TABLES = """
CREATE TABLE users (
    number INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, day INTEGER NOT NULL, profile BLOB NOT NULL) STRICT;
CREATE INDEX users_day ON users (day);
CREATE TABLE ids (
    week INTEGER NOT NULL, user INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (week, user, id))
    WITHOUT ROWID, STRICT;
CREATE TABLE item_counters (
    item_id TEXT NOT NULL, type TEXT NOT NULL, events INTEGER NOT NULL, PRIMARY KEY (item_id, type))
    WITHOUT ROWID, STRICT;
CREATE TABLE outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, event BLOB NOT NULL) STRICT;
CREATE TABLE items (
    item_id TEXT PRIMARY KEY, version INTEGER NOT NULL UNIQUE, changed REAL NOT NULL, fields BLOB NOT NULL) STRICT;
CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE kept (
    key TEXT PRIMARY KEY, until REAL NOT NULL, user_id TEXT NOT NULL, value BLOB NOT NULL) STRICT;
CREATE INDEX kept_until ON kept (until);
CREATE INDEX kept_user ON kept (user_id) WHERE user_id <> '';
CREATE TABLE leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) STRICT;
CREATE TABLE erased (user_id TEXT PRIMARY KEY, erased REAL NOT NULL) STRICT;
"""
MIGRATIONS: tuple[str, ...] = (_TABLES,)
"""The script at place n brings the tables from version n to n + 1."""


class Kind(NamedTuple):
    """What a file of ours is."""

    application_id: int
    migrations: tuple[str, ...]
    option: str
    """how it is named on the command line, for messages"""


STORE = Kind(APPLICATION_ID, MIGRATIONS, "--store sqlite:FILE")


def open_file(path: Path, kind: Kind = STORE) -> sqlite3.Connection:
    """A connection that writes, to a file whose tables are this version's; the file is made where it is missing.

    Raises:
        StoreRefusedError: it is no SQLite file, not ours, or newer; or it cannot be written.
        StoreError: another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # what users do is not for everybody on the machine
    except OSError as error:
        raise StoreRefusedError(
            f"{path}: cannot be written ({error.strerror}); name a file with {kind.option}"
        ) from None
    try:
        connection = connect(path)
        try:
            _check(connection, path, kind)  # before anything is written: the file may be another program's
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection, path, kind)
        except BaseException:
            connection.close()
            raise
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreRefusedError(f"{path}: {error}; name a new file with {kind.option}") from error
    return connection


def open_memory() -> sqlite3.Connection:
    """A store for tests that ends with its connection."""
    connection = connect(Path(":memory:"))
    _migrate(connection, Path(":memory:"), STORE)
    return connection


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """One more connection to a file that ``open_file`` has seen."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode: a killed process loses nothing that was committed
    connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten, not only unlinked
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _check(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not empty and _number(connection, "application_id") != kind.application_id:
        raise StoreRefusedError(f"{path}: is another program's SQLite file; name a new file with {kind.option}")
    if (found := _number(connection, "user_version")) > len(kind.migrations):
        raise StoreRefusedError(
            f"{path}: was written by a newer tritonrank (tables of version {found}, this one knows "
            f"{len(kind.migrations)}): pip install --upgrade tritonrank"
        )


def _migrate(connection: sqlite3.Connection, path: Path, kind: Kind) -> None:
    if _number(connection, "user_version") == len(kind.migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _check(connection, path, kind)  # another process may have been quicker
        for version in range(_number(connection, "user_version"), len(kind.migrations)):
            for statement in filter(str.strip, kind.migrations[version].split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute(f"PRAGMA application_id = {kind.application_id}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
