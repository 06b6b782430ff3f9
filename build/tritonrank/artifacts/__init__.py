"""Artifacts: folders that a stage writes once and nobody edits.

A stage writes into ``<name>.tmp``; ``manifest.json`` comes last, then one rename publishes the folder. A folder
without a manifest does not exist. The manifest names settings, parents, file hashes, tool versions, metrics and
seconds, so that a finished stage can be skipped, and damage is found before it is served.

One process at a time writes below a folder of artifacts (``locks.py``); readers wait for nobody.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.artifacts.locks import only_writer
from tritonrank.errors import ArtifactError, storage_error

MANIFEST = "manifest.json"
FORMAT = 1
"""Of manifests; another number means that this code does not know what is in the folder."""
KEPT = ".kept-"
OWN_KEYS = {"stage", "key", "artifact"}
RECORDED_TOOLS = ("tritonrank", "torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum-onnx", "numpy")


console = Console()


class OtherFormatError(ArtifactError):
    """The artifact was made by another version of tritonrank; it is neither read nor replaced."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says of an artifact."""

    stage: str
    key: str
    """sha256 of stage, settings and parents: equal keys mean there is nothing to do."""
    artifact: str
    """sha256 of the file hashes: the identity of what was built; cached judgements and answers name it."""
    settings: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, str]
    """relative path -> sha256"""
    metrics: dict[str, Any]
    tools: dict[str, str]
    seconds: float
    created: str
    empty_folders: list[str] | None = None
    """those that belong to the artifact (Triton wants a version folder of an ensemble); None: not recorded"""
    format: int = FORMAT


@dataclass
class Draft:
    """An artifact that is being written: put files below ``folder`` and results into ``metrics``."""

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)


def stage_key(stage: str, settings: Mapping[str, Any], parents: Mapping[str, Manifest]) -> str:
    """What a stage's output depends on, as one hash."""
    return _sha256_json([stage, settings, {name: parent.artifact for name, parent in parents.items()}])


@contextmanager
def write_artifact(
    folder: Path, stage: str, settings: Mapping[str, Any], parents: Mapping[str, Manifest]
) -> Iterator[Draft]:
    """Give a draft folder to fill; publish it whole when the block ends, discard it when the block raises.

    Raises:
        StorageError: something cannot be written.
    """
    draft = Draft(folder.with_name(folder.name + ".tmp"))
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
                key=stage_key(stage, settings, parents),
                artifact=_sha256_json(files),
                settings=dict(settings),
                parents={name: parent.artifact for name, parent in parents.items()},
                files=files,
                metrics=draft.metrics,
                tools=_tool_versions(),
                seconds=round(time.monotonic() - started, 3),
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                empty_folders=contents.empty_folders,
            )
            (draft.folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
            _replace_folder(draft.folder, folder)
        except BaseException as error:
            shutil.rmtree(draft.folder, ignore_errors=True)
            if (fault := storage_error(error, draft.folder)) is not None:
                raise fault from error
            raise


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
def whole_file(path: Path) -> Iterator[Path]:
    """Give a draft file to write, which appears under its name when the block ends and not at all when it raises.

    Several processes may do so at a time; the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if (fault := storage_error(error, path)) is not None:
            raise fault from error
        raise


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a published artifact.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: no artifact here ({MANIFEST} is missing). Build it: tritonrank build RECIPE"
        ) from None
    except NotADirectoryError:
        raise ArtifactError(
            f"{folder}: not a folder, so no artifact. A recipe is built first: tritonrank build RECIPE; what it makes "
            "is in artifacts/<name of the recipe>"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give this user access to it") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(_damaged(path, error)) from None
    if not isinstance(loaded, dict) or not loaded.keys() >= OWN_KEYS:
        raise ArtifactError(
            f"{path}: damaged manifest, or that of another program: it names no stage. An artifact is a folder such as "
            "artifacts/demo/teacher; to make one anew, run tritonrank build again"
        )
    if loaded.get("format", FORMAT) != FORMAT:
        raise OtherFormatError(
            f"{folder}: made by another version of tritonrank (format {loaded['format']} of {MANIFEST}; this one reads "
            f"{FORMAT}). Use that version, or build elsewhere: tritonrank build RECIPE --artifacts FOLDER"
        )
    try:
        manifest = Manifest(**loaded)
    except TypeError as error:
        raise ArtifactError(_damaged(path, error)) from None
    texts = (manifest.stage, manifest.key, manifest.artifact)
    mappings = (manifest.settings, manifest.parents, manifest.files, manifest.metrics, manifest.tools)
    if not (
        all(isinstance(value, str) for value in texts)
        and all(isinstance(value, dict) for value in mappings)
        and all(_is_inside(name) and isinstance(value, str) for name, value in manifest.files.items())
        and (manifest.empty_folders is None or isinstance(manifest.empty_folders, list))
    ):
        raise ArtifactError(_damaged(path, "values of another kind"))
    return manifest


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _damaged(path: Path, reason: object) -> str:
    return f"{path}: damaged manifest ({reason}). To make it anew, run tritonrank build again"


def verify_artifact(folder: Path) -> Manifest:
    """Read the manifest and compare every file with its hash.

    Only plain files in plain folders count: a link may show something else tomorrow.

    Raises:
        ArtifactError: a file or folder is missing, differs, or is not in the manifest; the message lists all of them.
    """
    manifest = read_manifest(folder)
    contents = _contents(folder)
    faults = []
    for name, expected in manifest.files.items():
        if name in contents.files:
            try:
                if sha256_file(folder / name) != expected:
                    faults.append(f"  {name}: changed since it was built (sha256 differs)")
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


def is_current(folder: Path, key: str) -> bool:
    """Whether the artifact exists, is undamaged and was made from the same settings and parents.

    Raises:
        ArtifactError: another version of tritonrank made it; whether it is current only that one can tell.
    """
    try:
        return read_manifest(folder).key == key and verify_artifact(folder).key == key
    except OtherFormatError:
        raise
    except ArtifactError:
        return False


def is_aside(folder: Path) -> bool:
    """Whether a folder beside the artifacts is none of them: a draft, an older one, or what was no artifact."""
    return folder.suffix in {".tmp", ".old"} or folder.suffix.startswith(KEPT)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


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


def _tool_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
