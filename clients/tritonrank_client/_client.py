"""The blocking client."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from ._base import ClientBase, new_request_id
from ._options import DEFAULT_LARGEST_ANSWER_BYTES, DEFAULT_MODEL, DEFAULT_TIMEOUT_SECONDS, TLS, KeepAlive, Retry
from ._recommend import Question, read_object
from ._recommend_calls import Reading, RecommendCalls
from ._results import Detail, Health, Item, ItemId, ModelInfo, RankResult
from ._retry import Call
from ._transports import open_transport
from ._wire import build_request, check_request_id, read_model_info

Answer = TypeVar("Answer")


class RankClient(ClientBase, RecommendCalls):
    """Asks one server for rankings. Safe for threads and for processes that fork; a context manager.

    Nothing is sent before the first call. Over gRPC all threads share one connection; over HTTP each thread has
    its own, kept alive between calls. A forked child opens connections of its own. Redirections are not followed,
    and the environment's proxies (`http_proxy` and the like) not used, over either protocol.

    Args:
        url: grpc://, grpcs://, http:// or https://, host and port: the scheme decides protocol and encryption.
            Without a port, http is 80, https and grpcs are 443. An HTTP URL may have a base path. Before the URL of a
            gateway stands gateway+; file:///FOLDER is an artifact on this machine, without a server (see `open`).
        model: the ensemble to ask.
        model_version: a version number as text; empty lets the server choose.
        timeout: seconds a call may take, retries included, unless the call says otherwise.
        headers: sent with every request, as HTTP headers or gRPC metadata.
        retry: when to send a request again.
        tls: certificates; None on an encrypted URL trusts the system's authorities.
        keep_alive: how dead gRPC connections are found.
        largest_answer_bytes: an answer of more bytes is a ServerFault.
        cancel_abandoned: over gRPC, cancel calls on the wire that nobody waits for, so that the server drops what it
            has not begun. Only for Triton 2.74 and later: the bundled 2.51 can end when short calls are cancelled.
        threads: of a folder: cores that one request takes; 0 is all that this process may use.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = DEFAULT_MODEL,
        model_version: str = "",
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        tls: TLS | None = None,
        keep_alive: KeepAlive | None = None,
        largest_answer_bytes: int = DEFAULT_LARGEST_ANSWER_BYTES,
        cancel_abandoned: bool = False,
        threads: int = 0,
    ) -> None:
        super().__init__(
            url,
            model=model,
            model_version=model_version,
            timeout=timeout,
            headers=headers,
            retry=retry,
            tls=tls,
            keep_alive=keep_alive,
            largest_answer_bytes=largest_answer_bytes,
            cancel_abandoned=cancel_abandoned,
            threads=threads,
        )
        self._transport = open_transport(self._settings)

    def rank(
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
        """Rank items for a context.

        Args:
            items: what to rank. A str is the text itself; a mapping is sent as a JSON object, which the server
                renders by its template. No items make an empty ranking, without asking the server.
            query: what the user searched for; may be empty.
            history: what the user saw before, newest last; as `items`.
            item_ids: one per item, text or whole numbers; the server keeps only the best of items with the same id.
            top_k: how many to return; 0 is all.
            timeout: seconds this call may take, retries included; None is the client's. The server is told, too:
                a request still in its queue when the time has run out is dropped there.
            request_id: printable text that shows up in the server's trace and log; by default one is made up. The
                answer must bear it.
            want: what to tell beside the ranking: "item_tokens", "truncated", "context_tokens", "unknown_tokens"
                (for text that the vocabulary does not have), "unscored" (which items could not be scored, and why),
                "fields" (whose fields do not fit the template). A server that was assembled by a release without
                them refuses the request.
            max_item_tokens: an item is cut to so many tokens, where the ranker's own budget is not less; 0 is that
                budget.
            truncate_left: an item that is too long keeps its end, and not its beginning.
            strict: refuse the request, with the item's place and the field, where an item or a history entry has
                nothing to score or lacks a field of the template. Without it such items come last, and the others are
                ranked. A server of a release without it refuses the request.
            user: who asks. A gateway sends requests of one user to the same replica, which has kept that user's
                context; it changes no answer, and a Triton or a folder has no use for it.

        Raises:
            InvalidRequest: an argument is wrong, or the server refused it.
            Overloaded: the server's queue is full, and stayed so for all attempts; or too many calls of this client
                whose time ran out are still unanswered.
            DeadlineExceeded: no answer in time.
            Unavailable: no connection, or the server does not serve the model. What may pass was tried again until
                the deadline.
            ServerFault: the server failed, or its answer breaks the contract.
            RuntimeError: the client is closed.
        """
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
        inputs = self._transport.encode(request)
        answer = self._attempt(
            call,
            lambda seconds: self._transport.infer(inputs, request.outputs, request_id or new_request_id(), seconds),
        )
        return self._result(call, answer, request)

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether server and model can serve. A server that does not answer is not live: the reason is told, and
        nothing is raised for it.

        Args:
            timeout: seconds for the three questions together; None is the client's.

        Raises:
            InvalidRequest: `timeout` is wrong.
            RuntimeError: the client is closed.
        """
        call = self._begin(timeout)
        answers: list[bool] = []
        for ask in (self._transport.server_live, self._transport.server_ready, self._transport.model_ready):
            try:
                answers.append(ask(call.seconds_left))
            except Exception as error:  # noqa: BLE001 - see _attempt
                return self._health(answers, str(self._failure(error)))
            if not answers[-1]:
                break
        return self._health(answers)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """What the server says about the model: versions, inputs, outputs, configuration. Retried like `rank`.

        Raises:
            InvalidRequest, DeadlineExceeded, Overloaded, Unavailable, ServerFault, RuntimeError: as for `rank`.
        """
        call = self._begin(timeout)
        metadata, config = self._attempt(
            call, lambda seconds: (self._transport.metadata(seconds), self._transport.config(call.seconds_left))
        )
        return self._read(call, lambda: read_model_info(metadata, config))

    def _is_triton(self) -> bool:
        """Whether a Triton answers at an HTTP URL; tried again like `rank` while nobody does."""
        return self._attempt(self._begin(None), self._transport.is_triton)

    def close(self) -> None:
        """Close the connections. May be called again. A call still running in another thread ends first."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: Question, read: Reading[Answer], timeout: float | None, request_id: str = "") -> Answer:
        call = self._begin(timeout)
        check_request_id(request_id)
        question = replace(question, tells_deadline=self._is_chosen(timeout))
        body = self._attempt(
            call,
            lambda seconds: self._transport.ask(question, request_id or new_request_id(), seconds),
            question.model,
        )
        return self._read(call, lambda: read(read_object(body), call))

    def _attempt(self, call: Call, send: Callable[[float], Answer], model: str = "") -> Answer:
        while True:
            try:
                return send(call.begin_attempt())
            # What the libraries raise is an open set: the table in _error_map sorts it and keeps the cause.
            except Exception as error:  # noqa: BLE001
                pause = call.pause_after(self._failure(error, model))
            time.sleep(pause)
