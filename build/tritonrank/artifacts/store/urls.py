"""How a model in a store is named: ``URL``, ``URL@TAG`` or ``URL@DIGEST``.

    s3://bucket/models/shop             what is tagged `latest`
    s3://bucket/models/shop@canary      what is tagged `canary`
    s3://bucket/models/shop@3f9a12bc    the version whose digest begins so
    /mnt/models/shop@latest             a store in a plain folder

One URL holds one model with all its versions. An @ counts only behind the last slash, so that hdfs://user@host/models
names no tag. User names with passwords are refused: secrets come from the environment (docs/store.md).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tritonrank.errors import StoreError

LATEST = "latest"
MARKER = "store.json"
"""The object at the URL that says that a store is there."""
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
"""Of at least eight characters; a tag may not look like it."""


@dataclass(frozen=True)
class Source:
    """A place and what is wanted from it."""

    url: str
    """of the store, without a slash at its end"""
    wanted: str = LATEST
    """a tag, or a digest or the beginning of one"""

    @property
    def is_digest(self) -> bool:
        """Whether one version is named, which no tag moves."""
        return DIGEST.fullmatch(self.wanted) is not None

    @property
    def digest(self) -> str:
        """What the digest begins with; raises ValueError where a tag is wanted."""
        found = DIGEST.fullmatch(self.wanted)
        if found is None:
            raise ValueError(self.wanted)
        return found[1]

    def __str__(self) -> str:
        return f"{self.url}@{self.wanted}"


def parse_source(source: str) -> Source:
    """Take apart ``URL[@TAG|@DIGEST]``.

    Raises:
        StoreError: it is none, holds a password, or names something that can be neither tag nor digest.
    """
    scheme = SCHEME.match(source)
    head, slash, last = source.rpartition("/")
    name, sign, wanted = last.partition("@")
    # Without a path, what is behind the @ is a host: hdfs://user@namenode
    if not sign or (scheme and head + slash == scheme[0]):
        url, wanted = source, LATEST
    else:
        url = head + slash + name
    if scheme:
        parts = urlsplit(url)
        if parts.password:
            raise StoreError(
                f"{parts.scheme}://...@{parts.hostname}{parts.path}: a password in a URL ends up in logs. Give it in "
                "the environment: docs/store.md names the variables of each kind of store"
            )
        if parts.query or parts.fragment:
            raise StoreError(f"{url}: a store's URL has neither ? nor #. Name it as scheme://place/path[@TAG]")
    if not url.strip("/"):
        raise StoreError(f"{source!r}: names no store. Expected URL[@TAG], such as s3://bucket/models/shop@latest")
    source_of = Source(url.rstrip("/"), wanted)
    if not source_of.is_digest:
        check_tag(wanted)
    return source_of


def check_tag(tag: str) -> None:
    """Raise StoreError where a tag may not be called so."""
    if not TAG.fullmatch(tag) or DIGEST.fullmatch(tag):
        raise StoreError(
            f"tag {tag!r}: up to 64 letters, digits, dots, dashes and underscores, and not eight or more characters "
            "of a hexadecimal number, which name a version. Such as: latest, canary, 2026-11-27"
        )


def is_store(source: str) -> bool:
    """Whether a model in a store is named, and not a folder of this machine to be taken as it is."""
    if SCHEME.match(source):
        return True
    if Path(source).exists():
        return (Path(source) / MARKER).is_file()
    return "@" in source.rpartition("/")[2]
