"""The asyncio client: `RankClient` with `await`."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from ._base import ClientBase, new_request_id
from ._fork import keep_inherited
from ._recommend import Question, read_object
from ._recommend_calls import AsyncRecommendCalls, Reading
from ._results import Detail, Health, Item, ItemId, ModelInfo, RankResult
from ._retry import Call
from ._transports import AsyncTransport, open_async_transport
from ._wire import build_request, check_request_id, read_model_info

Answer = TypeVar("Answer")


class AsyncRankClient(ClientBase, AsyncRecommendCalls):
    """Asks one server for rankings, from one event loop; an async context manager.

    Takes the arguments of `RankClient`, and its methods do the same. May be made outside a loop; it belongs to
    the loop of its first call, and in a forked child to the loop of the first call there. Cancelling the task ends
    the waiting; over gRPC the server works on until the call's deadline.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    _transport: AsyncTransport | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _process = 0

    async def rank(
        self,
        *,
        items: Iterable[Item],
        query: str = "",
        history: Iterable[Item] = (),
        item_ids: Iterable[ItemId] | None = None,
        top_k: int = 0,
        timeout: float | None = None,
        request_id: str = "",
        want: Collection[Detail] = (),
        max_item_tokens: int = 0,
        truncate_left: bool = False,
        strict: bool = False,
        user: str = "",
    ) -> RankResult:
        """Rank items for a context: see `RankClient.rank`."""
        call = self._begin(timeout)
        request = build_request(
            query=query,
            history=history,
            items=items,
            item_ids=item_ids,
            top_k=top_k,
            request_id=request_id,
            want=want,
            max_item_tokens=max_item_tokens,
            truncate_left=truncate_left,
            strict=strict,
            user=user,
        )
        if not request.items:
            return self._empty_result(call, request)
        transport = self._open()
        inputs = transport.encode(request)
        answer = await self._attempt(
            call, lambda seconds: transport.infer(inputs, request.outputs, request_id or new_request_id(), seconds)
        )
        return self._result(call, answer, request)

    async def health(self, *, timeout: float | None = None) -> Health:
        """Whether server and model can serve: see `RankClient.health`."""
        call = self._begin(timeout)
        transport = self._open()
        answers: list[bool] = []
        for ask in (transport.server_live, transport.server_ready, transport.model_ready):
            try:
                answers.append(await ask(call.seconds_left))
            except Exception as error:  # noqa: BLE001 - see _attempt
                return self._health(answers, str(self._failure(error)))
            if not answers[-1]:
                break
        return self._health(answers)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """What the server says about the model: see `RankClient.model_info`."""
        call = self._begin(timeout)
        transport = self._open()

        async def ask(seconds: float) -> tuple[Any, Any]:
            return await transport.metadata(seconds), await transport.config(call.seconds_left)

        metadata, config = await self._attempt(call, ask)
        return self._read(call, lambda: read_model_info(metadata, config))

    async def close(self) -> None:
        """Close the connections. May be called again."""
        if not self._closed:
            self._closed = True
            if self._transport is not None and self._process == os.getpid():
                await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _load(self) -> None:
        """Open a folder now, while the loop goes on; of a URL nothing is opened before the first call."""
        if self._settings.is_folder:
            self._transport = await asyncio.to_thread(open_async_transport, self._settings)
            self._loop, self._process = asyncio.get_running_loop(), os.getpid()

    def _open(self) -> AsyncTransport:
        loop, process = asyncio.get_running_loop(), os.getpid()
        if self._loop is not None and self._process != process:
            if self._loop is loop:
                raise RuntimeError("this event loop was made before a fork; run a new one in the child: asyncio.run()")
            keep_inherited(self._transport, self._loop)
            self._transport = None
        if self._transport is None:
            try:
                self._transport = open_async_transport(self._settings)
            except Exception as error:
                raise self._failure(error) from error
            self._loop, self._process = loop, process
        elif self._loop is not loop:
            raise RuntimeError("an AsyncRankClient belongs to the event loop of its first call; make one per loop")
        return self._transport

    async def _ask(
        self, question: Question, read: Reading[Answer], timeout: float | None, request_id: str = ""
    ) -> Answer:
        call = self._begin(timeout)
        check_request_id(request_id)
        question = replace(question, tells_deadline=self._is_chosen(timeout))
        transport = self._open()
        body = await self._attempt(
            call, lambda seconds: transport.ask(question, request_id or new_request_id(), seconds), question.model
        )
        return self._read(call, lambda: read(read_object(body), call))

    async def _attempt(self, call: Call, send: Callable[[float], Awaitable[Answer]], model: str = "") -> Answer:
        while True:
            try:
                return await send(call.begin_attempt())
            # What the libraries raise is an open set: the table in _error_map sorts it and keeps the cause.
            except Exception as error:  # noqa: BLE001
                pause = call.pause_after(self._failure(error, model))
            await asyncio.sleep(pause)
