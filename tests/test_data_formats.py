"""Files as they really are: separators, quotes, encodings, packed files, JSON lines; faults keep their true lines."""

# ruff: noqa: RUF001 - texts in other alphabets

import codecs
import csv
import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonrank.data import columns
from tritonrank.data.faults import Faults
from tritonrank.data.formats.separators import find_separator
from tritonrank.data.formats.sound_csv import BLOCK_BYTES, check_sound, read_sound
from tritonrank.data.peek import peek
from tritonrank.data.source import SourceTable, read_source
from tritonrank.errors import DataError

HEADER = ["sku", "title", "price"]
ROWS = [["007", "Lamp; oak, small", "5"], ["8", 'A 5" "pipe" | tab', ""], ["9", "two\nlines", "7"], ["10", "Café", "8"]]


def written(rows: list[list[str]] = ROWS, separator: str = ",", ending: str = "\n", quoting: int = 0) -> str:
    target = io.StringIO()
    writer = csv.writer(target, delimiter=separator, lineterminator=ending, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([HEADER, *rows])
    return target.getvalue()


def read(path: Path, content: bytes, columns: set[str] | None = None) -> SourceTable:
    path.write_bytes(content)
    faults = Faults()
    table = read_source(path, faults, columns)
    faults.raise_any()
    return table


def refusal(path: Path, content: bytes) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(path, content)
    return [line.strip().removeprefix(str(path)) for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_text_tables_are_read_whatever_wrote_them(
    tmp_path: Path, separator: str, ending: str, quoting: int, encoding: str
) -> None:
    always = csv.QUOTE_ALL if ending == "\r" else quoting  # the writer would leave the line end in a cell bare
    content = written(separator=separator, ending=ending, quoting=always).encode(encoding)
    table = read(tmp_path / "a.csv", content)
    assert [list(row) for row in table.frame.rows()] == ROWS
    assert [table.place_of(position)[1] for position in range(4)] == [":2", ":3", ":4", ":6"]
    assert bool(table.notes) == (not encoding.startswith("utf-8"))


PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress, "": bytes}


@pytest.mark.parametrize(("ending", "pack"), PACKED.items())
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV"])
def test_packed_files_are_read(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], name: str) -> None:
    table = read(tmp_path / (name + ending), pack(written(separator="\t").encode()), {"title", "sku"})
    assert table.frame.rows() == [(sku, title) for sku, title, _ in ROWS]
    assert table.header == HEADER


@pytest.mark.parametrize(
    ("ending", "content"), [(".gz", gzip.compress(b"a,b\n" * 9, mtime=0)[:-9]), (".zst", b"(\xb5/\xfdx")]
)
def test_damaged_packed_files_are_named(tmp_path: Path, ending: str, content: bytes) -> None:
    (fault,) = refusal(tmp_path / f"a.csv{ending}", content)
    assert "damaged" in fault


LANGUAGES = {
    "cp1252": "Käsespätzle mit Röstzwiebeln; Crème brûlée à la façon de grand-mère; Jalapeño",
    "cp1250": "Žluťoučký kůň úpěl ďábelské ódy; zażółć gęślą jaźń; příliš mnoho šálků čaje",
    "cp1251": "Настольная лампа с тёплым светом для спальни и гостиной, цвет белый",
    "cp1254": "Masa lambası, ahşap, beyaz ışık, yatak odası için küçük boy, çalışma masası",
    "shift_jis": "寝室のための木製ランプ、明るい光と長いコード。高さは三十センチです",
    "gb18030": "卧室用木制台灯 灯光温暖 电线很长 高度三十厘米 白色 送货上门",
}


@pytest.mark.parametrize(("encoding", "text"), LANGUAGES.items())
def test_encodings_are_guessed_and_said(tmp_path: Path, encoding: str, text: str) -> None:
    rows = [[str(number), f"{text} {number}", "1"] for number in range(30)]
    table = read(tmp_path / "a.csv", written(rows).encode(encoding))
    assert table.frame["title"].to_list() == [row[1] for row in rows]
    assert len(table.notes) == 1
    assert "not UTF-8" in table.notes[0]


def test_broken_bytes_among_utf8_are_faults_and_not_another_encoding(tmp_path: Path) -> None:
    content = written([["1", "Café", "1"], ["2", "Caf\udce9", "1"], ["3", "Äpfel", "1"]])
    (fault,) = refusal(tmp_path / "a.csv", content.encode("utf-8", errors="surrogateescape"))
    assert fault.startswith(":3: broken UTF-8")


def test_broken_utf16_is_a_fault(tmp_path: Path) -> None:
    fault, *_ = refusal(tmp_path / "a.csv", codecs.BOM_UTF16_LE + "a,b\n1,2\n".encode("utf-16-le") + b"\x00\xd8")
    assert "utf-16" in fault


def test_a_row_in_need_of_care_keeps_the_lines_of_all(tmp_path: Path) -> None:
    content = written([*ROWS, ["11", "short"], ["12", "fine", "1"]])
    assert refusal(tmp_path / "a.csv", content.encode()) == [":7: 2 field(s); expected 3 (sku, title, price)"]


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("sku;title\n1;a, b\n2;c\n", ";"),
        ("sku,title\n1,a;b\n2,c;d\n", ","),
        ("sku|title;long\n1|a\n", "|"),
        ("sku\ttitle, long\n1\ta, b\n2\tc\n", "\t"),
        ("title\na;b\n", ","),
        ("sku;price\n1;5,5\n2;7,0\n", ";"),
        ("sku,title,price\n1,a\n2,b;c\n3,d;e;f\n", ","),
    ],
)
def test_the_separator_is_what_cuts_header_and_rows_alike(text: str, separator: str) -> None:
    assert find_separator(text) == separator


@pytest.mark.parametrize("content", ["sep=;\r\nsku; title\r\n1;a, b\r\n2\r\n", 'sep=|\n"sku"|" title "\n1|a, b\n2\n'])
def test_the_separator_that_excel_tells_is_taken_and_names_lose_their_blanks(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    assert refusal(path, content.encode()) == [":4: 1 field(s); expected 2 (sku, title)"]
    whole = content.rpartition("2")[0].encode()
    table = read(path, whole)
    assert table.header == ["sku", "title"]
    assert table.frame.rows() == [("1", "a, b")]
    assert table.place_of(0)[1] == ":3"
    assert peek(path).frame.to_dicts() == [{"sku": "1", "title": "a, b"}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"who;price\na;5,5\nb;1.234,5\nc;-7\n", [5.5, 1234.5, -7.0]),
        (b"who;price\na;5.5\nb;7\n", [5.5, 7.0]),
        (b"who,price\na,5.5\n", [5.5]),
    ],
)
def test_decimal_commas_are_numbers_where_cells_are_cut_otherwise(
    tmp_path: Path, content: bytes, expected: list[float]
) -> None:
    table = read(tmp_path / "a.csv", content)
    faults = Faults()
    assert columns.numbers(table, "price", faults).to_list() == expected
    faults.raise_any()


def test_decimal_commas_in_quotes_are_no_numbers_where_commas_cut(tmp_path: Path) -> None:
    table = read(tmp_path / "a.csv", b'who,price\na,"5,5"\nb,7\n')
    faults = Faults()
    columns.numbers(table, "price", faults)
    with pytest.raises(DataError, match=r"a\.csv:2: price is '5,5'"):
        faults.raise_any()


@settings(max_examples=400, deadline=None)
@example([",", "\r", "\r\n"])
@example(["a", ",", "\r"])
@given(st.lists(st.sampled_from(["a", "é", ",", '"', '""', "\n", "\r\n", "\r", " ", "\0", ';"']), max_size=24))
def test_what_the_fast_reader_takes_is_what_the_careful_one_gives(pieces: list[str]) -> None:
    content = ("x,y\n" + "".join(pieces)).encode()
    found = check_sound(np.frombuffer(content, dtype=np.uint8), ",", 2)
    if found is None:
        return
    rows = [row for row in csv.reader(io.StringIO(content.decode(), newline=""), strict=True) if row]
    frame = read_sound(content, ",", found, ["x", "y"], ["x", "y"])
    assert all(len(row) == 2 for row in rows)
    assert found.rows == len(rows) - 1
    if frame is not None:
        assert [list(row) for row in frame.rows()] == rows[1:]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(alphabet='aé,;"\n ', max_size=6), st.text(alphabet="b1", min_size=1)), min_size=1))
def test_sound_tables_go_the_fast_way(rows: list[tuple[str, str]]) -> None:
    target = io.StringIO()
    csv.writer(target, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    content = target.getvalue().encode()
    found = check_sound(np.frombuffer(content, dtype=np.uint8), ",", 2)
    assert found is not None
    frame = read_sound(content, ",", found, ["x", "y"], ["x", "y"])
    assert frame is not None
    assert frame.rows() == rows


def test_big_files_are_checked_in_blocks(tmp_path: Path) -> None:
    line = '12345,"a title, with ""quotes"" and\nline ends",2024-01-01\n'
    count = 2 * BLOCK_BYTES // len(line) + 1000
    started = time.process_time()
    table = read(tmp_path / "a.csv", ("sku,title,day\n" + line * count).encode())
    assert time.process_time() - started < 5
    assert table.frame.height == count
    assert table.frame["title"].n_unique() == 1
    assert table.place_of(count - 1)[1] == f":{2 * count}"
    broken = ("sku,title,day\n" + line * count + "1,short\n").encode()
    assert refusal(tmp_path / "a.csv", broken) == [f":{2 * count + 2}: 2 field(s); expected 3 (sku, title, day)"]


OBJECTS: list[dict[str, Any]] = [
    {"sku": 7, "tags": ["oak", "lamp"], "size": {"cm": 5}, "title": "Café"},
    {"sku": 8, "tags": [], "size": None, "title": None},
]


@pytest.mark.parametrize(("ending", "pack"), PACKED.items())
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson"])
def test_json_lines_are_read(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], name: str) -> None:
    content = "\n\n".join(json.dumps(row) for row in OBJECTS)
    table = read(tmp_path / (name + ending), pack(content.encode()))
    assert table.frame["sku"].to_list() == [7, 8]
    assert json.loads(table.frame["size"][0]) == {"cm": 5}
    assert columns.texts(table, "tags", Faults()).to_list() == ["oak, lamp", ""]
    assert [table.place_of(position)[1] for position in (0, 1)] == [":1", ":3"]


def test_json_of_several_types_in_a_column_becomes_text(tmp_path: Path) -> None:
    lines = ['{"sku": 1, "size": {"cm": 5}}', '{"sku": "A2", "size": [1, 2]}', '{"sku": 3, "size": true}']
    table = read(tmp_path / "a.jsonl", "\n".join(lines).encode())
    assert table.frame["sku"].to_list() == ["1", "A2", "3"]
    assert table.frame["size"].to_list() == ['{"cm": 5}', "[1, 2]", "true"]


def test_lines_that_are_no_objects_are_named(tmp_path: Path) -> None:
    content = b'{"sku": 1}\n[2]\n\n{"sku": \n{"sku": 4}\n'
    faults = refusal(tmp_path / "a.jsonl", content)
    assert [fault.split(": ")[0] for fault in faults] == [":2", ":4"]


def test_parts_of_several_kinds_and_types(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user_id": [3.0, None]}).write_parquet(tmp_path / "b.parquet")  # pandas: integers with a gap
    faults = Faults()
    assert columns.identifiers(read_source(tmp_path, faults), "user_id", faults).to_list() == ["1", "2", "3", None]
    (tmp_path / "c.jsonl").write_text('{"user_id": 1}\n')
    faults = Faults()
    read_source(tmp_path, faults)
    with pytest.raises(DataError, match="JSON lines and Parquet"):
        faults.raise_any()
