"""What a night learns and is judged on, of a log that the gateway's own writer wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hourly_logs import HOUR, START, Shop, Told, event, page, write_log
from stage_runs import prepared
from tritonrank.artifacts import Manifest, read_manifest
from tritonrank.artifacts.stage import run_stage
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.event_log import first_hour
from tritonrank.errors import ArtifactError, DataError, RecipeError
from tritonrank.learn.lists.examples import stage
from tritonrank.learn.lists.judged_lists import judged_sets
from tritonrank.learn.lists.left_out import LeftOut
from tritonrank.learn.lists.night_events import learnt_until
from tritonrank.learn.lists.night_lists import NothingToLearnError
from tritonrank.learn.lists.windows import Span, Windows, plan_windows
from tritonrank.recipe import Recipe
from tritonrank_recommend.log import layout, upkeep

EXAMPLES = {
    "training_examples": 100,
    "training_negatives": 4,
    "judged_negatives": 19,
    "validation_users": 12,
    "test_users": 30,
}
LEARN = {"newest_hours": 6, "segments": {"lamps": "item_kind = 'lamp'", "cold users": "history_items < 3"}}


def recipe_of(folder: Path, **learn: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "shop",
            "data": {
                "source": "tables",
                "items": str(folder / "items.csv"),
                "events": str(folder / "events.csv"),
                "text_fields": ["title", "kind"],
            },
            "text": {"item_template": "{title}, {kind}"},
            "examples": EXAMPLES,
            "learn": LEARN | {"log": str(folder / "log")} | learn,
        }
    )


def make_shop(folder: Path, hours: int, more: Sequence[Told] = (), **told: Any) -> Recipe:
    """Tables of the past, the dataset that is made of them, and a log of some hours."""
    shop = Shop(**told).hours(0, hours)
    shop.item_table().write_csv(folder / "items.csv")
    shop.past().write_csv(folder / "events.csv")
    write_log(folder / "log", [*shop.told, *more], START + hours * HOUR + 120)
    recipe = recipe_of(folder)
    prepared(recipe, folder / "base")
    return recipe


def windows_of(recipe: Recipe, hours: float, **told: Any) -> Windows:
    return plan_windows(recipe.learn, START + hours * HOUR + 90, START, **told)


def night(recipe: Recipe, folder: Path, windows: Windows, name: str = "night", **told: Any) -> tuple[Dataset, Manifest]:
    manifest = run_stage(stage(recipe, folder / "base", windows, folder / name, **told))
    return Dataset.read(folder / name), manifest


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """Thirty hours of a shop; one user is a bot, one comes back late, one item is not in the table."""
    folder = tmp_path_factory.mktemp("shop")
    odd = [
        event("late", "u1", "i1", START + 3 * HOUR, late=20 * HOUR),
        event("stranger", "u2", "nowhere", START + 4 * HOUR),
        event("again", "u3", "i3", START + 5 * HOUR),
        event("again", "u3", "i3", START + 5 * HOUR),
    ]
    return folder, make_shop(folder, 30, odd)


@pytest.fixture(scope="module")
def first(shop: tuple[Path, Recipe]) -> tuple[Path, Recipe, Windows, Dataset, Manifest]:
    folder, recipe = shop
    windows = windows_of(recipe, 24)
    return (folder, recipe, windows, *night(recipe, folder, windows))


def moments(folder: Path, lists: Sequence[Example]) -> list[tuple[Example, float, float]]:
    """Those of the lists that are of the log: when the list came to be, and when it was liked."""
    shown = {}
    for file in (folder.parent / "log" / "impressions").rglob("*.parquet"):
        shown |= dict(pl.read_parquet(file, hive_partitioning=False).select("page", "shown_at").iter_rows())
    events = pl.read_parquet(folder / "events.parquet").partition_by("user_id", as_dict=True)
    found = []
    for one in lists:
        liked = events[one.user_id,].row(int(one.example_id.rpartition(":")[2]), named=True)
        assert liked["item_id"] in positives(one)
        if liked["timestamp"] >= START:
            found.append((one, shown.get(liked["impression"], liked["timestamp"]), liked["timestamp"]))
    return found


def positives(example: Example) -> set[str]:
    return {item for item, gain in zip(example.candidates, example.labels, strict=True) if gain}


def answers(lists: Sequence[Example]) -> set[tuple[str, str]]:
    return {(one.user_id, item) for one in lists for item in positives(one)}


def in_set(folder: Path, dataset: Dataset, name: str) -> list[Example]:
    chosen = set(judged_sets(folder).get(name, []))
    return [one for one in dataset.test if one.example_id in chosen]


def test_new_lists_are_learnt_and_older_ones_replayed(first: tuple[Path, Recipe, Windows, Dataset, Manifest]) -> None:
    folder, recipe, windows, dataset, manifest = first
    counts = manifest.metrics["lists"]
    new = moments(folder / "night", dataset.training)
    assert windows.new.hours == 18
    assert len(new) == counts["new"] > 40
    assert counts["replayed from the log"] == 0
    assert counts["replayed from the recipe's dataset"] == min(100, counts["new"])  # half of all
    assert len(dataset.training) == counts["new"] + counts["replayed from the recipe's dataset"]
    closed = recipe.learn.delay_hours * HOUR
    assert all(at + closed < windows.new.end for one, at, liked in new if liked != at)


def test_judged_lists_come_after_all_that_is_learnt(first: tuple[Path, Recipe, Windows, Dataset, Manifest]) -> None:
    folder, recipe, windows, dataset, _ = first
    newest = in_set(folder / "night", dataset, "newest")
    assert len(newest) > 10
    judged = moments(folder / "night", newest)
    assert len(judged) == len(newest)
    assert (
        min(at for _, at, _ in judged)
        >= windows.newest.start
        > max(liked for _, _, liked in moments(folder / "night", dataset.training))
    )
    assert max(at for _, at, _ in judged) + recipe.learn.delay_hours * HOUR <= windows.newest.end
    validating = moments(folder / "night", dataset.validation)
    assert {one.user_id for one, *_ in validating}.isdisjoint(one.user_id for one in newest)


def test_histories_hold_nothing_that_came_later(first: tuple[Path, Recipe, Windows, Dataset, Manifest]) -> None:
    folder, _, _, dataset, _ = first
    events = pl.read_parquet(folder / "night" / "events.parquet").filter(pl.col("label") == 1)
    by_user = events.partition_by("user_id", as_dict=True)
    every = moments(folder / "night", [*dataset.training, *dataset.validation, *dataset.test])
    assert len(every) > 60
    for one, at, _ in every:
        before = by_user[one.user_id,].filter(pl.col("timestamp") < at)["item_id"].to_list()
        assert one.history == [item for item in before if item not in positives(one)]


def test_pages_give_the_negatives_that_people_saw(first: tuple[Path, Recipe, Windows, Dataset, Manifest]) -> None:
    folder, _, _, dataset, _ = first
    shown: dict[str, list[set[str]]] = {}
    for file in (folder / "log" / "impressions").rglob("*.parquet"):
        for user, items in pl.read_parquet(file, hive_partitioning=False).select("user_id", "item_ids").iter_rows():
            shown.setdefault(user, []).append(set(items))
    newest = in_set(folder / "night", dataset, "newest")
    assert all(any(len(items & set(one.candidates)) >= 6 for items in shown[one.user_id]) for one in newest)
    assert all(len(one.candidates) == 20 for one in newest)


def test_sets_are_windows_and_segments_and_can_be_told_from_the_lists(
    first: tuple[Path, Recipe, Windows, Dataset, Manifest],
) -> None:
    folder, _, _, dataset, manifest = first
    sets = judged_sets(folder / "night")
    assert list(sets) == ["newest", "frozen", "old", "lamps", "cold users"]
    assert {name: len(ids) for name, ids in sets.items()} == manifest.metrics["sets"]
    assert set(sets["newest"]) <= set(sets["frozen"])  # of the first night they are the same hours
    assert len(sets["old"]) == EXAMPLES["test_users"]
    kinds = {item: fields["kind"] for item, fields in dataset.items.items()}
    lamps = [one for one in dataset.test if kinds[one.candidates[int(np.argmax(one.labels))]] == "lamp"]
    assert sets["lamps"] == [one.example_id for one in lamps]
    assert sets["cold users"] == [one.example_id for one in dataset.test if len(one.history) < 3]
    assert sets["cold users"]  # newcomers without any history are judged, too


def test_copies_count_once_and_strangers_are_said(first: tuple[Path, Recipe, Windows, Dataset, Manifest]) -> None:
    folder, *_, manifest = first
    events = pl.read_parquet(folder / "night" / "events.parquet")
    assert events.filter((pl.col("user_id") == "u3") & (pl.col("timestamp") == int(START + 5 * HOUR))).height == 1
    (stranger,) = [one for one in manifest.metrics["dropped"] if "shop's catalogue" in one["kind"]]
    assert stranger["examples"] == ["nowhere"]


def test_the_next_night_learns_what_was_judged_and_no_night_what_is_frozen(shop: tuple[Path, Recipe]) -> None:
    folder, recipe = shop
    before = windows_of(recipe, 18)
    windows = windows_of(recipe, 30, learnt_until=before.learnt_until, frozen=before.frozen)
    assert windows.new.start == before.frozen.end  # what lies between is frozen
    dataset, manifest = night(recipe, folder, windows, "second")
    frozen = in_set(folder / "second", dataset, "frozen")
    learnt = moments(folder / "second", dataset.training)
    assert frozen
    assert not answers(frozen) & answers([one for one, *_ in learnt])
    new = [at for _, at, _ in learnt if at >= windows.new.start]
    assert len(new) > 10
    assert max(new) < windows.newest.start
    assert manifest.metrics["lists"]["replayed from the log"] > 0
    # What came twenty hours late stands for itself in the night in which it came.
    assert [at for one, at, _ in learnt if "i1" in positives(one) and one.user_id == "u1"] == [START + 3 * HOUR]


def test_an_answer_that_is_judged_elsewhere_is_never_learnt(tmp_path: Path) -> None:
    """Planted: what frozen and old lists ask for happens again, in hours that are learnt."""
    shop = Shop().hours(0, 26)
    recipe = make_shop(tmp_path, 26)
    before = windows_of(recipe, 12)
    windows = windows_of(recipe, 26, learnt_until=before.learnt_until, frozen=before.frozen)
    honest, _ = night(recipe, tmp_path, windows)
    asked = answers(in_set(tmp_path / "night", honest, "frozen")) | answers(in_set(tmp_path / "night", honest, "old"))
    assert len(asked) > 30
    planted = [
        event(f"planted{number}", user, item, START + 14 * HOUR + number)
        for number, (user, item) in enumerate(sorted(asked))
    ]
    write_log(tmp_path / "planted", [*shop.told, *planted], START + 26 * HOUR + 120)
    dataset, manifest = night(recipe_of(tmp_path, log=str(tmp_path / "planted")), tmp_path, windows, "planted-night")
    assert not asked & answers([one for one, *_ in moments(tmp_path / "planted-night", dataset.training)])
    (said,) = [
        one for one in manifest.metrics["dropped"] if one["kind"] == "new lists whose answer is judged elsewhere"
    ]
    assert said["count"] >= len(asked) * 0.9


def test_what_is_left_out_is_nowhere(shop: tuple[Path, Recipe]) -> None:
    folder, recipe = shop
    windows = windows_of(recipe, 24)
    bot = LeftOut(windows.read, "a bot", users=(layout.digest_of("u5"),))
    day = LeftOut(Span(START, START + 8 * HOUR), "labels are flipped")
    dataset, _ = night(recipe, folder, windows, "left-out", left_out=[bot, day])
    events = pl.read_parquet(folder / "left-out" / "events.parquet").filter(pl.col("timestamp") >= START)
    assert not events.filter(pl.col("user_id") == "u5").height
    late = (pl.col("user_id") == "u1") & (pl.col("item_id") == "i1")
    assert events.filter(late)["timestamp"].to_list() == [START + 3 * HOUR]  # it came on another day
    assert events.filter(~late)["timestamp"].min() >= START + 8 * HOUR
    assert "u5" not in {one.user_id for one, *_ in moments(folder / "left-out", [*dataset.training, *dataset.test])}


def test_erased_users_are_gone_from_old_lists_too(tmp_path: Path) -> None:
    recipe = make_shop(tmp_path, 20)
    windows = windows_of(recipe, 20)
    dataset, _ = night(recipe, tmp_path, windows)
    user = in_set(tmp_path / "night", dataset, "old")[0].user_id
    layout.add_tombstones(tmp_path / "log", {user: START + 21 * HOUR})
    assert stage(recipe, tmp_path / "base", windows, tmp_path / "night").why_anew()
    dataset, _ = night(recipe, tmp_path, windows)
    assert user not in {one.user_id for one in [*dataset.training, *dataset.validation, *dataset.test]}


def test_lots_tell_how_likely_a_place_is_looked_at(tmp_path: Path) -> None:
    shop = Shop(swaps=True, users=60, looks=0.7).hours(0, 30, per_hour=40)
    shop.item_table().write_csv(tmp_path / "items.csv")
    shop.past().write_csv(tmp_path / "events.csv")
    write_log(tmp_path / "log", shop.told, START + 30 * HOUR + 120)
    recipe = recipe_of(tmp_path)
    prepared(recipe, tmp_path / "base")
    dataset, manifest = night(recipe, tmp_path, windows_of(recipe, 30))
    assert manifest.metrics["positions_weighed_by"] == "lots"
    weights = [w for one in dataset.training for w, gain in zip(one.weights, one.labels, strict=True) if gain]
    assert 2 < max(weights) <= 10
    assert min(weights) == pytest.approx(1.0)


def test_files_from_before_there_were_lots_are_read(tmp_path: Path) -> None:
    recipe = make_shop(tmp_path, 20)
    for file in (tmp_path / "log" / "impressions").rglob("*.parquet"):
        old = pl.read_parquet(file, hive_partitioning=False).drop("policy_positions", "move_up", "move_down")
        old.write_parquet(file)
    _, manifest = night(recipe, tmp_path, windows_of(recipe, 20))
    assert manifest.metrics["positions_weighed_by"] == "nobody"
    assert manifest.metrics["lists"]["new"] > 10


def test_the_stage_is_up_to_date_until_something_it_reads_changes(tmp_path: Path) -> None:
    recipe = make_shop(tmp_path, 20)
    windows = windows_of(recipe, 20)
    made = stage(recipe, tmp_path / "base", windows, tmp_path / "night")
    assert made.why_anew() == "new"
    artifact = run_stage(made).artifact
    assert made.why_anew() is None
    other = recipe_of(tmp_path, minutes=3)
    assert stage(other, tmp_path / "base", windows, tmp_path / "night").why_anew() is None
    upkeep.join_parts(tmp_path / "log", START + 40 * HOUR)
    assert "setting log" in str(made.why_anew())
    assert run_stage(made).artifact == artifact  # the same rows in other files
    assert read_manifest(tmp_path / "night").stage == "examples"


def test_a_segment_that_is_no_condition_names_the_columns(shop: tuple[Path, Recipe]) -> None:
    folder, recipe = shop
    for condition in ("items < 3", "history_items <", "1"):
        wrong = recipe_of(folder, segments={"wrong": condition})
        with pytest.raises(RecipeError, match=r"learn\.segments\.wrong: .*history_items"):
            night(wrong, folder, windows_of(recipe, 24), "wrong")


def test_hours_without_lists_are_nothing_to_learn(tmp_path: Path) -> None:
    shop = Shop()
    shop.item_table().write_csv(tmp_path / "items.csv")
    shop.past().write_csv(tmp_path / "events.csv")
    told = [page("t1", ["i1", "i2"], "u1", START + 60), event("e1", "u1", "i1", START + 90, "view")]
    write_log(tmp_path / "log", told, START + 20 * HOUR)
    recipe = recipe_of(tmp_path)
    prepared(recipe, tmp_path / "base")
    with pytest.raises(NothingToLearnError, match="0 lists to learn and 0 to judge"):
        night(recipe, tmp_path, windows_of(recipe, 20))
    with pytest.raises(ArtifactError, match=r"no sets\.parquet here"):
        judged_sets(tmp_path / "base")
    empty = recipe_of(tmp_path, log=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no log of events"):
        night(empty, tmp_path, windows_of(recipe, 20))


def test_a_damaged_file_of_the_log_is_named(tmp_path: Path) -> None:
    recipe = make_shop(tmp_path, 12)
    windows = windows_of(recipe, 12)
    file = sorted((tmp_path / "log" / "impressions").rglob("*.parquet"))[3]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{file.name}.*cannot be read as a file of the log"):
        night(recipe, tmp_path, windows)
    late = sorted((tmp_path / "log" / "impressions").rglob("*.parquet"))[-1]
    file.unlink()
    late.write_bytes(b"")  # in an hour that is not over
    night(recipe, tmp_path, windows_of(recipe, 11.5))


def test_a_base_of_the_same_log_is_learnt_on_from_where_it_ended(tmp_path: Path) -> None:
    shop = Shop().hours(0, 20, per_hour=12)
    shop.item_table().write_csv(tmp_path / "items.csv")
    write_log(tmp_path / "log", shop.told, START + 20 * HOUR + 120)
    data = {
        "source": "events",
        "events": str(tmp_path / "log"),
        "items": str(tmp_path / "items.csv"),
        "text_fields": ["title", "kind"],
    }
    told = recipe_of(tmp_path).model_dump(mode="json") | {"data": data, "learn": {**LEARN, "log": None}}
    recipe = Recipe.model_validate(told)
    prepared(recipe, tmp_path / "base")
    ended = learnt_until(recipe, tmp_path / "base")
    assert ended is not None
    assert START + 19 * HOUR < ended <= START + 20 * HOUR
    assert first_hour(tmp_path / "log") == START
    shop.told.clear()
    write_log(tmp_path / "log", shop.hours(20, 44, per_hour=12).told, START + 44 * HOUR + 120)
    windows = windows_of(recipe, 44, learnt_until=ended)
    dataset, manifest = night(recipe, tmp_path, windows)
    events = pl.read_parquet(tmp_path / "night" / "events.parquet").filter(pl.col("label") == 1)
    assert not events.select("user_id", "item_id", "timestamp").is_duplicated().any()
    assert manifest.metrics["lists"]["replayed from the log"] == 0
    assert manifest.metrics["lists"]["new"] > 30
    assert len({one.example_id for one in dataset.training}) == len(dataset.training)
