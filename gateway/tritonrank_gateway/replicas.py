"""Several Tritons behind one gateway: who is asked, who is left out, and who is asked instead.

**Affinity.** A user goes to the same replica, because it has kept the keys and values of that user's context. Replicas
stand on a ring of hashes, and a request goes to the first one behind the hash of its user (of its context, where no
user is named), unless that one has more than its share to do: then to the next (consistent hashing with bounded loads,
Mirrokni et al. 2016, https://arxiv.org/abs/1608.01350). Load is counted in candidates, because one request may have a
thousand times the work of another.

**Health.** Every replica is asked the golden request again and again, and one that does not answer, or answers with
other scores than it should, is out. So is one whose connection breaks under a request. Whoever is out comes back by
itself with the first golden answer that is right; one that falls out again and again has to wait longer each time.
When all are out all are asked: a wrong verdict must not be worse than none.

**Members.** Where addresses are looked up (``discovery.py``), replicas join and leave while requests run. One that
joins has to answer a golden request before it is asked for anything else, unless nobody else is there. One that leaves
gets no new request, finishes those that it has, and is closed then. A request that comes before the first of them is
known waits for it, as it would for a single Triton that starts.

**Instead.** A request whose replica is gone, faulty or overloaded is sent once more, to another one, within its
deadline. With hedging on, a request that takes unusually long is sent to a second replica as well, and the first answer
counts; a budget keeps that from doubling the load of a slow fleet.
"""

import asyncio
import bisect
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tritonrank_client import (
    DeadlineExceeded,
    InvalidRequest,
    ModelInfo,
    Overloaded,
    RankError,
    ServerFault,
    Unavailable,
)

from tritonrank_gateway.discovery import Addresses
from tritonrank_gateway.golden import GoldenRequest, WrongAnswerError
from tritonrank_gateway.ranking import Backend, Ranking, RankRequest

POINTS_PER_REPLICA = 64
"""On the ring: shares of four replicas differ by a fifth or so, and the bound on the load evens out the rest."""
MOST_FAULTS = 3
"""One after the other, of a replica that can be reached, before it is out."""
LONGEST_HOLD_SECONDS = 30.0
"""That a replica which falls out again and again has to stay out."""
HEDGE_SHARE = 0.05
"""Of the requests that may be sent twice."""
HEDGE_BURST = 5.0
LEAVING_LOOK_SECONDS = 0.05
FIRST_SECONDS = 5.0
"""That the first replica is waited for, by a request without a deadline; and the first look at where any are."""
FIRST_LOOKS_SECONDS = 0.2
"""Between two looks while none is known: requests may be waiting for it."""


@dataclass(frozen=True)
class PoolSettings:
    """How replicas share the work.

    Attributes:
        load_bound: a replica takes at most this many times its even share of the candidates in flight.
        probe_seconds: between two golden requests to one replica.
        probe_timeout_seconds: that a golden answer may take.
        look_seconds: between two looks at where replicas are, where that may change.
        hedge_after_seconds: after this a request is sent to a second replica, too; 0 never does.
    """

    load_bound: float = 1.25
    probe_seconds: float = 1.0
    probe_timeout_seconds: float = 1.0
    look_seconds: float = 1.0
    hedge_after_seconds: float = 0.0


@dataclass
class ReplicaCounts:
    """What happened to one replica since the gateway started."""

    requests: int = 0
    failures: int = 0
    ejections: int = 0
    returns: int = 0


@dataclass
class Replica:
    """One Triton: its backend, what it has to do, and whether it is in rotation."""

    name: str
    backend: Backend
    load: int = 0
    is_up: bool = True
    reason: str = ""
    faults: int = 0
    held_until: float = 0.0
    last_ejected_at: float = float("-inf")
    hold_seconds: float = 0.0
    has_left: bool = False
    counts: ReplicaCounts = field(default_factory=ReplicaCounts)


class ReplicaPool:
    """A `Backend` over several; made inside the event loop that uses it, or before.

    Args:
        backends: by the name that logs and metrics show, such as host and port. They must not retry by themselves.
        golden: what each replica is asked to show that it is well.
        settings: see `PoolSettings`.
        watch: told of every change of a replica and of every retry and hedge, by the name of the event.
        following: where replicas are, and what makes the backend of an address; they join and leave as it says. None:
            they stay those that were given.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        golden: GoldenRequest,
        settings: PoolSettings | None = None,
        watch: Callable[[str, Replica], None] = lambda event, replica: None,
        following: tuple[Addresses, Callable[[str], Backend]] | None = None,
    ) -> None:
        if not backends and following is None:
            raise ValueError("backends: expected one replica at least")
        self._settings = settings or PoolSettings()
        self._golden = golden
        self._watch = watch
        self._following = following
        self._looked, self._known = asyncio.Event(), asyncio.Event()
        self._set(Replica(name, backend) for name, backend in backends.items())
        self._hedges = HEDGE_BURST
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[None]] = set()

    async def rank(self, request: RankRequest) -> Ranking:
        """The answer of one replica, or of another in its place.

        Raises:
            RankError: as the last replica raised it; a message about replicas names each that was asked.
        """
        self._start_probing()
        deadline = None if request.deadline_s is None else time.monotonic() + request.deadline_s
        await self._wait_for(self._known, request.deadline_s)
        asked: list[Replica] = []
        while True:
            replica = self._choose(request, asked)
            asked.append(replica)
            try:
                return await self._ask_hedged(replica, request, deadline, asked)
            except (Unavailable, Overloaded, ServerFault) as error:
                is_out_of_time = deadline is not None and time.monotonic() >= deadline
                if is_out_of_time or not self._may_ask_another(error, asked):
                    raise
                self._watch("retry", replica)

    async def info(self) -> ModelInfo:
        """What the first replica that answers says of its model."""
        self._start_probing()
        await self._wait_for(self._known, None)
        failure: RankError | None = None
        for replica in sorted(self.replicas, key=lambda one: not one.is_up):
            try:
                return await replica.backend.info()
            except RankError as error:
                failure = error
        raise failure or _nobody()

    async def ready(self) -> bool:
        """Whether a replica can serve."""
        self._start_probing()
        await self._wait_for(self._looked, None)
        answers = await asyncio.gather(*(_is_ready(replica.backend) for replica in self.replicas if replica.is_up))
        return any(answers)

    async def close(self) -> None:
        """Stop asking, and close all backends."""
        tasks, self._tasks = [*self._tasks, *self._leaving], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.backend.close() for replica in self.replicas))

    def join(self, name: str, backend: Backend) -> None:
        """One more replica; it is asked once a golden answer of it was right, at once where nobody else can be."""
        replica = Replica(name, backend, is_up=False, reason="it has just joined")
        self._set([*self.replicas, replica])
        self._watch("join", replica)
        task = asyncio.ensure_future(self.probe(replica))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def leave(self, name: str) -> None:
        """A replica gets no further request; it is closed when it has answered those that it has."""
        for replica in [one for one in self.replicas if one.name == name]:
            self._set(one for one in self.replicas if one is not replica)
            replica.has_left = True
            self._watch("leave", replica)
            task = asyncio.ensure_future(self._close_when_idle(replica))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _set(self, replicas: Iterable[Replica]) -> None:
        """These are the replicas from here on, and stand on the ring."""
        self.replicas = tuple(replicas)
        self._ring = sorted(
            (_place(f"{replica.name}#{point}"), number)
            for number, replica in enumerate(self.replicas)
            for point in range(POINTS_PER_REPLICA)
        )

    async def _close_when_idle(self, replica: Replica) -> None:
        try:
            await asyncio.sleep(self._settings.probe_timeout_seconds)  # a golden request may be under way
            while replica.load:
                await asyncio.sleep(LEAVING_LOOK_SECONDS)
        finally:
            await replica.backend.close()

    async def _wait_for(self, event: asyncio.Event, seconds: float | None) -> None:
        """Wait so long at most, where no replica is known and one may still be found."""
        if not self.replicas and self._following is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), FIRST_SECONDS if seconds is None else seconds)

    async def _follow_for_ever(self, addresses: Addresses, make: Callable[[str], Backend]) -> None:
        while True:
            found = await addresses.now()
            known = {replica.name for replica in self.replicas}
            for address in found:
                if address not in known:
                    self.join(address, make(address))
            for name in known.difference(found):
                self.leave(name)
            self._looked.set()
            if self.replicas:
                self._known.set()
            longest = self._settings.look_seconds
            await asyncio.sleep(longest if self.replicas else min(longest, FIRST_LOOKS_SECONDS))

    def _choose(self, request: RankRequest, asked: Sequence[Replica]) -> Replica:
        """The first on the ring behind the request's key that is up, was not asked yet, and has room."""
        candidates = [one for one in self.replicas if one.is_up and one not in asked]
        candidates = candidates or [one for one in self.replicas if one not in asked] or list(self.replicas)
        if not candidates:
            raise _nobody()
        work = max(1, len(request.items))
        bound = self._settings.load_bound * (sum(one.load for one in candidates) + work) / len(candidates)
        start = bisect.bisect(self._ring, (_place(routing_key(request)), -1))
        for step in range(len(self._ring)):
            replica = self.replicas[self._ring[(start + step) % len(self._ring)][1]]
            if replica in candidates and (not replica.load or replica.load + work <= bound):
                return replica
        return min(candidates, key=lambda one: one.load)

    def _may_ask_another(self, error: RankError, asked: Sequence[Replica]) -> bool:
        """Who cannot be reached did no work, so each other replica may be asked; for the rest there is one retry."""
        if all(one in asked for one in self.replicas):
            return False
        return isinstance(error, Unavailable) or len(asked) < 2

    async def _ask_hedged(
        self, replica: Replica, request: RankRequest, deadline: float | None, asked: list[Replica]
    ) -> Ranking:
        first = self._send(replica, request, deadline)
        self._hedges = min(HEDGE_BURST, self._hedges + HEDGE_SHARE)
        running = {first}
        try:
            if delay := self._settings.hedge_after_seconds:
                await asyncio.wait(running, timeout=delay)
                others = [one for one in self.replicas if one.is_up and one not in asked]
                if not first.done() and others and self._hedges >= 1:
                    self._hedges -= 1
                    second = self._choose(request, asked)
                    asked.append(second)
                    self._watch("hedge", second)
                    running.add(self._send(second, request, deadline))
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None or not running:
                        return task.result()
        finally:
            for task in {first, *running}:
                task.cancel()

    def _send(self, replica: Replica, request: RankRequest, deadline: float | None) -> "asyncio.Task[Ranking]":
        """Ask a replica; its load counts from now on, so that the next choice knows of it."""
        work = max(1, len(request.items))
        replica.load += work
        replica.counts.requests += 1

        def unload(_: object) -> None:
            replica.load -= work

        task = asyncio.ensure_future(self._ask(replica, request, deadline))
        task.add_done_callback(unload)
        return task

    async def _ask(self, replica: Replica, request: RankRequest, deadline: float | None) -> Ranking:
        if deadline is not None:
            request = replace(request, deadline_s=max(0.001, deadline - time.monotonic()))
        try:
            answer = await replica.backend.rank(request)
        except RankError as error:
            self._note_failure(replica, error)
            raise
        replica.faults = 0
        return answer

    def _note_failure(self, replica: Replica, error: RankError) -> None:
        if isinstance(error, InvalidRequest | Overloaded):  # says nothing against the replica
            return
        replica.counts.failures += 1
        replica.faults += 1
        if isinstance(error, Unavailable) or replica.faults >= MOST_FAULTS:
            self._eject(replica, str(error))

    def _eject(self, replica: Replica, reason: str) -> None:
        replica.reason = reason
        if not replica.is_up:
            return
        now = time.monotonic()
        is_again = now - replica.last_ejected_at < LONGEST_HOLD_SECONDS
        replica.hold_seconds = min(LONGEST_HOLD_SECONDS, max(0.25, replica.hold_seconds * 2)) if is_again else 0.0
        replica.last_ejected_at, replica.held_until = now, now + replica.hold_seconds
        replica.is_up = False
        replica.counts.ejections += 1
        self._watch("eject", replica)

    def _start_probing(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._probe_for_ever())]
            if self._following is not None:
                self._tasks.append(asyncio.create_task(self._follow_for_ever(*self._following)))

    async def _probe_for_ever(self) -> None:
        while True:
            await asyncio.gather(*map(self.probe, self.replicas))
            await asyncio.sleep(self._settings.probe_seconds)

    async def probe(self, replica: Replica) -> None:
        """Ask one replica the golden request, and put it out of rotation or back by what it answers."""
        try:
            async with asyncio.timeout(self._settings.probe_timeout_seconds):
                answer = await replica.backend.rank(self._golden.request(self._settings.probe_timeout_seconds))
            self._golden.check(answer)
        except Overloaded:
            return  # it answers, and has enough to do
        except (DeadlineExceeded, TimeoutError):
            # Late is what a replica may be under load; one that is out has to be in time.
            replica.faults += 1
            if replica.faults >= MOST_FAULTS:
                self._eject(replica, "golden requests are not answered in time")
        except (RankError, WrongAnswerError) as error:
            self._eject(replica, str(error))
        else:
            if not replica.is_up and time.monotonic() >= replica.held_until:
                replica.is_up, replica.reason, replica.faults = True, "", 0
                replica.counts.returns += 1
                self._watch("return", replica)


def routing_key(request: RankRequest) -> str:
    """What ties a request to a replica: its user or, where none is named, the context that it may have kept."""
    return user_key(request.user) if request.user else f"context:{request.query!r}{request.history!r}"


def user_key(user: str) -> str:
    """The routing key of whatever a user asks."""
    return f"user:{user}"


def _nobody() -> Unavailable:
    return Unavailable("no Triton is known; see what --triton names", retryable=True)


def _place(key: str) -> int:
    """On the ring, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())


async def _is_ready(backend: Backend) -> bool:
    try:
        return await backend.ready()
    except RankError:
        return False
