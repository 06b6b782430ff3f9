"""Examples are made of what was known at the time, and of nothing else."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from stage_runs import prepared as prepared_in
from tritonrank.artifacts import read_manifest, verify_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.lists import ListMaker, places_of, training_popularity
from tritonrank.data.loading import Tables, load_tables
from tritonrank.data.negatives import NegativeSampler
from tritonrank.data.splits import mark_splits
from tritonrank.errors import ArtifactError, DataError
from tritonrank.pipeline import prepare
from tritonrank.recipe import Recipe

SMALL = {"training_examples": 150, "judged_negatives": 20, "validation_users": 15, "test_users": 30}


def recipe(data: dict[str, Any], seed: int = 17, template: str = "{title}", **examples: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "seed": seed,
            "data": data,
            "text": {"item_template": template},
            "examples": {**SMALL, **examples},
        }
    )


SAMPLE = {"source": "sample", "items": 120, "users": 60}


@pytest.fixture(scope="module")
def movielens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 users rate 80 movies; many ratings share a second, some movies are rated twice, one user is too new."""
    folder = tmp_path_factory.mktemp("movielens")
    random = np.random.default_rng(5)
    movies = [f'{n},"Movie {n}, The (19{n:02d})",Drama|War' for n in range(10, 90)]
    ratings = []
    for user in range(40):
        for _ in range(int(random.integers(8, 30))):
            movie, stars = int(random.integers(10, 90)), random.integers(1, 11) / 2
            ratings.append(f"{user},{movie},{stars},{1_000_000_000 + int(random.integers(0, 40))}")
    ratings.append("new,10,5,1000000001")
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "\n".join(movies) + "\n")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(ratings) + "\n")
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    return folder


@pytest.fixture(scope="module", params=["sample", "movielens", "sample by date"])
def prepared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, movielens_folder: Path
) -> tuple[Tables, Dataset]:
    match request.param:
        case "sample":
            chosen = recipe(SAMPLE)
        case "movielens":
            chosen = recipe({"source": "movielens", "path": str(movielens_folder)})
        case _:
            chosen = recipe(SAMPLE, cutoff="2025-05-15")
    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    prepared_in(chosen, folder)
    return load_tables(chosen.data, chosen.seed), Dataset.read(folder)


def key_of(chosen: Recipe) -> str:
    return prepare.stage(chosen, Workspace(Path("nothing"))).key()


def every(dataset: Dataset) -> Iterator[Example]:
    yield from (*dataset.training, *dataset.validation, *dataset.test)


def timeline(tables: Tables) -> dict[str, list[dict[str, Any]]]:
    """Every user's events in order of time, by plain Python: the reference for what was known when."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in tables.events.iter_rows(named=True):
        lines.setdefault(row["user_id"], []).append(row)
    return {user: sorted(rows, key=lambda row: row["timestamp"]) for user, rows in lines.items()}  # stable


def positive_of(example: Example) -> str:
    return example.candidates[example.labels.index(1)]


def test_examples_say_what_the_user_did(prepared: tuple[Tables, Dataset]) -> None:
    tables, dataset = prepared
    lines = timeline(tables)
    for example in every(dataset):
        position = int(example.example_id.removeprefix(f"{example.user_id}:"))
        event = lines[example.user_id][position]
        assert (event["item_id"], event["query"], event["label"]) == (positive_of(example), example.query, 1)
        before = [row["item_id"] for row in lines[example.user_id][:position] if row["label"] == 1]
        assert example.history == [item for item in before if item != positive_of(example)]
        assert example.history or example.query
        assert sum(example.labels) == 1


def test_nothing_at_or_after_a_validation_positive_is_learnt_from(prepared: tuple[Tables, Dataset]) -> None:
    tables, dataset = prepared
    learnt = {user: rows.height for (user,), rows in dataset.training_events.group_by("user_id")}
    lines = timeline(tables)
    for example in [*dataset.validation, *dataset.test]:
        position = int(example.example_id.rsplit(":")[-1])
        known = lines[example.user_id][: learnt.get(example.user_id, 0)]
        # Training is the beginning of the line, so its length says where it ends.
        mine = dataset.training_events.filter(pl.col("user_id") == example.user_id)
        assert mine["item_id"].to_list() == [row["item_id"] for row in known]
        assert len(known) <= position
    judged = {example.example_id for example in [*dataset.validation, *dataset.test]}
    assert not judged & {example.example_id for example in dataset.training}
    for example in dataset.training:
        assert int(example.example_id.rsplit(":")[-1]) < learnt[example.user_id]


def test_each_user_is_judged_once_per_split(prepared: tuple[Tables, Dataset]) -> None:
    _, dataset = prepared
    for examples in (dataset.validation, dataset.test):
        assert len({example.user_id for example in examples}) == len(examples) > 0


def test_negatives_were_never_seen(prepared: tuple[Tables, Dataset]) -> None:
    tables, dataset = prepared
    seen = {user: {row["item_id"] for row in rows} for user, rows in timeline(tables).items()}
    for example in every(dataset):
        negatives = set(example.candidates) - {positive_of(example)}
        assert not negatives & seen[example.user_id]
        assert len(negatives) == len(example.candidates) - 1
        assert negatives <= set(dataset.items)
    assert {len(example.candidates) for example in dataset.training} == {8}
    assert {len(example.candidates) for example in [*dataset.validation, *dataset.test]} == {21}


def test_the_place_of_the_positive_says_nothing(prepared: tuple[Tables, Dataset]) -> None:
    _, dataset = prepared
    places = Counter(example.labels.index(1) for example in dataset.training)
    assert set(places) == set(range(8))
    assert max(places.values()) < 0.3 * len(dataset.training)


def test_training_takes_turns_over_the_users(prepared: tuple[Tables, Dataset]) -> None:
    _, dataset = prepared
    users = [example.user_id for example in dataset.training]
    first_round = users[: len(set(users))]
    assert len(set(first_round)) == len(first_round)
    newest: dict[str, int] = {}
    for example in dataset.training:
        position = int(example.example_id.rsplit(":")[-1])
        assert position < newest.get(example.user_id, 10**9)
        newest[example.user_id] = position


def test_popularity_is_counted_on_training_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewriting what was held out must not move a single weight; rewriting what was learnt must."""
    counted: list[np.ndarray[Any, Any]] = []
    initialise = NegativeSampler.__init__

    def remember(self: NegativeSampler, popularity: Any) -> None:
        counted.append(popularity)
        initialise(self, popularity)

    monkeypatch.setattr(NegativeSampler, "__init__", remember)
    settings = recipe(SAMPLE)
    tables = load_tables(settings.data, settings.seed)
    events = mark_splits(tables.events, settings.examples)
    favourite = tables.items["item_id"][7]
    for splits in ([], ["validation", "test", ""], ["train"]):
        rewritten = pl.when(pl.col("split").is_in(splits)).then(pl.lit(favourite)).otherwise("item_id")
        counts = training_popularity(
            events.with_columns(rewritten.alias("item_id")), places_of(tables.items["item_id"])
        )
        ListMaker(tables.items["item_id"], counts, settings.examples, 1)
    original, after_held_out, after_training = counted
    assert original.sum() == events.filter((pl.col("split") == "train") & (pl.col("label") == 1)).height
    assert (original == after_held_out).all()
    assert (original != after_training).any()


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (prepared_in(recipe(SAMPLE), tmp_path / name) for name in ("first", "again"))
    assert first.files == again.files
    assert first.artifact == again.artifact
    assert verify_artifact(tmp_path / "first") == first
    other = prepared_in(recipe(SAMPLE, seed=18), tmp_path / "other")
    assert other.files["test.parquet"] != first.files["test.parquet"]


def test_asking_for_more_keeps_what_there_was(tmp_path: Path) -> None:
    prepared_in(recipe(SAMPLE), tmp_path / "some")
    prepared_in(recipe(SAMPLE, test_users=50, validation_users=40, training_examples=300), tmp_path / "more")
    some, more = Dataset.read(tmp_path / "some"), Dataset.read(tmp_path / "more")
    assert some.test == more.test[:30]
    assert some.validation == more.validation[:15]
    assert some.training == more.training[:150]
    assert len(more.test) == 50


def test_the_metrics_add_up(tmp_path: Path, movielens_folder: Path) -> None:
    chosen = recipe({"source": "movielens", "path": str(movielens_folder)}, test_users=1000)
    metrics = prepared_in(chosen, tmp_path / "dataset").metrics
    assert metrics["users"] == 41
    assert metrics["items"] == 80
    for split, wanted in (("validation", 15), ("test", 1000)):
        reasons = metrics["skipped_users"][split]
        taken = metrics["examples"][split]
        assert sum(reasons.values()) - reasons["asked for but not there"] + taken == 41
        assert reasons["asked for but not there"] + taken == wanted
        assert reasons["no held-out positive"] >= 1
    assert json.loads(json.dumps(metrics)) == metrics


def test_items_keep_their_fields(tmp_path: Path) -> None:
    prepared_in(recipe(SAMPLE), tmp_path / "dataset")
    items = Dataset.read(tmp_path / "dataset").items
    assert list(items)[:2] == ["item-00001", "item-00002"]
    assert list(items["item-00001"]) == ["title", "brand", "category", "attributes", "price"]


def test_the_key_follows_the_content_of_the_source(tmp_path: Path, movielens_folder: Path) -> None:
    for file in movielens_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    chosen = recipe({"source": "movielens", "path": str(tmp_path)})
    before = key_of(chosen)
    assert key_of(chosen) == before
    with (tmp_path / "ratings.csv").open("a") as ratings:
        ratings.write("1,10,5,1000000099\n")
    assert key_of(chosen) != before
    assert key_of(recipe(SAMPLE)) != before


def test_a_missing_source_is_named_before_anything_is_hashed(tmp_path: Path) -> None:
    chosen = recipe({"source": "tables", "items": "none.csv", "events": "no.parquet", "text_fields": ["title"]})
    with pytest.raises(DataError, match=r"(?s)none\.csv: no such file.*no\.parquet: no such file"):
        prepare.stage(chosen, Workspace(Path("nothing"))).key()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            recipe(SAMPLE, template="{title} {colour} {size}"),
            r"\{colour\}, \{size\}, which the items do not have; available: title, brand, category, attributes, price",
        ),
        (recipe(SAMPLE, judged_negatives=110), r"examples\.judged_negatives asks for 110 .* to 9\d or less"),
        (recipe(SAMPLE, training_negatives=115), r"examples\.training_negatives asks for 115"),
        (recipe(SAMPLE, cutoff="2035-01-01"), r"no test example .* examples\.cutoff"),
        (recipe(SAMPLE, cutoff="1999-01-01"), r"no train example"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing_behind(tmp_path: Path, chosen: Recipe, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared_in(chosen, tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path / "dataset")


def test_stored_history_is_bounded(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(260)], "title": ["x"] * 260})
    events = pl.DataFrame(
        {"user_id": ["u"] * 230, "item_id": items["item_id"][:230], "timestamp": range(10**9, 10**9 + 230)}
    )
    items.write_csv(tmp_path / "items.csv")
    events.write_csv(tmp_path / "events.csv")
    paths = {"items": str(tmp_path / "items.csv"), "events": str(tmp_path / "events.csv")}
    prepared_in(recipe({"source": "tables", "text_fields": ["title"], **paths}), tmp_path / "dataset")
    (test,) = Dataset.read(tmp_path / "dataset").test
    assert test.history == [f"i{n}" for n in range(29, 229)]


def test_a_folder_whose_name_is_a_pattern_is_read_as_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mine [old] *" / "dataset"
    prepared_in(recipe(SAMPLE), folder)
    assert len(Dataset.read(folder).test) == 30


def test_what_was_left_out_is_recorded(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(60)], "title": ["x"] * 60})
    rows = [(f"u{user}", f"i{(user * 7 + n) % 60}", 1_000_000_000 + n) for user in range(40) for n in range(6)]
    rows[5] = ("u0", "gone", 1_000_000_005)
    pl.concat([items, items[:2]]).write_csv(tmp_path / "items.csv")
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "events.csv")
    paths = {"items": str(tmp_path / "items.csv"), "events": str(tmp_path / "events.csv")}
    metrics = prepared_in(recipe({"source": "tables", "text_fields": ["title"], **paths}), tmp_path / "dataset").metrics
    assert metrics["items"] == 60
    assert metrics["events"] == len(rows) - 1
    assert sorted(found["count"] for found in metrics["dropped"]) == [1, 2]
