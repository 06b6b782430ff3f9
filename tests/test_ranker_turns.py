"""Lists that wait in turn for a ranker without room: who is asked when, and who is refused at once."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest
from tritonrank_client import Overloaded
from tritonrank_recommend.engine import ranker_turns
from tritonrank_recommend.engine.ranker import Scored
from tritonrank_recommend.engine.ranker_turns import RankerTurns

LONG = 60.0


class Room:
    """A ranker with room for so many; each is answered when the test says so."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[str] = []
        self.inside: dict[str, asyncio.Event] = {}

    def ask(self, turns: RankerTurns, name: str, seconds: float = LONG) -> "asyncio.Task[Scored]":
        async def once(_: float) -> Scored:
            self.asked.append(name)
            if len(self.inside) >= self.room:
                raise Overloaded("full", retryable=True)
            self.inside[name] = asyncio.Event()
            try:
                await self.inside[name].wait()
            finally:
                del self.inside[name]
            return Scored(np.zeros(1, np.float32), name)

        return asyncio.create_task(turns.ask(once, seconds), name=name)

    async def answer(self, name: str, task: "asyncio.Task[Scored]") -> None:
        self.inside[name].set()
        assert (await task).artifact == name


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_who_is_refused_waits_and_is_taken_in_the_order_of_coming() -> None:
    turns, room = RankerTurns(), Room(1)
    tasks = {"a": room.ask(turns, "a")}
    await until(lambda: "a" in room.inside)
    for place, name in enumerate("bcd", 1):
        tasks[name] = room.ask(turns, name)
        await until(lambda place=place: turns.waiting == place)  # type: ignore[misc]
    for name, following in ("ab", "bc", "cd"):
        assert set(room.inside) == {name}
        await room.answer(name, tasks[name])
        await until(lambda following=following: following in room.inside)  # type: ignore[misc]
    await room.answer("d", tasks["d"])
    assert turns.waiting == 0


async def test_who_comes_new_does_not_pass_those_who_wait() -> None:
    turns, room = RankerTurns(), Room(1)
    first = room.ask(turns, "a")
    await until(lambda: "a" in room.inside)
    second = room.ask(turns, "b")
    await until(lambda: turns.waiting == 1)
    third = room.ask(turns, "c")
    await until(lambda: turns.waiting == 2)
    assert "c" not in room.asked
    await room.answer("a", first)
    await until(lambda: "b" in room.inside)
    await room.answer("b", second)
    await until(lambda: "c" in room.inside)
    await room.answer("c", third)


async def test_a_line_takes_all_the_room_that_there_is() -> None:
    turns, room = RankerTurns(), Room(2)
    tasks = {name: room.ask(turns, name) for name in "abcd"}
    await until(lambda: turns.waiting == 2)
    await asyncio.gather(room.answer("a", tasks["a"]), room.answer("b", tasks["b"]))
    await until(lambda: set(room.inside) == {"c", "d"})
    await asyncio.gather(room.answer("c", tasks["c"]), room.answer("d", tasks["d"]))


async def test_the_line_is_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_turns, "MOST_WAITING", 2)
    turns, room = RankerTurns(), Room(0)
    waiting = [room.ask(turns, name) for name in "ab"]
    await until(lambda: turns.waiting == 2)
    with pytest.raises(Overloaded):
        await room.ask(turns, "c")
    assert "c" not in room.asked
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert turns.waiting == 0
    room.room = 1
    last = room.ask(turns, "d")
    await until(lambda: "d" in room.inside)
    await room.answer("d", last)


async def test_who_cannot_be_answered_in_time_is_refused_at_once() -> None:
    """One after the other, each takes 0.1 s: behind two of them nobody is answered within 0.15 s."""
    turns, room = RankerTurns(), Room(1)

    async def one(name: str) -> None:
        task = room.ask(turns, name)
        await until(lambda: name in room.inside)
        await asyncio.sleep(0.1)
        await room.answer(name, task)

    await asyncio.gather(*(one(name) for name in "abc"))  # now it is known how fast a line moves
    running = room.ask(turns, "d")
    await until(lambda: "d" in room.inside)
    waiting = room.ask(turns, "e")
    await until(lambda: turns.waiting == 1)
    with pytest.raises(Overloaded):
        await room.ask(turns, "f", 0.15)
    assert "f" not in room.asked
    assert turns.waiting == 1
    await room.answer("d", running)
    await until(lambda: "e" in room.inside)
    await room.answer("e", waiting)


async def test_nobody_waits_longer_than_there_is_time() -> None:
    turns, room = RankerTurns(), Room(0)
    began = time.monotonic()
    with pytest.raises(Overloaded):
        await room.ask(turns, "a", 0.3)
    assert 0.2 < time.monotonic() - began < 5
    assert turns.waiting == 0


async def test_what_is_refused_for_good_is_asked_once() -> None:
    asked = []

    async def refuse(_: float) -> Scored:
        asked.append(1)
        raise Overloaded("the day's candidates are used up")

    with pytest.raises(Overloaded):
        await RankerTurns().ask(refuse, LONG)
    assert asked == [1]


async def test_who_hangs_up_in_line_leaves_it_to_the_next() -> None:
    turns, room = RankerTurns(), Room(1)
    first = room.ask(turns, "a")
    await until(lambda: "a" in room.inside)
    gone, last = room.ask(turns, "b"), room.ask(turns, "c")
    await until(lambda: turns.waiting == 2)
    gone.cancel()
    await room.answer("a", first)
    await until(lambda: "c" in room.inside)
    await room.answer("c", last)
    assert turns.waiting == 0
