"""What the blocking and the asyncio client have in common: everything but the waiting."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, TypeVar

from ._error_map import translate
from ._errors import RankError
from ._options import (
    DEFAULT_LARGEST_ANSWER_BYTES,
    DEFAULT_MODEL,
    DEFAULT_TIMEOUT_SECONDS,
    TLS,
    KeepAlive,
    Retry,
    Settings,
)
from ._results import Health, RankResult
from ._retry import Call, RetryBudget, check_timeout
from ._wire import RankRequest, read_answer

Answer = TypeVar("Answer")

CLOSED = "the client is closed"


def new_request_id() -> str:
    """An id for one attempt whose caller gave none: no other request in any process has it."""
    return secrets.token_hex(8)


class ClientBase:
    """Settings, the retry budget, and the reading of answers and errors."""

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
        self._settings = Settings(
            url=url,
            model=model,
            model_version=model_version,
            timeout=timeout,
            headers=dict(headers or {}),
            retry=retry or Retry(),
            tls=tls,
            keep_alive=keep_alive or KeepAlive(),
            largest_answer_bytes=largest_answer_bytes,
            cancel_abandoned=cancel_abandoned,
            threads=threads,
        )
        self._budget = RetryBudget(self._settings.retry.budget_ratio, self._settings.retry.budget_burst)
        self._closed = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds connections and cannot be pickled or copied; "
            "pass its URL on and make a client there"
        )

    def _begin(self, timeout: float | None) -> Call:
        if self._closed:
            raise RuntimeError(CLOSED)
        return Call(self._settings.retry, self._budget, check_timeout(timeout, self._settings.timeout))

    def _empty_result(self, call: Call, request: RankRequest) -> RankResult:
        """The ranking of no items, which needs no server; nobody has counted the context's tokens."""
        item_tokens, truncated = (() if name in request.want else None for name in ("item_tokens", "truncated"))
        unscored: dict[int, str] | None = {} if "unscored" in request.want else None
        return RankResult((), "", call.seconds, call.attempts, item_tokens, truncated, unscored=unscored)

    def _result(self, call: Call, answer: object, request: RankRequest) -> RankResult:
        read = self._read(call, lambda: read_answer(answer, request))
        return RankResult(
            read.ranking,
            read.artifact,
            call.seconds,
            call.attempts,
            read.item_tokens,
            read.truncated,
            read.context_tokens,
            read.unscored,
            read.missing_fields,
            read.unknown_fields,
            read.unknown_tokens,
        )

    def _read(self, call: Call, read: Callable[[], Answer]) -> Answer:
        try:
            return read()
        except RankError as error:
            error.attempts = call.attempts
            error.args = (f"{self._settings.url}, model {self._settings.model!r}: {error}",)
            raise

    def _seconds(self, timeout: float | None) -> float:
        return check_timeout(timeout, self._settings.timeout)

    def _is_chosen(self, timeout: float | None) -> bool:
        """Whether somebody said how long a call may take, now or when the client was made."""
        return timeout is not None or self._settings.timeout != DEFAULT_TIMEOUT_SECONDS

    def _failure(self, error: Exception, model: str = "") -> RankError:
        """Our error for one that a library raised, with that one as its cause; `model` where another was asked."""
        if self._closed:
            raise RuntimeError("the client was closed during the call") from error
        failure = translate(error, url=self._settings.url, model=model or self._settings.model)
        if failure is not error:
            failure.__cause__ = error
        return failure

    def _health(self, answers: Iterable[bool], reason: str = "") -> Health:
        """Health from the answers got so far, in the order of the fields; without a reason, the last no is told."""
        live, ready, model_ready, *_ = (*answers, False, False, False)
        if not reason and not model_ready:
            model = self._settings.model
            what = f"model {model!r} is not ready" if ready else "it is not ready" if live else "it is not live"
            reason = f"{self._settings.url}: the server answers, but {what}. Check the server's log."
        return Health(live, ready, model_ready, reason)
