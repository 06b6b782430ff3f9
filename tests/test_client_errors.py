"""The table of errors knows all that its libraries can raise, and the retry policy stays within its bounds."""

import http.client
import importlib
import pickle
import socket
import ssl
from contextlib import suppress

import aiohttp
import aiohttp.client_exceptions
import grpc
import pytest
import tritonrank_client
from tritonclient.utils import InferenceServerException
from tritonrank_client import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankError,
    Retry,
    ServerFault,
    Unavailable,
    _error_map,
    _http_connection,
    _retry,
    _wire,
)
from tritonrank_client._retry import Call, RetryBudget


def translate(error: BaseException) -> RankError:
    return _error_map.translate(error, url="grpc://here:8001", model="rank")


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_grpc_status_is_listed() -> None:
    """Fails when gRPC grows a status: decide what it means, and list it."""
    assert set(_error_map.GRPC_STATUS) == {status.name for status in grpc.StatusCode} - {"OK"}


def test_every_aiohttp_client_error_is_listed_or_has_a_listed_ancestor() -> None:
    """Fails when aiohttp grows an error outside its families."""
    unlisted = []
    for name in aiohttp.client_exceptions.__all__:
        kind = getattr(aiohttp.client_exceptions, name)
        if not any(f"{base.__module__}.{base.__qualname__}" in _error_map.EXCEPTIONS for base in kind.__mro__):
            unlisted.append(name)
    assert [name for name in unlisted if not name.startswith("WS")] == []  # no WebSockets here


@pytest.mark.parametrize("name", _error_map.EXCEPTIONS)
def test_every_listed_exception_exists_under_that_name(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    assert issubclass(kind, BaseException)
    assert f"{kind.__module__}.{kind.__qualname__}" == name, "the lookup uses the name that the class itself bears"


@pytest.mark.parametrize(
    ("status", "message", "error", "retryable"),
    [
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", Overloaded, True),
        ("StatusCode.UNAVAILABLE", "Request timeout expired", DeadlineExceeded, False),
        ("StatusCode.UNAVAILABLE", "Socket closed", Unavailable, True),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses; Connection refused", Unavailable, True),
        ("StatusCode.UNAVAILABLE", "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", Unavailable, False),
        ("StatusCode.RESOURCE_EXHAUSTED", "too many", Overloaded, True),
        ("StatusCode.RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", InvalidRequest, False),
        ("StatusCode.RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 4)", ServerFault, False),
        ("StatusCode.INTERNAL", "Stub process 'tokenize_0_0' is not healthy.", Unavailable, True),
        ("500", "in ensemble 'rank', Stub process 'select_0_0' is not healthy.", Unavailable, True),
        ("500", "FileNotFoundError: No such file or directory: '/x/tritonrank-queue-7'", Unavailable, True),
        ("StatusCode.INTERNAL", "boost::interprocess::lock_exception", Unavailable, True),
        ("StatusCode.INTERNAL", "Failed to open the shared memory region", Unavailable, True),
        ("StatusCode.INVALID_ARGUMENT", "items[0]: Stub process 'a' is not healthy", InvalidRequest, False),
        ("StatusCode.UNAVAILABLE", "Stream removed (Socket closed)", Unavailable, True),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'rank' has no available versions", Unavailable, True),
        ("StatusCode.UNAUTHENTICATED", "who are you", InvalidRequest, False),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, False),
        ("StatusCode.INVALID_ARGUMENT", "Request timeout expired", InvalidRequest, False),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'rank' is not found", Unavailable, False),
        ("StatusCode.INVENTED_LATER", "?", ServerFault, False),
        ("400", "Request for unknown model: 'rank' is not found", Unavailable, False),
        ("404", "not found", Unavailable, False),
        ("418", "teapot", InvalidRequest, False),
        ("502", "bad gateway", Unavailable, True),
        ("503", "Exceeds maximum queue size", Overloaded, True),
        ("507", "disk full", ServerFault, False),
        ("302", "moved", ServerFault, False),
    ],
)
def test_statuses(status: str, message: str, error: type[RankError], retryable: bool) -> None:
    translated = translate(InferenceServerException(message, status=status))
    assert type(translated) is error
    assert translated.retryable is retryable
    assert message in str(translated)


@pytest.mark.parametrize(
    ("raised", "error", "retryable"),
    [
        (ConnectionRefusedError(111, "Connection refused"), Unavailable, True),
        (ConnectionResetError(104, "reset"), Unavailable, True),
        (BrokenPipeError(32, "pipe"), Unavailable, True),
        (socket.gaierror(-2, "Name or service not known"), Unavailable, True),
        (OSError(113, "No route to host"), Unavailable, True),
        (TimeoutError("timed out"), DeadlineExceeded, False),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), Unavailable, False),
        (http.client.RemoteDisconnected("hung up"), Unavailable, True),
        (http.client.IncompleteRead(b"{"), Unavailable, True),
        (http.client.BadStatusLine("SSH-2.0"), ServerFault, False),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Unavailable, True),
        (_wire.ForeignAnswerError("sent 'a', got 'b'"), ServerFault, True),
        (_http_connection.AnswerTooLargeError("more than 5 bytes came"), ServerFault, False),
        (aiohttp.ServerDisconnectedError(), Unavailable, True),
        (aiohttp.ServerTimeoutError("slow"), DeadlineExceeded, False),
        (aiohttp.ClientPayloadError("cut"), Unavailable, True),
        (InferenceServerException("raised by tritonclient itself"), ServerFault, False),
        (KeyError("outputs"), ServerFault, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_exceptions(raised: BaseException, error: type[RankError], retryable: bool) -> None:
    translated = translate(raised)
    assert type(translated) is error
    assert translated.retryable is retryable


def test_a_message_has_server_model_event_and_advice_and_stays_short() -> None:
    message = str(translate(InferenceServerException("x" * 5000 + "\n\n y", status="StatusCode.INTERNAL")))
    assert message.startswith("grpc://here:8001, model 'rank': the server failed (INTERNAL: xxx")
    assert message.endswith("Check the server's log.")
    assert len(message) < 600


def test_errors_form_one_tree_and_survive_pickling() -> None:
    kinds = [InvalidRequest, Overloaded, DeadlineExceeded, Unavailable, ServerFault]
    assert {kind.__base__ for kind in kinds} == {RankError}
    error = translate(ConnectionRefusedError("refused"))
    error.attempts = 3
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.attempts, copy.retryable) == (type(error), str(error), 3, True)


def test_public_names_bear_the_public_module() -> None:
    for name in tritonrank_client.__all__:
        assert getattr(getattr(tritonrank_client, name), "__module__", "tritonrank_client") == "tritonrank_client"


# --- retries ---------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the time module: `now` moves only when a test moves it."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_retry, "time", clock)
    return clock


def failing_call(retry: Retry, budget: RetryBudget, timeout: float, clock: Clock) -> list[float]:
    """The pauses of a call that fails at once every time."""
    call = Call(retry, budget, timeout)
    pauses: list[float] = []
    while True:
        call.begin_attempt()
        try:
            pauses.append(call.pause_after(Overloaded("full.", retryable=True)))
        except Overloaded:
            return pauses
        clock.now += pauses[-1]


def test_pauses_double_up_to_the_maximum(clock: Clock) -> None:
    retry = Retry(attempts=7, initial_seconds=0.1, max_seconds=1.0, jitter=0)
    pauses = failing_call(retry, RetryBudget(0, 100), 1000, clock)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_full_jitter_fills_the_whole_range(clock: Clock) -> None:
    retry = Retry(attempts=2, initial_seconds=1.0, max_seconds=1.0, jitter=1.0)
    pauses = [failing_call(retry, RetryBudget(0, 1), 1000, clock)[0] for _ in range(400)]
    assert all(0 <= pause <= 1 for pause in pauses)
    assert min(pauses) < 0.1
    assert max(pauses) > 0.9


def test_an_outage_is_ridden_out_until_the_deadline_and_costs_no_budget(clock: Clock) -> None:
    budget = RetryBudget(ratio=0, burst=1)
    call, started = Call(Retry(), budget, timeout=10), clock.now
    failure, pauses = Unavailable("gone.", retryable=True), []
    while "Gave up" not in str(failure):
        call.begin_attempt()
        with suppress(Unavailable):
            pauses.append(call.pause_after(failure))
            clock.now += pauses[-1]
    assert "no time left" in str(failure)
    assert all(0.01 <= pause <= 1 for pause in pauses), "a pause of nothing would ask as fast as it can"
    assert 9 <= clock.now - started < 10
    assert failure.attempts == len(pauses) + 1 >= 10
    assert budget.withdraw(), "an outage must leave the budget to overloads"


def test_an_overload_after_an_outage_is_given_its_own_attempts(clock: Clock) -> None:
    call = Call(Retry(), RetryBudget(0, 10), timeout=100)
    for _ in range(8):
        call.begin_attempt()
        clock.now += call.pause_after(Unavailable("gone.", retryable=True))
    for _ in range(2):
        call.begin_attempt()
        clock.now += call.pause_after(Overloaded("full.", retryable=True))
    call.begin_attempt()
    with pytest.raises(Overloaded, match="no attempts left"):
        call.pause_after(Overloaded("full.", retryable=True))


def test_attempts_that_are_named_hold_for_every_failure(clock: Clock) -> None:
    call = Call(Retry(attempts=2), RetryBudget(0, 10), timeout=100)
    call.begin_attempt()
    call.pause_after(Unavailable("gone.", retryable=True))
    call.begin_attempt()
    with pytest.raises(Unavailable, match="no attempts left"):
        call.pause_after(Unavailable("gone.", retryable=True))


def test_pauses_never_pass_the_deadline(clock: Clock) -> None:
    retry = Retry(attempts=1000, initial_seconds=0.3, max_seconds=0.3, jitter=0)
    started = clock.now
    pauses = failing_call(retry, RetryBudget(0, 1000), 1.0, clock)
    assert len(pauses) == 3
    assert clock.now - started < 1.0


def test_an_attempt_gets_what_is_left_and_never_nothing(clock: Clock) -> None:
    call = Call(Retry(), RetryBudget(0, 1), timeout=2.0)
    assert call.begin_attempt() == pytest.approx(2.0)
    clock.now += 1.5
    assert call.begin_attempt() == pytest.approx(0.5)
    clock.now += 9
    assert call.begin_attempt() > 0
    assert call.attempts == 3


def test_the_budget_allows_its_burst_and_then_its_ratio(clock: Clock) -> None:
    budget = RetryBudget(ratio=0.2, burst=5)
    retry = Retry(attempts=2, initial_seconds=0, max_seconds=0)
    retried = [len(failing_call(retry, budget, 10, clock)) for _ in range(105)]
    assert sum(retried[:5]) == 5
    assert 19 <= sum(retried[5:]) <= 21  # a fifth of 100


def test_an_error_that_is_not_retryable_ends_the_call_unchanged(clock: Clock) -> None:
    call = Call(Retry(attempts=9), RetryBudget(1, 9), timeout=9)
    call.begin_attempt()
    with pytest.raises(InvalidRequest) as caught:
        call.pause_after(InvalidRequest("wrong"))
    assert str(caught.value) == "wrong"
    assert caught.value.attempts == 1
