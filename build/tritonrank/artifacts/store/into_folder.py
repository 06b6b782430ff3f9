"""``tritonrank pull``: a version in a folder that the user names, with a note beside it of what is there.

The note, ``.<name>.pulled.json``, tells a folder that pull wrote from one that may be somebody's only copy: that one is
never replaced. It is beside the folder because an artifact holds nothing but what its manifest names.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tritonrank.artifacts import write_whole
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.store.cache import Fetched, cached_versions
from tritonrank.artifacts.store.faults import UnreachableStoreError
from tritonrank.artifacts.store.index import SHOWN, Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.pull import is_whole, pull_version, wanted_files
from tritonrank.artifacts.store.signing import Trust
from tritonrank.artifacts.store.transfer import JOBS, shown_progress
from tritonrank.artifacts.store.urls import parse_source
from tritonrank.artifacts.store.versions import Version, read_version
from tritonrank.errors import StoreError


def pull_into(
    named: str,
    folder: Path,
    *,
    trust: Trust,
    ranks: Collection[int] | None = None,
    or_keep: bool = False,
    jobs: int = JOBS,
) -> Fetched:
    """Let a folder hold what a store's URL names.

    Args:
        named: ``URL[@TAG|@DIGEST]``.
        folder: is not there, is empty, or was pulled before; then it is replaced by two renames, whole.
        trust: whose signatures count.
        ranks: of tensor parallel, whose shards are wanted; None: all.
        or_keep: where the store does not answer, what an earlier pull put there will do.
        jobs: parts at a time.

    Raises:
        StoreError: the folder holds something else, or as ``fetch``.
    """
    source, folder = parse_source(named), folder.absolute()
    note = folder.with_name(f".{folder.name}.pulled.json")
    before = _read_note(note)
    if folder.exists() and (strange := _not_pulled(folder, before)) is not None:
        raise StoreError(f"{strange}: is there, and no pull put it there. Name another folder, or move it away")
    try:
        index = Index(open_objects(source.url), trust)
        digest, _ = index.find(source)
        version = index.version(digest)
    except UnreachableStoreError as error:
        if or_keep and before is not None and before[1].digest == before[0] and is_whole(folder, _wanted(before)):
            return Fetched(folder, before[0], before[1], away=str(error))
        raise
    files = wanted_files(version, ranks)
    if before is not None and before[0] == digest and is_whole(folder, files) and _wanted(before) == files:
        return Fetched(folder, digest, version)
    working = folder.with_name(f".{folder.name}.pull")
    with only_writer(working):
        for other in working.iterdir():
            if other.is_dir() and other.name != digest:  # of a version that is not wanted any more
                shutil.rmtree(other, ignore_errors=True)
        fresh = working / f"{digest}.whole"
        shutil.rmtree(fresh, ignore_errors=True)
        with shown_progress(f"pull {digest[:SHOWN]}", sum(file.size for file in files)) as advance:
            pulled = pull_version(
                index.objects,
                version,
                fresh,
                working / digest,
                ranks=ranks,
                others=lambda: iter([*([(folder, before[1])] if before else []), *cached_versions()]),
                jobs=jobs,
                advance=advance,
            )
        old = working / "replaced"
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        said = {"source": str(source), "digest": digest, "ranks": sorted(ranks) if ranks else None}
        write_whole(note, json.dumps(said | {"version": version.payload().decode()}) + "\n")
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(working, ignore_errors=True)
    pulled.folder = folder
    return Fetched(folder, digest, version, pulled)


Note = tuple[str, Version, Collection[int] | None]
"""Digest, what was pulled, and which ranks of it."""


def _wanted(note: Note) -> list[Any]:
    return wanted_files(note[1], note[2])


def _not_pulled(folder: Path, note: Note | None) -> Path | None:
    """Something in a folder that would be lost with it; byte code would not."""
    if not folder.is_dir() or folder.is_symlink():
        return folder
    known = {folder / file.path for file in _wanted(note)} if note else set[Path]()
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return next((path for path in found if path not in known and path.suffix != ".pyc"), None)


def _read_note(file: Path) -> Note | None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return said["digest"], read_version(said["version"].encode(), str(file)), said["ranks"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
        return None
