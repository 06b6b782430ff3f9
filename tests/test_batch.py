"""`tritonrank rank ARTIFACTS FILE`: the served scores for a whole table, whatever its form, and whatever stops it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from conftest import Served
from tritonrank.artifacts.workspace import Workspace
from tritonrank.cli import app
from tritonrank.errors import ArtifactError, DataError
from tritonrank.serve.batch import requests_table
from tritonrank.serve.batch.outcome import Outcome
from tritonrank.serve.batch.ranking import Options, rank_table
from tritonrank_client import DeadlineExceeded, InvalidRequest, RankClient, RankedItem, RankResult
from tritonrank_client._rows import AskedRow, RowRanker, asked_row
from typer.testing import CliRunner

ITEMS = [{"title": f"{what} {number}", "attributes": "oak"} for number in range(3) for what in ("desk", "lamp", "tent")]
REQUESTS = [
    {
        "request_id": f"r{number}",
        "query": ("a desk", "tent", None)[number % 3],
        "history": ["oak lamp", "chair"][: number % 3],
        "items": [ITEMS[(number + place) % len(ITEMS)] for place in range(5)],
        "item_ids": [(number + place) % len(ITEMS) for place in range(5)],
    }
    for number in range(50)
]


def rank(workspace: Workspace, table: Path, columns: dict[str, str] | None = None, **options: Any) -> pl.DataFrame:
    return pl.read_parquet(outcome(workspace, table, columns, **options).out)


def outcome(workspace: Workspace, table: Path, columns: dict[str, str] | None = None, **options: Any) -> Outcome:
    """By this process alone: starting others takes seconds."""
    how = Options(columns or {}, processes=1, **options)
    return rank_table(workspace.root, table, table.with_name("out.parquet"), how)


def test_a_table_gets_the_served_scores(served: Served, tmp_path: Path) -> None:
    """By the command itself, in two processes."""
    table = tmp_path / "requests.parquet"
    pl.DataFrame(REQUESTS).write_parquet(table)
    done = CliRunner().invoke(app, ["rank", str(served.workspace.root), str(table), "--top-k", "3", "--processes", "2"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["requests"], told["ranked"], told["pairs"], told["faults"]) == (50, 50, 150, 0)
    assert told["out"] == str(tmp_path / "requests.ranked.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.parquet", "requests.ranked.parquet"]
    ranked = pl.read_parquet(tmp_path / "requests.ranked.parquet")
    assert ranked["request_id"].unique(maintain_order=True).to_list() == [row["request_id"] for row in REQUESTS]
    with RankClient(served.urls["grpc"]) as client:
        for row in REQUESTS:
            expected = client.rank(
                query=row["query"] or "",  # type: ignore[arg-type]
                history=row["history"],  # type: ignore[arg-type]
                items=row["items"],  # type: ignore[arg-type]
                item_ids=row["item_ids"],  # type: ignore[arg-type]
                top_k=3,
            )
            found = ranked.filter(pl.col("request_id") == row["request_id"])
            assert found["rank"].to_list() == [1, 2, 3]
            assert found["index"].to_list() == [*expected.indices]
            assert found["item_id"].to_list() == [place.item_id for place in expected.ranking]
            assert found["score"].to_list() == pytest.approx(expected.scores, abs=1e-5)


def long_rows() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "request_id": row["request_id"],
                "query": row["query"],
                "history": row["history"],
                **item,
                "item_id": item_id,
            }
            for row in REQUESTS
            for item, item_id in zip(row["items"], row["item_ids"], strict=True)  # type: ignore[call-overload]
        ]
    )


def as_json(column: str) -> pl.Expr:
    return pl.col(column).map_elements(lambda cell: json.dumps(cell.to_list()), return_dtype=pl.String)


def write_long(folder: Path) -> dict[str, Any]:
    long_rows().write_parquet(folder / "table.parquet")
    return {}


def write_long_in_parts(folder: Path) -> dict[str, Any]:
    rows, parts = long_rows(), folder / "table"
    parts.mkdir()
    for number in range(2):
        rows[125 * number :][:125].write_parquet(parts / f"part-{number}.parquet")
    return {}


def write_csv(folder: Path) -> dict[str, Any]:
    frame = pl.DataFrame(REQUESTS).with_columns(as_json("items"), as_json("history"), as_json("item_ids"))
    frame.rename({"items": "candidates"}).write_csv(folder / "table.csv")
    return {"columns": {"items": "candidates"}}


def write_ids(folder: Path) -> dict[str, Any]:
    pl.DataFrame(REQUESTS).drop("items").write_parquet(folder / "table.parquet")
    pl.DataFrame([{"sku": float(number), **item} for number, item in enumerate(ITEMS)]).write_parquet(
        folder / "items.parquet"
    )
    return {"columns": {"item_id": "sku"}, "item_table": folder / "items.parquet"}


def write_long_ids(folder: Path) -> dict[str, Any]:
    long_rows().drop("title", "attributes").write_parquet(folder / "table.parquet")
    pl.DataFrame([{"item_id": number, **item} for number, item in enumerate(ITEMS)]).write_csv(folder / "items.csv")
    return {"item_table": folder / "items.csv"}


@pytest.mark.parametrize("write", [write_long, write_long_in_parts, write_csv, write_ids, write_long_ids])
def test_every_form_of_a_table_gives_the_same(
    write: Callable[[Path], dict[str, Any]], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_table, "PAIRS_PER_PIECE", (60, 60))  # pieces end between requests
    wide = tmp_path / "wide" / "requests.parquet"
    wide.parent.mkdir()
    pl.DataFrame(REQUESTS).write_parquet(wide)
    options = write(tmp_path)
    (table,) = tmp_path.glob("table*")
    found, expected = rank(workspace, table, **options), rank(workspace, wide)
    assert found.drop("score", "item_id").equals(expected.drop("score", "item_id"))
    assert found["item_id"].cast(pl.String).equals(expected["item_id"].cast(pl.String))
    assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-5)


def test_rows_that_cannot_be_ranked_harm_nobody_and_are_counted(workspace: Workspace, tmp_path: Path) -> None:
    table = tmp_path / "requests.csv"
    rows = [
        {"query": "desk", "items": '["oak desk", "", "lamp"]'},
        {"query": "desk", "items": None},
        {"query": "desk", "items": "no list"},
        {"query": "desk", "items": '["oak desk", {"name": "x"}]'},
        {"query": "desk", "items": '["x", "y"]', "item_ids": "[1]"},
        {"query": "desk", "items": '["x", "y", "z"]', "item_ids": "[1, 2]"},
        {"query": None, "items": "[]"},
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(table)
    done = outcome(workspace, table)
    ranked = pl.read_parquet(done.out)
    assert ranked["request_id"].to_list() == [1, 1, 1, 4, 4]
    assert ranked["unscored"].to_list() == [None, None, "empty", None, "no_field"]
    assert (done.counts.requests, done.counts.ranked, done.counts.faults.total) == (7, 3, 4)
    assert dict(done.counts.missing_fields) == {"title": 1, "attributes": 1}
    assert [line.partition(": ")[0] for line in done.counts.faults.lines] == ["2 row(s)", "1 row(s)", "1 row(s)"]
    assert "requests.csv:6, " in done.counts.faults.lines[0]
    strict = outcome(workspace, table, strict=True)
    assert strict.counts.ranked == 1, "the request without items"
    assert any("items[N]" in line for line in strict.counts.faults.lines)


def test_ids_that_nobody_knows_come_last(workspace: Workspace, tmp_path: Path) -> None:
    pl.DataFrame({"item_ids": [["a", "x", "b"]], "history_ids": [["b", "y"]]}).write_parquet(tmp_path / "r.parquet")
    pl.DataFrame({"item_id": ["a", "b"], "title": ["desk", "lamp"]}).write_csv(tmp_path / "items.csv")
    ranked = rank(workspace, tmp_path / "r.parquet", item_table=tmp_path / "items.csv")
    assert ranked["item_id"].to_list()[-1] == "x"
    assert ranked["unscored"].to_list() == [None, None, "unknown_id"]


@pytest.mark.parametrize(
    ("frame", "options", "told"),
    [
        ({"text": ["a"]}, {}, ["items", "--column"]),
        ({"item": ["a"]}, {}, ["request_id", "--column request_id=NAME"]),
        ({"item_ids": [["a"]]}, {}, ["item_ids", "--item-table"]),
        ({"items": [["a"]]}, {"columns": {"items": "candidates"}}, ["items=candidates", "--column"]),
        ({"request_id": [1, 2, 1], "item": ["a", "b", "c"]}, {}, ["row 3", "1", "ORDER BY request_id"]),
        ({"items": pl.Series([], dtype=pl.List(pl.String))}, {}, ["no rows"]),
    ],
    ids=["no items", "no request", "no texts", "wrong name", "not together", "empty"],
)
def test_a_table_that_does_not_fit_is_named_with_what_to_type(
    frame: dict[str, Any], options: dict[str, Any], told: list[str], workspace: Workspace, tmp_path: Path
) -> None:
    pl.DataFrame(frame).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError) as refused:
        outcome(workspace, tmp_path / "r.parquet", **options)
    for part in (str(tmp_path), *told):
        assert part in str(refused.value)


def test_parts_of_another_run_are_never_joined(workspace: Workspace, tmp_path: Path) -> None:
    table = tmp_path / "requests.parquet"
    pl.DataFrame(REQUESTS).write_parquet(table)
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "run.json").write_text("{}")
    (parts / "part-000000.parquet").write_bytes(b"no answers")
    with pytest.raises(DataError, match="--restart"):
        outcome(workspace, table)
    assert outcome(workspace, table, restart=True).counts.ranked == 50


def test_what_is_no_artifact_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="tritonrank build"):
        rank_table(tmp_path, tmp_path / "r.parquet", tmp_path / "out.parquet", Options({}))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_row_comes_twice(workspace: Workspace, tmp_path: Path) -> None:
    table, out = tmp_path / "requests.parquet", tmp_path / "out.parquet"
    texts = [f"desk {place}" for place in range(80)]
    many = [
        {"request_id": number, "query": "a desk", "items": [f"{number} {text}" for text in texts]}
        for number in range(600)
    ]
    pl.DataFrame(many).write_parquet(table)
    command = [sys.executable, "-m", "tritonrank", "rank", str(workspace.root), str(table), "--out", str(out)]
    command += ["--processes", "2", "--top-k", "2"]
    parts = out.with_name("out.parquet.parts")
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len([*parts.glob("part-*.parquet")]) < 3:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    assert not out.exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    told = json.loads(again.stdout.splitlines()[-1])
    assert len(kept) <= told["kept_pieces"] < told["pieces"]
    assert "kept" in again.stderr
    ranked = pl.read_parquet(out)
    assert ranked["request_id"].to_list() == [number for number in range(len(many)) for _ in range(2)]
    assert told["requests"] == told["ranked"] == len(many)
    assert not parts.exists()


class SlowClient:
    """Ranks by length, at most so many items before its deadline."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def model_info(self) -> Any:
        return SimpleNamespace(outputs=(), parameters={"max_candidates": "10"})

    def rank(self, *, items: list[str], item_ids: list[int] | None, top_k: int, **_: Any) -> RankResult:
        self.asked.append(len(items))
        if len(items) > self.most:
            raise DeadlineExceeded("late")
        if "wrong" in items:
            raise InvalidRequest(f"items[{items.index('wrong')}]: wrong")
        order = sorted(range(len(items)), key=lambda place: -len(items[place]))
        places = [
            RankedItem(place, float(len(items[place])), items[place], item_ids[place] if item_ids else None)
            for place in order
        ]
        return RankResult(tuple(places[:top_k] if top_k else places), "a", 0.1, 1)


@pytest.mark.parametrize(
    ("most", "asked"), [(100, [10, 10, 5]), (3, [10, 5, 2, *[2] * 11, 1]), (1, [10, 5, 2, *[1] * 25])]
)
@pytest.mark.parametrize("top_k", [0, 4])
def test_a_row_of_any_size_is_one_ranking(most: int, asked: list[int], top_k: int) -> None:
    items = ["x" * ((7 * place) % 25 // 2) for place in range(25)]
    client = SlowClient(most)
    ranked = RowRanker(client, top_k=top_k).rank(AskedRow(items))  # type: ignore[arg-type]
    expected = sorted(range(25), key=lambda place: -len(items[place]))
    assert [place.index for place in ranked.places] == expected[: top_k or None]
    assert client.asked == asked


def test_equal_ids_are_one_item_over_all_pieces() -> None:
    items = ["x" * place for place in range(25)]
    ranked = RowRanker(SlowClient(100)).rank(AskedRow(items, item_ids=[place % 3 for place in range(25)]))  # type: ignore[arg-type]
    assert [(place.index, place.item_id) for place in ranked.places] == [(24, 0), (23, 2), (22, 1)]


def test_what_cannot_be_done_at_all_says_so() -> None:
    with pytest.raises(DeadlineExceeded):
        RowRanker(SlowClient(0)).rank(AskedRow(["a"]))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"items\[2\].*items\[20\]"):
        RowRanker(SlowClient(100)).rank(AskedRow(["x"] * 22 + ["wrong"]))  # type: ignore[arg-type]


def test_cells_of_any_kind_are_read() -> None:
    import datetime
    from decimal import Decimal

    import numpy as np

    when = datetime.date(2026, 1, 2)
    row = asked_row(
        {
            "query": float("nan"),
            "items": np.array(
                ["a", None, 7, {"price": Decimal("5.50"), "when": when, "n": float("nan"), "tags": ["x"]}], dtype=object
            ),
            "item_ids": [1.0, 2, "c", np.int64(4)],
            "history": None,
        }
    )
    assert row.query == ""
    assert [*row.items] == ["a", "", "7", {"price": "5.50", "when": "2026-01-02", "n": None, "tags": ["x"]}]
    assert [*(row.item_ids or ())] == [1, 2, "c", 4]


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        ({"items": 5}, "items"),
        ({"items": ["a"], "item_ids": [None]}, r"item_ids\[0\]"),
        ({"items": ["a"], "history": "x"}, "history"),
    ],
)
def test_cells_that_are_no_lists_are_named(cells: dict[str, Any], column: str) -> None:
    with pytest.raises(InvalidRequest, match=column):
        asked_row(cells)
