"""The history of builds: what was built stays as it was, beside what is served.

    artifacts/shop/builds/20261126T224512Z-1a2b3c4d/    repository, summary, report and manifests of one build
    artifacts/shop/served -> builds/20261126T224512Z-1a2b3c4d
    artifacts/shop/builds/history.jsonl                 which build was served since when, one line each

The stages go on to write their own folders; a build is hard links to these files, so that it takes disk space only
once a stage has replaced them. A build is an artifact like any other: its manifest has the hash of every file.

Here builds are found and read. ``record_builds.py`` records one, ``promotions.py`` says which is served.
"""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tritonrank.artifacts import Manifest, read_manifest, verify_artifact
from tritonrank.errors import ArtifactError

BUILDS = "builds"
SERVED = "served"
REPOSITORY = "repository"
SUMMARY = "summary"
NEWEST = "newest"
RECORD = "record"
"""What the manifest of a build names as its stage."""
TIME = "%Y%m%dT%H%M%SZ"
NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
FEWEST_CHARACTERS = 4
"""Of an abbreviated id."""


@dataclass(frozen=True)
class RecordedBuild:
    """One build of a recipe."""

    folder: Path

    @property
    def name(self) -> str:
        """Its id: the time, UTC, and the first characters of what it was built from."""
        return self.folder.name

    @property
    def root(self) -> Path:
        """``artifacts/<recipe>``."""
        return self.folder.parents[1]

    @property
    def repository(self) -> Path:
        return self.folder / REPOSITORY

    @cached_property
    def manifest(self) -> Manifest:
        """What was recorded; raises ArtifactError when it is damaged."""
        manifest = read_manifest(self.folder)
        if manifest.stage != RECORD or "build" not in manifest.metrics:
            raise ArtifactError(f"{self.folder}: no build, but what the stage {manifest.stage} made")
        return manifest

    @property
    def told(self) -> dict[str, Any]:
        """What was recorded of it beside its files; see ``record_builds.py``."""
        return self.manifest.metrics

    @property
    def is_success(self) -> bool:
        """Whether nothing that costs less ranks better beyond doubt."""
        return bool(self.told.get("success"))

    def verify(self) -> None:
        """Compare every file with its hash.

        Raises:
            ArtifactError: the build is damaged; names it, the files, and what to do.
        """
        try:
            _ = self.manifest
            verify_artifact(self.folder)
            verify_artifact(self.repository)
        except ArtifactError as error:
            raise ArtifactError(
                f"build {self.name} cannot be served: {error}\nChoose another: "
                f"tritonrank builds {shlex.quote(str(self.root))}"
            ) from None


def recorded_builds(root: Path) -> list[RecordedBuild]:
    """The builds of a recipe, oldest first; those too whose files are damaged."""
    try:
        entries = [entry for entry in (root / BUILDS).iterdir() if NAME.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [RecordedBuild(entry) for entry in sorted(entries) if entry.is_dir() and not entry.is_symlink()]


def served_name(root: Path) -> str | None:
    """The name of the build that is served; None where none is. ``up`` has a folder of that name, which is no link.

    Raises:
        ArtifactError: the link leads elsewhere than to a build.
    """
    link = root / SERVED
    if not link.is_symlink():
        return None
    target = link.readlink()
    if target.parent != Path(BUILDS) or not NAME.fullmatch(target.name):
        raise ArtifactError(f"{link}: leads to {target}, which is no build of this recipe. {_choose(root)}")
    return target.name


def served_build(root: Path) -> RecordedBuild | None:
    """The build that is served; None where none is.

    Raises:
        ArtifactError: the link leads to nothing, or to something else.
    """
    name = served_name(root)
    if name is None:
        return None
    if not (root / BUILDS / name).is_dir():
        raise ArtifactError(f"{root / SERVED}: leads to the build {name}, which is not there any more. {_choose(root)}")
    return RecordedBuild(root / BUILDS / name)


def find_build(root: Path, wanted: str) -> RecordedBuild:
    """A build by its id.

    Args:
        root: ``artifacts/<recipe>``.
        wanted: ``newest``, ``served``, a build's name, or the beginning of its time or of its hash.

    Raises:
        ArtifactError: there is none, or there are several.
    """
    builds = recorded_builds(root)
    if not builds:
        raise ArtifactError(
            f"{root}: no build is recorded here. A finished build records itself: tritonrank build RECIPE"
        )
    if wanted == NEWEST:
        return builds[-1]
    if wanted == SERVED:
        served = served_build(root)
        if served is None:
            raise ArtifactError(f"{root}: no build is served yet. {_choose(root)}")
        return served
    long_enough = len(wanted) >= FEWEST_CHARACTERS
    found = [one for one in builds if long_enough and _begins(one.name, wanted)]
    if len(found) == 1:
        return found[0]
    several = f"is the beginning of {len(found)} builds: {', '.join(one.name for one in found)}"
    what = several if found else "is no build of this recipe"
    raise ArtifactError(f"{root}: {wanted!r} {what}. List them: tritonrank builds {shlex.quote(str(root))}")


def _begins(name: str, wanted: str) -> bool:
    return name.startswith(wanted) or name.partition("-")[2].startswith(wanted)


def _choose(root: Path) -> str:
    quoted = shlex.quote(str(root))
    return f"List the builds, and choose one: tritonrank builds {quoted}; tritonrank promote {quoted} ID"
