"""Who is writing to a store just now, so that garbage collection never removes what somebody is about to use.

Pushing and collecting exclude each other: whoever begins puts an object into ``leases/``, looks whether one of the
other kind is there, and if so steps back. As each writes before it looks, of two that begin at the same moment at least
one sees the other. A lease is written again every minute; one that was not for a quarter of an hour is that of a
process that was killed, and counts for nothing. All times are the store's own, so clocks of machines do not matter.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from tritonrank.artifacts.store.faults import ConflictError, MissingObjectError
from tritonrank.artifacts.store.objects import Found, Objects
from tritonrank.errors import StoreError

LEASES = "leases"
PUSH, COLLECT = "push", "collect"
OTHER = {PUSH: COLLECT, COLLECT: PUSH}
RENEW_SECONDS = 60.0
STALE = timedelta(minutes=15)
POLL_SECONDS = 0.5


class Lease:
    """A right to write, renewed by a thread of its own."""

    def __init__(self, objects: Objects, kind: str) -> None:
        self._objects = objects
        self._kind = kind
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
        """Leases of the other kind whose writers live."""
        now = self.now()
        found = [one for one in self._objects.below(LEASES) if one.name.startswith(f"{LEASES}/{OTHER[self._kind]}-")]
        return [one for one in found if now - one.modified < STALE]

    def check(self) -> None:
        """Raise StoreError where the lease could not be renewed, so that others may believe its writer gone."""
        if self._lost is not None:
            raise self._lost

    def _write(self) -> None:
        self._objects.write(self._name, b"{}\n")

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
def lease(objects: Objects, kind: str, wait_seconds: float = 0.0) -> Iterator[Lease]:
    """Hold a lease of a kind while the block runs.

    Args:
        objects: of the store.
        kind: PUSH or COLLECT; many may push at a time, and many may collect.
        wait_seconds: for the other kind to end.

    Raises:
        ConflictError: the other kind was still at work.
    """
    held = Lease(objects, kind)
    waited = 0.0
    thread = threading.Thread(target=held._renew, name="lease", daemon=True)
    try:
        held._write()
        while there := held.others():
            if kind == COLLECT:
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
