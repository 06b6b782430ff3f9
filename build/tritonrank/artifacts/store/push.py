"""Bring an artifact into a store: its parts, as far as they are not there, then its description, then its tags.

In this order: whoever reads a tag finds the version, and whoever reads a version finds its parts. What a cut leaves is
parts that the next push finds, or that garbage collection removes.
"""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tritonrank.artifacts import MANIFEST, read_manifest, verify_artifact
from tritonrank.artifacts.builds import (
    NEWEST,
    RECORD,
    REPOSITORY,
    RecordedBuild,
    find_build,
    recorded_builds,
    served_build,
)
from tritonrank.artifacts.store.faults import DamagedStoreError
from tritonrank.artifacts.store.index import Index, Move
from tritonrank.artifacts.store.leases import PUSH, STALE, lease
from tritonrank.artifacts.store.signing import Signer
from tritonrank.artifacts.store.transfer import JOBS, Advance, Transfer
from tritonrank.artifacts.store.urls import LATEST, check_tag
from tritonrank.artifacts.store.versions import PART_BYTES, File, Part, Version, read_version
from tritonrank.errors import ArtifactError

UPLOADS = 4
"""At a time, each with its part in memory."""


@dataclass
class Pushed:
    """What a push did."""

    version: Version
    bytes: int = 0
    """that went to the store"""
    moves: tuple[Move, ...] = ()
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    is_new: bool = True
    """whether the version was not there, signed by the same key"""


def artifact_of(named: Path, build: str | None = None) -> tuple[Path, str]:
    """What is to be pushed, and the model's name: of a recipe's folder the build that is served, else the newest.

    Args:
        named: ``artifacts/<recipe>``, a build, a repository, or any other artifact.
        build: of a recipe, the one to take.

    Raises:
        ArtifactError: it is none.
    """
    folder = named.resolve()
    if build is not None or (recorded_builds(folder) and not (folder / MANIFEST).is_file()):
        chosen = find_build(folder, build or (NEWEST if served_build(folder) is None else "served"))
        return chosen.folder, folder.name
    if (folder / REPOSITORY / MANIFEST).is_file() and not (folder / MANIFEST).is_file():
        return folder / REPOSITORY, folder.name
    manifest = read_manifest(folder)
    if manifest.stage == RECORD:
        return folder, str(manifest.settings.get("name") or folder.parents[1].name)
    return folder, folder.parent.name


def describe(
    folder: Path, model: str, advance: Advance = lambda count: None, *, part_bytes: int = PART_BYTES
) -> Version:
    """A version's description: every file hashed, and compared with the manifest's hashes.

    Args:
        folder: of the artifact.
        model: the store's name for it.
        advance: is told of bytes.
        part_bytes: of a part at most; another number makes another version of the same files.

    Raises:
        ArtifactError: the artifact is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.stage == RECORD:
        RecordedBuild(folder).verify()
    else:
        verify_artifact(folder)
    paths = [*manifest.files, MANIFEST]
    with ThreadPoolExecutor(JOBS, thread_name_prefix="hash") as pool:
        files = list(pool.map(partial(_described, folder, part_bytes, advance), sorted(paths)))
    changed = [file.path for file in files if manifest.files.get(file.path, file.sha256) != file.sha256]
    if changed:
        raise ArtifactError(f"{folder / changed[0]}: was changed just now. Build it again: tritonrank build RECIPE")
    version = Version(
        model=model,
        name=folder.name if manifest.stage == RECORD else manifest.artifact[:12],
        stage=manifest.stage,
        artifact=manifest.artifact,
        created=manifest.created,
        files=tuple(files),
        folders=tuple(sorted(manifest.empty_folders or [])),
    )
    try:
        return read_version(version.payload(), str(folder))  # nobody pushes what nobody would take
    except DamagedStoreError as error:
        raise ArtifactError(f"{folder}: cannot be kept in a store. {error}") from None


def push_version(
    index: Index,
    folder: Path,
    version: Version,
    *,
    tags: Sequence[str] = (LATEST,),
    signer: Signer | None = None,
    jobs: int = UPLOADS,
    advance: Advance = lambda count: None,
) -> Pushed:
    """Bring a version into a store, and let tags lead to it.

    Args:
        index: of the store; it is made where there is none.
        folder: of the artifact.
        version: what ``describe`` found there.
        tags: set in this order, when everything else is there.
        signer: signs the description and the moves of the tags.
        jobs: parts at a time.
        advance: is told of bytes.

    Raises:
        UnreachableStoreError: the store went away; run it again.
        ArtifactError: a file changed meanwhile; nothing was described.
    """
    for tag in tags:
        check_tag(tag)
    pushed = Pushed(version)
    index.claim(version.model)
    with lease(index.objects, PUSH, STALE.total_seconds()) as held:
        transfer, parts = Transfer(advance), _first_places(version)
        tasks = [partial(_send, index, folder, pushed, transfer, place) for place in parts.items()]
        transfer.side_by_side(jobs, tasks)
        held.check()
        pushed.is_new = transfer.patient(partial(index.add, version, signer))
        moves = [transfer.patient(partial(index.set_tag, version.model, tag, version.digest, signer)) for tag in tags]
    pushed.moves = tuple(moves)
    return pushed


def move_tag(index: Index, tag: str, digest: str, signer: Signer | None) -> Move:
    """Let a tag lead to a version that is there.

    Raises:
        MissingObjectError: it is not.
        UntrustedError: nobody who is trusted signed it.
    """
    with lease(index.objects, PUSH, STALE.total_seconds()):
        return index.set_tag(index.version(digest).model, tag, digest, signer)


def _first_places(version: Version) -> dict[Part, tuple[File, int]]:
    places: dict[Part, tuple[File, int]] = {}
    for file in version.files:
        for part, start in file.placed():
            places.setdefault(part, (file, start))
    return places


def _described(folder: Path, part_bytes: int, advance: Advance, path: str) -> File:
    whole, parts, size = hashlib.sha256(), [], 0
    with (folder / path).open("rb") as opened:
        while data := opened.read(part_bytes):
            parts.append(Part(hashlib.sha256(data).hexdigest(), len(data)))
            if len(parts) > 1 or len(data) == part_bytes:
                whole.update(data)
            size += len(data)
            advance(len(data))
    is_one = len(parts) == 1 and size < part_bytes
    return File(path, size, parts[0].sha256 if is_one else whole.hexdigest(), tuple(parts))


def _send(index: Index, folder: Path, pushed: Pushed, transfer: Transfer, place: tuple[Part, tuple[File, int]]) -> None:
    """Upload one part where the store has it not, or has another number of bytes of it."""
    part, (file, start) = place
    found = transfer.patient(partial(index.objects.find, part.name))
    if found is None or found.size != part.size:
        with (folder / file.path).open("rb") as opened:
            opened.seek(start)
            data = opened.read(part.size)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise ArtifactError(
                f"{folder / file.path}: was changed while it was pushed; nothing was published. Build it again: "
                "tritonrank build RECIPE"
            )
        transfer.patient(partial(index.objects.write, part.name, data))
        with pushed.lock:
            pushed.bytes += part.size
    transfer.advance(part.size)
