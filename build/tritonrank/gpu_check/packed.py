"""Open a pack: the one file that a GPU machine needs to check a ranker (``pack.py`` makes it).

A pack is an archive of a checkpoint in FP16, tokenizer and text rules, requests, and the scores that the CPU gave them
in FP32 with the very same weights. ``pack.json``, its first member, names every other file with size and sha256, and
nothing else is taken out of an archive. A pack comes from another machine, so neither the sizes that it claims nor the
fields of its files are believed. Only the standard library is imported: such a machine may have little more.
"""

import gzip
import json
import math
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tritonrank.artifacts import sha256_file
from tritonrank.errors import ArtifactError

PACK_FILE = "pack.json"
REQUESTS_FILE = "requests.jsonl"
PACK_FORMAT = 1
LARGEST_MANIFEST_BYTES = 1_000_000
MOST_FILES = 100
MOST_UNPACKED_PER_BYTE = 100
"""Bytes that a byte of the archive may claim to hold: weights become a tenth smaller, texts a tenth of their size, and
only a bomb a thousandth."""
MEMBER_BYTES = 4 * tarfile.RECORDSIZE
"""Beside the content of a member, at the most: its headers, and what rounds it up."""
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
        yield _read(path, path)
        return
    with TemporaryDirectory(prefix="tritonrank-pack-") as scratch:
        folder = Path(scratch)
        try:
            _unpack(path, folder)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such pack. {AGAIN}") from None
        except DAMAGE as error:
            raise ArtifactError(f"{path}: damaged or not a pack ({error}). {AGAIN}") from None
        yield _read(folder, path)


def read_pack_manifest(folder: Path, pack: Path | None = None) -> dict[str, Any]:
    """What pack.json says.

    Args:
        folder: holds it.
        pack: what the message names; None: the folder.

    Raises:
        ArtifactError: it is missing, damaged, or of another format; names the key.
    """
    place = f"{pack or folder}: {PACK_FILE}"
    try:
        manifest: Any = json.loads((folder / PACK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{place}: not the manifest of a pack ({error!r}). {AGAIN}") from None
    if isinstance(manifest, dict) and manifest.get("format", PACK_FORMAT) != PACK_FORMAT:
        found = json.dumps(manifest["format"])[:40]
        raise ArtifactError(f"{place}: a pack of format {found}; this tritonrank reads {PACK_FORMAT}. {AGAIN}")
    for key, (holds, expected) in MANIFEST_KEYS.items():
        if not isinstance(manifest, dict) or key not in manifest or not holds(manifest[key]):
            raise ArtifactError(f"{place}: {key}: expected {expected}. {AGAIN}")
    return dict(manifest)


def _is_file_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and type(record.get("bytes")) is int
        and record["bytes"] >= 0
        and isinstance(record.get("sha256"), str)
    )


def _are_files(value: Any) -> bool:
    """Files beside pack.json, by plain name: none outside the folder, and requests among them."""
    return (
        isinstance(value, dict)
        and REQUESTS_FILE in value
        and len(value) <= MOST_FILES
        and all(name not in ("", ".", "..") and not set(name) & set("/\\\0") for name in value)
        and all(map(_is_file_record, value.values()))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_scores(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(type(one) in (int, float) and math.isfinite(one) for one in value)
    )


Check = tuple[Callable[[Any], bool], str]
MANIFEST_KEYS: Mapping[str, Check] = {
    "format": (lambda value: value == PACK_FORMAT, f"the number {PACK_FORMAT}"),
    "recipe": (_is_text, "a name"),
    "artifact": (_is_text, "a hash"),
    "architecture": (_is_text, "a name"),
    "parameters": (lambda value: type(value) is int and value >= 0, "a whole number from 0"),
    "serve": (lambda value: isinstance(value, dict), "settings by name"),
    "fp32_kinds": (_are_texts, "a list of names"),
    "files": (_are_files, f"plain names with bytes and sha256, {REQUESTS_FILE} and at most {MOST_FILES} of them"),
}
REQUEST_FIELDS: Mapping[str, Check] = {
    "query": (_is_text, "text"),
    "history": (_are_texts, "a list of texts"),
    "items": (lambda value: _are_texts(value) and bool(value), "a list of texts, at least one"),
    "scores": (_are_scores, "null or a list of finite numbers"),
}
DAMAGE = (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, OverflowError, RecursionError, MemoryError)
"""What Python's tarfile and gzip raise for an archive that is damaged or made to hurt."""


class _Bounded:
    """A stream that gives no more than it was allowed, whatever its headers claim."""

    def __init__(self, file: gzip.GzipFile, allowed_bytes: int) -> None:
        self._file = file
        self.left_bytes = allowed_bytes

    def read(self, size: int) -> bytes:
        """At most so many bytes.

        Raises:
            ValueError: more than allowed have come.
        """
        content = self._file.read(size)
        self.left_bytes -= len(content)
        if self.left_bytes < 0:
            raise ValueError(f"it holds more than its {PACK_FILE} names")
        return content


def _unpack(path: Path, folder: Path) -> None:
    """Members that the manifest names, of the size that it names: an archive may claim to be anything.

    Raises:
        ArtifactError: it claims to be larger than it can be, or holds what it does not name.
        OSError, EOFError, ...: see DAMAGE.
    """
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed, mode="rb") as content:
        source = _Bounded(content, LARGEST_MANIFEST_BYTES + MEMBER_BYTES)
        with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]  # only read()
            first = archive.next()
            is_manifest = first is not None and first.name == PACK_FILE and first.isreg() and not first.issparse()
            if first is None or not is_manifest or first.size > LARGEST_MANIFEST_BYTES:
                raise ArtifactError(f"{path}: not a pack: {PACK_FILE} is not its first file. {AGAIN}")
            archive.extract(first, folder, filter="data")
            files = read_pack_manifest(folder, path)["files"]
            source.left_bytes += _claimed_bytes(files, path, folder) + MEMBER_BYTES * len(files)
            left = dict(files)
            while (member := archive.next()) is not None:
                known = left.pop(member.name, None)
                if known is None or not member.isreg() or member.issparse() or member.size != known["bytes"]:
                    raise ArtifactError(
                        f"{path}: {member.name[:200]!r} is not a file that its {PACK_FILE} names, or another one of "
                        f"that name. {AGAIN}"
                    )
                archive.extract(member, folder, filter="data")


def _claimed_bytes(files: Mapping[str, Any], path: Path, folder: Path) -> int:
    """Of all files together, before one of them is unpacked.

    Raises:
        ArtifactError: no honest archive of this size holds so much, or the disk does not.
    """
    claimed: int = sum(record["bytes"] for record in files.values())
    most = MOST_UNPACKED_PER_BYTE * path.stat().st_size
    if claimed > most:
        raise ArtifactError(
            f"{path}: {PACK_FILE}: files: claims {claimed:,} bytes; an archive of this size holds {most:,} at the "
            f"most, so nothing was unpacked. {AGAIN}"
        )
    if claimed > (free := shutil.disk_usage(folder).free):
        raise ArtifactError(
            f"{path}: holds {claimed:,} bytes, and {folder.parent} has {free:,} left. Make room there, or name another "
            "folder: TMPDIR=FOLDER tritonrank gpu-check PACK"
        )
    return claimed


def _read(folder: Path, pack: Path) -> Pack:
    manifest = read_pack_manifest(folder, pack)
    faults = []
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            faults.append(f"  {name}: missing")
        elif sha256_file(folder / name) != expected["sha256"]:
            faults.append(f"  {name}: changed since it was packed (sha256 differs)")
    if faults:
        raise ArtifactError(f"{pack}: this pack is damaged:\n" + "\n".join(faults) + f"\n{AGAIN}")
    # Bytes, because str.splitlines() and text files would cut texts at U+2028, too.
    with (folder / REQUESTS_FILE).open("rb") as lines:
        requests = [_request(line, f"{pack}: {REQUESTS_FILE}:{number}") for number, line in enumerate(lines, start=1)]
    found = Pack(folder, manifest, requests)
    if not found.scored:
        raise ArtifactError(f"{pack}: {REQUESTS_FILE}: no request has scores, so nothing could be checked. {AGAIN}")
    return found


def _request(line: bytes, place: str) -> PackedRequest:
    """One request.

    Raises:
        ArtifactError: it is none; names line and field.
    """
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place}: not a line of JSON ({error}). {AGAIN}") from None
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(PackedRequest)}:
        raise ArtifactError(f"{place}: expected an object with {', '.join(REQUEST_FIELDS)}. {AGAIN}")
    for name, (holds, expected) in REQUEST_FIELDS.items():
        if not holds(values[name]):
            raise ArtifactError(f"{place}: {name}: expected {expected}. {AGAIN}")
    if values["scores"] is not None and len(values["scores"]) != len(values["items"]):
        raise ArtifactError(
            f"{place}: scores: {len(values['scores'])} of them for {len(values['items'])} items; expected one for "
            f"each. {AGAIN}"
        )
    return PackedRequest(**values)
