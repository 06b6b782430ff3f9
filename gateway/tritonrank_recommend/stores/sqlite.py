"""The store in one SQLite file, for one machine; several gateways on it may share the file.

A user is one row: the profile in MessagePack, folded in Python. The ids of events lie beside it by the week in which
they came, so that a whole week is dropped at once.
"""

import asyncio
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tritonrank_recommend.events import Event
from tritonrank_recommend.stores.interface import Added, FieldValue, ItemChange, Profile
from tritonrank_recommend.stores.profiles import (
    ID_SECONDS,
    MOST_EVENTS,
    PROFILE_DAYS,
    export,
    fold,
    id_number,
    read_profile,
)
from tritonrank_recommend.stores.sqlite_file import connect, open_file, open_memory
from tritonrank_recommend.stores.sqlite_threads import Readers, Work, Writer

Result = TypeVar("Result")
DAY_SECONDS = 86_400
MOST_TIDIED = 5_000
"""rows of a table in one round"""

_NEW_ID = """INSERT OR IGNORE INTO ids (week, user, id) SELECT ?1, ?2, ?3
WHERE NOT EXISTS (SELECT 1 FROM ids WHERE week = ?1 - 1 AND user = ?2 AND id = ?3)"""
_COUNT = """INSERT INTO item_counters (item_id, type, events) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET events = events + excluded.events"""
_CHANGE = """INSERT INTO items (item_id, version, changed, fields) VALUES (?, ?, ?, ?)
ON CONFLICT (item_id) DO UPDATE SET version = excluded.version, changed = excluded.changed, fields = excluded.fields"""

_event = msgspec.msgpack.Decoder(Event)
_fields: msgspec.msgpack.Decoder[dict[str, FieldValue] | None] = msgspec.msgpack.Decoder(dict[str, FieldValue] | None)
_pack = msgspec.msgpack.Encoder().encode


class SqliteStore:
    """See ``interface.Store``."""

    def __init__(
        self,
        path: Path | None,
        *,
        most_events: int = MOST_EVENTS,
        profile_days: float = PROFILE_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file, or make it.

        Args:
            path: None keeps everything in memory, until ``close``.
            most_events: of a profile.
            profile_days: without an event for so long, a profile goes.
            clock: unix seconds.

        Raises:
            StoreRefusedError: see ``sqlite_file.open_file``.
        """
        self._most_events = most_events
        self._profile_days = profile_days
        self._clock = clock
        name = str(path or "memory")
        self._writer = Writer(open_file(path) if path else open_memory(), name, self._tidy)
        self._readers = Readers(lambda: connect(path, read_only=True), name) if path else None

    async def _read(self, work: Work[Result]) -> Result:
        return await (self._readers or self._writer).do(work)

    async def ready(self) -> bool:
        await self._read(lambda connection: connection.execute("SELECT 1 FROM numbers LIMIT 1").fetchone())
        return True

    async def close(self) -> None:
        def close() -> None:
            if self._readers:
                self._readers.close()
            self._writer.close()

        await asyncio.to_thread(close)

    # Events and profiles

    async def add_events(self, events: Sequence[Event], *, log: bool = True) -> Added:
        if not events:
            return Added(0, 0)
        return await self._writer.do(lambda connection: self._add(connection, events, log))

    def _add(self, connection: sqlite3.Connection, events: Sequence[Event], log: bool) -> Added:
        now = self._clock()
        week, day = int(now // ID_SECONDS), int(now // DAY_SECONDS)
        of_users: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            of_users[event.user_id].append(event)
        accepted: list[Event] = []
        for user_id, own in of_users.items():
            accepted += self._add_of_user(connection, user_id, own, week, day)
        counts = Counter((event.item_id, event.type) for event in accepted if event.item_id)
        connection.executemany(_COUNT, [(*key, count) for key, count in counts.items()])
        if log and accepted:
            if len(of_users) > 1:  # in the order in which they came
                place = {id(event): number for number, event in enumerate(events)}
                accepted.sort(key=lambda event: place[id(event)])
            rows = [(event.user_id, _pack(event)) for event in accepted]
            connection.executemany("INSERT INTO outbox (user_id, event) VALUES (?, ?)", rows)
        return Added(len(accepted), len(events) - len(accepted))

    def _add_of_user(
        self, connection: sqlite3.Connection, user_id: str, events: Sequence[Event], week: int, day: int
    ) -> list[Event]:
        """Those that are new; they are in the profile."""
        execute = connection.execute
        row = execute("SELECT number, day, profile FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if row is None:
            inserted = execute("INSERT INTO users (user_id, day, profile) VALUES (?, ?, x'')", (user_id, day))
            row = (inserted.lastrowid, day, b"")
        number, last_day, profile = row
        new = [event for event in events if execute(_NEW_ID, (week, number, id_number(event.event_id))).rowcount]
        if new:
            execute("UPDATE users SET profile = ? WHERE number = ?", (fold(profile, new, self._most_events), number))
            if day != last_day:  # seldom, and it moves the row in its index
                execute("UPDATE users SET day = ? WHERE number = ?", (day, number))
        return new

    async def profile(self, user_id: str) -> Profile:
        return await self._read(lambda connection: read_profile(user_id, _stored(connection, user_id)))

    async def item_counters(self, item_ids: Sequence[str]) -> list[dict[str, int]]:
        def read(connection: sqlite3.Connection) -> list[dict[str, int]]:
            select = "SELECT type, events FROM item_counters WHERE item_id = ?"
            return [dict(connection.execute(select, (item_id,)).fetchall()) for item_id in item_ids]

        return await self._read(read)

    async def user_ids(self) -> list[str]:
        select = "SELECT user_id FROM users WHERE profile <> x''"
        return await self._read(lambda connection: [user_id for (user_id,) in connection.execute(select)])

    async def counted_items(self) -> list[str]:
        select = "SELECT DISTINCT item_id FROM item_counters"
        return await self._read(lambda connection: [item_id for (item_id,) in connection.execute(select)])

    # The outbox

    async def outbox(self, after: int, most: int) -> list[tuple[int, Event]]:
        select = "SELECT number, event FROM outbox WHERE number > ? ORDER BY number LIMIT ?"
        rows = await self._read(lambda connection: connection.execute(select, (after, most)).fetchall())
        return [(number, _event.decode(packed)) for number, packed in rows]

    async def outbox_done(self, through: int) -> None:
        def done(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM outbox WHERE number <= ?", (through,))
            _set_number(connection, "log position", max(through, _number_of(connection, "log position")))

        await self._writer.do(done)

    async def log_position(self) -> int:
        return await self._read(lambda connection: _number_of(connection, "log position"))

    # Items

    async def change_items(self, changes: Sequence[ItemChange]) -> int:
        def change(connection: sqlite3.Connection) -> int:
            version, now = _number_of(connection, "items"), self._clock()
            rows = [(one.item_id, version + n, now, _pack(one.fields)) for n, one in enumerate(changes, 1)]
            connection.executemany(_CHANGE, rows)
            _set_number(connection, "items", version + len(rows))
            return version + len(rows)

        return await self._writer.do(change)

    async def item_changes(self, since: int, most: int = 10_000) -> list[tuple[int, ItemChange]]:
        select = "SELECT version, item_id, fields, changed FROM items WHERE version > ? ORDER BY version LIMIT ?"
        rows = await self._read(lambda connection: connection.execute(select, (since, most)).fetchall())
        return [(version, ItemChange(item_id, _fields.decode(fields), at)) for version, item_id, fields, at in rows]

    # Small things with an end

    async def put(self, key: str, value: bytes, seconds: float, *, user_id: str = "") -> None:
        row = (key, self._clock() + seconds, user_id, value)
        replace = "INSERT OR REPLACE INTO kept (key, until, user_id, value) VALUES (?, ?, ?, ?)"
        await self._writer.do(lambda connection: connection.execute(replace, row).rowcount)

    async def put_new(self, key: str, value: bytes, seconds: float) -> bytes:
        insert = """INSERT INTO kept (key, until, user_id, value) VALUES (?1, ?2, '', ?3) ON CONFLICT DO UPDATE
        SET until = excluded.until, user_id = '', value = excluded.value WHERE until <= ?4"""
        now = self._clock()

        def put(connection: sqlite3.Connection) -> bytes:
            connection.execute(insert, (key, now + seconds, value, now))
            kept: bytes = connection.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()[0]
            return kept

        return await self._writer.do(put)

    async def get(self, key: str) -> bytes | None:
        select = "SELECT value FROM kept WHERE key = ? AND until > ?"
        row = await self._read(lambda connection: connection.execute(select, (key, self._clock())).fetchone())
        return row[0] if row else None

    # Leases

    async def take_lease(self, name: str, owner: str, seconds: float) -> bool:
        take = """INSERT INTO leases (name, owner, until) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE
        SET owner = excluded.owner, until = excluded.until WHERE owner = excluded.owner OR until <= ?4"""
        now = self._clock()
        row = (name, owner, now + seconds, now)
        return await self._writer.do(lambda connection: connection.execute(take, row).rowcount) > 0

    async def give_lease(self, name: str, owner: str) -> None:
        give = "DELETE FROM leases WHERE name = ? AND owner = ?"
        await self._writer.do(lambda connection: connection.execute(give, (name, owner)).rowcount)

    # Privacy

    async def export_user(self, user_id: str) -> dict[str, Any]:
        def read(connection: sqlite3.Connection) -> dict[str, Any]:
            waiting = connection.execute("SELECT event FROM outbox WHERE user_id = ? ORDER BY number", (user_id,))
            kept = connection.execute(
                "SELECT key, value FROM kept WHERE user_id = ? AND user_id <> '' ORDER BY key", (user_id,)
            )
            return export(
                user_id,
                _stored(connection, user_id),
                [_event.decode(packed) for (packed,) in waiting],
                dict(kept.fetchall()),
            )

        return await self._read(read)

    async def erase_user(self, user_id: str) -> dict[str, int]:
        def erase(connection: sqlite3.Connection) -> dict[str, int]:
            row = connection.execute("SELECT number FROM users WHERE user_id = ?", (user_id,)).fetchone()
            statements = {
                "profiles": ("DELETE FROM users WHERE user_id = ?", user_id),
                "waiting": ("DELETE FROM outbox WHERE user_id = ?", user_id),
                "pages": ("DELETE FROM kept WHERE user_id = ? AND user_id <> ''", user_id),
            }
            removed = {name: connection.execute(sql, (of,)).rowcount for name, (sql, of) in statements.items()}
            removed["ids"] = 0
            first, last = connection.execute(
                "SELECT (SELECT min(week) FROM ids), (SELECT max(week) FROM ids)"
            ).fetchone()
            for week in range(first, last + 1) if row and first is not None else ():
                delete = "DELETE FROM ids WHERE week = ? AND user = ?"
                removed["ids"] += connection.execute(delete, (week, row[0])).rowcount
            tombstone = "INSERT OR REPLACE INTO erased (user_id, erased) VALUES (?, ?)"
            connection.execute(tombstone, (user_id, self._clock()))
            return removed

        return await self._writer.do(erase, truncate=True)

    async def erased_users(self) -> list[tuple[str, float]]:
        select = "SELECT user_id, erased FROM erased ORDER BY erased, user_id"
        return await self._read(lambda connection: connection.execute(select).fetchall())

    async def forget_erased(self, user_ids: Sequence[str]) -> None:
        rows = [(user_id,) for user_id in user_ids]
        delete = "DELETE FROM erased WHERE user_id = ?"
        await self._writer.do(lambda connection: connection.executemany(delete, rows).rowcount, truncate=True)

    def _tidy(self, connection: sqlite3.Connection) -> bool:
        """Drop what has ended, so much of it at a time: others wait for this transaction. Whether there is more."""
        is_more = False
        now = self._clock()
        week = int(now // ID_SECONDS)
        oldest_day = int(now // DAY_SECONDS - self._profile_days)
        for table, key, condition, value in (
            ("kept", "rowid", "until <= ?", now),
            ("leases", "rowid", "until <= ?", now),
            ("users", "rowid", "day < ?", oldest_day),
            ("ids", "(week, user, id)", "week < ?", week - 1),
        ):
            select = f"SELECT {key.strip('()')} FROM {table} WHERE {condition} LIMIT {MOST_TIDIED}"
            deleted = connection.execute(f"DELETE FROM {table} WHERE {key} IN ({select})", (value,)).rowcount
            is_more |= deleted == MOST_TIDIED
        return is_more


def _stored(connection: sqlite3.Connection, user_id: str) -> bytes | None:
    row = connection.execute("SELECT profile FROM users WHERE user_id = ?", (user_id,)).fetchone()
    return row[0] if row else None


def _number_of(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM numbers WHERE name = ?", (name,)).fetchone()
    return row[0] if row else 0


def _set_number(connection: sqlite3.Connection, name: str, value: int) -> None:
    connection.execute("INSERT OR REPLACE INTO numbers (name, value) VALUES (?, ?)", (name, value))
