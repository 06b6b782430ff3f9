"""A field says the same in a table, in prepare and on the server: numbers as people write them, text without HTML."""

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.data.loading import load_tables
from tritonrank.recipe import TablesData
from tritonrank_runtime.field_text import field_text, plain_text
from tritonrank_runtime.item_text import render_fields, render_item


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.0, "12"),
        (-3.0, "-3"),
        (0.5, "0.5"),
        (1e-05, "0.00001"),
        (1e20, "100000000000000000000"),
        (19.99, "19.99"),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        (float("nan"), ""),
        (float("inf"), ""),
        ("12.0", "12.0"),
    ],
)
def test_values_read_as_people_write_them(value: Any, text: str) -> None:
    assert field_text(value) == text
    assert render_fields("costs {price}", {"price": value}) == (f"costs {text}" if text else "")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Oak <b>lamp</b></p><br/>warm&nbsp;light", "Oak lamp warm light"),
        ("Salt &amp; pepper, 5 &#8364; &quot;set&quot;", 'Salt & pepper, 5 € "set"'),
        ('<a href="x?a=1&amp;b=2">shop</a><LI>one<li>two', "shop one two"),
        ("<!-- hidden -->seen", "seen"),
        ("&lt;b&gt; stays text", "<b> stays text"),
        ("<p> </p>", ""),
    ],
)
def test_html_is_taken_out(html: str, text: str) -> None:
    assert render_fields("{title}", {"title": html}) == text
    assert render_item("{title}", json.dumps({"title": html})) == text


@pytest.mark.parametrize("text", ["a < b > c", "List<int>", "x <3 y", "AT&T", "R&D;", "1 <2> 3", "<pizza>", "&copy=1"])
def test_what_is_no_html_stays(text: str) -> None:
    assert plain_text(text) == text


def test_a_text_that_is_sent_as_it_is_keeps_its_tags() -> None:
    assert render_item("{title}", "<div>code</div>") == "<div>code</div>"


@pytest.mark.parametrize("part", ["<", "<a ", "<!--", "&", "</p", "<p <p", "&#1;"])
def test_broken_markup_costs_no_more_than_reading_it(part: str) -> None:
    started = time.process_time()
    plain_text(part * (64_000 // len(part)))
    assert time.process_time() - started < 1


COLUMNS = {
    "price": [12.0, 0.00001, None],
    "narrow": pl.Series([0.1, 2.0, None], dtype=pl.Float32),
    "exact": [Decimal("7.50"), Decimal("2.00"), None],
    "stock": [3, 4, None],
    "sale": [True, False, None],
    "sizes": [[36.0, 36.5], [], None],
    "name": ["Lamp &amp; <i>co</i>", "007", None],
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_server_renders_a_row_as_prepare_does(tmp_path: Path, suffix: str) -> None:
    """Which is sent as JSON of the values that the table holds."""
    frame = pl.DataFrame({"item_id": ["a", "b", "c"], **COLUMNS})
    frame = frame.drop("sizes") if suffix == "csv" else frame
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1_000_000_000]})
    for name, table in (("items", frame), ("events", events)):
        (table.write_csv if suffix == "csv" else table.write_parquet)(tmp_path / f"{name}.{suffix}")
    fields = frame.columns[1:]
    paths = {name: tmp_path / f"{name}.{suffix}" for name in ("items", "events")}
    items = load_tables(TablesData(source="tables", text_fields=fields, **paths), seed=1).items
    template = " ".join(f"[{{{name}}}]" for name in fields)
    for read, row in zip(items.iter_rows(named=True), frame.iter_rows(named=True), strict=True):
        sent = {name: float(str(value)) if isinstance(value, Decimal) else value for name, value in row.items()}
        sent["narrow"] = None if sent["narrow"] is None else round(sent["narrow"], 6)
        assert render_item(template, json.dumps(sent)) == render_fields(template, read)
    assert items["price"].to_list() == ["12", "0.00001", ""]
    assert items["narrow"].to_list() == ["0.1", "2", ""]
    assert items["exact"].to_list() == ["7.5", "2", ""]
