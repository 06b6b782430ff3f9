"""Artifacts: folders that a stage writes once and nobody edits.

A stage writes into ``<name>.tmp``; ``manifest.json`` comes last, then one rename publishes the folder. A folder
without a manifest does not exist. The manifest names settings, parents, file hashes, tool versions, metrics and
seconds, so that a finished stage can be skipped, and damage is found before it is served.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tritonrank.errors import ArtifactError

MANIFEST = "manifest.json"
RECORDED_TOOLS = ("tritonrank", "torch", "transformers", "tokenizers", "onnx", "onnxruntime", "optimum-onnx", "numpy")


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
    """Give a draft folder to fill; publish it whole when the block ends, discard it when the block raises."""
    draft = Draft(folder.with_name(folder.name + ".tmp"))
    started = time.monotonic()
    shutil.rmtree(draft.folder, ignore_errors=True)
    draft.folder.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
    files = {str(path.relative_to(draft.folder)): sha256_file(path) for path in _files_below(draft.folder)}
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
    )
    (draft.folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    _replace_folder(draft.folder, folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a published artifact.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: no artifact here ({MANIFEST} is missing). Build it: tritonrank build RECIPE"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path}: damaged manifest ({error}). Delete {folder} and run tritonrank build again"
        ) from None


def verify_artifact(folder: Path) -> Manifest:
    """Read the manifest and compare every file with its hash.

    Raises:
        ArtifactError: a file is missing, differs, or is not in the manifest; the message lists all of them.
    """
    manifest = read_manifest(folder)
    faults = []
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"  {name}: missing")
        elif sha256_file(path) != expected:
            faults.append(f"  {name}: changed since it was built (sha256 differs)")
    present = {str(path.relative_to(folder)) for path in _files_below(folder)} - {MANIFEST}
    faults += [f"  {name}: not part of the artifact" for name in sorted(present - set(manifest.files))]
    if faults:
        raise ArtifactError(
            f"{folder} is damaged:\n" + "\n".join(faults) + f"\nDelete {folder} and run tritonrank build again"
        )
    return manifest


def is_current(folder: Path, key: str) -> bool:
    """Whether the artifact exists, is undamaged and was made from the same settings and parents."""
    try:
        return read_manifest(folder).key == key and verify_artifact(folder).key == key
    except ArtifactError:
        return False


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _files_below(folder: Path) -> list[Path]:
    # Byte code appears when a server imports model.py; it is no part of what was built.
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _replace_folder(source: Path, target: Path) -> None:
    """Rename source to target; an older target steps aside first, so a crash leaves one of the two whole."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _tool_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in RECORDED_TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
