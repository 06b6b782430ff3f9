"""What was shown together is ranked together, split together, and weighs by how likely people look at a position."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from stage_runs import prepared as prepared_in
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.impressions import LARGEST_WEIGHT, Propensities, shown_and_clicked
from tritonrank.data.loading import load_tables
from tritonrank.data.splits import TRAIN, mark_splits
from tritonrank.judge.metrics import ndcg
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import ExampleSettings, Recipe, TablesData
from tritonrank.report.summary import SUMMARY_FILE
from tritonrank.train.losses import list_loss

ITEMS, USERS, LISTS, SHOWN = 200, 30, 6, 8
LOOKED = 1 / np.arange(1, SHOWN + 1)
WEIGHTS = {"column": "event_type", "impression": 0, "click": 1, "purchase": 3}


def write_shop(folder: Path, users: int = USERS, seed: int = 3) -> dict[str, Any]:
    """Lists of eight, clicked as the position-based model says; good items stand higher. Some events are in no list."""
    random = np.random.default_rng(seed)
    quality = random.random(ITEMS) * 0.8 + 0.1
    rows: list[tuple[str, str, int, str, str, str]] = []
    second = 1_000_000_000
    for user in range(users):
        start = second
        for number in range(LISTS):
            shown = random.choice(ITEMS, SHOWN, replace=False)
            shown = shown[np.argsort(-quality[shown] + random.normal(0, 0.5, SHOWN))]
            second += 100
            rows += [
                (f"u{user}", f"i{item}", second, "impression", f"u{user}-{number}", str(place + 1))
                for place, item in enumerate(shown)
            ]
            for place in np.flatnonzero(random.random(SHOWN) < LOOKED * quality[shown]):
                second += 1
                click = (f"u{user}", f"i{shown[place]}", second, "click", f"u{user}-{number}", str(place + 1))
                rows += [click, (*click[:2], second + 1, "purchase", *click[4:])] if random.random() < 0.3 else [click]
        second += 100
        alone = (f"u{user}", f"i{int(random.integers(ITEMS))}", "click", "", "")
        rows.append((*alone[:2], second if user % 2 else start, *alone[2:]))  # its last event, or its first
    names = ["user_id", "item_id", "timestamp", "event_type", "page", "place"]
    pl.DataFrame({"item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"Item {n}" for n in range(ITEMS)]}).write_csv(
        folder / "items.csv"
    )
    pl.DataFrame(rows, schema=names, orient="row").write_csv(folder / "events.csv")
    return {
        "source": "tables",
        "items": str(folder / "items.csv"),
        "events": str(folder / "events.csv"),
        "text_fields": ["title"],
        "label": WEIGHTS,
        "impressions": {"id": "page", "position": "place", "propensity": True},
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, Dataset]:
    folder = tmp_path_factory.mktemp("impressions")
    data = write_shop(folder)
    examples = {"training_examples": 200, "judged_negatives": 20, "validation_users": 10, "test_users": 20}
    recipe = {"name": "test", "data": data, "text": {"item_template": "{title}"}, "examples": examples}
    prepared_in(Recipe.model_validate(recipe), folder / "dataset")
    return pl.read_csv(folder / "events.csv", infer_schema=False), Dataset.read(folder / "dataset")


def every(dataset: Dataset) -> list[Example]:
    return [*dataset.training, *dataset.validation, *dataset.test]


def page_of(example: Example, events: pl.DataFrame) -> pl.DataFrame:
    """The rows of the impression that an example is about; none where its event is in none."""
    number = int(example.example_id.rpartition(":")[2])
    mine = events.filter(pl.col("user_id") == example.user_id).sort("timestamp", maintain_order=True)  # of one length
    page = mine["page"][number]
    return mine.filter(pl.col("page") == page) if page else mine.clear()


def test_a_list_is_what_was_shown_with_the_positive(prepared: tuple[pl.DataFrame, Dataset]) -> None:
    events, dataset = prepared
    with_page = 0
    for example in every(dataset):
        assert len(example.candidates) == len(set(example.candidates)) == (8 if example in dataset.training else 21)
        page = page_of(example, events)
        if page.is_empty():
            assert sum(gain > 0 for gain in example.labels) == 1
            continue
        with_page += 1
        gains = dict(zip(example.candidates, example.labels, strict=True))
        best = dict.fromkeys(page["item_id"], 0.0)
        for item, kind in page.select("item_id", "event_type").iter_rows():
            best[item] = max(best[item], float(WEIGHTS[kind]))  # type: ignore[arg-type]
        liked = set(
            events.filter(pl.col("user_id") == example.user_id, pl.col("event_type") != "impression")["item_id"]
        )
        for item, gain in best.items():
            assert gains.get(item, gain) == gain
        passed_over = {item for item, gain in best.items() if not gain} - liked
        room = len(example.candidates) - sum(gain > 0 for gain in example.labels)
        assert len(passed_over & set(gains)) == min(len(passed_over), room)
        met = set(events.filter(pl.col("user_id") == example.user_id)["item_id"])
        assert not (set(gains) - set(best)) & met  # the rest is sampled, of what the user never met
        assert not {item for item, gain in gains.items() if gain} & set(example.history)
    assert with_page > 100


def test_an_impression_is_held_out_as_a_whole(prepared: tuple[pl.DataFrame, Dataset]) -> None:
    events, dataset = prepared
    learnt = dataset.training_events
    ids = [example.example_id for example in every(dataset)]
    assert len(ids) == len(set(ids))
    pages = [(e.user_id, page["page"][0]) for e in every(dataset) if not (page := page_of(e, events)).is_empty()]
    assert len(pages) == len(set(pages))  # however many clicks
    for example in [*dataset.validation, *dataset.test]:
        page = page_of(example, events)
        if not page.is_empty():
            mine = learnt.filter(pl.col("user_id") == example.user_id)
            assert page["page"][0] not in mine["impression"].to_list()
            assert mine["timestamp"].max() < int(page["timestamp"][0])


def test_weights_follow_the_position_in_training_alone(prepared: tuple[pl.DataFrame, Dataset]) -> None:
    events, dataset = prepared
    assert not any(example.weights for example in [*dataset.validation, *dataset.test])
    by_place: dict[int, set[float]] = {}
    for example in dataset.training:
        where = dict(page_of(example, events).select("item_id", "place").iter_rows())
        for item, gain, weight in zip(example.candidates, example.labels, example.weights, strict=True):
            if gain and item in where:
                by_place.setdefault(int(where[item]), set()).add(weight)
            else:
                assert weight == 1
    assert all(len(weights) == 1 for weights in by_place.values())
    assert min(by_place[1]) < min(by_place[4]) <= LARGEST_WEIGHT


def test_propensities_are_those_that_the_clicks_were_made_with(tmp_path: Path) -> None:
    """Although good items stand higher, which a rate of clicks by position would take for their position's doing."""
    data = TablesData.model_validate(write_shop(tmp_path, users=1_000))
    events = mark_splits(load_tables(data, seed=1).events, ExampleSettings())
    found = Propensities(shown_and_clicked(events)).by_position
    assert [found[place + 1] for place in range(4)] == pytest.approx(LOOKED[:4].tolist(), abs=0.05)
    shown = events.filter(pl.col("split") == TRAIN, pl.col("impression").is_not_null())
    clicks = shown.filter(pl.col("gain") == 1)["shown_at"].value_counts().sort("shown_at")["count"].to_numpy()
    assert abs(clicks[3] / clicks[0] - LOOKED[3]) > abs(found[4] - LOOKED[3])


@pytest.mark.slow
def test_a_whole_build_takes_grades_and_weights(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Training, gates, baselines, worst requests and the summary, of lists with several positives."""
    values = tiny_recipe.model_dump(mode="json", exclude_unset=True)
    values |= {"data": write_shop(tmp_path, users=60), "gate": {"budget": 0.9, "training": "ignore"}}
    values["text"]["item_template"] = "{title}"
    values["examples"] |= {"test_users": 40}
    workspace = Workspace(tmp_path / "artifacts")
    run_stages(Recipe.model_validate(values), workspace)
    dataset = Dataset.read(workspace.dataset)
    assert any(sum(gain > 0 for gain in example.labels) > 1 for example in dataset.test)
    assert {gain for example in dataset.test for gain in example.labels} == {0.0, 1.0, 3.0}
    rows = json.loads((workspace.summary / SUMMARY_FILE).read_text())["rows"]
    assert {"popularity", "item kNN"} < {row["name"] for row in rows}
    random = np.random.default_rng(values.get("seed", 17))
    expected = [ndcg(random.random(len(e.candidates), dtype=np.float32), e.labels) for e in dataset.test]
    (first,) = (row for row in rows if row["name"] == "random")
    assert first["ndcg@10"]["mean"] == pytest.approx(np.mean(expected), abs=1e-3)


def test_propensity_needs_a_position() -> None:
    with pytest.raises(ValidationError, match="position"):
        TablesData.model_validate(
            {"source": "tables", "items": "i.csv", "events": "e.csv", "text_fields": ["t"]}
            | {"impressions": {"id": "page", "propensity": True}}
        )


@pytest.mark.parametrize("kind", ["listwise", "pairwise", "binary"])
def test_a_weight_counts_as_if_the_list_came_so_often(kind: str) -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    weights = torch.where(labels > 0, torch.tensor([[3.0], [1.0]]), torch.ones(()))
    repeated = torch.tensor([0, 0, 0, 1])
    weighed = list_loss(logits, labels, kind, weights)
    if kind == "binary":  # negatives are not repeated
        expected = torch.tensor([3.0, 1, 1, 1, 1, 1]) * torch.nn.functional.softplus(
            torch.where(labels > 0, -logits, logits).flatten()
        )
        assert weighed.item() == pytest.approx((expected.sum() / 8).item())
    else:
        assert weighed.item() == pytest.approx(list_loss(logits[repeated], labels[repeated], kind).item())
