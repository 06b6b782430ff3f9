"""Where the data are: paths begin at the recipe, databases have URLs, and passwords stay where they are."""

import os
from pathlib import Path

import polars as pl
import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.loading import load_tables
from tritonrank.errors import RecipeError
from tritonrank.pipeline import prepare
from tritonrank.recipe import TablesData, load_recipe
from tritonrank.system.database_url import DatabaseUrl, without_password

RECIPE = """
name: shop
data: {source: tables, items: data/items.csv, events: "data/events-*.csv", text_fields: [title]}
"""


def shop(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "shop.yaml").write_text(RECIPE)
    pl.DataFrame({"item_id": ["a"], "title": ["lamp"]}).write_csv(folder / "data" / "items.csv")
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1_600_000_000]})
    events.write_csv(folder / "data" / "events-1.csv")
    return folder / "shop.yaml"


def test_paths_begin_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = shop(tmp_path / "here")
    keys = []
    for place in (tmp_path, tmp_path / "here", tmp_path / "here" / "data"):
        monkeypatch.chdir(place)
        loaded = load_recipe(Path(os.path.relpath(recipe, place)))
        assert load_tables(loaded.data, seed=1).events.height == 1
        keys.append(prepare.stage(loaded, Workspace(tmp_path)).key())
    (tmp_path / "here").rename(tmp_path / "there")
    keys.append(prepare.stage(load_recipe(tmp_path / "there" / "shop.yaml"), Workspace(tmp_path)).key())
    assert len(set(keys)) == 1  # the dataset depends on the data, wherever they are


def test_a_path_that_is_in_the_working_directory_works_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shop(tmp_path)
    (tmp_path / "recipes").mkdir()
    recipe.rename(tmp_path / "recipes" / "shop.yaml")
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(Path("recipes/shop.yaml"))
    assert load_tables(loaded.data, seed=1).events.height == 1
    noted = capsys.readouterr().err
    assert "data.items" in noted
    assert "data.events" in noted


def test_what_the_command_line_says_begins_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = shop(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here" / "data")
    loaded = load_recipe(recipe, ["data.items=items.csv"])
    assert isinstance(loaded.data, TablesData)
    assert loaded.data.items == Path("items.csv")
    assert load_tables(loaded.data, seed=1).items.height == 1


def test_a_database_file_begins_at_the_recipe(tmp_path: Path) -> None:
    recipe = shop(tmp_path)
    recipe.write_text(RECIPE.replace("data/items.csv", '"sqlite:///data/shop.db#items"'))
    loaded = load_recipe(recipe)
    assert isinstance(loaded.data, TablesData)
    assert loaded.data.items == DatabaseUrl.parse(f"sqlite:///{tmp_path}/data/shop.db#items")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:s3cret@db.example:5432/shop#public.events",
        "postgresql://reader:s3cret@x@y/z@db.example/shop#events",
        "postgresql://db.example/shop?user=reader&password=s3cret#events",
        "postgresql://reader:s3cret@db.example/shop?sslmode=require&query=SELECT%201",
    ],
)
def test_a_password_is_never_shown(tmp_path: Path, url: str) -> None:
    parsed = DatabaseUrl.parse(url)
    settings = TablesData.model_validate(
        {"source": "tables", "items": url, "events": url, "text_fields": ["a"]}, strict=False
    )
    shown = [str(parsed), repr(parsed), repr(settings), settings.model_dump_json(), without_password(url)]
    assert not [text for text in shown if "s3cret" in text]
    assert "s3cret" in parsed.connection()
    recipe = shop(tmp_path)
    recipe.write_text(RECIPE.replace("data/items.csv", f'"{url.replace("postgresql", "mysql")}"'))
    with pytest.raises(RecipeError, match=r"data\.items.*postgresql://") as caught:
        load_recipe(recipe)
    assert "s3cret" not in str(caught.value)


def test_a_password_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    url = DatabaseUrl.parse("postgresql://reader:${SHOP_PASSWORD}@db.example/shop#events")
    monkeypatch.setenv("SHOP_PASSWORD", "a@b/c")
    assert url.connection() == "postgresql://reader:a%40b%2Fc@db.example/shop"
    assert str(url) == "postgresql://reader:${SHOP_PASSWORD}@db.example/shop#events"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///data/a%20shop.db#main.events",
        "duckdb:////data/shop.duckdb?query=SELECT%20a%2Bb%20AS%20c%2C%20'%25%26%23'%20FROM%20t",
        "postgresql://reader:${SHOP_PASSWORD}@db.example:5432/shop?sslmode=require#public.events",
        "postgresql://reader@db.example/shop?sslmode=require&query=SELECT%201",
    ],
)
def test_what_is_written_into_a_recipe_is_the_same_address(url: str) -> None:
    parsed = DatabaseUrl.parse(url)
    assert DatabaseUrl.parse(parsed.written()) == parsed


def test_a_password_is_not_written_into_a_recipe() -> None:
    parsed = DatabaseUrl.parse("postgresql://reader:s3cret@db.example/shop#events")
    assert parsed.written() == "postgresql://reader@db.example/shop#events"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/items.parquet", "ftp"),
        ("sqlite:///shop.db", "neither a table nor a query"),
        ("sqlite:///shop.db?query=SELECT%201#events", "both"),
        ("sqlite://shop.db#events", "three"),
        ("duckdb:///#events", "no file"),
    ],
)
def test_a_url_that_is_none_says_what_one_looks_like(tmp_path: Path, url: str, said: str) -> None:
    recipe = shop(tmp_path)
    recipe.write_text(RECIPE.replace("data/items.csv", f'"{url}"'))
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(recipe)
    assert "shop.yaml:3: data.items: " in str(caught.value)
    assert "sqlite:///" in str(caught.value) or "duckdb:///" in str(caught.value)
