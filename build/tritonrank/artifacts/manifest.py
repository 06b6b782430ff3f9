"""``manifest.json``: what an artifact was made from, by which code and tools, and what came out."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrank.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 2
"""Of manifests. A later one means that this code does not know what is in the folder; the earlier one, 1, is read, but
says neither the revision of the code that wrote it nor is its key one of today's, so that a build makes it anew."""
OWN_KEYS = {"stage", "key", "artifact"}
RECORDED_TOOLS = (
    "tritonrank",
    "torch",
    "transformers",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "optimum-onnx",
    "numpy",
    "polars",
)


class OtherFormatError(ArtifactError):
    """The artifact was made by a later version of tritonrank; it is neither read nor replaced."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says of an artifact."""

    stage: str
    key: str
    """sha256 of stage, settings, parents, revision and tools (``stage_key``): equal keys mean there is nothing to do"""
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
    revision: int = 0
    """of the stage's code; 0: not recorded"""
    format: int = 1
    """manifests from before formats were numbered are those of format 1"""

    @property
    def began(self) -> datetime.datetime:
        """At the latest when the stage began to read what the artifact was made from."""
        return datetime.datetime.fromisoformat(self.created) - datetime.timedelta(seconds=self.seconds)


def stage_key(
    stage: str,
    settings: Mapping[str, Any],
    parents: Mapping[str, Manifest],
    revision: int = 0,
    tools: Iterable[str] = (),
) -> str:
    """What a stage's output depends on, as one hash.

    Args:
        stage: its verb.
        settings: JSON-able.
        parents: by name; their contents count, not their folders.
        revision: of the stage's code; it is raised when the same input should give another output.
        tools: distributions whose versions change the output.
    """
    made_from = {name: parent.artifact for name, parent in parents.items()}
    return sha256_json([stage, settings, made_from, revision, {name: tool_version(name) for name in tools}])


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of a published artifact.

    Args:
        folder: of the artifact.
        name: the file's, where manifests lie beside each other (``record_builds.py``).

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = folder / name
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
    if loaded.get("format", 1) not in range(1, FORMAT + 1):
        raise OtherFormatError(
            f"{folder}: made by another version of tritonrank (format {loaded['format']} of {MANIFEST}; this one reads "
            f"up to {FORMAT}). Use that version, or build elsewhere: tritonrank build RECIPE --artifacts FOLDER"
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
        and isinstance(manifest.revision, int)
    ):
        raise ArtifactError(_damaged(path, "values of another kind"))
    return manifest


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _damaged(path: Path, reason: object) -> str:
    return f"{path}: damaged manifest ({reason}). To make it anew, run tritonrank build again"


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Identity of something JSON-able; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def tool_version(name: str) -> str | None:
    """The version of an installed distribution, which is not imported for it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tool_versions() -> dict[str, str]:
    """Those of Python and of the tools that are recorded, as far as they are installed."""
    versions = {name: version for name in RECORDED_TOOLS if (version := tool_version(name)) is not None}
    return {"python": platform.python_version()} | versions
