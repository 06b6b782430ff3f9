"""The store in Redis or Valkey, for several machines.

Users are spread over sixteen parts, and what an event changes of its user lies in the user's part, in one slot of a
cluster: a script changes the ids, the profile and a journal there, whole or not at all. What lies elsewhere, the
counters of items and the outbox, is brought up from the journal, by whoever comes: each part's entries are numbered and
everything remembers the last number that it took, so an entry counts once, however often it is applied.

An event is acknowledged when it lies in the journal. The rest waits for no caller: to a server that syncs each write to
its disk (``appendfsync always``) every step costs milliseconds, and what comes during one gathers for the next.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

import msgspec

from tritonrank_recommend.events import Event, weight_of
from tritonrank_recommend.stores import redis_scripts as scripts
from tritonrank_recommend.stores.interface import Added, FieldValue, ItemChange, Profile, StoreError
from tritonrank_recommend.stores.profiles import (
    ID_SECONDS,
    MOST_EVENTS,
    MOST_SEARCHES,
    PROFILE_DAYS,
    export,
    id_number,
    read_profile,
)
from tritonrank_recommend.stores.redis_connection import ANSWER_SECONDS, Command, RedisConnection, run
from tritonrank_recommend.stores.redis_connection import log as logger

PARTS = 16
"""of the users; never to be changed, for a user's keys are found by it"""
USERS_TOGETHER = 200
"""in one run of the script, during which the server does nothing else"""
ENTRIES_TOGETHER = 200
"""of a journal that are brought up at once"""
SCANNED_TOGETHER = 1_000
ITEMS_TOGETHER = 500
"""whose counters one run of a script changes"""
BATCHES_BEHIND = 32
"""Acknowledged and not yet brought up from their journals; the next one waits."""
GATHER_SECONDS = 0.2
"""Before what was acknowledged is brought up, unless somebody asks for it: one round serves all that came."""

_OUTBOX, _OUTBOX_NUMBER, _OUTBOX_DONE, _OUTBOX_SEEN = (
    f"tr:{{outbox}}:{name}" for name in ("events", "number", "done", "seen")
)
_VERSION, _VERSIONS, _FIELDS = (f"tr:{{items}}:{name}" for name in ("version", "versions", "fields"))
_ERASED = "tr:{erased}"
_COUNTERS = b"tr:c:"

_event = msgspec.json.Decoder(Event)
_fields: msgspec.json.Decoder[dict[str, FieldValue] | None] = msgspec.json.Decoder(dict[str, FieldValue] | None)
_entry = msgspec.msgpack.Decoder(tuple[list[tuple[str, str, int]], list[str]])
_pack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode
Entry = tuple[int, list[tuple[str, str, int]], list[str]]


def _part_of(user_id: str) -> int:
    return crc32(user_id.encode()) % PARTS


def _key(user_id: str, kind: str) -> str:
    return f"tr:{{u{_part_of(user_id)}}}:{kind}:{user_id}"


def _journal(part: int) -> str:
    return f"tr:{{u{part}}}:journal"


class RedisStore:
    """See ``interface.Store``."""

    def __init__(self, url: str, *, most_events: int = MOST_EVENTS, profile_days: float = PROFILE_DAYS) -> None:
        """Prepare connections; the first call opens one.

        Args:
            url: of a server or of any node of a cluster.
            most_events: of a profile.
            profile_days: without an event for so long, a profile goes.

        Raises:
            StoreRefusedError: see ``RedisConnection``.
        """
        self._connection = RedisConnection(url)
        self._most_events = most_events
        self._profile_milliseconds = int(profile_days * 86_400_000)
        self._checked = False
        self._check = asyncio.Lock()
        self._touched = set(range(PARTS))  # another gateway may have been killed before it brought its events up
        self._behind = 0
        self._bringing_up: asyncio.Task[None] | None = None
        self._is_asked_for = asyncio.Event()

    async def ready(self) -> bool:
        await self._check_once()
        await self._connection.ask("GET", _OUTBOX_DONE)
        return True

    async def _check_once(self) -> None:
        if self._checked:
            return
        async with self._check:  # the first calls come together
            if not self._checked:
                await self._connection.check()
                self._checked = True

    async def close(self) -> None:
        await self._settled(ANSWER_SECONDS)
        if self._bringing_up is not None:
            self._bringing_up.cancel()  # the journals keep what is left
        await self._connection.close()

    # Events and profiles

    async def add_events(self, events: Sequence[Event], *, log: bool = True) -> Added:
        await self._check_once()
        of_parts: defaultdict[int, dict[str, list[Event]]] = defaultdict(dict)
        for event in events:
            of_parts[_part_of(event.user_id)].setdefault(event.user_id, []).append(event)
        commands: list[Command] = []
        for part, users in of_parts.items():
            ids = list(users)
            for start in range(0, len(ids), USERS_TOGETHER):
                chosen = {user_id: users[user_id] for user_id in ids[start : start + USERS_TOGETHER]}
                commands.append(self._command_to_add(part, chosen, log))
        try:
            accepted = sum(await self._connection.ask_together(commands))
        finally:
            self._touched.update(of_parts)  # of a call that failed some may be there
        if self._behind >= BATCHES_BEHIND:
            await self._settled()
        self._behind += 1
        if self._bringing_up is None:
            self._bringing_up = asyncio.create_task(self._bring_up_touched())
        return Added(accepted, len(events) - accepted)

    def _command_to_add(self, part: int, users: dict[str, list[Event]], log: bool) -> Command:
        week = int(time.time() // ID_SECONDS)
        keys = [_journal(part), f"tr:{{u{part}}}:number"]
        batch = []
        for user_id, events in users.items():
            keys += _key(user_id, "p"), _key(user_id, f"i{week}"), _key(user_id, f"i{week - 1}")
            batch.append(
                [
                    (
                        str(id_number(event.event_id)),
                        event.type,
                        event.item_id,
                        event.timestamp,
                        weight_of(event),
                        event.query if event.type == "search" else "",
                        _to_json(event).decode() if log else "",
                        event.received_at > 0,
                    )
                    for event in events
                ]
            )
        ends = (week + 2) * ID_SECONDS
        limits = (self._most_events, MOST_SEARCHES, self._profile_milliseconds, ends)
        return run(scripts.ADD, keys, _pack(batch), *limits)

    async def _settled(self, most_seconds: float | None = None) -> None:
        """Wait until what this store took is in counters and outbox, or cannot come there now."""
        if self._bringing_up is not None:
            self._is_asked_for.set()
            await asyncio.wait([self._bringing_up], timeout=most_seconds)

    async def _gathered(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                await self._is_asked_for.wait()

    async def _bring_up_touched(self) -> None:
        try:
            while self._touched:
                await self._gathered()
                parts, self._touched, self._behind = self._touched, set(), 0
                try:
                    await self._bring_up(parts)
                except (StoreError, asyncio.CancelledError):  # the events are in the journals, so they are not lost
                    self._touched |= parts
                    raise
        except StoreError as error:
            logger.warning("%s; counters and log take these events with the next ones", error)
        finally:
            self._bringing_up = None
            self._is_asked_for.clear()

    async def _bring_up(self, parts: Iterable[int]) -> None:
        """Take the journals of these parts to the counters of items and to the outbox, until they are empty."""
        waiting = list(parts)
        while waiting:
            read = [("LRANGE", _journal(part), 0, ENTRIES_TOGETHER - 1) for part in waiting]
            answers = await self._connection.ask_together(read)
            journals = {part: _read(rows) for part, rows in zip(waiting, answers, strict=True) if rows}
            together = 1 if self._connection.is_cluster else ITEMS_TOGETHER
            effects = [command for part, of in journals.items() for command in _effects(part, of, together)]
            await self._connection.ask_together(effects)
            trims = [run(scripts.TRIM, [_journal(part)], entries[-1][0]) for part, entries in journals.items()]
            await self._connection.ask_together(trims)
            waiting = [part for part, entries in journals.items() if len(entries) == ENTRIES_TOGETHER]

    async def profile(self, user_id: str) -> Profile:
        return read_profile(user_id, await self._connection.ask("GET", _key(user_id, "p")))

    async def item_counters(self, item_ids: Sequence[str]) -> list[dict[str, int]]:
        await self._settled()
        answers = await self._connection.ask_together([("HGETALL", f"tr:c:{item_id}") for item_id in item_ids])
        return [
            {name.decode(): int(count) for name, count in answer.items() if not name.startswith(b"@")}
            for answer in answers
        ]

    async def user_ids(self) -> list[str]:
        found = []
        for part in range(PARTS):
            prefix = f"tr:{{u{part}}}:p:".encode()
            found += [key[len(prefix) :].decode() for key in await self._connection.keys(prefix)]
        return found

    async def counted_items(self) -> list[str]:
        await self._bring_up(range(PARTS))
        return [key[len(_COUNTERS) :].decode() for key in await self._connection.keys(_COUNTERS)]

    # The outbox

    async def outbox(self, after: int, most: int) -> list[tuple[int, Event]]:
        await self._bring_up(range(PARTS))
        rows = await self._connection.ask("ZRANGEBYSCORE", _OUTBOX, f"({after}", "+inf", "LIMIT", 0, most)
        return [(int(number), _event.decode(event)) for number, _, event in (row.partition(b":") for row in rows)]

    async def outbox_done(self, through: int) -> None:
        await self._connection.ask(*run(scripts.DONE, [_OUTBOX, _OUTBOX_DONE], through))

    async def log_position(self) -> int:
        return int(await self._connection.ask("GET", _OUTBOX_DONE) or 0)

    async def _waiting(self, user_id: str) -> list[bytes]:
        """The rows of the outbox that are the user's."""
        await self._bring_up([_part_of(user_id)])
        rows: list[bytes] = []
        after = 0
        while page := await self._connection.ask(
            "ZRANGEBYSCORE", _OUTBOX, f"({after}", "+inf", "LIMIT", 0, SCANNED_TOGETHER
        ):
            rows += [row for row in page if _event.decode(row.partition(b":")[2]).user_id == user_id]
            after = int(page[-1].partition(b":")[0])
        return rows

    # Items

    async def change_items(self, changes: Sequence[ItemChange]) -> int:
        version = 0
        for start in range(0, max(len(changes), 1), SCANNED_TOGETHER):
            chosen = changes[start : start + SCANNED_TOGETHER]
            arguments = [text for change in chosen for text in (change.item_id, _to_json(change.fields))]
            command = run(scripts.CHANGE, [_VERSION, _VERSIONS, _FIELDS], *arguments)
            version = await self._connection.ask(*command)
        return version

    async def item_changes(self, since: int, most: int = 10_000) -> list[tuple[int, ItemChange]]:
        items = await self._connection.ask(
            "ZRANGEBYSCORE", _VERSIONS, f"({since}", "+inf", "WITHSCORES", "LIMIT", 0, most
        )
        if not items:
            return []
        ids, versions = items[::2], [int(version) for version in items[1::2]]
        rows = await self._connection.ask("HMGET", _FIELDS, *ids)
        changes = []
        for version, item_id, row in zip(versions, ids, rows, strict=True):
            changed, _, fields = row.partition(b":")
            changes.append((version, ItemChange(item_id.decode(), _fields.decode(fields), float(changed))))
        return changes

    # Small things with an end

    async def put(self, key: str, value: bytes, seconds: float, *, user_id: str = "") -> None:
        milliseconds = max(1, int(seconds * 1000))
        kept, owned = f"tr:k:{key}", _key(user_id, "k")
        if user_id and not self._connection.is_cluster:
            await self._connection.ask(*run(scripts.OWN_AND_KEEP, [owned, kept], key, milliseconds, value))
            return
        if user_id:  # before the value: an erasure finds it
            await self._connection.ask(*run(scripts.OWN, [owned], key, milliseconds))
        await self._connection.ask("SET", kept, value, "PX", milliseconds)

    async def put_new(self, key: str, value: bytes, seconds: float) -> bytes:
        milliseconds = max(1, int(seconds * 1000))
        kept: bytes = await self._connection.ask(*run(scripts.KEEP_NEW, [f"tr:k:{key}"], value, milliseconds))
        return kept

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._connection.ask("GET", f"tr:k:{key}")
        return value

    # Leases

    async def take_lease(self, name: str, owner: str, seconds: float) -> bool:
        taken = await self._connection.ask(*run(scripts.LEASE, [f"tr:l:{name}"], owner, max(1, int(seconds * 1000))))
        return bool(taken)

    async def give_lease(self, name: str, owner: str) -> None:
        await self._connection.ask(*run(scripts.GIVE, [f"tr:l:{name}"], owner))

    # Privacy

    async def export_user(self, user_id: str) -> dict[str, Any]:
        names = await self._connection.ask("ZRANGE", _key(user_id, "k"), 0, -1)
        values = await self._connection.ask_together([("GET", b"tr:k:" + name) for name in names])
        pages = {name.decode(): value for name, value in zip(names, values, strict=True) if value is not None}
        kept = await self._connection.ask("GET", _key(user_id, "p"))
        waiting = [_event.decode(row.partition(b":")[2]) for row in await self._waiting(user_id)]
        return export(user_id, kept, waiting, pages)

    async def erase_user(self, user_id: str) -> dict[str, int]:
        await self._connection.ask("HSET", _ERASED, user_id, repr(time.time()))  # first: what is left half, is known
        week = int(time.time() // ID_SECONDS)
        keys = [_key(user_id, kind) for kind in ("p", "k", f"i{week}", f"i{week - 1}")]
        profiles, ids, names = await self._connection.ask(*run(scripts.ERASE, keys))
        pages = sum(await self._connection.ask_together([("DEL", b"tr:k:" + name) for name in names]))
        rows = await self._waiting(user_id)
        waiting = sum(await self._connection.ask_together([("ZREM", _OUTBOX, row) for row in rows]))
        await self._connection.forget_old_bytes()
        return {"profiles": profiles, "waiting": waiting, "pages": pages, "ids": ids}

    async def erased_users(self) -> list[tuple[str, float]]:
        rows = await self._connection.ask("HGETALL", _ERASED)
        users = [(user_id.decode(), float(erased)) for user_id, erased in rows.items()]
        return sorted(users, key=lambda row: (row[1], row[0]))

    async def forget_erased(self, user_ids: Sequence[str]) -> None:
        if user_ids:
            await self._connection.ask("HDEL", _ERASED, *user_ids)
            await self._connection.forget_old_bytes()


def _read(rows: Iterable[bytes]) -> list[Entry]:
    entries = []
    for row in rows:
        number, _, packed = row.partition(b":")
        entries.append((int(number), *_entry.decode(packed)))
    return entries


def _effects(part: int, entries: Sequence[Entry], together: int) -> list[Command]:
    """What brings the counters of items and the outbox up to these entries of a part's journal.

    Args:
        part: which.
        entries: of its journal.
        together: items of one command; in a cluster each lies elsewhere.
    """
    counts: defaultdict[str, list[str | int]] = defaultdict(list)
    waiting: list[str | int] = []
    for number, rows, events in entries:
        for item_id, kind, count in rows:
            counts[item_id] += str(number), kind, count
        for event in events:
            waiting += number, event
    items = list(counts)
    commands = []
    for start in range(0, len(items), together):
        chosen = items[start : start + together]
        packed = _pack([counts[item_id] for item_id in chosen])
        commands.append(run(scripts.COUNT, [f"tr:c:{item_id}" for item_id in chosen], f"@{part}", packed))
    if waiting:
        commands.append(run(scripts.SEND, [_OUTBOX, _OUTBOX_NUMBER, _OUTBOX_SEEN], part, *waiting))
    return commands
