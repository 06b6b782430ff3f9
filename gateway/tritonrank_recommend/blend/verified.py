"""Files of a blend's artifact, bounded and held against the hashes of its manifest."""

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

MANIFEST_FILE = "manifest.json"
LARGEST_FILE_BYTES = 64 * 1024 * 1024
AGAIN = "make it again: tritonrank build RECIPE"

Read = TypeVar("Read")


class BlendError(Exception):
    """The folder holds no sound blend; the message names file, fault and the next command."""


class Manifest(msgspec.Struct):
    """What is read of an artifact's manifest."""

    artifact: str
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The artifact's id and the hashes of its files.

    Raises:
        BlendError: there is none.
    """
    return decoded(folder / MANIFEST_FILE, _bounded(folder / MANIFEST_FILE), Manifest)


def open_verified(folder: Path, name: str, kind: type[Read]) -> Read:
    """Another JSON file of the artifact, held against the manifest's hash.

    Raises:
        BlendError: it is missing or damaged.
    """
    manifest = read_manifest(folder)
    return decoded(folder / name, verified(folder, name, manifest), kind)


def verified(folder: Path, name: str, manifest: Manifest) -> bytes:
    """A file of the artifact, as it was made.

    Raises:
        BlendError: it is missing, or another one.
    """
    content = _bounded(folder / name)
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise BlendError(f"{folder / name}: not as it was made (its hash is not that of {MANIFEST_FILE}); {AGAIN}")
    return content


def _bounded(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise BlendError(f"{path}: larger than {LARGEST_FILE_BYTES // 2**20} MiB, so no blend's; {AGAIN}")
        return path.read_bytes()
    except OSError as error:
        raise BlendError(f"{path}: {error.strerror}: no blend is here; {AGAIN}") from None


def decoded(path: Path, content: bytes, kind: type[Read]) -> Read:
    """What JSON of this kind says.

    Raises:
        BlendError: it says something else; the message names the field.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise BlendError(f"{path}: {error}; {AGAIN}") from None
