"""What a client does when its process forks.

A forked child inherits every open socket and every lock as it was, but only the thread that forked. A connection
that both sides use gives one side the other's answers, and a lock that another thread held stays locked for ever. So
whoever owns connections or locks is kept here, is asked to hold still while the process forks, and starts afresh in
the child. What the child inherited is never closed there: closing a channel says goodbye on the parent's connection.
"""

import os
import threading
import time
import weakref
from typing import Any, Protocol

LONGEST_PAUSE_SECONDS = 0.5
"""How long a fork waits for calls in flight. gRPC's own state cannot be copied safely in the middle of a call."""


class ForkAware(Protocol):
    """Owns something that a fork must not copy as it is."""

    def before_fork(self, deadline: float) -> None:
        """Come to rest until `deadline` (time.monotonic()) at the latest."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget connections, renew locks."""


_lock = threading.Lock()
_members: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()
_resting: list[ForkAware] = []
_inherited: list[Any] = []


def watch_forks(member: ForkAware) -> None:
    """Tell `member` of every fork from here on, for as long as it lives."""
    with _lock:
        _members.add(member)


def keep_inherited(*things: Any) -> None:
    """Keep what belongs to the parent until the child ends, so that no destructor touches the shared sockets."""
    _inherited.extend(things)


def _before() -> None:
    _lock.acquire()
    deadline = time.monotonic() + LONGEST_PAUSE_SECONDS
    _resting.extend(_members)
    for member in _resting:
        member.before_fork(deadline)


def _after_in_parent() -> None:
    while _resting:
        _resting.pop().after_fork_in_parent()
    _lock.release()


def _after_in_child() -> None:
    while _resting:
        _resting.pop().after_fork_in_child()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
