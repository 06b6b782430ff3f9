"""Backends for the gateway's tests that misbehave on purpose: slow, gone, overloaded, faulty, wrong."""

import asyncio
from collections.abc import Callable

from tritonrank_client import ModelInfo, RankError
from tritonrank_gateway.ranking import Ranking, RankRequest


class StandIn:
    """Ranks longer texts higher, at once, unless told otherwise.

    Attributes:
        asked: the requests that it got, in order.
        running: those that it works on.
        cancelled: those that were hung up on.
        failure: makes the error that it raises in place of an answer.
        delay: seconds that an answer takes.
        offset: added to the scores.
        artifact: whose scores they are.
    """

    def __init__(self, name: str = "stand-in") -> None:
        self.name = name
        self.asked: list[RankRequest] = []
        self.running = self.cancelled = 0
        self.failure: Callable[[], RankError] | None = None
        self.delay = 0.0
        self.offset = 0.0
        self.artifact = "a" * 16
        self.is_closed = False

    async def rank(self, request: RankRequest) -> Ranking:
        self.asked.append(request)
        self.running += 1
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.failure is not None:
                raise self.failure()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        order = sorted(range(len(request.items)), key=lambda place: -len(str(request.items[place])))
        return Ranking(
            indices=order,
            logits=[len(str(request.items[place])) / 100 + self.offset for place in order],
            artifact=self.artifact,
            context_tokens=3,
            item_tokens=[len(str(item)) for item in request.items],
            truncated=[False] * len(request.items),
        )

    async def info(self) -> ModelInfo:
        if self.failure is not None:
            raise self.failure()
        return ModelInfo(self.name, ("1",), "ensemble", (), (), {})

    async def ready(self) -> bool:
        return self.failure is None

    async def close(self) -> None:
        self.is_closed = True
