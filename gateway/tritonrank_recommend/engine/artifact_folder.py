"""An artifact that is served while its folder may be replaced, damaged or missing.

A stage publishes a folder by renaming it, so another ``manifest.json`` says that there is another artifact. It is
opened beside the one in use and takes its place; one that cannot be opened leaves things as they were.
"""

import datetime
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

LOG = logging.getLogger("tritonrank_recommend")
MANIFEST = "manifest.json"
Opened = TypeVar("Opened")
Stamp = tuple[int, int, int] | None


class _Metrics(msgspec.Struct):
    data_read: str = ""


class _Manifest(msgspec.Struct):
    created: str = ""
    metrics: _Metrics = msgspec.field(default_factory=_Metrics)


class ArtifactFolder(Generic[Opened]):
    """What lies in a folder now, as far as it can be used.

    Args:
        folder: None where there is to be none.
        open_folder: reads it.
        name: of the part, for the log.
    """

    def __init__(self, folder: Path | None, open_folder: Callable[[Path], Opened], name: str) -> None:
        self._folder, self._open, self._name = folder, open_folder, name
        self._stamp: Stamp = None
        self.opened: Opened | None = None
        """what is in use; whoever looks again decides when that is replaced"""
        self.data_read = 0.0
        """unix seconds: when the data were read of which the last one that ``look`` opened was made; where its manifest
        does not say, when it was made"""
        self.created = 0.0
        """unix seconds: when it was made; 0 where its manifest does not say"""
        self.problem = ""
        """why it cannot be used: "missing" or "damaged"; "" where it can, or where there is to be none"""
        self.opened = self.look()

    @property
    def is_wanted(self) -> bool:
        """Whether there is to be one."""
        return self._folder is not None or self.opened is not None

    def look(self) -> Opened | None:
        """Another artifact than the one before, opened; None where nothing changed or it cannot be used."""
        if self._folder is None:
            return None
        stamp = self._stamp_now()
        if stamp is None:
            self.problem = "missing" if self.opened is None else ""
            return None
        if stamp == self._stamp:
            return None
        try:
            fresh = self._open(self._folder)
        # Whatever is wrong with its files: the service goes on without it.
        except Exception as error:  # noqa: BLE001 - a damaged artifact is done without
            LOG.error("%s in %s cannot be used: %s: %s", self._name, self._folder, type(error).__name__, error)
            self._stamp = stamp
            self.problem = "damaged" if self.opened is None else ""
            return None
        self._stamp, self.problem = stamp, ""
        self.data_read, self.created = self._moments()
        return fresh

    def _moments(self) -> tuple[float, float]:
        """When its data were read and when it was made."""
        try:
            manifest = msgspec.json.decode((self._folder or Path()).joinpath(MANIFEST).read_bytes(), type=_Manifest)
            read, made = (
                datetime.datetime.fromisoformat(moment).timestamp()
                for moment in (manifest.metrics.data_read or manifest.created, manifest.created)
            )
            return read, made
        except (OSError, ValueError):  # an artifact that does not tell is older than every change
            return 0.0, 0.0

    def _stamp_now(self) -> Stamp:
        try:
            found = (self._folder or Path()).joinpath(MANIFEST).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
