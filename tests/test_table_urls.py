"""Tables in object stores are read as those in folders: the same rows, the same key of the dataset, faults by URL."""

from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from tritonrank.data.loading import load_tables, source_fingerprints
from tritonrank.data.parts import find_parts, parts_at
from tritonrank.errors import DataError
from tritonrank.recipe import TablesData
from tritonrank.system.table_url import TableUrl

TESTS = Path(__file__).parent
FILES = ("b.csv", "a/2.csv", "a-/1.csv", "a/_hidden.csv", "day=1/x=%20y/part.csv", "day=2/.crc", "_SUCCESS")


def in_memory(name: str, contents: dict[str, bytes]) -> str:
    """Files of fsspec's memory, which all of a process share."""
    memory = fsspec.filesystem("memory")
    for path, content in contents.items():
        memory.pipe(f"/{name}/{path}", content)
    return f"memory://{name}"


def table(user: str) -> bytes:
    return pl.DataFrame({"user_id": [user], "item_id": ["i1"], "timestamp": [1_500_000_000]}).write_csv().encode()


@pytest.mark.parametrize(
    "pattern", ["", "*.csv", "*/*.csv", "**/*.csv", "day=*", "day=[12]/**/*.csv", "b.csv", "a*/?.csv"]
)
def test_parts_are_those_of_a_folder(pattern: str, tmp_path: Path) -> None:
    contents = {name: table(name) for name in FILES}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    url = in_memory("parts", contents)
    here = find_parts(tmp_path / pattern)
    there = parts_at(TableUrl.parse(f"{url}/{pattern}"))
    assert [str(part.location) for part in there] == [f"{url}/{part.file.relative_to(tmp_path)}" for part in here]
    assert [part.partition for part in there] == [part.partition for part in here]
    assert here


def shop(folder: str, **changes: Any) -> TablesData:
    return TablesData.model_validate(
        {"source": "tables", "items": f"{folder}/items.csv", "events": f"{folder}/log", "text_fields": ["title"]}
        | changes
    )


def test_rows_key_and_faults_do_not_depend_on_the_place(tmp_path: Path) -> None:
    contents = {f"log/part-{number}.csv": table(f"u{number}") for number in range(3)}
    contents["items.csv"] = b"item_id,title\ni1,Lamp\n"
    url = in_memory("shop", contents)
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    here, there = shop(str(tmp_path)), shop(url)
    assert load_tables(there, 1).events.equals(load_tables(here, 1).events)
    assert source_fingerprints(there) == source_fingerprints(here)
    in_memory("shop", {"log/part-1.csv": b"user_id,item_id,timestamp\nu1,i1,tomorrow\n"})
    with pytest.raises(DataError, match=rf"{url}/log/part-1\.csv:2: timestamp is 'tomorrow'"):
        load_tables(shop(url, tolerate=0), 1)
    with pytest.raises(DataError, match=rf"{url}/nowhere: nothing is there"):
        load_tables(shop(url, events=f"{url}/nowhere"), 1)


def test_urls_are_read_without_secrets(tmp_path: Path) -> None:
    for wrong, said in (
        ("s3://key:secret@bucket/log", "a password"),
        ("s3://", "names no table"),
        ("what://x/y", "s3://"),
    ):
        with pytest.raises(ValueError, match=said) as raised:
            shop(str(tmp_path), events=wrong)
        assert "secret@" not in str(raised.value).replace("input_value='s3://key:secret@", "")
    assert shop(str(tmp_path), events=f"file://{tmp_path}/log").events == tmp_path / "log"
    data = shop("s3://bucket", events="gs://shop/day=*/x?.parquet")
    assert data.model_dump()["events"] == "gs://shop/day=*/x?.parquet"
