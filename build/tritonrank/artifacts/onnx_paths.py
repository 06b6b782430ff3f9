"""Which files an ONNX file names: weights outside it may lie in its own artifact, and nowhere else.

An ONNX file can keep weights in other files, by a path that whoever wrote it chose. Read by an engine, `/etc/passwd` or
`../../other-customer/weights.bin` would become a model's weights, or an error message that quotes it. Hashes do not
help against that: the artifact itself may come from somebody else, out of a store or an archive.

The file is walked here as what it is, a protobuf message (https://protobuf.dev/programming-guides/encoding), because
serving must do without the package ``onnx``, and because that package would read the weights.
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_DEPTH = 100
"""Of messages in messages; ONNX's graphs have some eight, and four more for each graph in a graph."""
MOST_NAME_BYTES = 4_096
LOCATION = b"location"
TENSOR, ENTRY = "tensor", "entry"
INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: TENSOR, 6: "graph", 10: TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}
"""Of each message the fields that lead to tensors, by number, as onnx.proto has them."""


class NoOnnxError(ValueError):
    """The file is no ONNX file."""


def foreign_paths(file: Path) -> list[str]:
    """The paths in an ONNX file that lead out of its folder, sorted.

    Raises:
        NoOnnxError: it is damaged, or something else.
        OSError: it cannot be read.
    """
    return sorted(path for path in named_files(file) if _leads_out(path))


def named_files(file: Path) -> set[str]:
    """The files that an ONNX file keeps weights in.

    Raises:
        NoOnnxError: it is damaged, or something else.
        OSError: it cannot be read.
    """
    if not file.stat().st_size:
        return set()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_named(data, 0, len(data), "model", 0))
        except IndexError:
            raise NoOnnxError("cut off") from None


def _named(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > MOST_DEPTH:
        raise NoOnnxError(f"messages more than {MOST_DEPTH} deep")
    inside, at = INSIDE[kind], start
    while at < end:
        number, wire, at = _key(data, at)
        if wire == BYTES:
            length, at = _varint(data, at)
            if at + length > end:
                raise NoOnnxError("cut off")
            inner = inside.get(number)
            if inner == ENTRY:
                yield from _location(data, at, at + length)
            elif inner is not None:
                yield from _named(data, at, at + length, inner, depth + 1)
            at += length
        else:
            at = _behind(data, at, wire)
    if at != end:
        raise NoOnnxError("cut off")


def _location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """The path, where a pair of texts holds one; of a field that is there twice the last one counts."""
    key = value = b""
    at = start
    while at < end:
        number, wire, at = _key(data, at)
        if wire != BYTES:
            at = _behind(data, at, wire)
            continue
        length, at = _varint(data, at)
        if at + length > end or length > MOST_NAME_BYTES:
            raise NoOnnxError("a name that is too long")
        text = data[at : at + length]
        key, value = (text, value) if number == 1 else (key, text) if number == 2 else (key, value)
        at += length
    if key == LOCATION:
        yield value.decode("utf-8", "replace")


def _key(data: mmap.mmap, at: int) -> tuple[int, int, int]:
    key, at = _varint(data, at)
    return key >> 3, key & 7, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise NoOnnxError("a number of more than ten bytes")


def _behind(data: mmap.mmap, at: int, wire: int) -> int:
    if wire == VARINT:
        return _varint(data, at)[1]
    if wire in (FIXED64, FIXED32):
        return at + (8 if wire == FIXED64 else 4)
    raise NoOnnxError(f"no protobuf (wire type {wire})")


def _leads_out(path: str) -> bool:
    """Also as another system would read it: artifacts travel."""
    parts = {*PurePosixPath(path).parts, *PureWindowsPath(path).parts}
    is_absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return not path or "\0" in path or ".." in parts or is_absolute or bool(PureWindowsPath(path).drive)
