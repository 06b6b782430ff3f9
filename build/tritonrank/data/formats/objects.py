"""Tables in object stores: their files are listed there, and copied here one at a time while they are read.

The store's way of opening a URL is used (``artifacts/store/objects.py``): the same clouds and file systems, and the
same variables of the environment for who may read.
"""

import fnmatch
import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tritonrank.artifacts.store.objects import Objects, open_objects
from tritonrank.system.table_url import TableUrl

BLOCK_BYTES = 8 << 20


def find_objects(url: TableUrl) -> list[tuple[TableUrl, PurePosixPath]]:
    """The files of a table, each with its path below the table's folder; none where nothing is there.

    They come in the order in which a folder of this machine would have them. Hidden ones are left out.

    Raises:
        StoreError: the store does not answer, or refuses.
    """
    parent, _, name = url.path.rpartition("/")
    if name and not url.has_wildcard and _open(url, parent).find(name) is not None:
        return [(url, PurePosixPath(name))]
    root = url.fixed
    below = (PurePosixPath(found.name) for found in _open(url, root).below("") if found.size or _has_suffix(found.name))
    pattern = url.path[len(root) :].strip("/")
    chosen = [path for path in below if not _is_hidden(path, pattern) and (not pattern or _matches(path, pattern))]
    in_order = sorted(chosen, key=lambda path: path.as_posix() if pattern else path.parts)
    return [(url.at(f"{root}/{path}".strip("/")), path) for path in in_order]


@contextmanager
def copied(url: TableUrl) -> Iterator[Path]:
    """A file of an object store in a folder of this machine, for as long as it is read.

    Raises:
        StoreError: it cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrank-table-") as folder:
        file = Path(folder) / url.name
        with file.open("wb") as opened:
            for block in _blocks(url):
                opened.write(block)
        yield file


def sha256_object(url: TableUrl) -> str:
    """The hash of a file's content.

    Raises:
        StoreError: it cannot be fetched.
    """
    digest = hashlib.sha256()
    for block in _blocks(url):
        digest.update(block)
    return digest.hexdigest()


def _blocks(url: TableUrl) -> Iterator[bytes]:
    parent, _, name = url.path.rpartition("/")
    objects = _open(url, parent)
    found = objects.find(name)
    size = found.size if found else 0
    if found is None:
        objects.read(name, 0, 1)  # says that it is gone
    for start in range(0, size, BLOCK_BYTES):
        yield objects.read(name, start, min(start + BLOCK_BYTES, size))


def _open(url: TableUrl, path: str) -> Objects:
    return open_objects(f"{url.place}/{path}".rstrip("/"))


def _has_suffix(name: str) -> bool:
    """Whether an empty object is a file: some programs write one for a folder."""
    return bool(PurePosixPath(name).suffix)


def _is_hidden(path: PurePosixPath, pattern: str) -> bool:
    return any(part.startswith(("_", ".")) and part not in pattern for part in path.parts)


def _matches(path: PurePosixPath, pattern: str) -> bool:
    """Whether a file, or a folder around it, matches a pattern part by part; ``**`` is any number of folders."""
    expression = ""
    for part in pattern.split("/"):
        if part == "**":
            expression += r"(?:[^/]+/)*"
        else:
            inner = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").replace(".*", "[^/]*")
            expression += inner + "/"
    return re.match(expression + r"(?:.*)?\Z", f"{path}/", re.DOTALL) is not None
