"""What can go wrong with a call, from the caller's point of view.

    RankError
    ├── InvalidRequest     the request is at fault: mend it, sending it again fails again
    ├── Overloaded         the server's queue is full; retried, then raised
    ├── DeadlineExceeded   the time allowed ran out, here or in the server's queue
    ├── Unavailable        no server, a broken connection, or a server that does not serve the model
    └── ServerFault        the server failed, or its answer breaks the contract

A message says what happened, to which server and model, and what to do next. Which error of a lower library
becomes which of these is decided by one table, in `_error_map.py`. A client set up wrongly (a URL without a
port, a negative number of attempts) is a plain ValueError, and one used after `close()` a RuntimeError: those are
mistakes in a program, not in a call.
"""

# ruff: noqa: N818 - the names say what happened, as those of httpx do; only the base is called an error


class RankError(Exception):
    """Base of everything a call to the server can raise.

    Attributes:
        attempts: requests sent for this call; 0 when the request was refused before it was sent.
        retryable: the same call may succeed later.
        exit_code: what the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.attempts = 0


class InvalidRequest(RankError):
    """The request is at fault; the message names the field where that is known."""

    exit_code = 2


class Overloaded(RankError):
    """The server has more work than it accepts; back off before trying again."""

    exit_code = 3


class DeadlineExceeded(RankError):
    """The call's time ran out before an answer came."""

    exit_code = 4


class Unavailable(RankError):
    """No server answers there, the connection broke, or the server does not serve the model."""

    exit_code = 3


class ServerFault(RankError):
    """The server failed, or sent an answer that breaks the contract."""
