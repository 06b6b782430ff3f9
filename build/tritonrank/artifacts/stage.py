"""A stage: who makes one artifact, of what, and what its result depends on.

Each stage is declared once, in its own file of ``tritonrank/pipeline/``, by a function ``stage(recipe, workspace)``.
The declaration imports nothing heavy, so that whether there is anything to do is known at once; what makes the artifact
is imported by ``make``. A stage only fills the draft that it is given: here it is decided whether it has to run, said
why, and published what it made.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts import (
    FORMAT,
    MANIFEST,
    Draft,
    Manifest,
    is_current,
    read_manifest,
    stage_key,
    tool_version,
    verify_artifact,
    write_artifact,
)
from tritonrank.artifacts.flat import flat
from tritonrank.errors import ArtifactError

HASH_LENGTH = 64
HASH_SHOWN = 8
VALUE_SHOWN = 60
"""Characters of a hash, and of any other value of a setting, in the line that says why a stage runs."""

console = Console()


@dataclass(frozen=True)
class Stage:
    """One maker. The same settings, parents, revision and tools make the same artifact."""

    verb: str
    folder: Path
    """of the artifact"""
    settings: Callable[[], dict[str, Any]]
    """what the artifact depends on beside its parents, JSON-able and by the names of the recipe; computed when it is
    asked for, as it may hash files"""
    parents: Mapping[str, Path]
    """folders of the artifacts that it depends on, by name"""
    make: Callable[[Draft], None]
    """fills the draft's folder and metrics; raises, and nothing is published. Under torchrun it runs in every process,
    and the first one's draft counts"""
    revision: int
    """of the code: raised when the same input should give another artifact than before"""
    tools: tuple[str, ...]
    """distributions whose versions change the artifact"""

    def parent_manifests(self) -> dict[str, Manifest]:
        """Manifests of the parents by name.

        Raises:
            ArtifactError: one is missing or cannot be read.
        """
        return {name: read_manifest(folder) for name, folder in self.parents.items()}

    def key(self) -> str:
        """What the artifact depends on, as one hash; raises as ``parent_manifests``."""
        return stage_key(self.verb, self.settings(), self.parent_manifests(), self.revision, self.tools)

    def why_anew(self) -> str | None:
        """Why the stage has to run, in one line; None where its artifact is up to date.

        Raises:
            ArtifactError: a parent is missing.
            OtherFormatError: a later version of tritonrank made the artifact.
        """
        settings, parents = self.settings(), self.parent_manifests()
        if is_current(self.folder, stage_key(self.verb, settings, parents, self.revision, self.tools)):
            return None
        if not (self.folder / MANIFEST).is_file():
            return "new"
        try:
            made = read_manifest(self.folder)
            if made.format < FORMAT:
                return f"an earlier version of tritonrank made it: format {made.format} of {MANIFEST}, not {FORMAT}"
            if differences := list(self._differences(made, settings, parents)):
                return "; ".join(differences)
            verify_artifact(self.folder)
        except ArtifactError as error:
            return f"damaged: {_first_fault(error)}"
        return "its key is another one"

    def _differences(
        self, made: Manifest, settings: Mapping[str, Any], parents: Mapping[str, Manifest]
    ) -> Iterator[str]:
        """What the artifact was made from and is not what there is now."""
        if made.stage != self.verb:
            yield f"{made.stage} made it"
        if made.revision != self.revision:
            yield f"{self.verb}'s code has revision {self.revision}, the artifact revision {made.revision}"
        yield from _changed_settings(made.settings, settings)
        here = {name: parent.artifact for name, parent in parents.items()}
        if changed := [name for name in here if made.parents.get(name) != here[name]]:
            yield f"parent {', '.join(changed)} changed"
        if gone := [name for name in made.parents if name not in here]:
            yield f"parent {', '.join(gone)} is none any more"
        for name in self.tools:
            before, now = made.tools.get(name), tool_version(name)
            if before != now:
                yield f"made with {name} {before or 'absent'}, here is {now or 'none'}"


def run_stage(stage: Stage) -> Manifest:
    """Make the artifact of a stage and publish it, whether it is up to date or not.

    Raises:
        ArtifactError: a parent is missing.
        GateError: the ranking became worse than the recipe allows; nothing was published.
        StorageError: something cannot be written.
        RecipeError, DataError: as the stage says.
    """
    settings, parents = stage.settings(), stage.parent_manifests()
    with write_artifact(stage.folder, stage.verb, settings, parents, stage.revision, stage.tools) as draft:
        stage.make(draft)
    return read_manifest(stage.folder)


def take_part(stage: Stage) -> None:
    """Run a stage in one of several processes of torchrun: all of them make, the first one publishes.

    Raises:
        As ``run_stage``.
    """
    if os.environ.get("RANK", "0") == "0":
        run_stage(stage)
        return
    with tempfile.TemporaryDirectory(prefix="tritonrank-") as scratch:
        stage.make(Draft(Path(scratch), stage.key(), stage.parent_manifests()))


def bring_up_to_date(
    stage: Stage, *, force: bool = False, made: Callable[[str, Manifest], None] = lambda verb, manifest: None
) -> Manifest:
    """Run a stage if it is not up to date, and say so either way.

    Args:
        stage: which.
        force: run it even if it is up to date.
        made: is told verb and manifest where it ran.

    Raises:
        As ``run_stage`` and ``Stage.why_anew``.
    """
    why = stage.why_anew() or ("asked for" if force else None)
    if why is None:
        say_up_to_date(stage)
        return read_manifest(stage.folder)
    _say(f"[bold]{stage.verb:<10}[/] ->", f" {stage.folder}  ({why})")
    started = time.monotonic()
    manifest = run_stage(stage)
    _say("", f"{'':<10} done in {time.monotonic() - started:.1f} s")
    made(stage.verb, manifest)
    return manifest


def say_up_to_date(stage: Stage) -> None:
    _say(f"[bold]{stage.verb:<10}[/] up to date ", f" {stage.folder}")


def _say(styled: str, plain: str) -> None:
    """One line; names of files and values of settings are not markup."""
    console.print(styled, end="", highlight=False)
    console.print(plain, markup=False, highlight=False, soft_wrap=True)


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The first setting that differs, and how many more do."""
    old = dict(flat(before))
    new = dict(flat(json.loads(json.dumps(now, default=str))))
    changed = [name for name in {**new, **old} if old.get(name, _ABSENT) != new.get(name, _ABSENT)]
    if changed:
        name = changed[0]
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        yield f"setting {name} was {_shown(old.get(name, _ABSENT))}, is {_shown(new.get(name, _ABSENT))}{more}"


_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == HASH_LENGTH and not set(text) - set("0123456789abcdef"):
        return f"{text[:HASH_SHOWN]}..."
    one_line = " ".join(text.split())
    return (one_line if len(one_line) <= VALUE_SHOWN else f"{one_line[:VALUE_SHOWN]}...") or "empty"


def _first_fault(error: ArtifactError) -> str:
    """Of a damaged manifest what is wrong; of damaged files the first one."""
    first, *faults = str(error).splitlines()
    return faults[0].strip() if faults else first
