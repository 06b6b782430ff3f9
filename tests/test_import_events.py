"""Events of a table into a store: what columns and types they have, and that it gives what single events give."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from tritonrank.cli import app
from tritonrank.data.loading import Tables
from tritonrank.errors import DataError, RecipeError
from tritonrank.retrieval.event_types import types_of_numbers, types_of_words
from tritonrank.retrieval.import_events import import_events
from tritonrank.retrieval.imported_events import EventColumns, events_of, read_events
from tritonrank_recommend.events import Event
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import Profile
from typer.testing import CliRunner
from valkeys import running

SECOND = 1_600_000_000


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of two empty stores of each kind."""
    with (
        running(tmp_path_factory.mktemp("v")) as first,
        running(tmp_path_factory.mktemp("v")) as second,
    ):
        folder = tmp_path_factory.mktemp("stores")
        yield [f"sqlite:{folder / 'a'}", f"sqlite:{folder / 'b'}", first.url, second.url]


def held(url: str, users: list[str], items: list[str]) -> tuple[list[Profile], list[dict[str, int]], int]:
    """Profiles, counters of items, and how many events wait for the log."""

    async def read() -> tuple[list[Profile], list[dict[str, int]], int]:
        store = open_store(url)
        try:
            profiles = [await store.profile(user_id) for user_id in users]
            return profiles, await store.item_counters(items), len(await store.outbox(0, 100_000))
        finally:
            await store.close()

    return asyncio.run(read())


def run(*words: str) -> str:
    """Of the command line; what it prints."""
    result = CliRunner().invoke(app, ["import-events", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_gives_the_profiles_that_its_events_one_by_one_give(tmp_path: Path, urls: list[str]) -> None:
    chance = random.Random(5)
    words = {"view": "view", "add_to_cart": "cart", "purchase": "purchase", "impression": None}
    rows = [
        (
            f"u{chance.randrange(8)}",
            f"i{chance.randrange(30)}",
            chance.choice(list(words)),
            SECOND + chance.randrange(60),
        )
        for _ in range(900)
    ]
    table = tmp_path / "events.csv"
    pl.DataFrame(rows, ["user_id", "item_id", "event_type", "timestamp"], orient="row").write_csv(table)
    location = EventColumns.guessed(table, {})
    frame = read_events(table, location, default="click").frame

    async def one_by_one(url: str) -> None:
        store = open_store(url)
        for user, item, word, second in dict.fromkeys(rows):
            if kind := words[word]:
                event = Event(
                    event_id=f"{user} {item} {word} {second}",
                    user_id=user,
                    item_id=item,
                    type=kind,  # type: ignore[arg-type]
                    timestamp=float(second),
                )
                await store.add_events([event], log=False)
        await store.close()

    users, items = [f"u{n}" for n in range(8)], [f"i{n}" for n in range(30)]
    expected = None
    for imported, single in (urls[:2], urls[2:]):
        done = import_events(frame, imported, batch=37)
        asyncio.run(one_by_one(single))
        assert held(imported, users, items) == held(single, users, items)
        assert done.accepted == sum(sum(counts.values()) for counts in held(single, users, items)[1])
        assert import_events(frame, imported).accepted == 0  # again, in other batches
        expected = expected or held(single, users, items)
        assert held(imported, users, items) == expected  # and the same in every store
        assert expected[2] == 0


def test_ratings_come_as_ratings_and_the_command_says_what_it_did(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    lines = [f"{user},{item},{1 + (user + item) % 5},{SECOND + item}" for user in range(3) for item in range(10, 14)]
    table.write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\nno one,,,\n")
    url = f"sqlite:{tmp_path / 'store.db'}"
    output = run(str(table), "--store", url)
    assert "12 events of 3 users imported" in output
    assert "1 rows of ratings.csv" in output
    assert f"--store {url}" in output
    assert "12 known already" in run(str(table), "--store", url)
    profile = held(url, ["1"], [])[0][0]
    assert [(seen.item_id, seen.weight) for seen in profile.events] == [("10", -0.5), ("11", 0), ("12", 0.5), ("13", 1)]


def test_a_recipe_says_what_the_columns_are_and_where_the_events_lie(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,title\na,One\nb,Two\n")
    (tmp_path / "events.csv").write_text("who,sku,on\nann,a,2020-09-13\nann,b,2020-09-14\n")
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(
        "name: shop\ndata:\n  source: tables\n  items: items.csv\n  events: events.csv\n  item_id: sku\n"
        "  user_id: who\n  timestamp: 'on'\n  text_fields: [title]\ntext:\n  item_template: '{title}'\n"
    )
    url = f"sqlite:{tmp_path / 'store.db'}"
    assert "2 events of 1 users" in run("--recipe", str(recipe), "--store", url, "--type", "purchase")
    (profile,), _, _ = held(url, ["ann"], [])
    assert [(seen.item_id, seen.type) for seen in profile.events] == [("a", "purchase"), ("b", "purchase")]
    (tmp_path / "later.csv").write_text("who,sku,on\nann,a,2020-09-15\n")
    run(str(tmp_path / "later.csv"), "--recipe", str(recipe), "--store", url)
    assert len(held(url, ["ann"], [])[0][0].events) == 3


def test_the_sample_of_a_recipe_fills_a_store(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"
    output = run("--recipe", "build/recipes/demo.yaml", "--set", "data.users=50", "--store", url)
    assert "of 50 users imported" in output
    assert held(url, ["user-00001"], [])[0][0].events


def test_ids_values_and_searches_of_a_log_are_taken(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "event_id": ["e1", "e2", "e1", "e3"],
            "user_id": ["ann"] * 4,
            "type": ["rating", "search", "rating", "shown"],
            "timestamp": [SECOND, SECOND + 1, SECOND, SECOND],
            "item_id": ["a", "", "a", "b"],
            "query": ["", "boots", "", ""],
            "value": [5.0, None, 5.0, None],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    chosen = EventColumns("user_id", "item_id", "timestamp", "query", "type", are_words=True)
    read = read_events(tmp_path / "log.parquet", chosen, default="click")
    assert [one.count for one in read.dropped] == [1]
    url = f"sqlite:{tmp_path / 'store.db'}"
    done = import_events(read.frame, url)
    assert (done.accepted, done.duplicates) == (2, 1)
    (profile,), _, _ = held(url, ["ann"], [])
    assert (profile.searches, [seen.weight for seen in profile.events]) == (("boots",), [1.0])


def test_what_words_and_numbers_mean() -> None:
    words = pl.Series(["Purchase", " add_to_cart", "skip", "page_view", "click", "impression", "whatever", ""])
    assert types_of_words(words).to_list() == ["purchase", "cart", "skip", "view", "click", None, None, None]
    types, values = types_of_numbers(pl.Series([1.0, 0.0, 1.0]), "purchase")
    assert (types.to_list(), values.to_list()) == (["purchase", None, "purchase"], [None] * 3)
    types, values = types_of_numbers(pl.Series([1.0, 10.0, 0.0]), "click")
    assert (types.to_list(), values.to_list()) == (["rating"] * 3, [0.5, 5.0, 0.5])
    assert types_of_numbers(pl.Series([0.5, 3.0]), "click")[1].to_list() == [0.5, 3.0]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], RecipeError, "import-events EVENTS"),
        (["{table}", "--type", "like"], RecipeError, "view, click"),
        (["{table}", "--column", "user_id"], RecipeError, "MEANING=COLUMN"),
        (["{table}", "--column", "item_id=sku"], DataError, "no such column.*who, what, when"),
        (["{table}"], DataError, "--column item_id=COLUMN"),
        (["missing.csv"], DataError, "missing.csv"),
    ],
)
def test_what_cannot_be_imported_is_named(
    tmp_path: Path, words: list[str], error: type[Exception], message: str
) -> None:
    table = tmp_path / "events.csv"
    table.write_text("who,what,when\nann,a,2020-09-13\n")
    store = tmp_path / "store.db"
    with pytest.raises(error, match=message):
        run(*(word.format(table=table) for word in words), "--store", f"sqlite:{store}")
    assert not store.exists()


def test_a_store_that_is_none_is_named(tmp_path: Path) -> None:
    table = tmp_path / "events.csv"
    table.write_text("user_id,item_id,timestamp\nann,a,2020-09-13\nann,b,2020-09-13\n")
    with pytest.raises(DataError, match="expected sqlite:FILE"):
        run(str(table), "--store", "store.db")


def test_who_did_not_like_an_item_of_a_source_of_ratings_skipped_it() -> None:
    events = pl.DataFrame(
        {"user_id": ["1", "1"], "item_id": ["a", "b"], "label": [1, 0], "timestamp": [5, 6], "query": ["", ""]}
    )
    frame = events_of(Tables(pl.DataFrame(), events), "click").frame
    assert frame.select("item_id", "type").rows() == [("a", "click"), ("b", "skip")]
