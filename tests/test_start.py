"""``tritonrank init``: from tables to a recipe that builds, without a line written by hand."""

import contextlib
import json
import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tritonrank import cli
from tritonrank.data.prepare import make_dataset
from tritonrank.recipe import load_recipe
from typer.testing import CliRunner, Result

SPLITS = ("train", "validation", "test")


def run(*arguments: object) -> Result:
    """The real command; stdin is no terminal, so that it asks nothing."""
    return CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "150"})


def init(folder: Path, *arguments: object) -> Path:
    """A recipe for the shop of a folder."""
    result = run("init", "--items", folder / "items.csv", "--events", folder / "events.csv", *arguments)
    assert result.exit_code == 0, result.output
    return Path(result.output.partition("written: ")[2].splitlines()[0])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Fifty items, forty customers who view and buy; a query now and then."""
    drawn = random.Random(5)
    words = ["oak", "brass", "linen", "glass", "steel", "wool", "amber", "slate"]
    items = pl.DataFrame(
        {
            "id": [f"P-{number}" for number in range(50)],
            "title": [" ".join(drawn.choices(words, k=4)) for _ in range(50)],
            "brand": [drawn.choice(["Kestrel", "Marlo"]) for _ in range(50)],
            "price": [f"{drawn.randrange(5, 90)}.50" for _ in range(50)],
        }
    )
    rows = [
        (f"c{user}", f"P-{drawn.randrange(50)}", 1_600_000_000 + 100 * step, kind, drawn.choice([*words, ""]))
        for user in range(40)
        for step in range(8)
        for kind in ("view", "purchase")
    ]
    events = pl.DataFrame(rows, schema=["client", "product", "time", "event", "search"], orient="row")
    items.write_csv(tmp_path / "items.csv")
    events.write_csv(tmp_path / "events.csv")
    return tmp_path


def test_a_recipe_that_builds_says_why_it_is_so(shop: Path) -> None:
    path = init(shop, "--out", shop / "my.yaml")
    text = path.read_text()
    recipe = load_recipe(path)
    assert recipe.name == "my"
    assert recipe.data.model_dump(include={"user_id", "timestamp", "query", "item_id", "label"}) == {
        "item_id": {"items": "id", "events": "product"},
        "user_id": "client",
        "timestamp": "time",
        "query": "search",
        "label": {"column": "event", "view": 0, "purchase": 3},
    }
    assert recipe.text.item_template == "{title} {brand}"
    assert "items: items.csv" in text, "beside the recipe"
    for reason in ("events.product are in it", "40 different", "2020-09-13", "95%", "unseen"):
        assert reason in text, reason
    made = make_dataset(recipe)
    assert made.metrics["text"]["items"]["cut_share"] <= 0.05
    assert made.metrics["examples"]["test"] == recipe.examples.test_users, "as many as there are"
    checked = json.loads(run("check", path, "--json").stdout)
    assert [one["key"] for one in checked["suggestions"]] == ["gate.budget"], "forty users tell no loss of 1%"


def test_the_recipe_means_the_same_from_any_folder(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop / "recipes").mkdir()
    monkeypatch.chdir(shop)
    path = init(Path(), "--out", "recipes/shop.yaml")
    assert "items: ../items.csv" in path.read_text()
    monkeypatch.chdir("/")
    assert make_dataset(load_recipe(shop / path)).metrics["items"] == 50


def test_a_recipe_that_is_there_stays(shop: Path) -> None:
    path = init(shop, "--out", shop / "my.yaml")
    path.write_text("mine")
    again = ("init", "--items", shop / "items.csv", "--events", shop / "events.csv", "--out", path)
    refused = run(*again)
    assert refused.exit_code != 0
    assert "--force" in str(refused.exception)
    assert path.read_text() == "mine"
    assert run(*again, "--force").exit_code == 0
    assert load_recipe(path).name == "my"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--items", "items.csv"], "tritonrank up BAAI/bge-reranker-base"),
        (["--checkpoint", "org/model"], "tritonrank up org/model"),
        ([], "--items FILE --events FILE"),
        (["--events", "events.csv"], "--items FILE"),
    ],
)
def test_what_is_missing_is_said_with_what_can_be_done(shop: Path, arguments: Sequence[str], advice: str) -> None:
    refused = run("init", *arguments, "--out", shop / "my.yaml")
    assert refused.exit_code != 0
    assert advice in str(refused.exception)
    assert not (shop / "my.yaml").exists()


def test_a_column_that_is_named_wins(shop: Path) -> None:
    path = init(shop, "--out", shop / "my.yaml", "--column", "text=brand,title", "--column", "item_id=id:product")
    assert load_recipe(path).text.item_template == "{brand} {title}"


def test_tables_of_a_database_are_named_beside_the_recipe(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect(shop / "shop.db")) as database, database:
        for name in ("items", "events"):
            frame = pl.read_csv(shop / f"{name}.csv")
            database.execute(f"CREATE TABLE {name} ({', '.join(frame.columns)})")
            database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * frame.width)})", frame.rows())
    (shop / "recipes").mkdir()
    monkeypatch.chdir(shop)
    urls = ("--items", "sqlite:///shop.db#items", "--events", "sqlite:///shop.db#events")
    assert run("init", *urls, "--out", "recipes/db.yaml").exit_code == 0
    assert "items: sqlite:///../shop.db#items" in Path("recipes/db.yaml").read_text()
    init(Path(), "--out", "recipes/files.yaml")
    monkeypatch.chdir("/")
    by_url, by_files = (make_dataset(load_recipe(shop / "recipes" / name)) for name in ("db.yaml", "files.yaml"))
    everything = pl.all()  # a database has no order of rows
    assert by_url.items.sort(everything).equals(by_files.items.sort(everything))
    rows = [made.events.drop("split").sort(everything) for made in (by_url, by_files)]
    assert rows[0].equals(rows[1])
    assert by_url.metrics["examples"] == by_files.metrics["examples"]


def test_columns_may_be_called_as_people_write(shop: Path) -> None:
    called = {"title": "Product Title", "brand": "Marke (de)", "id": "Art.-Nr."}
    pl.read_csv(shop / "items.csv").rename(called).write_csv(shop / "items.csv")
    path = init(shop, "--out", shop / "my.yaml")
    recipe = load_recipe(path)
    assert recipe.text.item_template == "{product_title} {marke_de}"
    made = make_dataset(recipe)
    assert made.items.columns[:3] == ["item_id", "product_title", "marke_de"]
    assert "Product Title" in path.read_text()


def test_data_with_faults_still_get_a_recipe_and_the_faults(shop: Path) -> None:
    events = shop / "events.csv"
    events.write_text(events.read_text() + "c1,P-1\n" * 400)
    result = run("init", "--items", shop / "items.csv", "--events", events, "--out", shop / "my.yaml")
    assert result.exit_code == 0
    assert "not measured" in result.output
    assert run("check", shop / "my.yaml").exit_code == 1


def test_tables_in_a_database_are_named_from_the_recipes_folder(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(shop / "shop.db")
    for name in ("items", "events"):
        frame = pl.read_csv(shop / f"{name}.csv", infer_schema=False)
        columns = ", ".join(f'"{column}"' for column in frame.columns)
        connection.execute(f"CREATE TABLE {name} ({columns})")
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * frame.width)})", frame.rows())
    connection.commit()
    connection.close()
    monkeypatch.chdir(shop)
    (shop / "recipes").mkdir()
    tables = ("--items", "sqlite:///shop.db#items", "--events", "sqlite:///shop.db?query=SELECT%20*%20FROM%20events")
    result = run("init", *tables, "--out", "recipes/my.yaml")
    assert result.exit_code == 0, result.output
    made = make_dataset(load_recipe(Path("recipes/my.yaml")))
    assert made.items.height == 50


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """30 users rate 80 films from 0.5 to 5, as GroupLens publishes it."""
    drawn = np.random.default_rng(5)
    movies = [f'{n},"Film {n}, The (19{n:02d})",{["Drama|War", "Comedy"][n % 2]}' for n in range(10, 90)]
    ratings = [
        f"{user},{film},{drawn.integers(1, 11) / 2},{1_000_000_000 + int(drawn.integers(0, 10**6))}"
        for user in range(1, 31)
        for film in drawn.choice(np.arange(10, 90), size=25, replace=False)
    ]
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(movies) + "\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(ratings) + "\n")
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    return tmp_path


def test_movielens_through_init_gives_the_examples_of_its_source(movielens: Path) -> None:
    by_files = movielens / "tables.yaml"
    tables = ("--items", movielens / "movies.csv", "--events", movielens / "ratings.csv")
    assert run("init", *tables, "--out", by_files).exit_code == 0
    by_folder = movielens / "folder.yaml"
    assert run("init", "--data", movielens, "--out", by_folder).exit_code == 0
    assert yaml.safe_load(by_folder.read_text())["data"] == {"source": "movielens", "path": "."}
    guessed = yaml.safe_load(by_files.read_text())
    threshold = guessed["data"]["positive_label"]
    same = ["text={item_template: '{title} {genres}'}", f"examples={json.dumps(guessed['examples'])}"]
    first = make_dataset(load_recipe(by_files, same))
    second = make_dataset(load_recipe(by_folder, [*same, f"data.positive_rating={threshold}"]))
    for split in SPLITS:
        assert first.examples[split].height > 10
        assert first.examples[split].equals(second.examples[split]), split


def test_an_unknown_folder_says_what_is_known(tmp_path: Path) -> None:
    refused = run("init", "--data", tmp_path, "--out", tmp_path / "my.yaml")
    assert "--items FILE --events FILE" in str(refused.exception)
    assert "movies.csv" in str(refused.exception)


@pytest.mark.slow
def test_the_dirty_shop_is_understood_and_its_dirt_is_counted(tmp_path: Path) -> None:
    written = run("init", "--example", tmp_path / "shop")
    (command,) = [line.partition("tritonrank ")[2] for line in written.output.splitlines() if line.startswith("Next: ")]
    result = run(*command.split())
    assert result.exit_code == 0, result.output
    assert "not measured" not in result.output
    assert "LOOK" not in (tmp_path / "shop" / "shop.yaml").read_text().partition("text_fields")[0]
    found = json.loads(run("check", tmp_path / "shop" / "shop.yaml", "--json").stdout)
    assert found["ok"]
    assert found["counts"]["items"] == 240
    kinds = " ".join(one["kind"] for one in found["dropped"])
    for dirt in ("repeated rows", "does not have", "before their item existed", "without a positive"):
        assert dirt in kinds, dirt
    assert {tuple(kind["names"]): kind["gain"] for kind in found["kinds"]} == {
        ("view",): 0,
        ("add_to_cart",): 1,
        ("purchase",): 3,
    }
    examples = load_recipe(tmp_path / "shop" / "shop.yaml").examples
    short = run(*command.split(), "--minutes", 0.1, "--force")
    assert short.exit_code == 0
    fewer = load_recipe(tmp_path / "shop" / "shop.yaml").examples
    assert fewer.training_examples == 400 < examples.training_examples
    assert fewer.test_users == 40 < examples.test_users
    again = run("init", "--example", tmp_path / "shop")
    assert "name another folder" in str(again.exception)
