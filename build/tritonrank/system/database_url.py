"""Where a table in a database is: ``sqlite:///shop.db#events``, ``duckdb:///shop.duckdb?query=SELECT ...``,
``postgresql://reader@db.example/shop#public.events``.

A password never appears where the address is shown or written down: it comes from PGPASSWORD, ``~/.pgpass`` or a
``${NAME}`` of the environment, and one that stands in the URL all the same is shown as ``***``.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from tritonrank.system.table_url import EXAMPLES as FILES
from tritonrank.system.table_url import SCHEMES as TABLE_SCHEMES
from tritonrank.system.table_url import TableUrl

FILE_SCHEMES = ("sqlite", "duckdb")
SERVER_SCHEMES = ("postgresql", "postgres")
SCHEMES = (*FILE_SCHEMES, *SERVER_SCHEMES)
EXAMPLES = "sqlite:///shop.db#table, duckdb:///shop.duckdb#table or postgresql://user@host/database#table"
HIDDEN = "***"
SECRET_WORDS = ("password", "sslpassword", "passfile")
VARIABLE = re.compile(r"\$\{(\w+)\}")


def is_url(text: str) -> bool:
    """Whether a text is a URL of any kind and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def read_url(text: str) -> "DatabaseUrl | TableUrl | Path":
    """The address of a table by its URL, whichever kind it is; a ``file://`` is a path.

    Raises:
        ValueError: it is none that is read; the message says what was expected.
    """
    scheme = text.partition("://")[0].lower()
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme in TABLE_SCHEMES:
        return TableUrl.parse(text)
    if scheme not in SCHEMES:
        raise ValueError(
            f"{scheme}:// is not read; expected a path, files such as {FILES}, or a database such as {EXAMPLES}"
        )
    return DatabaseUrl.parse(text)


def without_password(text: str) -> str:
    """A URL as it may be shown, also one that is not understood."""
    scheme, colon, rest = text.partition("://")
    return f"{scheme}://{_masked(rest)}" if colon else text


@dataclass(frozen=True)
class DatabaseUrl:
    """The address of one table or query. ``str()`` of it may be shown: it has no password."""

    scheme: str
    """sqlite, duckdb or postgresql"""
    file: Path | None
    """of sqlite and duckdb"""
    server: str = field(repr=False)
    """``user:password@host:port/database?options`` of postgresql, as it was written"""
    table: str
    """such as ``events`` or ``public.events``; empty where there is a query"""
    query: str
    """an SQL query; empty where there is a table"""

    @classmethod
    def parse(cls, text: str) -> "DatabaseUrl":
        """Read an address.

        Raises:
            ValueError: it is none; the message says what was expected.
        """
        parts = urlsplit(text)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"{parts.scheme}:// is not read; expected a path, or a database such as {EXAMPLES}")
        options = parse_qsl(parts.query, keep_blank_values=True)
        query = "".join(value for key, value in options if key == "query").strip().rstrip(";")
        table = unquote(parts.fragment).strip()
        if bool(query) == bool(table):
            found = "both a table and a query" if query else "neither a table nor a query"
            raise ValueError(f"the URL has {found}; expected #TABLE at its end, or ?query=SELECT ...: {EXAMPLES}")
        if parts.scheme in FILE_SCHEMES:
            if parts.netloc:
                raise ValueError(
                    f"{parts.scheme}://{_masked(parts.netloc)} has two slashes; a relative path has three, "
                    f"{parts.scheme}:///shop.db#table, an absolute one four"
                )
            file = Path(unquote(parts.path.removeprefix("/")))
            if not file.name:
                raise ValueError(f"the URL names no file; expected {parts.scheme}:///shop.db#table")
            return cls(parts.scheme, file, "", table, query)
        rest = urlencode([(key, value) for key, value in options if key != "query"])
        server = f"{parts.netloc}{parts.path}" + (f"?{rest}" if rest else "")
        return cls("postgresql", None, server, table, query)

    @property
    def name(self) -> str:
        """What the table is called where a file's name would stand."""
        return self.table or "query"

    @property
    def wanted(self) -> str:
        """The table or the query: what of the address decides which rows are read."""
        return self.table or self.query

    def within(self, folder: Path) -> "DatabaseUrl":
        """The same with a relative file begun at a folder."""
        return replace(self, file=folder / self.file) if self.file else self

    def connection(self) -> str:
        """The URL to connect to a server with: variables of the environment are put in. Never to be shown.

        Raises:
            KeyError: a variable is not set; the key is its name.
        """
        return f"{self.scheme}://" + VARIABLE.sub(lambda found: quote(os.environ[found[1]], safe=""), self.server)

    def written(self) -> str:
        """The URL for a recipe: read again it is the same address, but without a password that stood in it."""
        place = f"/{quote(str(self.file))}" if self.file else _masked(self.server).replace(f":{HIDDEN}@", "@")
        if self.table:
            return f"{self.scheme}://{place}#{quote(self.table)}"
        return f"{self.scheme}://{place}{'&' if '?' in place else '?'}query={quote(self.query)}"

    def __str__(self) -> str:
        wanted = f"#{self.table}" if self.table else f"query={self.query}"
        place = f"/{self.file}" if self.file else _masked(self.server)
        joint = "" if self.table else ("&" if "?" in place else "?")
        return f"{self.scheme}://{place}{joint}{wanted}"


Location = Path | DatabaseUrl
"""Where a table is: a file, a folder of parts, a pattern; or a table in a database."""
FileLocation = Path | TableUrl
"""Where a table in files is: here, or in an object store."""
AnyLocation = Location | TableUrl
"""Where a table is that a recipe names."""


def _masked(server: str) -> str:
    """Without the password, unless it is the name of a variable."""
    account, at, host = server.rpartition("@")  # the last one: a password may hold @ and / where nobody escaped them
    user, colon, password = account.partition(":")
    if colon and not VARIABLE.fullmatch(password):
        account = f"{user}:{HIDDEN}"
    secret = rf"([?&](?:{'|'.join(SECRET_WORDS)})=)(?!\$\{{\w+\}})[^&]*"
    return re.sub(secret, rf"\g<1>{HIDDEN}", f"{account}{at}{host}")
