"""A table or a query of SQLite, DuckDB or Postgres as columns; nothing is ever written to a database.

A table in a database has no order. Its rows are sorted by all the columns that are read, so that the same rows give
the same dataset; a query that says ORDER BY keeps its own order.
"""

import difflib
import hashlib
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import polars as pl
from polars import selectors

from tritonrank.data.formats.cells import Cells, row_number
from tritonrank.errors import DataError
from tritonrank.system.database_url import DatabaseUrl

ROWS_PER_FETCH = 100_000
CONNECT_SECONDS = 10
COUNT_SECONDS = 5
ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)


class Database(ABC):
    """An open connection that can only read."""

    @abstractmethod
    def header(self, source: str) -> list[str]:
        """The names of the columns of a source, which is a quoted table or a query in parentheses."""

    @abstractmethod
    def rows(self, sql: str) -> pl.DataFrame:
        """What a query gives."""

    @abstractmethod
    def tables(self) -> list[str]:
        """The tables and views that are there."""

    def count(self, source: str) -> int | None:
        """How many rows a source has; None where that takes too long to find out."""
        return int(self.rows(f"SELECT count(*) AS rows FROM {source}").item())

    def quoted(self, name: str) -> str:
        """A name as SQL has it."""
        return '"' + name.replace('"', '""') + '"'

    def source(self, url: DatabaseUrl) -> str:
        if url.query:
            return f"({url.query}) AS asked"
        return ".".join(self.quoted(part) for part in url.table.split("."))


class _Sqlite(Database):
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def header(self, source: str) -> list[str]:
        return [column[0] for column in self._connection.execute(f"SELECT * FROM {source} LIMIT 0").description]

    def rows(self, sql: str) -> pl.DataFrame:
        cursor = self._connection.execute(sql)
        names = [column[0] for column in cursor.description]
        chunks: list[list[pl.Series]] = []
        while rows := cursor.fetchmany(ROWS_PER_FETCH):
            chunks.append([_sqlite_column(cells) for cells in zip(*rows, strict=True)])
        if not chunks:
            return pl.DataFrame({name: pl.Series([], dtype=pl.String) for name in names})
        columns = zip(*chunks, strict=True)
        return pl.DataFrame([_stacked(parts).alias(name) for name, parts in zip(names, columns, strict=True)])

    def tables(self) -> list[str]:
        found = self._connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        return [name for (name,) in found if not name.startswith("sqlite_")]


def _sqlite_column(cells: Sequence[Any]) -> pl.Series:
    """SQLite lets every cell have a type of its own; cells of several types become text."""
    kinds = {type(cell) for cell in cells} - {type(None)}
    if kinds <= {int}:
        return pl.Series(cells, dtype=pl.Int64)
    if kinds <= {int, float}:
        return pl.Series(cells, dtype=pl.Float64, strict=False)
    if kinds == {bytes}:
        return pl.Series(cells, dtype=pl.Binary)
    return (
        pl.Series([cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for cell in cells])
        if kinds <= {str, bytes}
        else pl.Series([None if cell is None else str(cell) for cell in cells])
    )


def _stacked(parts: Sequence[pl.Series]) -> pl.Series:
    """The parts of a column as one; of text where their types differ."""
    kinds = {part.dtype for part in parts if part.null_count() < len(part)}
    if len(kinds) > 1:
        wanted: Any = pl.Float64 if kinds <= {pl.Int64, pl.Float64} else pl.String
    else:
        wanted = kinds.pop() if kinds else parts[0].dtype
    return pl.concat([part.cast(wanted) for part in parts])


class _DuckDB(Database):
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def header(self, source: str) -> list[str]:
        return list(self._connection.sql(f"SELECT * FROM {source} LIMIT 0").columns)

    def rows(self, sql: str) -> pl.DataFrame:
        return pl.DataFrame(self._connection.sql(sql))

    def tables(self) -> list[str]:
        return [name for (name,) in self._connection.sql("SELECT table_name FROM information_schema.tables").fetchall()]


class _Postgres(Database):
    """Rows come by COPY as text, which has a form for every type there is; the types of the columns are given back."""

    INTEGERS = (20, 21, 23, 26)  # the numbers of types in pg_type: int8, int2, int4, oid
    FLOATS = (700, 701)
    BOOLEAN, DATE, BYTES = 16, 1082, 17

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def header(self, source: str) -> list[str]:
        return [column.name for column in self._described(f"SELECT * FROM {source} LIMIT 0")]

    def _described(self, sql: str) -> Sequence[Any]:
        return self._connection.execute(sql).description or []

    def rows(self, sql: str) -> pl.DataFrame:
        columns = self._described(f"SELECT * FROM ({sql}) AS described LIMIT 0")
        target = BytesIO()
        with self._connection.cursor().copy(f"COPY ({sql}) TO STDOUT (FORMAT csv, HEADER true)") as copied:
            for block in copied:
                target.write(block)
        target.seek(0)
        text = pl.read_csv(target, infer_schema=False)
        text.columns = [column.name for column in columns]  # polars leaves doubled quotes in names as they are
        return text.select(self._typed(pl.col(column.name), column.type_code) for column in columns)

    def count(self, source: str) -> int | None:
        from psycopg.errors import QueryCanceled

        self._connection.execute(f"SET statement_timeout = '{COUNT_SECONDS}s'")
        try:
            return super().count(source)
        except QueryCanceled:
            return None

    def _typed(self, column: pl.Expr, oid: int) -> pl.Expr:
        if oid in self.INTEGERS:
            return column.cast(pl.Int64)
        if oid in self.FLOATS:
            return column.cast(pl.Float64)
        if oid == self.BOOLEAN:
            return column == "t"
        if oid == self.DATE:
            return column.str.to_date("%Y-%m-%d", strict=False)
        if oid == self.BYTES:
            return column.str.strip_prefix("\\x").str.decode("hex")
        return column  # numeric, times, uuid, json, enums and arrays are read from their text

    def tables(self) -> list[str]:
        found = self._connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
        return [name if schema == "public" else f"{schema}.{name}" for schema, name in found]


@contextmanager
def open_database(url: DatabaseUrl) -> Iterator[Database]:
    """Connect, to read only.

    Raises:
        DataError: the database is not there, does not let us in, or its driver is not installed; or, while it is
            open, it refuses a query.
    """
    if url.file is not None and not url.file.is_file():
        siblings = [one.name for one in url.file.parent.iterdir()] if url.file.parent.is_dir() else []
        near = difflib.get_close_matches(url.file.name, siblings, n=1, cutoff=0.6)
        hint = f". There is {url.file.with_name(near[0])}" if near else ""
        raise DataError(f"{url}: there is no file {url.file.absolute()}{hint}")
    database, close, driver_error = OPENERS[url.scheme](url)
    try:
        yield database
    except driver_error as error:
        there = "" if url.query else _tables_there(url)
        raise DataError(f"{url}: {_first_line(error)}{there}") from None
    finally:
        close()


def _sqlite(url: DatabaseUrl) -> Any:
    assert url.file
    try:
        connection = sqlite3.connect(f"{url.file.absolute().as_uri()}?mode=ro", uri=True, timeout=CONNECT_SECONDS)
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        raise DataError(f"{url}: cannot be opened as SQLite ({error})") from None
    return _Sqlite(connection), connection.close, sqlite3.Error


def _duckdb(url: DatabaseUrl) -> Any:
    try:
        import duckdb
    except ImportError:
        raise DataError(
            f"{url}: the package duckdb reads this and is not installed. Install it: pip install duckdb"
        ) from None
    try:
        connection = duckdb.connect(str(url.file), read_only=True)
    except duckdb.Error as error:
        raise DataError(f"{url}: cannot be opened as DuckDB ({_first_line(error)})") from None
    return _DuckDB(connection), connection.close, duckdb.Error


def _postgres(url: DatabaseUrl) -> Any:
    try:
        import psycopg
    except ImportError:
        message = 'the package psycopg reads this and is not installed. Install it: pip install "psycopg[binary]"'
        raise DataError(f"{url}: {message}") from None
    try:
        address = url.connection()
    except KeyError as error:
        raise DataError(f"{url}: the environment has no {error.args[0]}; set it: export {error.args[0]}=...") from None
    settings = "-c datestyle=ISO -c timezone=UTC -c default_transaction_read_only=on -c bytea_output=hex"
    try:
        connection = psycopg.connect(address, connect_timeout=CONNECT_SECONDS, options=settings)
    except psycopg.Error as error:
        hint = ""
        if "password" in str(error) or "authentication" in str(error):
            hint = ". Set the password in the environment: export PGPASSWORD=..."
        raise DataError(f"{url}: cannot connect ({_first_line(error)}){hint}") from None
    return _Postgres(connection), connection.close, psycopg.Error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _tables_there(url: DatabaseUrl) -> str:
    """What to ask for instead; by a connection of its own, because one that refused a query may be good for nothing."""
    database, close, driver_error = OPENERS[url.scheme](url)
    try:
        names = sorted(database.tables())
    except driver_error:
        return ""
    finally:
        close()
    near = difflib.get_close_matches(url.table, names, n=1, cutoff=0.6)
    meant = f"; did you mean #{near[0]}?" if near else ";"
    return f"{meant} the tables are: {', '.join(names) or '(none)'}"


OPENERS: Mapping[str, Callable[[DatabaseUrl], tuple[Database, Callable[[], None], type[Exception]]]] = {
    "sqlite": _sqlite,
    "duckdb": _duckdb,
    "postgresql": _postgres,
}
"""The connection, how to close it, and what the driver raises."""


def read_database(url: DatabaseUrl, columns: Collection[str] | None = None) -> Cells:
    """The columns asked for of a table or query.

    Raises:
        DataError: as ``open_database``.
    """
    with open_database(url) as database:
        source = database.source(url)
        header = database.header(source)
        chosen = [name for name in header if columns is None or name in columns] or header[:1]
        frame = database.rows(f"SELECT {', '.join(map(database.quoted, chosen))} FROM {source}")
    frame = plain(frame)
    if not ORDERED.search(url.query):
        frame = frame.sort([name for name in chosen if not frame.schema[name].is_nested()], maintain_order=True)
    return Cells(frame, header, row_number)


def first_rows(url: DatabaseUrl, count: int) -> tuple[pl.DataFrame, int | None]:
    """A few rows of a table or query, and how many there are (None: counting takes too long).

    Raises:
        DataError: as ``open_database``.
    """
    with open_database(url) as database:
        source = database.source(url)
        frame = database.rows(f"SELECT * FROM {source} LIMIT {count}")
        total = database.count(source)
    return plain(frame), total


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Categories as text; structures as the JSON that says the same."""
    changed = []
    for name, dtype in frame.schema.items():
        if dtype in (pl.Categorical, pl.Enum):
            changed.append(pl.col(name).cast(pl.String))
        elif dtype == pl.Struct:
            changed.append(pl.col(name).struct.json_encode())
        elif isinstance(dtype, pl.List) and dtype.inner == pl.Struct:
            changed.append(pl.col(name).list.eval(pl.element().struct.json_encode()))
    return frame.with_columns(changed)


def fingerprint(url: DatabaseUrl, columns: Collection[str]) -> str:
    """Sha256 of the rows that would be read; other rows, other values or another order give another one.

    Raises:
        DataError: as ``open_database``.
    """
    frame = read_database(url, columns).frame.with_columns(selectors.binary().bin.encode("hex"))
    digest = hashlib.sha256(repr(frame.schema).encode())
    for rows in frame.iter_slices(ROWS_PER_FETCH):
        digest.update(rows.write_json().encode())
    return digest.hexdigest()
