"""The stream in one SQLite file, for the processes of one machine.

A file rather than segments of a log: several gateways append and read at once, and what SQLite promises of a killed
process and a full disk need not be promised again. The file is not the store's own, so that neither waits for the
other's writes and what is trimmed leaves no holes among the profiles.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from tritonrank_recommend.stores.interface import StoreError, StoreRefusedError
from tritonrank_recommend.stores.sqlite_file import Kind, connect, open_file
from tritonrank_recommend.stores.sqlite_threads import Readers, Work, Writer
from tritonrank_recommend.streams.interface import Appended, Lag, Message, StreamError, StreamRefusedError, Taker

_TABLES = """
CREATE TABLE messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, appended REAL NOT NULL, kept INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE groups (name TEXT PRIMARY KEY, delivered INTEGER NOT NULL) STRICT;
CREATE TABLE pending (
    grouped TEXT NOT NULL, number INTEGER NOT NULL, consumer TEXT NOT NULL, since REAL NOT NULL,
    deliveries INTEGER NOT NULL, PRIMARY KEY (grouped, number)) WITHOUT ROWID, STRICT;
CREATE TABLE erased (user_sha256 TEXT PRIMARY KEY, erased REAL NOT NULL) STRICT;
"""
STREAM = Kind(int.from_bytes(b"trkq", "big"), (_TABLES,), "--events-stream local:FILE")
LOOK_SECONDS = 0.05
"""between two looks for messages of other processes; those of this one are seen at once"""
PAGE = 1_000
MOST_TRIMMED = 5_000
"""in one transaction: others wait for it"""
ERASED_SECONDS = 3_600.0

_COLUMNS = "number, body, kept, appended"
_UNDELIVERED = "number > ifnull((SELECT delivered FROM groups WHERE name = ?1), 0)"
# One statement, one view of the file: between two of them messages would move from one count to the other unseen.
_LAG = f"""WITH open AS (
    SELECT number FROM pending WHERE grouped = ?1 UNION ALL SELECT number FROM messages WHERE {_UNDELIVERED})
SELECT count(*), (SELECT appended FROM messages WHERE number = (SELECT min(number) FROM open)),
    (SELECT ifnull(max(number) - min(number) + 1, 0) FROM messages) FROM open"""

Result = TypeVar("Result")
Row = tuple[int, bytes, int, float]


class LocalStream:
    """See ``interface.Stream``."""

    can_erase = True

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the file, or make it.

        Args:
            path: on a local disk, see docs/stores.md.
            clock: unix seconds.

        Raises:
            StreamRefusedError: see ``sqlite_file.open_file``.
        """
        self.name = f"local:{path}"
        self._clock = clock
        try:
            connection = open_file(path, STREAM)
        except StoreRefusedError as error:
            raise StreamRefusedError(str(error)) from error
        except StoreError as error:
            raise StreamError(str(error)) from error
        self._writer = Writer(connection, str(path), lambda _: False)
        self._readers = Readers(lambda: connect(path, read_only=True), str(path))
        self._appended = asyncio.Event()

    async def append(self, bodies: Sequence[bytes], *, kept: bool, taker: Taker | None = None) -> Appended:
        def append(connection: sqlite3.Connection) -> Appended:
            now = self._clock()
            last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'messages'").fetchone()
            last_number = last[0] if last else 0
            rows = [(last_number + place, now, int(kept), body) for place, body in enumerate(bodies, 1)]
            connection.executemany("INSERT INTO messages (number, appended, kept, body) VALUES (?, ?, ?, ?)", rows)
            numbers = [row[0] for row in rows]
            delivered = 0 if taker is None else _delivered(connection, taker.group)
            if taker is None or delivered < last_number or not rows:  # who waited longer comes first
                return Appended([str(number) for number in numbers])
            _deliver(connection, taker.group, taker.consumer, numbers, now)
            return Appended([str(number) for number in numbers], is_taken=True)

        appended = await self._write(append)
        if not appended.is_taken:
            self._appended.set()
        return appended

    async def read(self, group: str, consumer: str, most: int, block_seconds: float) -> list[Message]:
        select = f"SELECT {_COLUMNS} FROM messages WHERE number > ? ORDER BY number LIMIT ?"

        def take(connection: sqlite3.Connection) -> list[Message]:
            rows = connection.execute(select, (_delivered(connection, group), most)).fetchall()
            _deliver(connection, group, consumer, [row[0] for row in rows], self._clock())
            return [_message(row) for row in rows]

        def is_waiting(connection: sqlite3.Connection) -> bool:
            select = f"SELECT EXISTS (SELECT 1 FROM messages WHERE {_UNDELIVERED})"
            return bool(connection.execute(select, (group,)).fetchone()[0])

        end = time.monotonic() + block_seconds
        while True:
            self._appended.clear()
            if await self._read(is_waiting) and (messages := await self._write(take)):
                return messages
            left = end - time.monotonic()
            if left <= 0:
                return []
            try:
                async with asyncio.timeout(min(LOOK_SECONDS, left)):
                    await self._appended.wait()
            except TimeoutError:
                continue

    async def claim(self, group: str, consumer: str, idle_seconds: float, most: int) -> list[Message]:
        select = f"""SELECT {_COLUMNS}, deliveries FROM pending JOIN messages USING (number)
        WHERE grouped = ? AND since <= ? ORDER BY number LIMIT ?"""
        update = (
            "UPDATE pending SET consumer = ?, since = ?, deliveries = deliveries + 1 WHERE grouped = ? AND number = ?"
        )
        exists = "SELECT EXISTS (SELECT 1 FROM pending WHERE grouped = ? AND since <= ?)"
        since = self._clock() - idle_seconds
        if not await self._read(lambda connection: connection.execute(exists, (group, since)).fetchone()[0]):
            return []

        def take(connection: sqlite3.Connection) -> list[Message]:
            now = self._clock()
            rows = connection.execute(select, (group, now - idle_seconds, most)).fetchall()
            connection.executemany(update, [(consumer, now, group, row[0]) for row in rows])
            return [_message(row[:4], row[4] + 1) for row in rows]

        return await self._write(take)

    async def acknowledge(self, group: str, offsets: Sequence[str]) -> Mapping[str, float]:
        def done(connection: sqlite3.Connection) -> Mapping[str, float]:
            rows = [(group, int(offset)) for offset in offsets]
            connection.executemany("DELETE FROM pending WHERE grouped = ? AND number = ?", rows)
            return dict(connection.execute("SELECT user_sha256, erased FROM erased").fetchall())

        return await self._write(done)

    async def lag(self, group: str) -> Lag:
        def read(connection: sqlite3.Connection) -> Lag:
            # The length by the numbers: to count the rows would read all bodies. What was erased counts, too.
            count, oldest, length = connection.execute(_LAG, (group,)).fetchone()
            return Lag(count, 0.0 if oldest is None else max(0.0, self._clock() - oldest), length)

        return await self._read(read)

    async def replay(self, start: str = "") -> AsyncIterator[Message]:
        select = f"SELECT {_COLUMNS} FROM messages WHERE number >= ? AND number <= ? ORDER BY number LIMIT {PAGE}"
        first = _number(start) if start else 0
        newest = await self._read(lambda one: one.execute("SELECT ifnull(max(number), 0) FROM messages").fetchone()[0])
        while first <= newest:
            read = partial(_page, select=select, first=first, newest=newest)
            rows = await self._read(read)
            for row in rows:
                yield _message(row)
            if not rows:
                return
            first = rows[-1][0] + 1

    async def trim(self, keep: int) -> int:
        floor = (
            """SELECT min(ifnull((SELECT min(number) FROM pending WHERE grouped = name), delivered + 1)) FROM groups"""
        )
        delete = f"""DELETE FROM messages WHERE number IN
        (SELECT number FROM messages WHERE number < ? AND number <= ? ORDER BY number LIMIT {MOST_TRIMMED})"""
        # The newest ``keep`` stay, by their numbers: what was erased among them counts as if it were there.
        last = "SELECT ifnull(max(number), 0) FROM messages"

        def trim(connection: sqlite3.Connection) -> int:
            below = connection.execute(floor).fetchone()[0]
            if below is None:
                return 0
            oldest_kept = connection.execute(last).fetchone()[0] - keep
            connection.execute("DELETE FROM erased WHERE erased < ?", (self._clock() - ERASED_SECONDS,))
            return connection.execute(delete, (below, oldest_kept)).rowcount

        trimmed = 0
        while (now := await self._write(trim)) == MOST_TRIMMED:
            trimmed += now
        return trimmed + now

    async def delete(self, offsets: Collection[str]) -> int:
        rows = [(int(offset),) for offset in offsets]

        def delete(connection: sqlite3.Connection) -> int:
            connection.executemany("DELETE FROM pending WHERE number = ?", rows)
            return connection.executemany("DELETE FROM messages WHERE number = ?", rows).rowcount

        return await self._write(delete, truncate=True)

    async def erased(self, users: Mapping[str, float]) -> None:
        replace = "INSERT OR REPLACE INTO erased (user_sha256, erased) VALUES (?, ?)"
        rows = list(users.items())
        await self._write(lambda connection: connection.executemany(replace, rows).rowcount)

    async def leave(self, group: str, consumer: str) -> None:
        """Others need not wait for what it was given: it is claimed at the next look."""
        update = "UPDATE pending SET since = 0 WHERE grouped = ? AND consumer = ?"
        await self._write(lambda connection: connection.execute(update, (group, consumer)).rowcount)

    async def close(self) -> None:
        def close() -> None:
            self._readers.close()
            self._writer.close()

        await asyncio.to_thread(close)

    async def _read(self, work: Work[Result]) -> Result:
        try:
            return await self._readers.do(work)
        except StoreError as error:
            raise StreamError(str(error)) from error

    async def _write(self, work: Work[Result], *, truncate: bool = False) -> Result:
        try:
            return await self._writer.do(work, truncate=truncate)
        except StoreError as error:
            raise StreamError(str(error)) from error


def _message(row: Row, deliveries: int = 1) -> Message:
    number, body, kept, appended = row
    return Message(str(number), body, bool(kept), appended, deliveries)


def _number(offset: str) -> int:
    if not offset.isascii() or not offset.isdecimal():
        raise StreamRefusedError(f"offset {offset!r}: expected a number, such as 1200")
    return int(offset)


def _delivered(connection: sqlite3.Connection, group: str) -> int:
    """The last number that was given to a consumer of the group, which is made where it is new."""
    connection.execute("INSERT OR IGNORE INTO groups (name, delivered) VALUES (?, 0)", (group,))
    row = connection.execute("SELECT delivered FROM groups WHERE name = ?", (group,)).fetchone()
    return int(row[0])


def _deliver(connection: sqlite3.Connection, group: str, consumer: str, numbers: Sequence[int], now: float) -> None:
    if numbers:
        insert = "INSERT INTO pending (grouped, number, consumer, since, deliveries) VALUES (?, ?, ?, ?, 1)"
        connection.executemany(insert, [(group, number, consumer, now) for number in numbers])
        connection.execute("UPDATE groups SET delivered = ? WHERE name = ?", (numbers[-1], group))


def _page(connection: sqlite3.Connection, *, select: str, first: int, newest: int) -> list[Row]:
    return connection.execute(select, (first, newest)).fetchall()
