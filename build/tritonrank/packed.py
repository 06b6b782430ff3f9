"""Open a pack: the one file that a GPU machine needs to check a ranker (``pack.py`` makes it).

A pack is an archive of a checkpoint in FP16, tokenizer and text rules, requests, and the scores that the CPU gave them
in FP32 with the very same weights. ``pack.json``, its first member, names every other file with size and sha256, and
nothing else is taken out of an archive. Only the standard library is imported: such a machine may have little more.
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tritonrank.artifacts import sha256_file
from tritonrank.errors import ArtifactError

PACK_FILE = "pack.json"
REQUESTS_FILE = "requests.jsonl"
PACK_FORMAT = 1
LARGEST_MANIFEST_BYTES = 1_000_000
AGAIN = "Make it again: tritonrank pack ARTIFACTS OUT"


@dataclass(frozen=True)
class PackedRequest:
    """What a client would send, and what the CPU answered."""

    query: str
    history: list[str]
    items: list[str]
    scores: list[float] | None
    """one per item, FP32 on the CPU; None: only to be timed"""


@dataclass(frozen=True)
class Pack:
    """An open pack, every file of which is as it was made."""

    folder: Path
    """holds config.json, model.safetensors, tokenizer.json and text.json"""
    manifest: dict[str, Any]
    requests: list[PackedRequest]

    @property
    def name(self) -> str:
        """Recipe and identity of the ranker."""
        return f"{self.manifest['recipe']} {self.manifest['artifact'][:16]}"

    @property
    def sizes(self) -> list[int]:
        """Candidates per request that the pack has requests of, ascending."""
        return sorted({len(request.items) for request in self.requests if request.scores is None})

    def timed(self, candidates: int) -> list[PackedRequest]:
        """Requests of so many candidates to be timed."""
        return [one for one in self.requests if one.scores is None and len(one.items) == candidates]

    @property
    def scored(self) -> list[PackedRequest]:
        """Requests whose scores are known."""
        return [request for request in self.requests if request.scores is not None]


@contextmanager
def open_pack(path: Path) -> Iterator[Pack]:
    """A pack, unpacked into a temporary folder for as long as the block runs.

    Args:
        path: the archive, or a folder that one was unpacked into.

    Raises:
        ArtifactError: it is missing or damaged, or holds what its manifest does not name.
    """
    if path.is_dir():
        yield _read(path)
        return
    with TemporaryDirectory(prefix="tritonrank-pack-") as scratch:
        folder = Path(scratch)
        try:
            with tarfile.open(path, "r:gz") as archive:
                _extract(archive, folder, path)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such pack. {AGAIN}") from None
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ArtifactError(f"{path}: damaged or not a pack ({error}). {AGAIN}") from None
        yield _read(folder)


def read_pack_manifest(folder: Path) -> dict[str, Any]:
    """What pack.json says.

    Raises:
        ArtifactError: it is missing, damaged, or of another format.
    """
    path = folder / PACK_FILE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, _ = manifest["format"], manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not the manifest of a pack ({error!r}). {AGAIN}") from None
    if found != PACK_FORMAT:
        raise ArtifactError(f"{path}: a pack of format {found}; this tritonrank reads {PACK_FORMAT}. {AGAIN}")
    return manifest


def _extract(archive: tarfile.TarFile, folder: Path, path: Path) -> None:
    """Members that the manifest names, of the size that it names: an archive may claim to be anything."""
    first = archive.next()
    if first is None or first.name != PACK_FILE or first.size > LARGEST_MANIFEST_BYTES:
        raise ArtifactError(f"{path}: not a pack: {PACK_FILE} is not its first file. {AGAIN}")
    archive.extract(first, folder, filter="data")
    files = read_pack_manifest(folder)["files"]
    for member in archive:
        if member.name == PACK_FILE:
            continue
        if not member.isfile() or member.name not in files or member.size != files[member.name]["bytes"]:
            raise ArtifactError(f"{path}: {member.name!r} is not a file that its {PACK_FILE} names. {AGAIN}")
        archive.extract(member, folder, filter="data")


def _read(folder: Path) -> Pack:
    manifest = read_pack_manifest(folder)
    faults = []
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            faults.append(f"  {name}: missing")
        elif sha256_file(folder / name) != expected["sha256"]:
            faults.append(f"  {name}: changed since it was packed (sha256 differs)")
    if faults:
        raise ArtifactError(f"{folder}: this pack is damaged:\n" + "\n".join(faults) + f"\n{AGAIN}")
    with (folder / REQUESTS_FILE).open(encoding="utf-8") as lines:  # str.splitlines() would cut texts at U+2028, too
        return Pack(folder, manifest, [PackedRequest(**json.loads(line)) for line in lines])
