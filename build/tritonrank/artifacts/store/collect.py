"""Remove what nobody needs from a store, and look whether all of it is as it was pushed.

A version stays while a tag leads to it, while it is one of the newest, and for a grace time after it was pushed. A part
stays while a version that stays needs it, and for the grace time after it was uploaded: an upload that was cut off is
gone on with, not begun anew. Nobody pushes meanwhile (``leases.py``).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from tritonrank.artifacts.store.faults import DamagedStoreError, MissingObjectError, UntrustedError
from tritonrank.artifacts.store.index import SHOWN, Index
from tritonrank.artifacts.store.leases import COLLECT, LEASES, STALE, lease
from tritonrank.artifacts.store.objects import Found, Objects
from tritonrank.artifacts.store.transfer import JOBS, Advance, Transfer
from tritonrank.artifacts.store.urls import TAG
from tritonrank.artifacts.store.versions import Part, Version

DRAFTS = "drafts"
"""Where file systems without atomic writes have what is not yet in its place."""
MOVES_KEPT = 100
"""Of each tag: what it led to before."""
BLOCK_BYTES = 8 << 20


@dataclass
class Collected:
    """What was removed, or would be."""

    versions: list[str] = field(default_factory=list)
    """digests"""
    parts: int = 0
    bytes: int = 0
    kept: int = 0
    """versions that stay"""


@dataclass
class Verified:
    """What a look at everything found."""

    versions: int = 0
    parts: int = 0
    bytes: int = 0
    faults: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """names of objects that are not what they are called"""


def collect(index: Index, *, keep: int, grace_days: float, only_look: bool = False) -> Collected:
    """Remove versions that are not needed, and parts that no version needs.

    Args:
        index: of the store, which trusts everybody: what others signed needs its parts as well.
        keep: so many of the newest versions stay.
        grace_days: what was pushed or uploaded within so many days stays.
        only_look: remove nothing.

    Raises:
        ConflictError: somebody pushes just now.
        DamagedStoreError: a version's description cannot be read, so that nobody knows which parts it needs; nothing
            was removed.
    """
    objects = index.objects
    if index.model() is None:
        raise MissingObjectError(f"{objects.url}: no store is there. Make one: tritonrank push ARTIFACTS {objects.url}")
    with lease(objects, COLLECT) as held:
        before = held.now() - timedelta(days=grace_days)
        listed = index.versions()
        newest = {one.digest for one in listed[len(listed) - keep :]}
        tagged = {index.move(found.name).version for found in index.tags().values()}
        gone = [one for one in listed if one.digest not in newest | tagged and one.pushed < before]
        staying = [one.digest for one in listed if one not in gone]
        needed = {name for digest in staying for name in index.version(digest).parts}
        parts = [one for one in objects.below("parts") if _hash_of(one) not in needed and one.modified < before]
        collected = Collected([one.digest for one in gone], len(parts), sum(one.size for one in parts), len(staying))
        if only_look:
            return collected
        held.check()
        removed = [found.name for one in gone for found in objects.below(f"versions/{one.digest}")]
        removed += [*_old_moves(objects), *_left_over(objects, held.now() - STALE)]
        # Descriptions first: whoever is cut off leaves parts that nobody needs, not versions without parts.
        _remove(objects, removed)
        held.check()
        _remove(objects, [one.name for one in parts])
    return collected


def verify(index: Index, *, remove: bool = False, advance: Advance = lambda count: None) -> Verified:
    """Look at every tag, version and part: signatures, hashes, sizes.

    Args:
        index: with the trust that is asked for.
        remove: parts that are not what they are called, so that a push uploads them again.
        advance: is told of bytes.
    """
    found, versions = Verified(), dict[str, Version]()
    for one in index.versions():
        found.versions += 1
        with _noted(found):
            versions[one.digest] = index.version(one.digest)
    for name in (tag for tag in index.tags() if TAG.fullmatch(tag)):
        with _noted(found):
            move = index.tagged(name)
            if move is not None and move.version not in {one.digest for one in index.versions()}:
                found.faults.append(f"tag {name}: leads to version {move.version[:SHOWN]}, which is not there")
    needed: dict[str, tuple[Part, str]] = {}
    for digest, version in versions.items():
        for file in version.files:
            for part in file.parts:
                needed.setdefault(part.sha256, (part, f"version {digest[:SHOWN]}, {file.path}"))
    transfer = Transfer(advance)
    tasks = [partial(_verify_part, index.objects, found, transfer, *one) for one in needed.values()]
    transfer.side_by_side(JOBS, tasks)
    if remove:
        _remove(index.objects, found.damaged)
    found.faults.sort()
    return found


def _verify_part(objects: Objects, found: Verified, transfer: Transfer, part: Part, where: str) -> None:
    digest, have = hashlib.sha256(), 0
    there = transfer.patient(partial(objects.find, part.name))
    if there is None:
        found.faults.append(f"{where}: {part.name} is missing")
        return
    if there.size == part.size:
        while have < part.size:
            data = transfer.patient(partial(objects.read, part.name, have, min(have + BLOCK_BYTES, part.size)))
            digest.update(data)
            have += len(data)
            transfer.advance(len(data))
            if not data:
                break
    found.parts += 1
    found.bytes += have
    if digest.hexdigest() != part.sha256:
        what = "sha256 differs" if there.size == part.size else f"{there.size:,} bytes in place of {part.size:,}"
        found.faults.append(f"{where}: {part.name} is damaged ({what})")
        found.damaged.append(part.name)


@contextmanager
def _noted(found: Verified) -> Iterator[None]:
    """Put what is wrong with a version or tag on the list, and go on."""
    try:
        yield
    except (DamagedStoreError, UntrustedError, MissingObjectError) as error:
        found.faults.append(str(error))


def _hash_of(part: Found) -> str:
    return part.name.rpartition("/")[2]


def _old_moves(objects: Objects) -> list[str]:
    moves: dict[str, list[str]] = {}
    for one in objects.below("tags"):
        moves.setdefault(one.name.rpartition("/")[0], []).append(one.name)
    return [name for names in moves.values() for name in sorted(names)[:-MOVES_KEPT]]


def _left_over(objects: Objects, before: datetime) -> list[str]:
    """Leases and drafts of processes that were killed."""
    return [one.name for folder in (LEASES, DRAFTS) for one in objects.below(folder) if one.modified < before]


def _remove(objects: Objects, names: list[str]) -> None:
    transfer = Transfer()
    removals: list[Callable[[], None]] = [
        partial(transfer.patient, partial(objects.remove, name)) for name in names if name
    ]
    transfer.side_by_side(JOBS, removals)
