"""Objects in any file system that fsspec knows: HDFS, SFTP, memory, and others by their own packages.

Where renaming replaces nothing that is there (HDFS), two writers are told apart by it; elsewhere whoever finds the
object's content to be another's knows that the other one won. docs/store.md lists what each kind of store guarantees.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

import fsspec  # type: ignore[import-untyped]

from tritonrank.artifacts.store.faults import MissingObjectError, UnreachableStoreError, not_installed
from tritonrank.artifacts.store.objects import Found
from tritonrank.errors import StoreError

DRAFTS = "drafts"
MODIFIED = ("mtime", "last_modified", "LastModified", "modified", "created")
"""What file systems call the time of the last change."""
LONGEST_REASON = 300

_one_creates = threading.Lock()


class FsspecObjects:
    """See Objects.

    Args:
        files: fsspec's file system.
        root: the store's path in it.
        url: what the user named.
    """

    def __init__(self, files: Any, root: str, url: str) -> None:
        self.url = url
        self._files = files
        self._root = root.rstrip("/")

    @classmethod
    def at_url(cls, url: str) -> Self:
        """A store at a URL of fsspec's."""
        try:
            files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise not_installed(error.name or str(error)) from None
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            raise StoreError(
                f"{url}: cannot be opened ({_reason(error)}). docs/store.md shows URLs that can be"
            ) from None
        return cls(files, root, url)

    def find(self, name: str) -> Found | None:
        """See Objects."""
        try:
            with self._errors(name):
                self._files.invalidate_cache()
                return self._found(name, self._files.info(self._path(name)))
        except MissingObjectError:
            return None

    def read(self, name: str, start: int, end: int) -> bytes:
        """See Objects."""
        with self._errors(name):
            return bytes(self._files.cat_file(self._path(name), start=start, end=end))

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """See Objects."""
        yield self.read(name, start, end)

    def write(self, name: str, data: bytes) -> None:
        """See Objects."""
        with self._errors(name):
            draft = self._draft(data)
            path = self._path(name)
            self._make_parent(path)
            with suppress(FileNotFoundError):
                self._files.rm_file(path)
            self._files.mv(draft, path)

    def create(self, name: str, data: bytes) -> bool:
        """See Objects."""
        path = self._path(name)
        with self._errors(name), _one_creates:
            self._files.invalidate_cache()
            if self._files.exists(path):
                return False
            draft = self._draft(data)
            self._make_parent(path)
            try:
                self._files.mv(draft, path)
            except OSError:
                with suppress(OSError):
                    self._files.rm_file(draft)
                if not self._files.exists(path):
                    raise
            self._files.invalidate_cache()
            return bytes(self._files.cat_file(path)) == data

    def remove(self, name: str) -> None:
        """See Objects."""
        with self._errors(name), suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def below(self, folder: str) -> Iterator[Found]:
        """See Objects."""
        with self._errors(folder):
            self._files.invalidate_cache()
            try:
                listed = self._files.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return
            prefix = f"{self._root}/"
            for path, info in listed.items():
                if (place := path.find(prefix)) >= 0:
                    yield self._found(path[place + len(prefix) :], info)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _draft(self, data: bytes) -> str:
        path = self._path(f"{DRAFTS}/{uuid.uuid4().hex}")
        self._make_parent(path)
        self._files.pipe_file(path, data)
        return path

    def _make_parent(self, path: str) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _found(self, name: str, info: Any) -> Found:
        if info.get("type") == "directory":
            raise FileNotFoundError(name)
        said = next((info[key] for key in MODIFIED if info.get(key) is not None), None)
        if isinstance(said, int | float):
            said = datetime.fromtimestamp(said, UTC)
        if not isinstance(said, datetime):
            said = self._files.modified(self._path(name))
        return Found(name, int(info["size"]), said if said.tzinfo else said.replace(tzinfo=UTC))

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        place = f"{self.url}/{name}"
        try:
            yield
        except FileNotFoundError:
            raise MissingObjectError(f"{place}: is not there. List what is: tritonrank store list {self.url}") from None
        except PermissionError as error:
            raise StoreError(f"{place}: the store refuses ({_reason(error)}). Give this user access to it") from None
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise UnreachableStoreError(
                f"{place}: the store does not answer ({_reason(error)}). Run the command again: it goes on where it "
                "stopped"
            ) from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
