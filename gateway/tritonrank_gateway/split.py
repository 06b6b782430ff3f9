"""Large requests in parts that are ranked at the same time, on several replicas or instances of a scorer.

Scores do not depend on the cut, to the last bit: a server scores a large request in blocks of candidates, each by
itself, says how large they are (``block_candidates`` among the ensemble's parameters), and requests are cut where
blocks end. A server that does not say it (a joint ranker, an engine on a GPU, a release before this one) is sent whole
requests, as before.

A request is answered whole or not at all. When a part fails the others are cancelled, and its error is the request's.
Two failures are no reason to fail: a part that is refused as wrong (its message would name places within the part), and
parts that two artifacts have scored while one takes the other's place. Then the request is sent again, whole.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from tritonrank_client import InvalidRequest, ModelInfo, RankError

from tritonrank_gateway.model import KnownModel
from tritonrank_gateway.ranking import Backend, Ranking, RankRequest

BY_REPLICAS = -1
"""As the setting: a request is cut into as many parts as there are replicas."""
BLOCK_PARAMETER = "block_candidates"


class SplitBackend:
    """A `Backend` that cuts large requests for another.

    Args:
        backend: ranks the parts, several at once. A pool of replicas gives each to another one, as loads are bounded.
        most_candidates: of a part, rounded to whole blocks; BY_REPLICAS: as many parts as there are replicas.
        replicas: how many stand behind the backend now.
    """

    def __init__(self, backend: Backend, most_candidates: int, replicas: Callable[[], int]) -> None:
        self._backend = backend
        self._most_candidates = most_candidates
        self._replicas = replicas
        self._known = KnownModel(backend)

    async def rank(self, request: RankRequest) -> Ranking:
        """The ranking of the whole request, as if it had not been cut."""
        deadline = None if request.deadline_s is None else time.monotonic() + request.deadline_s
        starts = await self._starts(request)
        if len(starts) > 1:
            try:
                answers = await _all_or_none([self._backend.rank(part) for part in _parts(request, starts)])
            except InvalidRequest:
                answers = []
            if answers and len({answer.artifact for answer in answers}) == 1:
                return merged(request, starts, answers)
        if deadline is not None:
            request = replace(request, deadline_s=max(0.001, deadline - time.monotonic()))
        return await self._backend.rank(request)

    async def info(self) -> ModelInfo:
        return await self._backend.info()

    async def ready(self) -> bool:
        return await self._backend.ready()

    async def close(self) -> None:
        await self._backend.close()

    async def _starts(self, request: RankRequest) -> Sequence[int]:
        """Where the parts begin; one part is the whole."""
        candidates = len(request.items)
        # History is counted in every part, and the names are the most frequent ones of the whole.
        if "fields" in request.want or candidates <= max(self._most_candidates, 1):
            return (0,)
        try:
            async with asyncio.timeout(request.deadline_s):
                block = int((await self._known.get()).parameters.get(BLOCK_PARAMETER, 0))
        except (RankError, ValueError, TimeoutError):
            block = 0  # nobody knows the model now; who ranks will say why
        if not block or candidates <= block:
            return (0,)
        most = self._most_candidates
        if most == BY_REPLICAS:
            most = math.ceil(candidates / self._replicas())
        # Rounded up for the replicas, or one part more than there are of them would come out.
        blocks = math.ceil(most / block) if self._most_candidates == BY_REPLICAS else max(1, most // block)
        return range(0, candidates, blocks * block)


def _parts(request: RankRequest, starts: Sequence[int]) -> list[RankRequest]:
    ends = [*starts[1:], len(request.items)]
    return [
        replace(
            request,
            items=request.items[start:end],
            item_ids=None if request.item_ids is None else request.item_ids[start:end],
        )
        for start, end in zip(starts, ends, strict=True)
    ]


async def _all_or_none(calls: Sequence[Coroutine[Any, Any, Ranking]]) -> list[Ranking]:
    """The answers of all, or the first error; whatever still runs then is cancelled, and has ended."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def merged(request: RankRequest, starts: Sequence[int], answers: Sequence[Ranking]) -> Ranking:
    """The ranking of a request from those of its parts.

    The order is the server's: by score, equal ones as the request has them, of equal ``item_ids`` the best alone. A
    part that returned its ``top_k`` has left nothing out that belongs among the ``top_k`` of all.
    """
    places = [
        (-logit, start + index)
        for start, answer in zip(starts, answers, strict=True)
        for index, logit in zip(answer.indices, answer.logits, strict=True)
    ]
    best: list[tuple[float, int]] = []
    seen: set[str] = set()
    for place in sorted(places):
        if request.item_ids is not None:
            item_id = request.item_ids[place[1]]
            if item_id in seen:
                continue
            seen.add(item_id)
        best.append(place)
        if len(best) == request.top_k:
            break
    item_tokens, truncated, unscored = None, None, None
    if "item_tokens" in request.want:
        item_tokens = list(chain.from_iterable(answer.item_tokens or () for answer in answers))
    if "truncated" in request.want:
        truncated = list(chain.from_iterable(answer.truncated or () for answer in answers))
    if "unscored" in request.want:
        unscored = {
            start + index: reason
            for start, answer in zip(starts, answers, strict=True)
            for index, reason in (answer.unscored or {}).items()
        }
    return Ranking(
        indices=[index for _, index in best],
        logits=[-negated for negated, _ in best],
        artifact=answers[0].artifact,
        context_tokens=answers[0].context_tokens,
        item_tokens=item_tokens,
        truncated=truncated,
        unscored=unscored,
        unknown_tokens=_unknown_tokens([answer.unknown_tokens for answer in answers]),
    )


def _unknown_tokens(of_parts: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Of the context, which all parts have, and of the items of all parts."""
    known = [one for one in of_parts if one is not None]
    return (known[0][0], sum(of_items for _, of_items in known)) if len(known) == len(of_parts) else None
