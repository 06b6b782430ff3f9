"""A quick look tells columns, types and first rows of any table, and reads little of a big one."""

import gzip
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pytest
import zstandard
from tritonrank.data.meanings import likely_columns, meant_by
from tritonrank.data.peek import PEEKED_BYTES, Glimpse, peek
from tritonrank.errors import DataError
from tritonrank.system.database_url import DatabaseUrl

ROWS = pl.DataFrame({"sku": ["007", "8"], "title": ["Café lamp", "Desk; oak"], "price": [5.5, 7.0]})
TEXT = ROWS.write_csv()
JSON = ROWS.write_ndjson()
OFFICE = "\ufeff" + ROWS.write_csv(separator=";", decimal_comma=True, line_terminator="\r\n")


def sqlite(path: Path) -> DatabaseUrl:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE products (sku, title, price)")
        connection.executemany("INSERT INTO products VALUES (?, ?, ?)", ROWS.rows())
    connection.close()
    return DatabaseUrl.parse(f"sqlite:///{path}#products")


def duck(path: Path) -> DatabaseUrl:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE products (sku TEXT, title TEXT, price DOUBLE)")
        connection.executemany("INSERT INTO products VALUES (?, ?, ?)", [list(row) for row in ROWS.rows()])
    return DatabaseUrl.parse(f"duckdb:///{path}#products")


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def parts(folder: Path) -> Path:
    for number in range(2):
        (folder / "day=1").mkdir(exist_ok=True)
        ROWS.slice(number, 1).write_parquet(folder / "day=1" / f"part-{number}.parquet")
    return folder


def parquet(folder: Path) -> Path:
    ROWS.write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


TABLES: dict[str, tuple[Callable[[Path], Path | DatabaseUrl], str]] = {
    "csv": (written("a.csv", TEXT.encode()), "CSV, separated by comma"),
    "semicolons, bom, crlf": (written("a.csv", OFFICE.encode()), "semicolon"),
    "tsv.gz": (written("a.tsv.gz", gzip.compress(ROWS.write_csv(separator="\t").encode())), "tab"),
    "pipes.zst": (written("a.csv.zst", zstandard.compress(ROWS.write_csv(separator="|").encode())), "pipe"),
    "utf-16": (written("a.csv", TEXT.encode("utf-16")), "utf-16"),
    "cp1252": (written("a.csv", TEXT.encode("cp1252")), "cp1252"),
    "json lines": (written("a.jsonl", JSON.encode()), "JSON lines"),
    "ndjson.gz": (written("a.ndjson.gz", gzip.compress(JSON.encode())), "JSON lines"),
    "parquet": (parquet, "Parquet"),
    "parts": (parts, "Parquet in 2 parts"),
    "sqlite": (lambda folder: sqlite(folder / "shop.db"), "SQLite"),
    "duckdb": (lambda folder: duck(folder / "shop.duckdb"), "DuckDB"),
}


@pytest.mark.parametrize(("make", "kind"), TABLES.values(), ids=TABLES)
def test_every_kind_of_table_is_looked_at(tmp_path: Path, make: Callable[[Path], Path], kind: str) -> None:
    glimpse = peek(make(tmp_path))
    assert glimpse.frame.columns[:3] == ["sku", "title", "price"]
    assert glimpse.frame["sku"][0] == "007"
    assert glimpse.types["price"] == pl.Float64
    assert glimpse.rows == 2
    assert kind in glimpse.kind
    assert glimpse.frame["title"][0] == "Café lamp"


def test_a_big_file_is_not_read_whole(tmp_path: Path) -> None:
    line = "12345,some title that is long enough,2024-01-01T00:00:00Z\n"
    path = tmp_path / "big.csv"
    count = 20 * PEEKED_BYTES // len(line)
    path.write_text("sku,title,seen\n" + line * count)
    started = time.process_time()
    glimpse: Glimpse = peek(path, rows=10)
    assert time.process_time() - started < 1
    assert glimpse.frame.height == 10
    assert glimpse.types["seen"] == pl.Datetime("us", "UTC")
    assert glimpse.is_estimate
    assert glimpse.rows == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize(
    ("content", "name"), [(b"", "a.csv"), (b"x", "a.parquet"), (b"{", "a.jsonl"), (b"x", "a.csv.gz"), (b"x", "a.xlsx")]
)
def test_what_cannot_be_looked_at_is_named(tmp_path: Path, content: bytes, name: str) -> None:
    with pytest.raises(DataError, match=name):
        peek(written(name, content)(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        peek(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("meaning", "header", "expected"),
    [
        ("user_id", ["CustomerID", "name", "at"], "CustomerID"),
        ("item_id", ["shop_sku_no", "qty"], "shop_sku_no"),
        ("item_id", ["category_id", "product_id"], "product_id"),
        ("timestamp", ["t_dat", "price"], "t_dat"),
        ("label", ["watch_ratio", "x"], "watch_ratio"),
        ("query", ["Search-Query"], "Search-Query"),
    ],
)
def test_columns_are_known_by_the_names_people_give_them(meaning: str, header: list[str], expected: str) -> None:
    assert likely_columns(meaning, header)[0] == expected
    assert meant_by(f"data.{meaning}", meaning, header)[0] == expected


def test_a_name_that_says_nothing_means_nothing() -> None:
    assert likely_columns("user_id", ["chat", "format", "usage"]) == []
    assert likely_columns("timestamp", ["format", "chat"]) == []
