"""Record a finished build in the history (``builds.py``): hard links to what serves it and to what tells of it.

    builds/<time>-<id>/manifest.json    hashes of all files; the recipe as its settings; what came out as its metrics
                       repository/      what Triton loads
                       catalogue/       what the gateway recommends from, where the recipe has retrieval
                       blend/           what orders it
                       summary/         summary.json, and how each test request was ranked
                       stages/          the manifest of every stage: data, code, tools, seconds
                       report.html      the page about it, and report.md

The folder appears by one rename once it is whole. The id is a hash of the repository, the data and the models, so that
the same build is recorded once, however often it is run.
"""

import calendar
import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonrank.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from tritonrank.artifacts.builds import (
    BUILDS,
    RECORD,
    REPOSITORY,
    SUMMARY,
    TIME,
    RecordedBuild,
    recorded_builds,
    served_name,
)
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.manifest import sha256_json
from tritonrank.artifacts.named import BLEND, CATALOGUE
from tritonrank.artifacts.promotions import promote, sweep
from tritonrank.errors import ArtifactError

SERVED_STAGES = (REPOSITORY, CATALOGUE, BLEND, SUMMARY)
"""Whose artifacts a build keeps, where the recipe has them."""
STAGES = "stages"
SUMMARY_FILE = "summary.json"
ID_CHARACTERS = 8
GIT_SECONDS = 5.0
NO_LINKS = frozenset(
    {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES}
)
"""What file systems say that have no hard links, or none for this file: it is copied."""
BY_BUILD = "build"


def build_hash(root: Path) -> str:
    """Identity of the finished build that stands in the stages' folders.

    Args:
        root: where these folders are.

    Raises:
        ArtifactError: it is not finished.
    """
    made_of = read_manifest(root / SUMMARY).parents
    return sha256_json({**made_of, REPOSITORY: read_manifest(root / REPOSITORY).artifact})


def current_build(root: Path, finished: Path | None = None) -> RecordedBuild | None:
    """The record of the build that stands in the stages' folders; None where it has none, or is not finished.

    Args:
        root: ``artifacts/<recipe>``.
        finished: where the stages' folders are, if not in ``root``.
    """
    try:
        wanted = build_hash(finished or root)
    except ArtifactError:
        return None
    for build in reversed(recorded_builds(root)):
        if build.name.endswith(wanted[:ID_CHARACTERS]):
            with suppress(ArtifactError):  # a damaged record is none: this one is recorded again
                if build.told["build"] == wanted:
                    return build
    return None


def record_build(
    root: Path,
    settings: Mapping[str, Any],
    stages: Mapping[str, Path],
    add: Callable[[Path], None],
    finished: Path | None = None,
) -> tuple[RecordedBuild, bool]:
    """Record the finished build, once; the first one that is a success is served from then on.

    Args:
        root: ``artifacts/<recipe>``.
        settings: of the recipe, all of them.
        stages: folders of the stages' artifacts by name, ``repository`` and ``summary`` among them.
        add: gets the folder and puts more files into it.
        finished: where the stages' folders are, if not in ``root``: those of a night (``learn/``).

    Returns:
        The build, and whether it was recorded just now.

    Raises:
        ArtifactError: the build is not finished.
        StorageError: something cannot be written; nothing of it remains.
    """
    with only_writer(root / BUILDS):
        if (recorded := current_build(root, finished)) is not None:
            return recorded, False
        sweep(root)
        build = build_hash(finished or root)
        name = f"{_time_after(recorded_builds(root))}-{build[:ID_CHARACTERS]}"
        manifests = {stage: read_manifest(folder) for stage, folder in stages.items()}
        with write_artifact(root / BUILDS / name, RECORD, settings, manifests) as draft:
            for stage in (one for one in SERVED_STAGES if one in stages):
                link_artifact(stages[stage], manifests[stage], draft.folder / stage)
            (draft.folder / STAGES).mkdir()
            for stage, folder in stages.items():
                link_or_copy(folder / MANIFEST, draft.folder / STAGES / f"{stage}.json")
            add(draft.folder)
            draft.metrics |= {"build": build, **_told(stages[SUMMARY], manifests)}
        recorded = RecordedBuild(root / BUILDS / name)
        if recorded.is_success and not _is_any_served(root):
            promote(root, name, by=BY_BUILD)
    return recorded, True


def link_artifact(source: Path, manifest: Manifest, target: Path) -> None:
    """Lay out an artifact once more, as hard links to its files, or as copies where there can be none."""
    target.mkdir()
    for name in manifest.empty_folders or ():
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in (*manifest.files, MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, target / name)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a second file where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)


def git_state() -> dict[str, Any]:
    """The commit of the folder that this command runs in, and whether files were changed since; empty without git."""
    found: dict[str, Any] = {}
    with suppress(OSError, subprocess.SubprocessError):
        found["commit"] = _git("rev-parse", "HEAD")
        found["changed"] = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
    )
    return done.stdout.strip()


def _time_after(builds: Sequence[RecordedBuild]) -> str:
    """Now, UTC; a second after the newest build where the clock says that this was not before, as names are sorted."""
    newest = [calendar.timegm(time.strptime(build.name.partition("-")[0], TIME)) + 1 for build in builds[-1:]]
    return time.strftime(TIME, time.gmtime(max([time.time(), *newest])))


def _is_any_served(root: Path) -> bool:
    try:
        return served_name(root) is not None
    except ArtifactError:  # the link leads astray: somebody has to look at it
        return True


def _told(summary_folder: Path, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """What tables of builds show, from the summary."""
    summary = json.loads((summary_folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    rung = summary.get("served")
    row: dict[str, Any] = next((row for row in summary["rows"] if row["name"] == rung), {})
    shown = ("ndcg@10", "mrr@10", "recall@10", "auc", "megabytes", "milliseconds_per_100", "parameters")
    verdict = summary["verdict"]
    return {
        "recipe": summary["recipe"],
        "rung": rung,
        "success": bool(verdict["success"]),
        "verdict": verdict,
        "against_served": summary.get("against_served"),
        "test_requests": summary["examples"],
        "git": git_state(),
        "revisions": {stage: manifest.revision for stage, manifest in manifests.items()},
        **{name: row[name] for name in shown if name in row},
    }
