"""What another order would have earned, from a log that the gateway's own writer and its own lots made."""

import json
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hourly_logs import HOUR, KINDS, START, Shop, event, page, write_log
from stage_runs import prepared
from test_learn_examples import recipe_of
from tiny_models import save_ranker
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.event_log import read_rows
from tritonrank.errors import DataError
from tritonrank.learn.clicks import other_orders
from tritonrank.learn.clicks.click_estimates import clicks_per_page
from tritonrank.learn.clicks.other_orders import Judged, clicks_of, estimate_clicks, order_of
from tritonrank.learn.lists.shown_lists import ShownPages, shown_pages
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank_runtime.text import TextRules
from typer.testing import CliRunner

LOOKS, END = 0.7, START + 30 * HOUR


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    folder = tmp_path_factory.mktemp("shop")
    made = Shop(swaps=True, users=60, looks=LOOKS).hours(0, 30, per_hour=40)
    made.item_table().write_csv(folder / "items.csv")
    made.past().write_csv(folder / "events.csv")
    write_log(folder / "log", made.told, END + 120)
    recipe = recipe_of(folder)
    prepared(recipe, folder / "shop" / "dataset")
    return folder, recipe


@pytest.fixture(scope="module")
def pages(shop: tuple[Path, Recipe]) -> ShownPages:
    return shown_pages(read_rows(shop[0] / "log", START, END), 1.0, END)


def liked(pages: ShownPages) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What users of the shop like: items of the kind of their number."""
    numbers = pages.items.select(
        pl.col("user_id").str.slice(1).cast(pl.Int64).alias("user"),
        pl.col("item_id").str.slice(1).cast(pl.Int64).alias("item"),
    )
    return (numbers["user"] % len(KINDS) == numbers["item"] % len(KINDS)).cast(pl.Float32).to_numpy()


def test_pages_of_the_log_are_those_that_were_shown_with_their_lots(
    shop: tuple[Path, Recipe], pages: ShownPages
) -> None:
    files = (shop[0] / "log" / "impressions").rglob("*.parquet")
    told = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
    settled = told.filter(pl.col("shown_at") + HOUR <= END)
    assert pages.items["page"].n_unique() == settled.height
    one = settled.row(7, named=True)
    rows = pages.items["page"].to_numpy() == one["page"]
    assert pages.items.filter(rows)["item_id"].to_list() == list(one["item_ids"])
    assert pages.shown.policy_position[rows].tolist() == one["policy_positions"]
    assert pages.shown.position[rows].tolist() == one["positions"]
    assert pages.shown.move_down[rows].tolist() == pytest.approx(one["move_down"])
    assert set(np.unique(pages.shown.clicked)) == {0.0, 1.0}
    assert len(np.unique(pages.shown.page)) == settled.height
    assert len(np.unique(pages.shown.user)) == settled["user_id"].n_unique()


def test_a_click_counts_where_it_was_made_and_in_time(tmp_path: Path) -> None:
    told = [
        page("t1", ["i1", "i2", "i3"], "ann", START + 10, lots=Random(1)),
        page("t2", ["i1", "i2"], "", START + 20, lots=Random(1)),
        event("on-page", "ann", "i2", START + 20, page="t1", position=1),
        event("viewed", "ann", "i3", START + 21, "view", page="t1"),
        event("disliked", "ann", "i1", START + 22, "rating", page="t1", value=2.0),
        event("late", "ann", "i1", START + 2 * HOUR, page="t1"),
        event("elsewhere", "ann", "i1", START + 30),
        event("signed in", "bob", "i2", START + 40, "cart", page="t2"),
    ]
    write_log(tmp_path / "log", told, START + 5 * HOUR)
    pages = shown_pages(read_rows(tmp_path / "log", START, START + 5 * HOUR), 1.0, START + 5 * HOUR)
    clicked = pages.items.filter(pages.shown.clicked > 0).select("page", "item_id").rows()
    assert sorted(clicked) == [("t1", "i2"), ("t2", "i2")]
    with pytest.raises(DataError, match="no page was shown"):
        shown_pages(read_rows(tmp_path / "log", START, START + 5 * HOUR), 6.0, START + 5 * HOUR)


def test_estimates_of_an_order_by_taste_hold_what_it_truly_earns(pages: ShownPages) -> None:
    """The one item that a user clicks, where looked at, is what its page was made around."""
    score = liked(pages)
    order = order_of(pages, score)
    for number in np.unique(pages.shown.page)[:50]:
        rows = pages.shown.page == number
        assert sorted(order[rows]) == sorted(pages.shown.policy_position[rows])
    found = clicks_of(Judged(pages.shown, order), seed=1, resamples=100)
    for estimator in ("ips", "snips", "dr"):
        assert found[estimator]["difference"]["low"] > 0, estimator
        assert found[estimator]["ranker"]["value"] > found[estimator]["live"]["value"]
    # The item that is clicked stood at each of eight places alike often: mean of 0.7^k; first among liked ones at best.
    truth = sum(LOOKS**place for place in range(8)) / 8
    assert found["dr"]["live"]["low"] < truth < found["dr"]["live"]["high"]
    same = clicks_of(Judged(pages.shown, pages.shown.policy_position), seed=1, resamples=100)
    assert same["dr"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "level": 0.95}
    assert same["dr"]["live"] == vars(
        clicks_per_page(pages.shown, [pages.shown.policy_position], "dr", resamples=100, seed=1)
    )


class Taste:
    """A scorer that knows what users like, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def score(self, request: Request) -> Any:
        self.asked.append(request)
        kinds = [text.rpartition(", ")[2] for text in request.history]
        best = max(set(kinds), key=kinds.count) if kinds else ""
        return np.array([float(text.endswith(best)) for text in request.items], dtype=np.float32)


def test_the_ranker_is_asked_with_what_was_known_then(
    shop: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = shop
    taste = Taste()
    monkeypatch.setattr(other_orders, "open_scorer", lambda model: taste)
    monkeypatch.setattr(other_orders, "clicks_of", partial(clicks_of, resamples=100))
    TextRules("{title}, {kind}", 24, 8, 72, 32).save(tmp_path)
    found = estimate_clicks(recipe, Workspace(folder / "shop"), tmp_path, END + 90, most=500)
    assert found["pages"] == len(taste.asked) == 500
    assert found["clicks_per_page"]["dr"]["difference"]["low"] > 0
    assert found["looked_at"][0] == 1
    assert START <= found["from"] < found["until"] < END
    longest = max(taste.asked, key=lambda request: len(request.history))
    assert 8 < len(longest.history) < 40  # eight of the past, and clicks of the log before the page, none after it
    newcomers = [request for request in taste.asked if not request.history]
    assert newcomers


def test_the_verb_tells_people_and_scripts(
    shop: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe = shop
    monkeypatch.setattr(other_orders, "clicks_of", partial(clicks_of, resamples=100))
    model = save_ranker("bert", tmp_path / "model")
    TextRules("{title}, {kind}", 12, 4, 32, 16, architecture="joint").save(model)
    text = {
        "name": "shop",
        "data": json.loads(recipe.data.model_dump_json(exclude_defaults=True)),
        "text": {"item_template": "{title}, {kind}"},
        "model": {"architecture": "joint"},
        "learn": {"log": str(folder / "log"), "newest_hours": 6},
    }
    (tmp_path / "shop.yaml").write_text(json.dumps(text))
    told = ["estimate-clicks", str(tmp_path / "shop.yaml"), "--artifacts", str(folder), "--artifact", str(model)]
    result = CliRunner().invoke(cli.app, [*told, "--pages", "400", "--days", "4000", "--out", str(tmp_path / "f.json")])
    assert result.exit_code == 0, result.output
    assert "Clicks per page" in result.output
    last = json.loads(result.output.splitlines()[-1])
    assert last == json.loads((tmp_path / "f.json").read_text())
    assert last["pages"] == 400
    assert set(last["clicks_per_page"]["dr"]) == {"live", "ranker", "difference"}


def test_without_lots_or_clicks_nothing_is_estimated(tmp_path: Path) -> None:
    shop = Shop().hours(0, 10)
    shop.item_table().write_csv(tmp_path / "items.csv")
    shop.past().write_csv(tmp_path / "events.csv")
    write_log(tmp_path / "log", shop.told, START + 10 * HOUR + 120)
    recipe = recipe_of(tmp_path)
    prepared(recipe, tmp_path / "shop" / "dataset")
    workspace, now = Workspace(tmp_path / "shop"), START + 10 * HOUR + 90
    with pytest.raises(DataError, match=r"no lots were drawn .*\[explore\]"):
        estimate_clicks(recipe, workspace, tmp_path, now)
    few = Shop(swaps=True).hours(0, 3)
    write_log(tmp_path / "few", few.told, START + 10 * HOUR + 120)
    with pytest.raises(DataError, match=r"clicks on items that lots might have moved, in \d+ pages, tell nothing"):
        estimate_clicks(recipe_of(tmp_path, log=str(tmp_path / "few")), workspace, tmp_path, now)
    with pytest.raises(DataError, match="no log of events"):
        estimate_clicks(recipe_of(tmp_path, log=str(tmp_path / "none")), workspace, tmp_path, now)
