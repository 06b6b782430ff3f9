"""Rankings that were asked for a moment ago, kept in memory.

The same list comes again: a page is reloaded, a second component asks for what the first has asked, a popular query
meets the same candidates. A ranking is a function of the artifact and of the exact texts and options, so an answer may
be given again as long as the artifact is the same one.

Which artifact is served is known from the answers alone. So when no answer has come for some seconds, the next request
goes to Triton although its answer is kept, and an answer by another artifact empties the cache: after a new model is
published, an old ranking is given for `recheck_seconds` at the most.

Equal requests at the same time are one request (single flight). Whoever hangs up leaves the others alone, and when all
have hung up the work is cancelled. Errors are not kept.
"""

import asyncio
import hashlib
import json
import sys
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tritonrank_client import DeadlineExceeded, ModelInfo

from tritonrank_gateway.ranking import Backend, Ranking, RankRequest

DEFAULT_RECHECK_SECONDS = 5.0
ENTRY_BYTES = 400
"""What Python's own objects around an entry take: its key, its place in the order, the entry itself."""
TOLD_BYTES = 300
"""What an item that could not be scored, or a field that does not fit, takes with its name."""
NOT_PART_OF_THE_KEY = frozenset({"deadline_s", "user", "side", "is_shown"})
"""Fields of a request that do not change its answer."""


@dataclass
class CacheCounts:
    """Since the gateway started."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    """requests that waited for an equal one and sent none"""
    emptied: int = 0
    """times that another artifact answered"""

    @property
    def hit_rate(self) -> float:
        """The share of requests that Triton did not see; 0 before the first."""
        all_requests = self.hits + self.misses + self.shared
        return (self.hits + self.shared) / all_requests if all_requests else 0.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A ranking in as few bytes as it takes."""

    indices: "array[int]"
    logits: "array[float]"
    context_tokens: int | None
    item_tokens: "array[int] | None"
    truncated: bytes | None
    unscored: Mapping[int, str] | None
    fields: Mapping[str, Mapping[str, int]] | None
    unknown_tokens: tuple[int, int] | None

    @classmethod
    def of(cls, ranking: Ranking) -> "_Entry":
        return cls(
            array("i", ranking.indices),
            array("d", ranking.logits),
            ranking.context_tokens,
            None if ranking.item_tokens is None else array("i", ranking.item_tokens),
            None if ranking.truncated is None else bytes(ranking.truncated),
            ranking.unscored,
            ranking.fields,
            ranking.unknown_tokens,
        )

    @property
    def size_bytes(self) -> int:
        parts = (self.indices, self.logits, self.item_tokens, self.truncated)
        told = len(self.unscored or ()) + sum(map(len, (self.fields or {}).values()))
        return ENTRY_BYTES + told * TOLD_BYTES + sum(sys.getsizeof(part) for part in parts if part is not None)

    def ranking(self, artifact: str) -> Ranking:
        return Ranking(
            indices=self.indices.tolist(),
            logits=self.logits.tolist(),
            artifact=artifact,
            context_tokens=self.context_tokens,
            item_tokens=None if self.item_tokens is None else self.item_tokens.tolist(),
            truncated=None if self.truncated is None else [bool(one) for one in self.truncated],
            unscored=self.unscored,
            fields=self.fields,
            is_cached=True,
            unknown_tokens=self.unknown_tokens,
        )


class _Flight:
    """One request on its way, and how many wait for it."""

    def __init__(self, key: bytes, task: "asyncio.Task[Ranking]") -> None:
        self.key = key
        self.task = task
        self.waiting = 0


class CachedBackend:
    """A `Backend` that keeps the answers of another.

    Args:
        backend: whose answers they are.
        most_bytes: of all that is kept; the least recently used goes first.
        recheck_seconds: without an answer, after which the artifact is asked for again.
        watch: told "hit", "miss", "shared" or "emptied" at once when it happens.
    """

    def __init__(
        self,
        backend: Backend,
        most_bytes: int,
        recheck_seconds: float = DEFAULT_RECHECK_SECONDS,
        watch: Callable[[str], None] = lambda event: None,
    ) -> None:
        if most_bytes < ENTRY_BYTES:
            raise ValueError(f"most_bytes: expected {ENTRY_BYTES} at least, got {most_bytes}; 0 is: no cache at all")
        self._backend = backend
        self._most_bytes = most_bytes
        self._recheck_seconds = recheck_seconds
        self._watch = watch
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        self._artifact = ""
        self._answered_at = float("-inf")
        self.bytes = 0
        self.counts = CacheCounts()

    def __len__(self) -> int:
        return len(self._entries)

    async def rank(self, request: RankRequest) -> Ranking:
        """The kept answer, the answer to an equal request on its way, or a new one.

        Raises:
            RankError: as the backend raised it; DeadlineExceeded when an equal request takes too long for this one.
        """
        key = request_key(request)
        if (entry := self._entries.get(key)) is not None and not self._is_recheck_due():
            self._entries.move_to_end(key)
            self._count("hit")
            return entry.ranking(self._artifact)
        if key in self._flights:
            return await self._share(key, request)
        self._count("miss")
        return await self._wait(self._start(key, request), request)

    async def info(self) -> ModelInfo:
        return await self._backend.info()

    async def ready(self) -> bool:
        return await self._backend.ready()

    async def close(self) -> None:
        """Close the backend, and forget everything."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
        self._empty()
        await self._backend.close()

    async def _share(self, key: bytes, request: RankRequest) -> Ranking:
        started = time.monotonic()
        self._count("shared")
        try:
            return await self._wait(self._flights[key], request)
        except DeadlineExceeded:
            # The other one's time may have run out, and not ours.
            if request.deadline_s is None or request.deadline_s <= time.monotonic() - started:
                raise
        return await self._backend.rank(request)

    def _start(self, key: bytes, request: RankRequest) -> _Flight:
        flight = self._flights[key] = _Flight(key, asyncio.ensure_future(self._ask(key, request)))
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight

    def _land(self, flight: _Flight) -> None:
        """Nobody can join it any more."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _wait(self, flight: _Flight, request: RankRequest) -> Ranking:
        flight.waiting += 1
        try:
            async with asyncio.timeout(request.deadline_s):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            raise DeadlineExceeded("no answer to this or an equal request in time; allow a longer deadline") from None
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._land(flight)
                flight.task.cancel()  # which changes nothing when it is done

    async def _ask(self, key: bytes, request: RankRequest) -> Ranking:
        ranking = await self._backend.rank(request)
        self._answered_at = time.monotonic()
        if ranking.artifact != self._artifact:
            if self._entries:
                self._count("emptied")
            self._empty()
            self._artifact = ranking.artifact
        self._keep(key, _Entry.of(ranking))
        return ranking

    def _keep(self, key: bytes, entry: _Entry) -> None:
        if entry.size_bytes > self._most_bytes:
            return
        if (older := self._entries.pop(key, None)) is not None:
            self.bytes -= older.size_bytes
        self._entries[key] = entry
        self.bytes += entry.size_bytes
        while self.bytes > self._most_bytes:
            self.bytes -= self._entries.popitem(last=False)[1].size_bytes

    def _empty(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _is_recheck_due(self) -> bool:
        return time.monotonic() - self._answered_at > self._recheck_seconds

    def _count(self, event: str) -> None:
        name = {"hit": "hits", "miss": "misses"}.get(event, event)
        setattr(self.counts, name, getattr(self.counts, name) + 1)
        self._watch(event)


def request_key(request: RankRequest) -> bytes:
    """What tells requests with different answers apart: 32 bytes of a cryptographic hash of all that is in them.

    The texts themselves would take more memory than the rankings. Two different requests with one hash would be the
    first collision of BLAKE2b that anybody has seen.
    """
    parts: dict[str, Any] = {
        one.name: getattr(request, one.name) for one in fields(request) if one.name not in NOT_PART_OF_THE_KEY
    }
    # Not sorted inside: a template may list the fields of an item in their order.
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"), default=sorted)
    return hashlib.blake2b(text.encode(), digest_size=32).digest()
