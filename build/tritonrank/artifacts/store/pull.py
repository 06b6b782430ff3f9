"""Bring a version from a store into a folder: only what is missing, and nothing that was not proved.

Each part is first written to a file of its own, as long as what arrived, so that a cut at any byte costs nothing that
was there; it is hashed before it takes its place. Parts that another version on this machine has are copied from there.
The folder appears by one rename, when every file was compared with the description.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from tritonrank.artifacts.manifest import sha256_file
from tritonrank.artifacts.store.faults import DamagedStoreError, MissingObjectError
from tritonrank.artifacts.store.objects import Objects
from tritonrank.artifacts.store.transfer import JOBS, Advance, Transfer
from tritonrank.artifacts.store.versions import File, Part, Version
from tritonrank.errors import StorageError, storage_error

BLOCK_BYTES = 8 << 20
TRIES = 2
"""Of a part that arrived damaged: the second time from its first byte."""
SPARE_BYTES = 64 << 20
"""Of the disk, that a pull leaves free."""
CONTENT, PARTS = "content", "parts"
HASH_SHOWN = 12

Local = tuple[Path, int]
"""A file of this machine, and the byte at which a part begins in it."""


@dataclass
class Pulled:
    """What a pull did."""

    folder: Path
    bytes: int = 0
    """that came from the store"""
    copied_bytes: int = 0
    """that other versions on this machine had"""
    kept_bytes: int = 0
    """that an earlier, interrupted pull had brought"""


def wanted_files(version: Version, ranks: Collection[int] | None = None) -> list[File]:
    """The files of a version; with ranks, of those that belong to one rank only these ranks'."""
    return [file for file in version.files if ranks is None or file.rank is None or file.rank in ranks]


def is_whole(folder: Path, files: Sequence[File]) -> bool:
    """Whether every file is there, and is what the description says."""
    try:
        return all(
            (folder / file.path).stat().st_size == file.size and sha256_file(folder / file.path) == file.sha256
            for file in files
        )
    except OSError:
        return False


def pull_version(
    objects: Objects,
    version: Version,
    folder: Path,
    draft: Path,
    *,
    ranks: Collection[int] | None = None,
    others: Callable[[], Iterator[tuple[Path, Version]]] = lambda: iter(()),
    jobs: int = JOBS,
    advance: Advance = lambda count: None,
) -> Pulled:
    """Make ``folder``, which is not there, from a version in a store.

    Args:
        objects: of the store.
        version: what to bring.
        folder: appears whole, by one rename.
        draft: a folder of the same file system for what is under way; it stays where the pull is cut off, and the next
            pull goes on from it. One process at a time may use it.
        ranks: of tensor parallel, whose shards are wanted; None: all.
        others: versions on this machine, by their folders, whose parts may be copied.
        jobs: parts at a time.
        advance: is told of bytes.

    Raises:
        UnreachableStoreError: the store went away; run it again.
        DamagedStoreError: a part is not what it has to be, by the name of its file.
        StorageError: no space, or no permission.
    """
    files = wanted_files(version, ranks)
    pulled = Pulled(folder)
    try:
        _Pull(objects, draft, files, pulled, Transfer(advance)).run(others, jobs)
        content = draft / CONTENT
        for name in version.folders:
            (content / name).mkdir(parents=True, exist_ok=True)
        several = [file for file in files if len(file.parts) != 1]
        if not is_whole(content, several):
            shutil.rmtree(draft, ignore_errors=True)
            raise StorageError(f"{draft}: what was written there is not what is read back. Look at the disk")
        folder.parent.mkdir(parents=True, exist_ok=True)
        content.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if (fault := storage_error(error, folder)) is not None:
            raise fault from error
        raise
    return pulled


class _Pull:
    def __init__(
        self, objects: Objects, draft: Path, files: Sequence[File], pulled: Pulled, transfer: Transfer
    ) -> None:
        self._objects, self._pulled, self._transfer = objects, pulled, transfer
        self._content, self._parts = draft / CONTENT, draft / PARTS
        self._files = files
        self._counts = threading.Lock()
        self._places: dict[Part, list[tuple[File, int]]] = {}
        for file in files:
            for part, start in file.placed():
                self._places.setdefault(part, []).append((file, start))

    def run(self, others: Callable[[], Iterator[tuple[Path, Version]]], jobs: int) -> None:
        self._parts.mkdir(parents=True, exist_ok=True)
        self._lay_out()
        missing = {part: places for part, places in self._places.items() if not self._is_there(part, places)}
        local = _local_parts(others(), set(missing)) if missing else {}
        self._require_space(missing)
        tasks = [partial(self._bring, part, places, local.get(part)) for part, places in missing.items()]
        self._transfer.side_by_side(jobs, tasks)

    def _lay_out(self) -> None:
        """Make the folders and files, and remove what an earlier pull left that is not wanted any more."""
        wanted = {self._content / file.path for file in self._files}
        self._content.mkdir(exist_ok=True)
        for path in sorted(self._content.rglob("*"), reverse=True):
            if path not in wanted and (path.is_symlink() or not path.is_dir()):
                path.unlink()
        for file in self._files:
            path = self._content / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if path.stat().st_size > file.size:
                os.truncate(path, file.size)

    def _is_there(self, part: Part, places: Sequence[tuple[File, int]]) -> bool:
        """Whether an earlier pull put a part into all its places."""
        is_there = all(_holds(self._content / file.path, start, part) for file, start in places)
        if is_there:
            self._count(kept=part.size)
            self._transfer.advance(part.size * (len(places) - 1))
        return is_there

    def _require_space(self, missing: dict[Part, list[tuple[File, int]]]) -> None:
        needed = sum(part.size * len(places) for part, places in missing.items()) + SPARE_BYTES
        free = shutil.disk_usage(self._content).free
        if needed > free:
            raise StorageError(
                f"{self._content.parent}: {needed / 1e6:,.0f} MB are needed there, {free / 1e6:,.0f} MB are free. "
                "Free some space, or pull elsewhere (TRITONRANK_CACHE says where versions are kept)"
            )

    def _bring(self, part: Part, places: Sequence[tuple[File, int]], local: Local | None) -> None:
        """Bring one part to all its places."""
        arrived = self._parts / part.sha256
        if local is not None and _copy(*local, part, arrived):
            self._count(copied=part.size)
        else:
            self._download(part, places, arrived)
        for file, start in places:
            _put(arrived, self._content / file.path, start)
        self._transfer.advance(part.size * (len(places) - 1))
        arrived.unlink()

    def _download(self, part: Part, places: Sequence[tuple[File, int]], arrived: Path) -> None:
        for _ in range(TRIES):
            with arrived.open("a+b", buffering=0) as out:
                arriving = _Arriving(self._objects, part, out, self._count)
                self._count(kept=arriving.take_up())
                while arriving.have < part.size:
                    before = arriving.have
                    try:
                        self._transfer.patient(arriving.next_block)
                    except MissingObjectError:
                        raise self._damaged(part, places, "is missing") from None
                    if arriving.have == before:
                        raise self._damaged(part, places, f"ends after {before:,} of {part.size:,} bytes")
            if arriving.digest.hexdigest() == part.sha256:
                return
            arrived.unlink()
            self._transfer.advance(-part.size)
        raise self._damaged(part, places, "is another one than was pushed (sha256 differs)")

    def _count(self, arrived: int = 0, *, kept: int = 0, copied: int = 0) -> None:
        with self._counts:
            self._pulled.bytes += arrived
            self._pulled.kept_bytes += kept
            self._pulled.copied_bytes += copied
            self._transfer.advance(arrived + kept + copied)

    def _damaged(self, part: Part, places: Sequence[tuple[File, int]], what: str) -> DamagedStoreError:
        file, start = places[0]
        number = [begin for _, begin in file.placed()].index(start) + 1
        return DamagedStoreError(
            f"{file.path}: part {number} of {len(file.parts)} ({part.name[:9]}{part.sha256[:HASH_SHOWN]}... in "
            f"{self._objects.url}) {what}. Remove damaged parts: tritonrank store verify {self._objects.url} --remove; "
            "then push the version again from where it was built"
        )


class _Arriving:
    """A part whose bytes are written and hashed as they come; what was there when a connection broke stays."""

    def __init__(self, objects: Objects, part: Part, out: FileIO, count: Advance) -> None:
        self._objects, self._part, self._out, self._count = objects, part, out, count
        self.digest = hashlib.sha256()
        self.have = 0

    def take_up(self) -> int:
        """Hash what an earlier pull left; bytes."""
        descriptor, size = self._out.fileno(), self._part.size
        while self.have < size and (data := os.pread(descriptor, min(BLOCK_BYTES, size - self.have), self.have)):
            self.digest.update(data)
            self.have += len(data)
        os.truncate(descriptor, self.have)
        return self.have

    def next_block(self) -> None:
        """Ask for one block; nothing comes where the object ends."""
        end = min(self.have + BLOCK_BYTES, self._part.size)
        for data in self._objects.pieces(self._part.name, self.have, end):
            written = 0
            while written < len(data):
                written += self._out.write(data[written:])
            self.digest.update(data)
            self.have += len(data)
            self._count(len(data))


def _holds(path: Path, start: int, part: Part) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < start + part.size:
            return False
        return _hash_of(file.fileno(), start, part.size) == part.sha256


def _hash_of(descriptor: int, start: int, size: int) -> str:
    digest, end = hashlib.sha256(), start + size
    while start < end and (data := os.pread(descriptor, min(BLOCK_BYTES, end - start), start)):
        digest.update(data)
        start += len(data)
    return digest.hexdigest()


def _local_parts(others: Iterator[tuple[Path, Version]], wanted: set[Part]) -> dict[Part, Local]:
    found: dict[Part, Local] = {}
    for folder, version in others:
        for file in version.files:
            for part, start in file.placed():
                if part in wanted and part not in found and (folder / file.path).is_file():
                    found[part] = (folder / file.path, start)
    return found


def _copy(source: Path, start: int, part: Part, target: Path) -> bool:
    """Copy a part from a file of this machine; False where it is not what it should be."""
    digest = hashlib.sha256()
    with suppress(OSError), source.open("rb") as file, target.open("wb") as out:
        end = start + part.size
        while start < end and (data := os.pread(file.fileno(), min(BLOCK_BYTES, end - start), start)):
            digest.update(data)
            out.write(data)
            start += len(data)
    if digest.hexdigest() == part.sha256:
        return True
    target.unlink(missing_ok=True)
    return False


def _put(arrived: Path, target: Path, start: int) -> None:
    """Write a part into its place in a file."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with arrived.open("rb") as file:
            while data := file.read(BLOCK_BYTES):
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], start + written)
                start += len(data)
    finally:
        os.close(descriptor)
