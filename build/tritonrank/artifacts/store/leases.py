"""Who is writing to a store just now, so that garbage collection never removes what somebody is about to use, and so
that one night of learning at a time goes on (``learn/lock.py``).

Pushing and collecting exclude each other, and learning itself: whoever begins puts an object into ``leases/``, looks
whether one of the other kind is there, and if so steps back. As each writes before it looks, of two that begin at the
same moment at least one sees the other. A lease is written again every minute; one that was not for a quarter of an
hour is that of a process that was killed, and counts for nothing. All times are the store's own, so clocks of machines
do not matter.
"""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from tritonrank.artifacts.store.faults import ConflictError, MissingObjectError
from tritonrank.artifacts.store.objects import Found, Objects
from tritonrank.errors import StoreError

LEASES = "leases"
PUSH, COLLECT, LEARN = "push", "collect", "learn"
OTHER = {PUSH: COLLECT, COLLECT: PUSH, LEARN: LEARN}
"""Whom a kind excludes."""
MOST_BODY_BYTES = 4_096
RENEW_SECONDS = 60.0
STALE = timedelta(minutes=15)
POLL_SECONDS = 0.5


class Lease:
    """A right to write, renewed by a thread of its own.

    Args:
        objects: of the store.
        kind: PUSH, COLLECT or LEARN.
        holder: names who holds it, for others.
        is_gone: whether a holder is known to live no more; by default nobody is.
    """

    def __init__(
        self, objects: Objects, kind: str, holder: str = "", is_gone: Callable[[str], bool] = lambda holder: False
    ) -> None:
        self._objects = objects
        self._kind = kind
        self._body = json.dumps({"holder": holder} if holder else {}).encode() + b"\n"
        self._is_gone = is_gone
        self._name = f"{LEASES}/{kind}-{uuid.uuid4().hex}.json"
        self._ended = threading.Event()
        self._lost: StoreError | None = None

    def now(self) -> datetime:
        """The store's time when the lease was written last."""
        found = self._objects.find(self._name)
        if found is None:
            raise MissingObjectError(
                f"{self._objects.url}/{self._name}: somebody removed it while it was needed. Run the command again"
            )
        return found.modified

    def others(self) -> list[Found]:
        """Leases of whom this one excludes and whose writers live."""
        now = self.now()
        found = [one for one in self._objects.below(LEASES) if one.name.startswith(f"{LEASES}/{OTHER[self._kind]}-")]
        return [one for one in found if one.name != self._name and now - one.modified < STALE and self._lives(one)]

    def _lives(self, other: Found) -> bool:
        try:
            holder = json.loads(self._objects.read(other.name, 0, MOST_BODY_BYTES)).get("holder", "")
        except MissingObjectError:
            return False
        except (ValueError, AttributeError):
            return True
        return not (holder and self._is_gone(str(holder)))

    def check(self) -> None:
        """Raise StoreError where the lease could not be renewed, so that others may believe its writer gone."""
        if self._lost is not None:
            raise self._lost

    def _write(self) -> None:
        self._objects.write(self._name, self._body)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._write()
                self._lost = None
            except StoreError as error:
                self._lost = error

    def _remove(self) -> None:
        with suppress(StoreError):
            self._objects.remove(self._name)


@contextmanager
def lease(
    objects: Objects,
    kind: str,
    wait_seconds: float = 0.0,
    *,
    holder: str = "",
    is_gone: Callable[[str], bool] = lambda holder: False,
) -> Iterator[Lease]:
    """Hold a lease of a kind while the block runs.

    Args:
        objects: of the store.
        kind: PUSH, COLLECT or LEARN; many may push at a time, and many may collect; one learns.
        wait_seconds: for whom it excludes to end.
        holder, is_gone: see Lease.

    Raises:
        ConflictError: they were still at work.
    """
    held = Lease(objects, kind, holder, is_gone)
    waited = 0.0
    thread = threading.Thread(target=held._renew, name="lease", daemon=True)
    try:
        held._write()
        while there := held.others():
            if kind != PUSH:
                held._remove()  # who pushes waits for us as long as it is there
            if waited >= wait_seconds:
                since = min(one.modified for one in there)
                raise ConflictError(
                    f"{objects.url}: another process writes there ({OTHER[kind]}, last seen {since:%H:%M:%S} UTC). Run "
                    "the command again when it has ended; one that was killed counts for 15 minutes"
                )
            held._ended.wait(POLL_SECONDS)
            waited += POLL_SECONDS
            held._write()
        thread.start()
        yield held
    finally:
        held._ended.set()
        if thread.is_alive():
            thread.join()
        held._remove()
