"""One night at a time: of all processes of this machine by a lock file, of all machines by a lease in the model store.

The lock ends with the process that holds it, the lease with it or, where it was killed on another machine, after a
quarter of an hour.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tritonrank.artifacts.locks import release, take
from tritonrank.artifacts.store.leases import LEARN, lease
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.errors import ArtifactError
from tritonrank.system.processes import is_alive, this_process


@contextmanager
def only_night(folder: Path, store: str | None) -> Iterator[None]:
    """Be the only one who learns, while the block runs.

    Args:
        folder: of the ledger.
        store: URL of the model store; None: there is none, and the lock on this machine is all.

    Raises:
        ArtifactError: another process learns here, or no lock can be made.
        ConflictError: another machine learns for the same store.
        StoreError: the store cannot be reached.
    """
    taken = take(folder, wait=False)
    if not taken:
        what = "another process learns here just now" if taken is False else "no lock can be made in this folder"
        raise ArtifactError(
            f"{folder}: {what}. One night at a time: see what it does, tritonrank learn RECIPE --show, and run the "
            "command again when it has ended"
        )
    try:
        if store is None:
            yield
            return
        objects = open_objects(store, make=True)
        with lease(objects, LEARN, holder=this_process(), is_gone=lambda holder: is_alive(holder) is False) as held:
            yield
            held.check()
    finally:
        release(folder)
