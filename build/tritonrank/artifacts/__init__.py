"""Artifacts: folders that a stage writes once and nobody edits.

A stage writes into ``<name>.tmp``; ``manifest.json`` comes last, then one rename publishes the folder. A folder
without a manifest does not exist. The manifest names settings, parents, file hashes, tool versions, metrics and
seconds, so that a finished stage can be skipped, and damage is found before it is served.

One process or thread at a time writes below a folder of artifacts (``locks.py``); readers wait for nobody.
"""

import json
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    OtherFormatError,
    read_manifest,
    sha256_file,
    sha256_json,
    stage_key,
    tool_version,
    tool_versions,
)
from tritonrank.artifacts.onnx_paths import NoOnnxError, foreign_paths
from tritonrank.errors import ArtifactError, storage_error

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Draft",
    "Manifest",
    "OtherFormatError",
    "is_aside",
    "is_current",
    "read_manifest",
    "sha256_file",
    "stage_key",
    "tidy",
    "tool_version",
    "verify_artifact",
    "whole_file",
    "work_folder",
    "write_artifact",
    "write_whole",
]

KEPT = ".kept-"
WORK = ".work"
"""Ends the folder beside an artifact where its stage keeps what an interrupted run goes on from."""

console = Console()


@dataclass
class Draft:
    """An artifact that is being written: put files below ``folder`` and results into ``metrics``."""

    folder: Path
    key: str
    """what the artifact depends on (``stage_key``)"""
    parents: Mapping[str, Manifest]
    metrics: dict[str, Any] = field(default_factory=dict)


@contextmanager
def write_artifact(
    folder: Path,
    stage: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, Manifest],
    revision: int = 0,
    tools: Iterable[str] = (),
) -> Iterator[Draft]:
    """Give a draft folder to fill; publish it whole when the block ends, discard it when the block raises.

    Args:
        folder: of the artifact.
        stage: this and what follows: see ``stage_key``.

    Raises:
        StorageError: something cannot be written.
    """
    key = stage_key(stage, settings, parents, revision, tools)
    draft = Draft(folder.with_name(folder.name + ".tmp"), key, parents)
    started = time.monotonic()
    with only_writer(folder.parent):
        try:
            tidy(folder)
            draft.folder.mkdir(parents=True)
            yield draft
            contents = _contents(draft.folder)
            files = {name: sha256_file(draft.folder / name) for name in contents.files}
            manifest = Manifest(
                stage=stage,
                key=key,
                artifact=sha256_json(files),
                settings=dict(settings),
                parents={name: parent.artifact for name, parent in parents.items()},
                files=files,
                metrics=draft.metrics,
                tools=tool_versions(),
                revision=revision,
                format=FORMAT,
                seconds=round(time.monotonic() - started, 3),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                empty_folders=contents.empty_folders,
            )
            (draft.folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
            _replace_folder(draft.folder, folder)
            shutil.rmtree(work_folder(folder), ignore_errors=True)
        except BaseException as error:
            shutil.rmtree(draft.folder, ignore_errors=True)
            if (fault := storage_error(error, draft.folder)) is not None:
                raise fault from error
            raise


def work_folder(folder: Path) -> Path:
    """Where the stage of an artifact keeps what an interrupted run goes on from; publishing removes it."""
    return folder.with_name(folder.name + WORK)


def tidy(folder: Path) -> None:
    """Remove what a killed process left of a draft, and put back the older artifact if it stood aside just then.

    Only the one process that writes here may do this.
    """
    draft, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(draft, ignore_errors=True)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_file(path: Path, way_out: str = "") -> Iterator[Path]:
    """Give a draft file to write, which appears under its name when the block ends and not at all when it raises.

    Several processes and threads may do so at a time; the last one stays.

    Args:
        path: the file; its folder is made.
        way_out: what whoever named the file can do where it cannot be written, for the message.

    Raises:
        ArtifactError: it cannot be written, and there is a way out.
        StorageError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{threading.get_native_id()}.tmp")  # of one thread of all processes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if way_out and isinstance(error, OSError):
            raise ArtifactError(f"{path}: cannot be written ({error.strerror}); {way_out}") from error
        if (fault := storage_error(error, path)) is not None:
            raise fault from error
        raise


def write_whole(path: Path, text: str, way_out: str = "") -> Path:
    """Write a text file that appears whole or not at all; arguments and errors as for ``whole_file``.

    Returns:
        The file.
    """
    with whole_file(path, way_out) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def verify_artifact(folder: Path) -> Manifest:
    """Read the manifest and compare every file with its hash.

    Only plain files in plain folders count: a link may show something else tomorrow.

    Raises:
        ArtifactError: a file or folder is missing, differs, is not in the manifest, or keeps weights outside the
            artifact; the message lists all of them.
    """
    manifest = read_manifest(folder)
    contents = _contents(folder)
    faults = []
    for name, expected in manifest.files.items():
        if name in contents.files:
            try:
                if sha256_file(folder / name) != expected:
                    faults.append(f"  {name}: changed since it was built (sha256 differs)")
                elif name.endswith(".onnx"):
                    faults += [f"  {name}: {fault}" for fault in _outside(folder / name)]
            except OSError as error:
                faults.append(f"  {name}: cannot be read ({error.strerror})")
        elif name not in contents.strange:
            faults.append(f"  {name}: missing")
    faults += [f"  {name}: {what}" for name, what in contents.strange.items()]
    faults += [f"  {name}: not part of the artifact" for name in contents.files if name not in manifest.files]
    if manifest.empty_folders is not None:
        known = set(manifest.empty_folders)
        faults += [f"  {name}: a folder that is not part of it" for name in contents.empty_folders if name not in known]
        faults += [
            f"  {name}: missing (an empty folder; git and object stores do not copy those)"
            for name in manifest.empty_folders
            if name not in contents.empty_folders and not any(file.startswith(f"{name}/") for file in contents.files)
        ]
    if faults:
        raise ArtifactError(
            f"{folder} is damaged:\n" + "\n".join(faults) + "\nTo make it anew, run tritonrank build again"
        )
    return manifest


def _outside(file: Path) -> list[str]:
    """What is wrong with the paths in an ONNX file."""
    try:
        return [f"names weights outside the artifact: {path!r}" for path in foreign_paths(file)]
    except NoOnnxError as error:
        return [f"no ONNX file ({error})"]


def is_current(folder: Path, key: str) -> bool:
    """Whether the artifact exists, is undamaged and has this key.

    Raises:
        OtherFormatError: a later version of tritonrank made it; whether it is current only that one can tell.
    """
    try:
        return read_manifest(folder).key == key and verify_artifact(folder).key == key
    except OtherFormatError:
        raise
    except ArtifactError:
        return False


def is_aside(folder: Path) -> bool:
    """Whether a folder beside the artifacts is none of them: a draft, an older one, what was no artifact, or a link to
    a build (``builds.py``)."""
    return folder.is_symlink() or folder.suffix in {".tmp", ".old"} or folder.suffix.startswith(KEPT)


@dataclass
class _Contents:
    """What lies below the folder of an artifact, by names relative to it; the manifest left out."""

    files: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    strange: dict[str, str] = field(default_factory=dict)
    """links, and what is neither file nor folder -> what it is"""


def _contents(folder: Path) -> _Contents:
    contents = _Contents()
    _collect(folder, "", contents)
    contents.files.sort()
    contents.empty_folders.sort()
    if MANIFEST in contents.files:
        contents.files.remove(MANIFEST)
    return contents


def _collect(folder: Path, prefix: str, contents: _Contents) -> bool:
    """Look through a folder; True if anything of the artifact, empty folders too, is in it."""
    is_empty = True
    for entry in sorted(folder.iterdir()):
        name, mode = prefix + entry.name, entry.lstat().st_mode
        # Byte code appears when a server imports model.py; it is no part of what was built.
        if stat.S_ISDIR(mode) and entry.name == "__pycache__":
            _collect_byte_code(entry, name, contents)
            continue
        is_empty = False
        if stat.S_ISDIR(mode):
            if not _collect(entry, f"{name}/", contents):
                contents.empty_folders.append(name)
        elif stat.S_ISREG(mode):
            contents.files.append(name)
        else:
            contents.strange[name] = "a link; expected the file itself" if stat.S_ISLNK(mode) else "no plain file"
    return not is_empty


def _collect_byte_code(folder: Path, name: str, contents: _Contents) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.suffix != ".pyc" or not stat.S_ISREG(entry.lstat().st_mode):
            contents.strange[f"{name}/{entry.name}"] = "not part of the artifact"


def _replace_folder(source: Path, target: Path) -> None:
    """Rename source to target; an older target steps aside first, so a crash leaves one of the two whole."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists() or target.is_symlink():
        if _may_be_removed(target):
            target.rename(old)
        else:
            _step_aside(target)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _may_be_removed(target: Path) -> bool:
    """Whether a folder was written by ``write_artifact``, or is empty; anything else may be somebody's only copy."""
    if target.is_symlink() or not target.is_dir():
        return False
    try:
        read_manifest(target)
    except ArtifactError:
        return not any(target.iterdir())
    return True


def _step_aside(target: Path) -> None:
    number = 1
    while (kept := target.with_name(f"{target.name}{KEPT}{number}")).exists() or kept.is_symlink():
        number += 1
    target.rename(kept)
    console.print(
        f"  {target} was no artifact of tritonrank, or damaged: kept as {kept}; delete it if you do not need it",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
