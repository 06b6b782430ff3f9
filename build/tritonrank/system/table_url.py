"""Where a table in an object store or another file system is: ``s3://shop/events``, ``gs://shop/events/day=*``,
``hdfs://namenode/shop/items.parquet``.

Secrets come from the environment (docs/store.md) and are no part of a URL.
"""

import glob
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

SCHEMES = (
    *("s3", "s3a", "gs", "gcs", "az", "azure", "adl", "abfs", "abfss"),
    *("hdfs", "webhdfs", "sftp", "smb", "dbfs", "oci", "oss", "file", "memory"),
)
EXAMPLES = "s3://bucket/events, gs://bucket/events or hdfs://namenode/shop/events"


@dataclass(frozen=True)
class TableUrl:
    """The address of a file, of a folder of parts, or of a pattern."""

    place: str
    """the scheme and the host or bucket, such as s3://bucket"""
    path: str
    """below it, without slashes at its ends"""

    @classmethod
    def parse(cls, text: str) -> "TableUrl":
        """Read an address.

        Raises:
            ValueError: it is none, or holds a password.
        """
        parts = urlsplit(text)
        if parts.password is not None:
            raise ValueError(
                f"{parts.scheme}://...@{parts.hostname}: a password in a URL ends up in logs; give it in the "
                "environment (docs/store.md)"
            )
        head = f"{parts.scheme}://{parts.netloc}"
        path = text[len(head) :].strip("/")
        if not path and not parts.netloc:
            raise ValueError(f"{text} names no table; expected a file or folder there, such as {EXAMPLES}")
        return cls(head, path)

    @property
    def name(self) -> str:
        """The last part of the path, or the bucket."""
        return PurePosixPath(self.path).name or self.place.partition("://")[2]

    @property
    def suffix(self) -> str:
        """Of the name."""
        return PurePosixPath(self.path).suffix

    @property
    def has_wildcard(self) -> bool:
        return glob.has_magic(self.path)

    @property
    def fixed(self) -> str:
        """The path up to the first part with a wildcard."""
        parts = self.path.split("/")
        first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        return "/".join(parts[:first])

    def at(self, path: str) -> "TableUrl":
        """Another path in the same place."""
        return replace(self, path=path)

    def __str__(self) -> str:
        return f"{self.place}/{self.path}".rstrip("/")
