"""``prepare --engine spark`` gives what one machine gives, to the byte: the same files, the same manifest."""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import polars as pl
import pytest
from obstore.store import from_url
from programs import require_program
from s3_server import BUCKET, s3_server
from stage_runs import prepared
from tritonrank.artifacts import Draft, read_manifest, sha256_file
from tritonrank.data.prepare import prepare
from tritonrank.data.spark import engine, files
from tritonrank.data.spark.session import spark_session
from tritonrank.errors import DataError
from tritonrank.recipe import Recipe, TablesData

TESTS = Path(__file__).parent
FIRST = 1_500_000_000
USERS, ITEMS, EVENTS = 60, 90, 4_000
QUIET = """spark.ui.enabled false
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.local.dir {folder}
spark.sql.warehouse.dir {folder}/warehouse
spark.executor.memory 500m
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.executor.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.executorEnv.PYTHONPATH {path}
"""
"""Programs this short gain nothing from a compiler that optimises."""
Shop = dict[str, Any]


def recipe(data: Shop, **examples: Any) -> Recipe:
    small = {"training_examples": 150, "judged_negatives": 15, "validation_users": 12, "test_users": 25}
    text = {"item_template": "{title}"}
    return Recipe.model_validate({"name": "test", "data": data, "text": text, "examples": small | examples})


def events(seed: int = 5) -> pl.DataFrame:
    """Users, items and times in the order of a log that several machines wrote: not that of time."""
    random = np.random.default_rng(seed)
    users = (USERS * random.random(EVENTS) ** 2).astype(int)
    return pl.DataFrame(
        {
            "who": users * 7 + 1,
            "sku": random.zipf(1.4, EVENTS) % ITEMS,
            "at": (FIRST + random.integers(0, 40_000_000, EVENTS)) * 1000,
            "what": random.choice(["view", "cart", "purchase"], EVENTS, p=[0.5, 0.3, 0.2]),
            "page": [f"p{number}" if number % 3 else "" for number in random.integers(0, EVENTS // 4, EVENTS)],
            "place": random.integers(1, 9, EVENTS),
            "said": random.choice(["", "lamp", "desk", "5.0"], EVENTS),
        }
    )


def items(folder: Path, *, absent: int = 0) -> str:
    titles = [f"Thing {number}" if number >= absent else "" for number in range(ITEMS)]
    since = ["2017-08-01" if number % 20 == 3 else "2001-01-01" for number in range(ITEMS)]
    table = pl.DataFrame({"sku": [f"{number}" for number in range(ITEMS)], "title": titles, "since": since})
    table.write_parquet(folder / "items.parquet")
    return str(folder / "items.parquet")


def dirty_parquet(folder: Path) -> Recipe:
    """Parts of a day each, whose types differ as those of pandas do; copies across parts, and much that is wrong."""
    log = events()
    stray = log[:2].with_columns(pl.lit(5_000, pl.Int64).alias("sku"), pl.lit(FIRST * 1000 + 1, pl.Int64).alias("at"))
    parts = {
        "day=1/part-0": log[:1500].with_columns(pl.col("who").cast(pl.Int32)),
        "day=2/part-0": pl.concat([log[1500:2600], stray]).with_columns(
            pl.when(pl.col("at") % 50_000 == 0).then(None).otherwise(pl.col("at")).alias("at")
        ),
        "day=2/part-1": pl.concat([log[2600:], log[100:140], log[1600:1620]]).with_columns(
            pl.when(pl.col("who") == 15).then(None).otherwise(pl.col("who").cast(pl.Float64)).alias("who")
        ),
    }
    for name, part in parts.items():
        part = part.with_columns(pl.col("sku").cast(pl.String) + (".0" if name == "day=2/part-0" else ""))
        (folder / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(folder / "log" / f"{name}.parquet", row_group_size=300)
    data = {
        "source": "tables",
        "items": items(folder, absent=4),
        "events": str(folder / "log"),
        "item_id": "sku",
        "user_id": "who",
        "timestamp": "at",
        "query": "said",
        "text_fields": ["title"],
        "label": {"column": "what", "view": 0, "cart": 1, "purchase": 3},
        "available_from": "since",
        "impressions": {"id": "page", "position": "place", "propensity": True},
        "tolerate": 0.6,
    }
    return recipe(data)


def csv_with_cutoff(folder: Path) -> Recipe:
    """Text tables, one packed; judged by date; positives by stars; one part alone has words and bad cells."""
    log = events(6).with_columns((pl.col("at") // 1000).alias("at"), (pl.col("place") % 5 + 1).alias("stars"))
    (folder / "log").mkdir()
    log[:2000].write_csv(folder / "log" / "a.csv")
    wrong = log[2000:].with_columns(pl.col("stars").cast(pl.String).replace("2", "many"))
    (folder / "log" / "b.csv.gz").write_bytes(gzip.compress(wrong.write_csv().encode()))
    data = {"source": "tables", "items": items(folder), "events": str(folder / "log" / "*.csv*"), "item_id": "sku"}
    columns = {"user_id": "who", "timestamp": "at", "label": "stars", "positive_label": 4, "text_fields": ["title"]}
    return recipe(data | columns, cutoff="2018-03-01")


def movielens(folder: Path) -> Recipe:
    """A public data set, which this machine reads and the cluster splits."""
    log = events(7).with_columns(pl.col("at") // 1000, pl.col("place") % 5 + 1)
    log.select("who", "sku", "place", "at").write_csv(folder / "u.data", separator="\t", include_header=False)
    lines = [
        f"{sku}|Film {sku} (1995)|01-Jan-1995||url|{'|'.join('01'[(sku + n) % 2] for n in range(19))}"
        for sku in range(ITEMS)
    ]
    (folder / "u.item").write_text("\n".join(lines), encoding="utf-8")
    return recipe({"source": "movielens", "path": str(folder)}, training_examples=100_000, test_users=3)


SHOPS = {"dirty": dirty_parquet, "csv": csv_with_cutoff, "public": movielens}


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    require_program("java", "openjdk-17-jre-headless")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPARK_CONF_DIR", str(settings_of_spark(tmp_path_factory.mktemp("spark"))))
        environment.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        with spark_session("local[2]") as session:
            yield session


def settings_of_spark(folder: Path) -> Path:
    """A folder as SPARK_CONF_DIR names it."""
    path = os.pathsep.join(str(TESTS.parent / part) for part in ("build", "clients", "gateway"))
    (folder / "spark-defaults.conf").write_text(QUIET.format(folder=folder, path=path), encoding="utf-8")
    return folder


def made(folder: Path) -> Draft:
    folder.mkdir()
    return Draft(folder, "", {})


@pytest.mark.slow
@pytest.mark.parametrize("shop", SHOPS)
def test_both_engines_write_the_same_bytes(
    spark: Any, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(files, "ROWS_PER_UNIT", 700)
    monkeypatch.setattr(engine, "ROWS_PER_PARTITION", 1_200)
    asked = SHOPS[shop](tmp_path)
    here, there = made(tmp_path / "here"), made(tmp_path / "there")
    prepare(asked, here)
    engine.prepare_on_spark(asked, there, spark)
    names = sorted(path.name for path in here.folder.iterdir())
    assert names == sorted(path.name for path in there.folder.iterdir())
    for name in names:
        one, other = (pl.read_parquet(draft.folder / name) for draft in (here, there))
        assert one.equals(other), name
        assert sha256_file(here.folder / name) == sha256_file(there.folder / name), name
    assert here.metrics == there.metrics
    if shop == "dirty":
        kinds = " ".join(one["kind"] for one in here.metrics["dropped"])
        assert all(
            word in kinds for word in ("twice", "does not have", "before their item", "is not an id", "without text")
        )


@pytest.mark.slow
def test_faults_are_told_alike(spark: Any, tmp_path: Path) -> None:
    asked = dirty_parquet(tmp_path)
    broken = tmp_path / "log" / "day=2" / "part-9.parquet"
    for frame in (pl.DataFrame({"who": [1]}), events()[:5].with_columns(pl.lit("x").alias("place"))):
        frame.write_parquet(broken)
        told = []
        for number, make in enumerate((prepare, lambda *given: engine.prepare_on_spark(*given, spark))):
            with pytest.raises(DataError) as raised:
                make(asked, made(tmp_path / f"{frame.width}-{number}"))
            told.append(str(raised.value))
        assert told[0] == told[1]
        assert "part-9.parquet" in told[0]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_cluster_of_processes_reads_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables in S3, by the command, on executors that are processes of their own; and from S3 on this machine."""
    require_program("java", "openjdk-17-jre-headless")
    import pyspark

    local = dirty_parquet(tmp_path)
    home = tmp_path / "home"  # executors write into the folder of Spark, and the installed one is not ours
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    (tmp_path / "conf").mkdir()
    environment = {"SPARK_HOME": str(home), "SPARK_CONF_DIR": str(settings_of_spark(tmp_path / "conf"))}
    for name, value in (environment | {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}).items():
        monkeypatch.setenv(name, value)
    with s3_server() as s3:
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        bucket = from_url(f"s3://{BUCKET}", client_options={"allow_http": True})
        for file in [tmp_path / "items.parquet", *(tmp_path / "log").rglob("*.parquet")]:
            obstore.put(bucket, f"shop/{file.relative_to(tmp_path).as_posix()}", file.read_bytes())
        places = {"items": f"s3://{BUCKET}/shop/items.parquet", "events": f"s3://{BUCKET}/shop/log"}
        data = local.data.model_dump(mode="json", exclude_none=True) | places
        remote = local.model_copy(update={"data": TablesData.model_validate(data)})
        (tmp_path / "recipe.yaml").write_text(remote.model_dump_json(exclude_none=True), encoding="utf-8")
        command = [sys.executable, "-m", "tritonrank", "prepare", str(tmp_path / "recipe.yaml"), "--artifacts"]
        command += [str(tmp_path / "cluster"), "--engine", "spark", "--spark-master", "local-cluster[2,1,700]"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
        from_bucket = prepared(remote, tmp_path / "bucket" / "dataset")
    on_cluster = read_manifest(tmp_path / "cluster" / "test" / "dataset")
    here = prepared(local, tmp_path / "here" / "dataset")
    for one in (from_bucket, on_cluster):
        assert (one.key, one.artifact, one.files, one.metrics) == (here.key, here.artifact, here.files, here.metrics)


@pytest.mark.parametrize(
    ("environment", "master", "named"),
    [
        ({"PATH": "", "JAVA_HOME": ""}, None, "openjdk-17-jre-headless"),
        ({"JAVA_HOME": "/nowhere"}, None, "JAVA_HOME is /nowhere"),
        ({"SPARK_REMOTE": "sc://host"}, None, "SPARK_REMOTE"),
        ({}, "sc://host", "sc://host"),
    ],
)
def test_what_spark_lacks_is_named(
    environment: dict[str, str], master: str | None, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=named), spark_session(master):
        pass


def test_without_pyspark_the_next_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(DataError, match=r"pip install 'tritonrank\[spark\]'"), spark_session(None):
        pass
