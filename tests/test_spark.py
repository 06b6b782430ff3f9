"""`mapInPandas` gives what the command gives: a local Spark with two workers."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.batch.ranking import Options, rank_table
from tritonrank_client.spark import RANKING_SCHEMA, rank_in_pandas

pandas = pytest.importorskip("pandas", reason="pip install 'tritonrank[spark]'")

ROWS: list[dict[str, Any]] = [
    {
        "request_id": f"r{number:02}",
        "query": "a desk" if number % 3 else None,
        "history": ["oak lamp", "chair"][: number % 3],
        "items": [{"title": f"desk {number} {place}", "attributes": "oak"} for place in range(4)],
        "item_ids": [number + place for place in range(4)],
    }
    for number in range(24)
]


def test_frames_of_pandas_are_ranked_like_tables(workspace: Workspace, tmp_path: Path) -> None:
    rank = rank_in_pandas(str(workspace.root), top_k=2, columns={"items": "candidates"})
    frame = pandas.DataFrame(ROWS).rename(columns={"items": "candidates"})
    frame.loc[len(frame)] = {"request_id": "broken", "query": "x", "history": None, "candidates": 7, "item_ids": None}
    (answers,) = rank(iter([frame]))
    broken = answers[answers.request_id == "broken"]
    assert broken["rank"].isna().all()
    assert "candidates" in broken.unscored.iloc[0] or "items" in broken.unscored.iloc[0]
    compare(answers[answers.request_id != "broken"], expected(workspace, tmp_path, 2))


def test_columns_that_are_not_there_are_named(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match=r"no column 'items' among request_id, texts.*columns="):
        next(rank_in_pandas(str(workspace.root))(iter([pandas.DataFrame({"request_id": [1], "texts": ["a"]})])))
    with pytest.raises(ValueError, match="unknown item"):
        rank_in_pandas("x", columns={"item": "text"})


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if shutil.which("java") is None:
        pytest.skip("no java")
    sql = pytest.importorskip("pyspark.sql", reason="pip install 'tritonrank[spark]'")
    folder = tmp_path_factory.mktemp("spark")
    environment = pytest.MonkeyPatch()
    environment.setenv("PYSPARK_PYTHON", sys.executable)  # else its workers are whatever python3 is
    builder = sql.SparkSession.builder.master("local[2]").appName("tritonrank")
    options = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(folder / "local"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.sql.shuffle.partitions": "2",
    }
    for name, value in options.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()
    environment.undo()


@pytest.mark.slow
def test_spark_gives_what_the_command_gives(spark: Any, workspace: Workspace, tmp_path: Path) -> None:
    pl.DataFrame(ROWS).write_parquet(tmp_path / "requests.parquet")
    requests = spark.read.parquet(str(tmp_path / "requests.parquet")).repartition(3)
    answers = requests.mapInPandas(rank_in_pandas(str(workspace.root), top_k=3), RANKING_SCHEMA)
    found = answers.toPandas().sort_values(["request_id", "rank"])
    compare(found, expected(workspace, tmp_path, 3))


@pytest.mark.slow
def test_a_long_table_is_grouped_by_spark(spark: Any, workspace: Workspace, tmp_path: Path) -> None:
    from pyspark.sql.functions import collect_list, first, struct

    pairs = [{"request_id": row["request_id"], "query": row["query"], **item} for row in ROWS for item in row["items"]]
    pl.DataFrame(pairs).write_parquet(tmp_path / "pairs.parquet")
    requests = (
        spark.read.parquet(str(tmp_path / "pairs.parquet"))
        .groupBy("request_id")
        .agg(first("query").alias("query"), collect_list(struct("title", "attributes")).alias("items"))
    )
    found = requests.mapInPandas(rank_in_pandas(str(workspace.root)), RANKING_SCHEMA).toPandas()
    assert sorted(found.request_id.unique()) == [row["request_id"] for row in ROWS]
    out = rank_table(workspace.root, tmp_path / "pairs.parquet", tmp_path / "out.parquet", Options({}, processes=1)).out
    assert sorted(found.score.tolist()) == pytest.approx(sorted(pl.read_parquet(out)["score"].to_list()), abs=1e-5)


def expected(workspace: Workspace, folder: Path, top_k: int) -> pl.DataFrame:
    table = folder / "requests.parquet"
    pl.DataFrame(ROWS).write_parquet(table)
    return pl.read_parquet(
        rank_table(workspace.root, table, folder / "out.parquet", Options({}, top_k=top_k, processes=1)).out
    )


def compare(found: Any, command: pl.DataFrame) -> None:
    for column in ("request_id", "rank", "index"):
        assert found[column].tolist() == command[column].to_list()
    assert found["item_id"].tolist() == command["item_id"].cast(pl.String).to_list()
    assert found["score"].tolist() == pytest.approx(command["score"].to_list(), abs=1e-5)
    assert found["unscored"].isna().all()
