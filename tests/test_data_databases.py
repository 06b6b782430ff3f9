"""Tables in databases are read like files: by URL, never written to, with a key that notices changed rows."""

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.formats import databases
from tritonrank.data.loading import load_tables
from tritonrank.data.peek import peek
from tritonrank.errors import DataError
from tritonrank.pipeline import prepare
from tritonrank.recipe import Recipe, TablesData
from tritonrank.system.database_url import DatabaseUrl

PRODUCTS = [(10, "Lamp; oak", 5.5), (11, "Café desk", None), (12, 'A "chair"\nof two lines', 7.0)]
EVENTS = [("u1", 10, "2020-09-13 12:00:00", "lamp"), ("u2", 12, "2020-09-13 12:00:01", None)]
SECONDS = [1_599_998_400, 1_599_998_401]
CREATE = (
    "CREATE TABLE products (sku INTEGER, title TEXT, price DOUBLE PRECISION)",
    "CREATE TABLE events (who TEXT, sku INTEGER, seen TIMESTAMP, search TEXT)",
)


def settings_of(base: str, items: str = "#products", events: str = "#events") -> TablesData:
    return TablesData.model_validate(
        {
            "source": "tables",
            "items": base + items,
            "events": base + events,
            "item_id": "sku",
            "text_fields": ["title", "price"],
            "user_id": "who",
            "timestamp": "seen",
            "query": "search",
        }
    )


def sqlite_shop(folder: Path) -> str:
    connection = sqlite3.connect(folder / "shop.db")
    for statement in CREATE:
        connection.execute(statement)
    connection.executemany("INSERT INTO products VALUES (?, ?, ?)", PRODUCTS)
    connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", EVENTS)
    connection.commit()
    connection.close()
    return f"sqlite:///{folder}/shop.db"


def duckdb_shop(folder: Path) -> str:
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        for statement in CREATE:
            connection.execute(statement)
        connection.executemany("INSERT INTO products VALUES (?, ?, ?)", PRODUCTS)
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", EVENTS)
    return f"duckdb:///{folder}/shop.duckdb"


SHOPS = {"sqlite": sqlite_shop, "duckdb": duckdb_shop}


def execute(base: str, statement: str) -> None:
    """Change a database file as its owner would."""
    url = DatabaseUrl.parse(base + "#events")
    assert url.file
    connection: Any = (sqlite3 if url.scheme == "sqlite" else duckdb).connect(str(url.file))
    connection.execute(statement)
    connection.commit()
    connection.close()


def key(settings: TablesData, folder: Path) -> str:
    return prepare.stage(Recipe(name="shop", data=settings), Workspace(folder)).key()


def assert_is_the_shop(settings: TablesData) -> None:
    tables = load_tables(settings, seed=1)
    assert tables.items.sort("item_id").rows() == [
        ("10", "Lamp; oak", "5.5"),
        ("11", "Café desk", ""),
        ("12", 'A "chair"\nof two lines', "7"),
    ]
    assert tables.events.sort("user_id").select("user_id", "item_id", "query", "timestamp").rows() == [
        ("u1", "10", "lamp", SECONDS[0]),
        ("u2", "12", "", SECONDS[1]),
    ]


@pytest.fixture(params=SHOPS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database file, up to the table."""
    return SHOPS[request.param](tmp_path)


def test_tables_and_queries_are_read(shop: str) -> None:
    assert_is_the_shop(settings_of(shop))
    query = "?query=SELECT%20who,%20sku,%20seen,%20search%20FROM%20events%20WHERE%20sku%20%3E%200;"
    assert_is_the_shop(settings_of(shop, events=query))


def test_the_stage_notices_changed_rows_and_nothing_else(shop: str, tmp_path: Path) -> None:
    settings = settings_of(shop)
    keys = [key(settings, tmp_path)]
    execute(shop, "CREATE TABLE other (a INTEGER)")
    execute(shop, "UPDATE products SET price = 5.5 WHERE sku = 10")  # in place or at the end: the rows are the same
    assert key(settings, tmp_path) == keys[0]
    execute(shop, "UPDATE events SET search = 'oak' WHERE who = 'u1'")
    keys.append(key(settings, tmp_path))
    execute(shop, "INSERT INTO events VALUES ('u3', 11, '2020-09-13 12:00:02', '')")
    keys.append(key(settings, tmp_path))
    execute(shop, "UPDATE products SET title = NULL WHERE sku = 11")
    keys.append(key(settings, tmp_path))
    assert len(set(keys)) == 4


def test_faults_name_the_row_and_the_setting(shop: str) -> None:
    execute(shop, "UPDATE events SET seen = NULL WHERE who = 'u2'")
    settings = settings_of(shop).model_copy(update={"user_id": "customer", "tolerate": 0})
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    message = str(caught.value)
    assert f"{shop}#events: row 2: seen is empty" in message
    assert "no column 'customer', which data.user_id names" in message
    assert "who, sku, seen, search" in message


@pytest.mark.parametrize(
    ("table", "said"),
    [("#event", "did you mean #events?"), ("#x", "the tables are: events, products"), ("?query=SELECT%20nonsense", "")],
)
def test_a_table_that_is_not_there_is_named_with_those_that_are(shop: str, table: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_tables(settings_of(shop, events=table), seed=1)
    assert said in str(caught.value)
    assert "1 fault(s)" in str(caught.value)


def test_nothing_is_written(shop: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path in before:
        path.chmod(0o444)
    assert_is_the_shop(settings_of(shop))
    with pytest.raises(DataError):
        load_tables(settings_of(shop, events="?query=DELETE%20FROM%20events"), seed=1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_text("hello, this is no database at all " * 99)
    for scheme in ("sqlite", "duckdb"):
        with pytest.raises(DataError, match=r"cannot be opened"):
            peek(DatabaseUrl.parse(f"{scheme}:///{tmp_path}/shop.db#events"))
        with pytest.raises(DataError, match=r"no file .*\. There is .*shop\.db"):
            peek(DatabaseUrl.parse(f"{scheme}:///{tmp_path}/shops.db#events"))


def test_cells_of_sqlite_have_types_of_their_own(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE t (id, number, bytes)")
    rows = [(1, 1, b"a"), ("A2", 2.5, b"b"), (None, None, None)]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    frame = peek(DatabaseUrl.parse(f"sqlite:///{tmp_path}/a.db#t")).frame
    assert frame.schema == {"id": pl.String, "number": pl.Float64, "bytes": pl.Binary}
    assert frame["id"].to_list() == ["1", "A2", None]


POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a server of our own on a loopback port, up to the database; its user reader needs a password."""
    assert POSTGRES, "install it: apt-get install postgresql"
    with tempfile.TemporaryDirectory(prefix="postgres") as name:  # pytest's own folders are closed to other accounts
        yield from _serve(Path(name))


def _serve(folder: Path) -> Iterator[str]:
    account = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if account:
        shutil.chown(folder, "postgres", "postgres")

    def run(*command: str) -> None:
        done = subprocess.run([*account, *command], capture_output=True, text=True, timeout=120, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    run(str(POSTGRES / "initdb"), "--auth=trust", "--username=owner", "--no-sync", "--encoding=UTF8", "-D", data)
    rules = "host all owner 127.0.0.1/32 trust\nhost all reader 127.0.0.1/32 scram-sha-256\n"
    (folder / "data" / "pg_hba.conf").write_text(rules)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    control = str(POSTGRES / "pg_ctl")
    run(control, "start", "-w", "-D", data, "-o", options, "-l", str(folder / "log"))
    try:
        run(
            str(POSTGRES / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "owner", "-d", "postgres", "-c",
            "CREATE ROLE reader LOGIN PASSWORD 's3cret'", "-c", "CREATE SCHEMA shop",
            "-c", "GRANT USAGE ON SCHEMA shop TO reader",
            "-c", "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader",
        )  # fmt: skip
        yield f"postgresql://reader@127.0.0.1:{port}/postgres"
    finally:
        run(control, "stop", "-m", "immediate", "-D", data)


@pytest.fixture
def filled(postgres: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server with the shop in it, and its password in the environment."""
    owner(postgres, "DROP TABLE IF EXISTS products, events, shop.typed", *CREATE)
    owner(postgres, "INSERT INTO products VALUES (%s, %s, %s)", rows=PRODUCTS)
    owner(postgres, "INSERT INTO events VALUES (%s, %s, %s, %s)", rows=EVENTS)
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    return postgres


def owner(base: str, *statements: str, rows: list[Any] | None = None) -> None:
    """Change the server's tables."""
    import psycopg

    with psycopg.connect(base.replace("reader", "owner")) as connection, connection.cursor() as cursor:
        for statement in statements:
            if rows:
                cursor.executemany(statement, rows)
            else:
                cursor.execute(statement)


@pytest.mark.slow
def test_postgres_is_read(filled: str, tmp_path: Path) -> None:
    settings = settings_of(filled)
    assert_is_the_shop(settings)
    assert_is_the_shop(settings_of(filled, events="?query=SELECT%20*%20FROM%20events%20WHERE%20who%20LIKE%20'u%25'"))
    keys = [key(settings, tmp_path)]
    owner(filled, "UPDATE events SET search = search WHERE who = 'u1'")  # moves the row to the end of the table
    assert key(settings, tmp_path) == keys[0]
    owner(filled, "UPDATE events SET search = 'oak' WHERE who = 'u1'")
    assert key(settings, tmp_path) != keys[0]
    owner(filled, "CREATE SEQUENCE IF NOT EXISTS counter", "GRANT USAGE ON SEQUENCE counter TO reader")
    writing = "?query=SELECT%20who,%20sku,%20seen,%20nextval('counter')::text%20AS%20search%20FROM%20events"
    with pytest.raises(DataError, match="read-only transaction"):
        load_tables(settings_of(filled, events=writing), seed=1)


@pytest.mark.slow
def test_every_type_of_postgres_is_read(filled: str) -> None:
    owner(
        filled,
        "DROP TYPE IF EXISTS kind",
        "CREATE TYPE kind AS ENUM ('view', 'buy')",
        "CREATE TABLE shop.typed (id UUID, small SMALLINT, big NUMERIC(20, 0), price NUMERIC(8, 2), yes BOOLEAN, "
        "at TIMESTAMPTZ, day DATE, kind kind, tags TEXT[], fields JSONB, fixed CHAR(6), bytes BYTEA, ratio REAL, "
        '"Odd ""name" INT)',
        "GRANT SELECT ON shop.typed TO reader",
        "INSERT INTO shop.typed VALUES ('11111111-2222-3333-4444-555555555555', 7, 12, 5.50, true, "
        "'2020-09-13 14:00:00.5+02', '2020-09-13', 'buy', ARRAY['a', 'b,c'], '{\"x\": 1}', 'A1', '\\x6162', 0.5, 3)",
        "INSERT INTO shop.typed DEFAULT VALUES",
    )
    glimpse = peek(DatabaseUrl.parse(f"{filled}#shop.typed"))
    first, nothing = glimpse.frame.rows(named=True)
    assert glimpse.rows == 2
    assert set(nothing.values()) == {None}
    assert first == {
        "id": "11111111-2222-3333-4444-555555555555", "small": 7, "big": "12", "price": "5.50", "yes": True,
        "at": "2020-09-13 12:00:00.5+00", "day": datetime(2020, 9, 13, tzinfo=UTC).date(), "kind": "buy",
        "tags": '{a,"b,c"}', "fields": '{"x": 1}', "fixed": "A1    ", "bytes": b"ab", "ratio": 0.5, 'Odd "name': 3,
    }  # fmt: skip
    assert Decimal(first["price"]) == Decimal("5.50")


@pytest.mark.slow
def test_counting_gives_up_where_it_takes_long(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "COUNT_SECONDS", 0.1)
    glimpse = peek(DatabaseUrl.parse(f"{filled}?query=SELECT%20generate_series(1,%201000000000000)%20AS%20id"), rows=3)
    assert glimpse.frame["id"].to_list() == [1, 2, 3]
    assert glimpse.rows is None


@pytest.mark.slow
def test_what_postgres_refuses_is_said_without_the_password(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_password = filled.replace("reader", "reader:${SHOP_PASSWORD}")
    monkeypatch.delenv("PGPASSWORD")
    refused = {
        filled: "export PGPASSWORD",
        with_password: "export SHOP_PASSWORD",
        filled.replace("reader", "reader:wr0ng"): "password",
        filled.replace("/postgres", "/nowhere").replace("reader", "reader:s3cret"): "nowhere",
        "postgresql://reader@127.0.0.1:1/shop": "cannot connect",
    }
    for base, said in refused.items():
        with pytest.raises(DataError, match=said) as caught:
            peek(DatabaseUrl.parse(f"{base}#events"))
        assert not {"s3cret", "wr0ng"} & set(str(caught.value).replace(":", " ").replace("@", " ").split())
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret")
    assert_is_the_shop(settings_of(with_password))
    with pytest.raises(DataError, match=r"did you mean #events\?"):
        peek(DatabaseUrl.parse(f"{with_password}#event"))
