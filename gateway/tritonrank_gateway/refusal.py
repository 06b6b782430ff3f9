"""Why a request was not answered: one error, which each dialect says in its own words and status codes."""

from typing import Literal, get_args

from tritonrank_client import DeadlineExceeded, InvalidRequest, Overloaded, RankError, Unavailable

Kind = Literal[
    "unreadable",
    "invalid",
    "empty",
    "too_large",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "overloaded",
    "deadline",
    "unavailable",
    "fault",
    "hung_up",
    "off",
    "not_found",
    "gone",
]

STATUS: dict[Kind, int] = {
    "unreadable": 400,
    "invalid": 422,
    "empty": 422,
    "too_large": 413,
    "unauthorized": 401,
    "forbidden": 403,
    "rate_limited": 429,
    "overloaded": 429,
    "deadline": 504,
    "unavailable": 503,
    "fault": 500,
    "hung_up": 499,
    "off": 404,
    "not_found": 404,
    "gone": 410,
}
OUTCOME: dict[Kind, str] = {
    **dict.fromkeys(get_args(Kind), "invalid"),
    "overloaded": "refused",
    "deadline": "expired",
    "unavailable": "failed",
    "fault": "failed",
    "hung_up": "hung_up",
}
"""As the metrics count it: whose fault it was, in a word."""
RETRY_SECONDS = 1
"""What `Retry-After` says at least: its unit is whole seconds."""


class Refusal(Exception):  # noqa: N818 - it says what happened
    """A request that is not answered.

    Attributes:
        kind: what is wrong; `STATUS` has the usual status code of each.
        retry_after: whole seconds, where the same request may be answered later.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        if retry_after is None and kind in ("rate_limited", "overloaded", "unavailable"):
            retry_after = RETRY_SECONDS
        self.retry_after = None if retry_after is None else max(RETRY_SECONDS, round(retry_after))


def refusal_of(error: RankError, queued_seconds: float) -> Refusal:
    """What a caller is told of a backend's error.

    Args:
        error: its message names addresses inside; only an invalid request is quoted.
        queued_seconds: estimated seconds of work that wait.
    """
    if isinstance(error, InvalidRequest):
        return Refusal("invalid", _words(error))
    if isinstance(error, Overloaded):
        return Refusal("overloaded", "the ranker is overloaded; the request was refused as a whole", queued_seconds)
    if isinstance(error, DeadlineExceeded):
        return Refusal("deadline", "the deadline passed before the ranking was done; send fewer or allow more time")
    if isinstance(error, Unavailable):
        return Refusal("unavailable", "no ranker can be reached now", queued_seconds)
    return Refusal("fault", "the ranker failed; its log has the details")


def _words(error: InvalidRequest) -> str:
    """The server's own words: `items[3]: ...`, from between the address and the advice around them."""
    text = str(error)
    begins = text.find("INVALID_ARGUMENT: ")
    if begins < 0:
        return text
    told = text[begins + len("INVALID_ARGUMENT: ") :].removesuffix(". Mend the request before sending it again.")
    return told.removesuffix(")").rpartition("] ")[2] if told.startswith("[request id") else told.removesuffix(")")
