"""When a request expires: on this machine's monotonic clock, which all of its processes share."""

import time


def deadline_after(asked_microseconds: int, longest_microseconds: int) -> int:
    """When a request expires, on this machine's monotonic clock in microseconds, which all processes share.

    Args:
        asked_microseconds: the request's own timeout; 0 = none.
        longest_microseconds: the server's limit, which also holds where the request asks for more.
    """
    allowed = min(asked_microseconds or longest_microseconds, longest_microseconds)
    return time.monotonic_ns() // 1_000 + allowed


def seconds_left(deadline_microseconds: int) -> float:
    """Until the deadline; negative behind it."""
    return deadline_microseconds / 1e6 - time.monotonic()


def is_expired(deadline_microseconds: int) -> bool:
    """Whether the deadline has passed."""
    return time.monotonic_ns() // 1_000 > deadline_microseconds
