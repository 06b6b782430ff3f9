"""Objects in S3, Google Cloud Storage, Azure and plain folders, through obstore.

Credentials and endpoints come from the environment, as the libraries of these clouds read them (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME ...), never from the URL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, from_url

from tritonrank.artifacts.store.faults import MissingObjectError, UnreachableStoreError
from tritonrank.artifacts.store.objects import Found
from tritonrank.errors import StoreError, storage_error

REQUEST_SECONDS = 60
"""For one request with its body, at most REQUEST_BYTES: 140 kB per second and connection are enough."""
REQUEST_BYTES = 8 << 20
PIECE_BYTES = 256 << 10
CONNECT_SECONDS = 5
RETRIES = 3
LONGEST_PAUSE_SECONDS = 1.0
RETRY_SECONDS = 15
UPLOADS_PER_OBJECT = 2
LONGEST_REASON = 300
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
S3_SCHEMES = {"s3", "s3a"}


class ObstoreObjects:
    """See Objects."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self.url = url
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path, url: str, *, make: bool) -> Self:
        """A store in a plain folder; raises StoreError where it is not there and is not to be made."""
        if not make and not folder.is_dir():
            raise UnreachableStoreError(
                f"{url}: no such folder. Mount it, or make a store there: tritonrank push ARTIFACTS {url}"
            )
        try:
            return cls(LocalStore(folder, mkdir=make), url)
        except (BaseError, OSError, ValueError) as error:
            raise StoreError(f"{url}: cannot be opened ({_reason(error)}). Name a folder that can be written") from None

    @classmethod
    def at_url(cls, url: str) -> Self:
        """A store in a cloud, or in what speaks like one."""
        options: Any = {"timeout": f"{REQUEST_SECONDS}s", "connect_timeout": f"{CONNECT_SECONDS}s"}
        if urlsplit(url).scheme.lower() in S3_SCHEMES and _is_plain_http(url):
            options["allow_http"] = True
        pause = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=LONGEST_PAUSE_SECONDS)}
        retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
        retry["backoff"] = pause | {"base": 2}
        try:
            return cls(from_url(url, client_options=options, retry_config=retry), url)
        except (BaseError, ValueError) as error:
            raise StoreError(f"{url}: cannot be opened ({_reason(error)}). docs/store.md shows URLs that can") from None

    def find(self, name: str) -> Found | None:
        """See Objects."""
        try:
            with self._errors(name):
                return _found(obstore.head(self._store, name))
        except MissingObjectError:
            return None

    def read(self, name: str, start: int, end: int) -> bytes:
        """See Objects."""
        try:
            with self._errors(name):
                return bytes(obstore.get_range(self._store, name, start=start, end=end))
        except UnreachableStoreError:  # stores call a range behind the end an error
            found = self.find(name)
            if found is not None and found.size <= start:
                return b""
            raise

    def pieces(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """See Objects."""
        begun = False
        try:
            with self._errors(name):
                for piece in obstore.get(self._store, name, options={"range": (start, end)}).stream(PIECE_BYTES):
                    begun = True
                    yield bytes(piece)
        except UnreachableStoreError:
            if begun or self.read(name, start, end):  # says whether the object ends before
                raise

    def write(self, name: str, data: bytes) -> None:
        """See Objects."""
        with self._errors(name):
            obstore.put(
                self._store,
                name,
                data,
                use_multipart=len(data) > REQUEST_BYTES,
                chunk_size=REQUEST_BYTES,
                max_concurrency=UPLOADS_PER_OBJECT,
            )

    def create(self, name: str, data: bytes) -> bool:
        """See Objects."""
        with self._errors(name):
            try:
                obstore.put(self._store, name, data, mode="create")
            except AlreadyExistsError:
                # A request that was sent again after its answer was lost meets its own object.
                return bytes(obstore.get(self._store, name).bytes()) == data
        return True

    def remove(self, name: str) -> None:
        """See Objects."""
        try:
            with self._errors(name):
                obstore.delete(self._store, name)
        except MissingObjectError:
            pass

    def below(self, folder: str) -> Iterator[Found]:
        """See Objects."""
        try:
            with self._errors(folder):
                for chunk in obstore.list(self._store, prefix=folder):
                    yield from map(_found, chunk)
        except MissingObjectError:
            return

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Say what an error means for whoever asked."""
        place = f"{self.url}/{name}"
        try:
            yield
        except FileNotFoundError:
            raise MissingObjectError(f"{place}: is not there. List what is: tritonrank store list {self.url}") from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(
                f"{place}: the store refuses ({_reason(error)}). Give credentials that may do this in the environment: "
                "docs/store.md"
            ) from None
        except (BaseError, OSError) as error:
            if (fault := storage_error(error)) is not None:
                raise fault from None
            raise UnreachableStoreError(
                f"{place}: the store does not answer ({_reason(error)}). Look at its endpoint and credentials "
                "(docs/store.md), and run the command again: it goes on where it stopped"
            ) from None


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], meta["last_modified"])


def _reason(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return " ".join(first.split())[:LONGEST_REASON] or type(error).__name__


def _is_plain_http(url: str) -> bool:
    """Whether the endpoint is plain HTTP and may be: on this machine, or because the environment says so.

    Raises:
        StoreError: it may not be.
    """
    variable = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if variable is None or not os.environ[variable].lower().startswith("http://"):
        return False
    is_allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}
    if is_allowed or urlsplit(os.environ[variable]).hostname in LOOPBACK:
        return True
    raise StoreError(
        f"{url}: {variable} is plain http, so that keys and models would travel unencrypted. Name an https endpoint, "
        "or allow it: AWS_ALLOW_HTTP=true"
    )
