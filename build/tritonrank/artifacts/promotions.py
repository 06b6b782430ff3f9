"""Which build is served: promote one, go back to the one before, remove those that nobody needs.

The link ``served`` is the truth; it is replaced by one rename, so that whoever reads it finds the old build or the new
one. ``history.jsonl`` remembers what was served before. A line is appended before the link moves: a process that is
killed between the two leaves a line about a promotion that did not happen, which ``back`` passes over.

One at a time, process or thread, promotes, goes back or removes (the lock of ``builds/``); a running build is not
waited for.
"""

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrank.artifacts.builds import (
    BUILDS,
    SERVED,
    TIME,
    RecordedBuild,
    find_build,
    recorded_builds,
    served_name,
)
from tritonrank.artifacts.lines import append_line, read_lines
from tritonrank.artifacts.locks import only_writer
from tritonrank.errors import ArtifactError, storage_error

HISTORY = "history.jsonl"
BACK = "back"
"""What the history calls a promotion that was taken back."""
REMOVED = ".removed-"
"""Begins the name of a build that is being removed; whoever writes here next ends what a killed process began."""
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Moved:
    """The link was set."""

    build: RecordedBuild
    before: str | None
    """the name of what was served until then; the same build where nothing changed"""


@dataclass(frozen=True)
class Removed:
    """What ``prune_builds`` did, or would do."""

    builds: list[RecordedBuild]
    kept: list[RecordedBuild]
    bytes: int
    """of the files that no other build and no stage shares"""


def promote(root: Path, wanted: str, by: str = "promote") -> Moved:
    """Let a build be served from now on; a running ``tritonrank serve`` follows.

    Args:
        root: ``artifacts/<recipe>``.
        wanted: see ``find_build``.
        by: the command, for the history.

    Raises:
        ArtifactError: there is no such build, or it is damaged.
        StorageError: the link or the history cannot be written; what was served still is.
    """
    build = find_build(root, wanted)
    build.verify()
    with only_writer(root / BUILDS):
        return _serve(root, find_build(root, build.name), by)


def back(root: Path) -> Moved:
    """Let the build be served again that was served before; once more goes one further back.

    Raises:
        ArtifactError: none was served before, or it is damaged.
        StorageError: as ``promote``.
    """
    with only_writer(root / BUILDS):
        earlier = served_before(root)
        if earlier is None:
            raise ArtifactError(f"{root}: nothing was served before. Choose a build: tritonrank promote {root} ID")
        find_build(root, earlier).verify()
        return _serve(root, find_build(root, earlier), BACK)


def served_before(root: Path) -> str | None:
    """The name of the build to go back to, as far as it still exists.

    Going back takes a promotion back: after A, B, C it leads to B, and once more to A.
    """
    there = {build.name for build in recorded_builds(root)}
    *earlier, now = _promoted(root) or [None]
    return next((name for name in reversed(earlier) if name in there - {now}), None)


def _promoted(root: Path) -> list[str | None]:
    """The promotions that were not taken back; the last one is served."""
    stack: list[str | None] = []
    before_last = list(stack)
    for line in history(root):
        if line["event"] == SERVED:
            before_last = list(stack)
            if line.get("by") == BACK:
                del stack[-1:]
                while stack and stack[-1] != line["build"]:
                    stack.pop()
            if stack[-1:] != [line["build"]]:
                stack.append(line["build"])
    now = served_name(root) if _leads_to_a_build(root) else None
    if stack[-1:] == [now]:
        return stack
    # The last line was written and the link did not move, or somebody moved the link by hand.
    return before_last if before_last[-1:] == [now] else [*stack, now]


def history(root: Path) -> list[dict[str, Any]]:
    """The lines of the history, oldest first; one that was cut off by the end of a process or a disk is left out."""
    return [line for line in read_lines(root / BUILDS / HISTORY) if {"event", "build"} <= line.keys()]


def remember(root: Path, event: str, build: str, **more: Any) -> None:
    """Append one line to the history, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    said = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, "build": build}
    append_line(root / BUILDS / HISTORY, said | more)


def prune_builds(root: Path, keep: int, older_than_days: float = 0.0, *, only_look: bool = False) -> Removed:
    """Remove builds, never the one that is served or the one that ``back`` leads to.

    Args:
        root: ``artifacts/<recipe>``.
        keep: so many of the newest stay.
        older_than_days: younger ones stay too.
        only_look: remove nothing.
    """
    with only_writer(root / BUILDS):
        sweep(root)
        builds = recorded_builds(root)
        needed = {served_name(root), served_before(root), *(build.name for build in builds[len(builds) - keep :])}
        until = time.strftime(TIME, time.gmtime(time.time() - older_than_days * SECONDS_PER_DAY))
        gone = [one for one in builds if one.name not in needed and not (older_than_days and one.name > until)]
        freed = own_bytes(gone)
        if not only_look:
            for build in gone:
                _remove(build.folder)
    return Removed(gone, [build for build in builds if build not in gone], freed)


def own_bytes(builds: Sequence[RecordedBuild]) -> int:
    """Bytes of disk that end with these builds: of files to which nothing else links."""
    links: dict[tuple[int, int], list[int]] = {}
    for build in builds:
        for path in build.folder.rglob("*"):
            status = path.lstat()
            if not path.is_dir():
                found = links.setdefault((status.st_dev, status.st_ino), [0, status.st_nlink, status.st_blocks * 512])
                found[0] += 1
    return sum(size for seen, all_links, size in links.values() if seen >= all_links)


def sweep(root: Path) -> None:
    """Remove what killed processes left: drafts of builds, and builds that were being removed.

    Only the one process that writes here may do this.
    """
    folder = root / BUILDS
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(REMOVED) or (entry.suffix == ".tmp" and entry.is_dir()):
                shutil.rmtree(entry, ignore_errors=True)
    for draft in root.glob(f".{SERVED}.*"):
        draft.unlink(missing_ok=True)


def _serve(root: Path, build: RecordedBuild, by: str) -> Moved:
    before = served_name(root) if _leads_to_a_build(root) else None
    if before == build.name:
        return Moved(build, before)
    remember(root, SERVED, build.name, by=by)
    draft = root / f".{SERVED}.{os.getpid()}"
    try:
        draft.unlink(missing_ok=True)
        draft.symlink_to(Path(BUILDS, build.name))
        draft.replace(root / SERVED)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if (fault := storage_error(error, root / SERVED)) is not None:
            raise fault from error
        raise
    return Moved(build, before)


def _leads_to_a_build(root: Path) -> bool:
    try:
        return served_name(root) is not None
    except ArtifactError:
        return False


def _remove(folder: Path) -> None:
    aside = folder.with_name(REMOVED + folder.name)
    folder.rename(aside)
    shutil.rmtree(aside)
