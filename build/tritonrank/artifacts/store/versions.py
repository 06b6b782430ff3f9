"""What one version consists of: its files, each in parts of at most 64 MB that are named by their SHA-256.

A version's description is JSON with sorted keys, and its SHA-256 is the version's digest: the same artifact pushed
twice, by whomever, is one version. Whoever reads a description believes nothing of it before it was checked: names
stay inside the folder, sizes are bounded, the parts of a file add up to it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from tritonrank.artifacts.store.faults import DamagedStoreError

KIND = "application/vnd.tritonrank.version+json"
FORMAT = 1
PART_BYTES = 64 << 20
MOST_BYTES = 1 << 40
"""Of a version: 1 TiB."""
MOST_FILES = 100_000
MOST_PAYLOAD_BYTES = 32 << 20
LONGEST_NAME = 1_024
LONGEST_COMPONENT = 255
SHA256 = re.compile(r"[0-9a-f]{64}")
RANK_FILE = re.compile(r"(?:rank(\d{1,4})\..+|.+\.rank(\d{1,4}))")
"""Files of one rank of tensor parallel: shards (``rank0.context.onnx``) and plans (``model.plan.rank0``)."""


@dataclass(frozen=True)
class Part:
    """A piece of a file, an object in the store."""

    sha256: str
    size: int

    @property
    def name(self) -> str:
        """Of the object."""
        return f"parts/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True)
class File:
    """One file of a version."""

    path: str
    """below the version's folder, with slashes"""
    size: int
    sha256: str
    parts: tuple[Part, ...]

    @property
    def rank(self) -> int | None:
        """Which rank of tensor parallel alone needs it; None: all do."""
        found = RANK_FILE.fullmatch(PurePosixPath(self.path).name)
        return None if found is None else int(found[1] or found[2])

    def placed(self) -> Iterator[tuple[Part, int]]:
        """The parts with the byte that each begins at."""
        start = 0
        for part in self.parts:
            yield part, start
            start += part.size


@dataclass(frozen=True)
class Version:
    """One artifact as the store knows it."""

    model: str
    """the recipe's name"""
    name: str
    """what it is called where it was built: a build's id"""
    stage: str
    artifact: str
    """the manifest's"""
    created: str
    """when it was built"""
    files: tuple[File, ...]
    folders: tuple[str, ...]
    """empty ones that belong to it"""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> dict[str, Part]:
        """All distinct parts by hash."""
        return {part.sha256: part for file in self.files for part in file.parts}

    def payload(self) -> bytes:
        """Its description."""
        said = {"format": FORMAT} | asdict(self)
        return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def digest(self) -> str:
        return digest_of(self.payload())


def digest_of(payload: bytes) -> str:
    """What a description's version is called."""
    return hashlib.sha256(payload).hexdigest()


def read_version(payload: bytes, what: str) -> Version:
    """Read a description, and believe none of it unchecked.

    Args:
        payload: of bounded size.
        what: for the message.

    Raises:
        DamagedStoreError: something in it is not as it has to be; names it.
    """
    try:
        said = json.loads(payload)
        _require(isinstance(said, dict), "not an object")
        _require(said.get("format") == FORMAT, f"format {said.get('format')!r}; this tritonrank reads {FORMAT}")
        _require(isinstance(said["files"], list) and len(said["files"]) <= MOST_FILES, "too many files")
        files = tuple(_file(one) for one in said["files"])
        folders = tuple(_path(one) for one in said["folders"])
        texts = [said[key] for key in ("model", "name", "stage", "artifact", "created")]
        _require(all(isinstance(one, str) and len(one) <= LONGEST_NAME for one in texts), "a text is none")
        model, name, stage, artifact, created = texts
        _require("/" not in _path(model), "the model's name is no name of a folder")
        version = Version(model, name, stage, artifact, created, files, folders)
        _require(version.size <= MOST_BYTES, f"{version.size:,} bytes; at most {MOST_BYTES:,}")
        _require_tree([file.path for file in files], list(folders))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedStoreError(
            f"{what}: a description that is not to be believed ({error}). It is refused; look at all of the store: "
            "tritonrank store verify URL"
        ) from None
    return version


def _file(said: Any) -> File:
    path, size = _path(said["path"]), _size(said["size"], MOST_BYTES)
    _require(isinstance(said["parts"], list) and len(said["parts"]) <= MOST_BYTES // PART_BYTES, f"{path}: parts")
    parts = tuple(Part(_sha256(one["sha256"]), _size(one["size"], PART_BYTES)) for one in said["parts"])
    _require(all(part.size for part in parts), f"{path}: an empty part")
    _require(sum(part.size for part in parts) == size, f"{path}: its parts do not add up to its size")
    return File(path, size, _sha256(said["sha256"]), parts)


def _path(said: Any) -> str:
    _require(isinstance(said, str) and 0 < len(said) <= LONGEST_NAME, "a name is none")
    shown = repr(said[:80])
    _require(said.isprintable() and "\\" not in said, f"the name {shown} has characters that names have not")
    components = said.split("/")
    _require(not {"", ".", ".."} & set(components), f"the name {shown} leads out of the folder")
    _require(all(len(one.encode()) <= LONGEST_COMPONENT for one in components), f"the name {shown} is too long")
    return str(said)


def _require_tree(files: list[str], folders: list[str]) -> None:
    """No name twice, and no file that is also a folder."""
    names = set(files)
    _require(len(names) == len(files), "a name twice")
    above = {str(parent) for path in files + folders for parent in PurePosixPath(path).parents}
    _require(not names & (above | set(folders)), "a name is that of a file and of a folder")


def _size(said: Any, most: int) -> int:
    _require(type(said) is int and 0 <= said <= most, f"a size of {said!r}")
    return int(said)


def _sha256(said: Any) -> str:
    _require(isinstance(said, str) and SHA256.fullmatch(said) is not None, "a hash is none")
    return str(said)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
