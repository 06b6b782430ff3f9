"""Where a store's objects lie: the few operations that every object store and file system has.

``open_objects`` chooses by the URL: obstore for S3, Google Cloud Storage, Azure and plain folders, fsspec for all else
that it knows (``hdfs://``, ``memory://``, ``sftp://`` ...). Writing is atomic: an object is there whole or not at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tritonrank.artifacts.store.faults import not_installed
from tritonrank.artifacts.store.urls import SCHEME

OBSTORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file"})


@dataclass(frozen=True)
class Found:
    """An object that is there."""

    name: str
    """below the store's URL"""
    size: int
    """bytes"""
    modified: datetime
    """by the store's clock, with a time zone"""


class Objects(Protocol):
    """All objects of one store. Every method raises StoreError, UnreachableStoreError where it may help to wait."""

    url: str

    def find(self, name: str) -> Found | None:
        """Size and age; None where there is no such object."""
        ...

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end``, fewer where the object ends before.

        Raises:
            MissingObjectError: there is no such object.
        """
        ...

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The same as it arrives, so that a cut takes nothing away that was there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put an object, in place of one that is there."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Put an object that is not there yet; False, and nothing is changed, where one is. Of several writers at a
        time one gets True."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...

    def below(self, folder: str) -> Iterator[Found]:
        """All objects below a folder, in no certain order."""
        ...


def open_objects(url: str, *, make: bool = False) -> Objects:
    """The objects of the store at a URL.

    Args:
        url: without tag.
        make: a plain folder that is not there is made.

    Raises:
        StoreError: the URL names nothing that can be opened, or a package is missing.
    """
    found = SCHEME.match(url)
    scheme = found[1].lower() if found else "file"
    if scheme in OBSTORE_SCHEMES:
        try:
            from tritonrank.artifacts.store.obstore_objects import ObstoreObjects
        except ModuleNotFoundError as error:
            raise not_installed(error.name or "obstore") from None
        if scheme != "file":
            return ObstoreObjects.at_url(url)
        path = url.removeprefix(found[0]) if found else url
        return ObstoreObjects.in_folder(Path(path).expanduser().absolute(), url, make=make)
    try:
        from tritonrank.artifacts.store.fsspec_objects import FsspecObjects
    except ModuleNotFoundError as error:
        raise not_installed(error.name or "fsspec") from None
    return FsspecObjects.at_url(url)
