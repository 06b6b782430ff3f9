"""A server that runs: what can be asked of it, and how a program stays with it until it is told to end."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

POLL_SECONDS = 0.1


class RunningServer(Protocol):
    """What can be asked of a server that runs, whether somebody watches over it or not."""

    @property
    def http_url(self) -> str: ...

    @property
    def grpc_url(self) -> str: ...

    @property
    def metrics_url(self) -> str: ...

    def check(self) -> None:
        """Raise ServerError when it is gone for good."""
        ...

    def stop(self) -> None:
        """Stop it and remove all traces of it; may be repeated."""
        ...


def run_until_signalled(
    server: RunningServer, drain_seconds: float = 0.0, unready: Callable[[], None] = lambda: None
) -> None:
    """Wait for SIGINT (Ctrl-C) or SIGTERM, then stop the server. Call it from the main thread.

    Args:
        drain_seconds: that it serves on after the signal, while balancers find out; a second signal makes an end of it.
        unready: says so at the beginning of that time.

    Raises:
        ServerError: the server is gone for good.
    """
    signalled = threading.Event()
    previous = {number: signal.signal(number, lambda *_: signalled.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not signalled.wait(POLL_SECONDS):
            server.check()
        if drain_seconds:
            unready()
            signalled.clear()
            ends = time.monotonic() + drain_seconds
            while time.monotonic() < ends and not signalled.wait(POLL_SECONDS):
                server.check()
    finally:
        # Before stopping, so that a second Ctrl-C need not wait for slow requests; the keeper finishes the work.
        for number, handler in previous.items():
            signal.signal(number, handler)
        server.stop()


def end_when_terminated() -> None:
    """From now on SIGTERM ends this program in order, while models load too. Call it from the main thread.

    The first process of a container has no default action for it: without this ``docker stop`` would wait in vain.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
