"""One table from the errors of lower libraries to ours.

A server's error comes as tritonclient's InferenceServerException with a gRPC status name or an HTTP status code, and
everything else as it was raised: OSError from sockets, http.client's errors, aiohttp's family. The
table reads top down: a phrase that Triton is known to use (Triton says "queue full", "expired in the queue" and
"model not ready" all with one status, UNAVAILABLE or 503), then the status, then the type of the exception.

Exceptions are listed by name so that the gRPC client need not import aiohttp. A test resolves every
name and fails when gRPC or aiohttp grows an entry that the table lacks.
"""

import os
from dataclasses import dataclass

from ._errors import DeadlineExceeded, InvalidRequest, Overloaded, RankError, ServerFault, Unavailable

LONGEST_DETAIL = 400  # characters quoted from a lower library; gRPC's connection reports run to kilobytes


PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a lower error means: our class, what happened, what to do, and whether to try again."""

    error: type[RankError]
    happened: str
    advice: str
    retryable: bool = False


INVALID = Verdict(InvalidRequest, "the server refused the request", "Mend the request before sending it again.")
OLDER = Verdict(
    InvalidRequest,
    "the server was assembled by a release that does not know what the call asks for",
    "Assemble its repository again (tritonrank assemble RECIPE), or leave out want=, max_item_tokens=, truncate_left=.",
)
TOO_LARGE = Verdict(InvalidRequest, "the request or its answer is too large", "Send fewer or shorter items at once.")
FORBIDDEN = Verdict(InvalidRequest, "the server refused the credentials", "Check headers= and tls=.")
QUEUE_FULL = Verdict(
    Overloaded, "the server is overloaded", "Send fewer requests at once, or give the model more instances.", True
)
EXPIRED = Verdict(
    DeadlineExceeded,
    "the request waited in the server's queue until its time ran out",
    "Send fewer requests at once, or allow a longer timeout=.",
)
DEADLINE = Verdict(DeadlineExceeded, "the deadline passed", "Send fewer items, or allow a longer timeout=.")
UNREACHABLE = Verdict(
    Unavailable, "no connection to the server", "Check the URL, and that the server runs and listens there.", True
)
LOST = Verdict(Unavailable, "the connection broke before the answer was complete", "Check the server's log.", True)
REFUSING = Verdict(
    Unavailable, "the server, or a proxy before it, takes no requests now", "Try again when it is ready.", True
)
UNTRUSTED = Verdict(
    Unavailable, "the TLS handshake failed", "Check tls=TLS(root_certificates=...) and the host name in the URL."
)
NOT_READY = Verdict(Unavailable, "the model is not ready", "Wait until it is loaded, or check the server's log.", True)
DEAD_PART = Verdict(
    Unavailable,
    "a process of the server has died",
    "tritonrank serve starts it again within seconds; another server has to be restarted.",
    True,
)
NOT_SERVED = Verdict(
    Unavailable, "the server does not serve this model or method", "Check model=, model_version= and the URL."
)
GARBLED = Verdict(
    ServerFault, "the answer cannot be read", "Check that this port speaks the protocol that the URL names."
)
REDIRECTED = Verdict(
    ServerFault,
    "the server sends callers to another address, which is not followed",
    "Put that address into the URL if texts and keys may go there.",
)
MISMATCHED = Verdict(
    ServerFault,
    "the answer belongs to another request",
    "The connection was dropped. Check what stands between client and server, such as a proxy.",
    True,
)
ANSWER_TOO_LARGE = Verdict(
    ServerFault, "the answer is larger than allowed", "Check the server, or allow more: largest_answer_bytes=."
)
PACKED = Verdict(
    ServerFault,
    "the answer is damaged, or compressed, which was not asked for",
    "Check the server, or the proxy before it.",
)
FAULT = Verdict(ServerFault, "the server failed", "Check the server's log.")
CANCELLED = Verdict(
    ServerFault, "the call was cancelled, though not by its caller", "Check whether the client or server was closed."
)

GRPC_STATUS: dict[str, Verdict] = {
    "CANCELLED": CANCELLED,
    "UNKNOWN": FAULT,
    "INVALID_ARGUMENT": INVALID,
    "DEADLINE_EXCEEDED": DEADLINE,
    "NOT_FOUND": NOT_SERVED,
    "ALREADY_EXISTS": FAULT,
    "PERMISSION_DENIED": FORBIDDEN,
    "UNAUTHENTICATED": FORBIDDEN,
    "RESOURCE_EXHAUSTED": QUEUE_FULL,
    "FAILED_PRECONDITION": FAULT,
    "ABORTED": FAULT,
    "UNIMPLEMENTED": NOT_SERVED,
    "INTERNAL": FAULT,
    "UNAVAILABLE": LOST,
    "OUT_OF_RANGE": INVALID,
    "DATA_LOSS": FAULT,
}

HTTP_STATUS: dict[int, Verdict] = {
    400: INVALID,
    401: FORBIDDEN,
    403: FORBIDDEN,
    404: NOT_SERVED,
    405: NOT_SERVED,
    408: DEADLINE,
    413: TOO_LARGE,
    429: QUEUE_FULL,
    500: FAULT,
    501: NOT_SERVED,
    502: REFUSING,
    503: REFUSING,
    504: DEADLINE,
}

# A phrase counts only with these statuses: an INVALID_ARGUMENT may quote the caller's own text.
BUSY = ("UNAVAILABLE", "503")
# A process of the server, or the folder it works in, is gone; each until the server is started again.
FAILED = ("INTERNAL", "500")
PHRASES: tuple[tuple[str, tuple[str, ...], Verdict], ...] = (
    ("Exceeds maximum queue size", BUSY, QUEUE_FULL),
    ("Request timeout expired", BUSY, EXPIRED),
    ("is not at ready state", BUSY, NOT_READY),
    ("has no available versions", (*BUSY, "NOT_FOUND", "404", "INVALID_ARGUMENT", "400"), NOT_READY),
    ("Request for unknown model", (*BUSY, "NOT_FOUND", "404", "INVALID_ARGUMENT", "400"), NOT_SERVED),
    ("stopped accepting new inference requests", BUSY, REFUSING),
    ("Stub process", FAILED, DEAD_PART),  # ... 'score_0_0' is not healthy; ... is unhealthy and will be restarted
    ("tritonrank-queue", FAILED, DEAD_PART),
    ("lock_exception", FAILED, DEAD_PART),
    ("shared memory", FAILED, DEAD_PART),  # Failed to open/initialize/find the ... region
    ("unexpected inference output '", ("INVALID_ARGUMENT", "400"), OLDER),
    ("unexpected inference input '", ("INVALID_ARGUMENT", "400"), OLDER),
    ("item_id: not in the catalogue", ("404",), INVALID),
    ("CERTIFICATE_VERIFY_FAILED", ("UNAVAILABLE",), UNTRUSTED),
    ("handshake failed", ("UNAVAILABLE",), UNTRUSTED),
    ("Failed parsing HTTP/2", ("UNAVAILABLE",), GARBLED),
    ("failed to connect", ("UNAVAILABLE",), UNREACHABLE),
    ("connections to all backends failing", ("UNAVAILABLE",), UNREACHABLE),
    ("errors resolving", ("UNAVAILABLE",), UNREACHABLE),
    ("DNS resolution failed", ("UNAVAILABLE",), UNREACHABLE),
    ("CLIENT: Received message larger than max", ("RESOURCE_EXHAUSTED",), ANSWER_TOO_LARGE),
    ("larger than max", ("RESOURCE_EXHAUSTED",), TOO_LARGE),
    ("Exception deserializing response", ("INTERNAL",), PACKED),
    ("Received http2 header with status: 3", ("UNKNOWN", "UNAVAILABLE"), REDIRECTED),
)

# Looked up along the exception's method resolution order, so the nearest listed ancestor decides.
EXCEPTIONS: dict[str, Verdict] = {
    "aiohttp.client_exceptions.ClientConnectorError": UNREACHABLE,
    "aiohttp.client_exceptions.ClientConnectorCertificateError": UNTRUSTED,
    "aiohttp.client_exceptions.ClientConnectorSSLError": UNTRUSTED,
    "aiohttp.client_exceptions.ClientSSLError": UNTRUSTED,
    "aiohttp.client_exceptions.ServerFingerprintMismatch": UNTRUSTED,
    "aiohttp.client_exceptions.ServerTimeoutError": DEADLINE,
    "aiohttp.client_exceptions.ClientConnectionError": LOST,  # also ServerDisconnectedError, ClientOSError
    "aiohttp.client_exceptions.ClientPayloadError": LOST,
    "aiohttp.client_exceptions.ClientError": GARBLED,  # ClientResponseError, InvalidURL, TooManyRedirects ...
    "tritonrank_client._http.PackedAnswerError": PACKED,
    "tritonrank_client._http_connection.AnswerTooLargeError": ANSWER_TOO_LARGE,
    "tritonrank_client._wire.ForeignAnswerError": MISMATCHED,
    "builtins.ConnectionRefusedError": UNREACHABLE,
    "builtins.ConnectionError": LOST,  # reset, aborted, broken pipe
    "builtins.TimeoutError": DEADLINE,  # also socket.timeout and asyncio.TimeoutError
    "builtins.OSError": UNREACHABLE,  # no route to host, network unreachable
    "http.client.HTTPException": GARBLED,
    "http.client.IncompleteRead": LOST,
    "socket.gaierror": UNREACHABLE,
    "ssl.SSLEOFError": LOST,  # the other side hung up
    "ssl.SSLError": UNTRUSTED,
    "ssl.SSLZeroReturnError": LOST,
}


def translate(error: BaseException, *, url: str, model: str) -> RankError:
    """The RankError for any error of a call; a RankError is returned as it is.

    An error that the table does not know becomes a ServerFault that names its type: what reaches this place was
    raised by a library while it sent a checked request or read an answer.
    """
    if isinstance(error, RankError):
        return error
    verdict, detail = _judge(error)
    detail = " ".join(detail.split())
    if len(detail) > LONGEST_DETAIL:
        detail = detail[:LONGEST_DETAIL] + " ..."
    quoted = f" ({detail})" if detail else ""
    message = f"{url}, model {model!r}: {verdict.happened}{quoted}. {verdict.advice}{_proxy_note(verdict)}"
    return verdict.error(message, retryable=verdict.retryable)


def _proxy_note(verdict: Verdict) -> str:
    """A word about the proxy in the environment, for a connection that would perhaps need it."""
    names = [name for name in os.environ if name.lower() in PROXY_VARIABLES and os.environ[name]]
    if verdict is not UNREACHABLE or not names:
        return ""
    return f" The proxy in {', '.join(sorted(names))} is not used: clients connect directly."


def _judge(error: BaseException) -> tuple[Verdict, str]:
    status_of = getattr(error, "status", None)
    if callable(status_of) and status_of() is not None:  # an InferenceServerException with a server's status
        status = str(status_of()).removeprefix("StatusCode.")
        detail = str(error.message()) if hasattr(error, "message") else str(error)
        return _judge_status(status, detail), f"{status}: {detail}"
    detail = str(error)
    for ancestor in type(error).__mro__:
        verdict = EXCEPTIONS.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
        if verdict is not None:
            return verdict, detail
    return GARBLED, f"{type(error).__name__}: {error}"


def _judge_status(status: str, detail: str) -> Verdict:
    for phrase, statuses, verdict in PHRASES:
        if status in statuses and phrase in detail:
            return verdict
    if not status.isdigit():
        return GRPC_STATUS.get(status, FAULT)
    code = int(status)
    if code in HTTP_STATUS:
        return HTTP_STATUS[code]
    if 300 <= code < 400:
        return REDIRECTED
    return INVALID if 400 <= code < 500 else FAULT if code >= 500 else GARBLED
