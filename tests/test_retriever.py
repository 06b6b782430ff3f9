"""Stage ``retriever``: what is learnt, what is judged, and what is published when a gate closes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.stage import run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.pipeline import prepare, retriever
from tritonrank.recipe import Recipe
from tritonrank.retrieval import tower_judge
from tritonrank.retrieval.choices import HISTORY, NOTHING, Choices
from tritonrank.retrieval.full_catalogue import JudgedUser, judged_users, recalls
from tritonrank.retrieval.item_table import ItemTable, Mixer, train_table
from tritonrank.retrieval.item_vectors import Residuals, item_vectors
from tritonrank_recommend.catalogue.encoder import QueryEncoder

TEXT = {"item_template": "{title}, {attributes}"}


def recipe_of(base: Path, **more: object) -> Recipe:
    sections: dict[str, object] = {
        "name": "small",
        "data": {"source": "sample", "items": 150, "users": 200},
        "text": TEXT,
        "model": {"base": str(base)},
        "examples": {"training_examples": 700, "judged_negatives": 29, "validation_users": 30, "test_users": 100},
        "gate": {"budget": 0.2},
        "retrieval": {"epochs": 0},
    }
    return Recipe.model_validate(sections | more)


@pytest.fixture(scope="module")
def prepared(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("retriever"))
    run_stage(prepare.stage(recipe_of(tiny_base), workspace))
    return workspace


@pytest.fixture(scope="module")
def trained(prepared: Workspace, tiny_base: Path) -> Workspace:
    """With a retriever whose encoder was trained, too."""
    run_stage(retriever.stage(recipe_of(tiny_base, retrieval={"epochs": 1}), prepared))
    return prepared


def test_the_stage_publishes_what_the_gateway_reads(trained: Workspace) -> None:
    metrics = read_manifest(trained.retriever).metrics
    assert metrics["serves"] == "two towers"
    assert metrics["precision"] == "int8"
    assert metrics["against_fp32"]["passed"]
    assert metrics["int8_nodes"]
    # Nobody can know taste from a random encoder: what was found came of the examples.
    by_chance, learnt = (metrics["recall"][name]["recall@100"]["mean"] for name in ("mean pooling", "two towers"))
    assert learnt > by_chance
    dataset = Dataset.read(trained.dataset)
    ids, texts = list(dataset.items), [fields["title"] for fields in dataset.items.values()]
    encoder = QueryEncoder.open(trained.retriever)
    vectors = item_vectors(trained.retriever, ids, texts)
    assert vectors.shape == (len(ids), encoder.dimension)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    known = set(Residuals.load(trained.retriever).items)
    assert known == set(dataset.training_events["item_id"])
    plain = encoder.embed(texts)
    for place, item in enumerate(ids):
        assert np.allclose(vectors[place], plain[place], atol=1e-5) == (item not in known)


def test_a_stage_is_made_anew_when_its_settings_change_and_not_for_those_of_others(
    trained: Workspace, tiny_base: Path
) -> None:
    same = recipe_of(tiny_base, retrieval={"epochs": 1, "half_life_days": 3, "sources": ["popular"]})
    assert retriever.stage(same, trained).why_anew() is None
    assert "retrieval.epochs" in str(retriever.stage(recipe_of(tiny_base, retrieval={"epochs": 2}), trained).why_anew())


def test_towers_and_int8_that_find_less_are_not_published(
    prepared: Workspace, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_less(monkeypatch, "two towers", "two towers, INT8")
    manifest = run_stage(replace(retriever.stage(recipe_of(tiny_base), prepared), folder=tmp_path / "retriever"))
    assert (manifest.metrics["serves"], manifest.metrics["precision"]) == ("mean pooling", "fp32")
    assert not manifest.metrics["against_mean_pooling"]["passed"]
    assert not manifest.metrics["against_fp32"]["passed"]
    assert not Residuals.load(tmp_path / "retriever").items
    assert b"QuantizeLinear" not in (tmp_path / "retriever" / "model.onnx").read_bytes()


def found_less(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the judge see a ranking that misses half of what it would find, for the retrievers of these names."""
    real = tower_judge.TowerJudge.judge

    def judge(self: tower_judge.TowerJudge, asked: str, *rest: object) -> tower_judge.Found:
        found = real(self, asked, *rest)  # type: ignore[arg-type]
        if asked not in names:
            return found
        return tower_judge.Found(
            asked, {k: values * (np.arange(len(values)) % 2) for k, values in found.recall.items()}
        )

    monkeypatch.setattr(tower_judge.TowerJudge, "judge", judge)


def test_recall_counts_items_that_score_higher_and_were_not_met(prepared: Workspace) -> None:
    dataset = Dataset.read(prepared.dataset)
    user = JudgedUser(dataset.test[0], np.array([2, 5]), np.array([0]))
    items = np.array([[9.0], [3.0], [4.0], [1.0], [5.0], [2.0]], dtype=np.float32)
    # 0 was met; 2 and 5 were chosen. Before 2 stands 4; before 5 stand 4 and 1.
    found = recalls(np.ones((1, 1), dtype=np.float32), items, [user], (1, 2, 3))
    assert [found[k][0] for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    assert recalls(np.zeros((1, 1), dtype=np.float32), items, [user], (6,))[6][0] == 0


def test_a_judged_user_has_met_what_came_before_and_nothing_that_came_after(prepared: Workspace) -> None:
    dataset = Dataset.read(prepared.dataset)
    place = {item: number for number, item in enumerate(dataset.items)}
    for validation in (dataset.validation, dataset.test):
        for user in judged_users(dataset, prepared.dataset, validation):
            met = set(user.met.tolist())
            assert {place[item] for item in user.example.history} <= met
            assert not met & set(user.chosen.tolist())


def test_choices_hold_the_newest_first(prepared: Workspace) -> None:
    dataset = Dataset.read(prepared.dataset)
    example = next(example for example in dataset.training if 1 < len(example.history) < HISTORY)
    choices = Choices.of(dataset, [example])
    ids = list(dataset.items)
    there = choices.history[0][choices.history[0] != NOTHING]
    assert [ids[item] for item in there] == example.history[::-1]
    assert choices.queries == ([example.query] if example.query else [])
    pool = np.arange(len(ids))
    met = choices.is_met(np.array([0]), pool)[0]
    events = dataset.training_events
    of_user = set(events.filter(events["user_id"] == example.user_id)["item_id"])
    assert {ids[item] for item in np.flatnonzero(met)} == of_user - {ids[choices.chosen[0]]}


def test_what_texts_do_not_say_is_learnt_from_who_chose_what() -> None:
    """Two kinds of items whose texts say nothing: who liked one of a kind chooses another of it."""
    random = np.random.default_rng(3)
    items, count = 40, 1_500
    kind = random.integers(0, 2, count)
    chosen = kind + 2 * random.integers(0, items // 2, count)
    history = np.full((count, HISTORY), NOTHING)
    history[:, :3] = kind[:, None] + 2 * random.integers(0, items // 2, (count, 3))
    choices = Choices(
        queries=[],
        query=np.full(count, NOTHING),
        history=history,
        chosen=chosen,
        weight=np.ones(count, dtype=np.float32),
        user=np.arange(count),
        met=[np.array([], dtype=np.int64)] * count,
    )
    texts = torch.nn.functional.normalize(torch.from_numpy(random.standard_normal((items, 64))).float(), dim=-1)
    table, mixer = ItemTable(texts, np.arange(items)), Mixer()
    passes = train_table(table, mixer, torch.zeros(0, 64), choices, choices, torch.zeros(0, 64), seed=1)
    best = min(one.validation for one in passes)
    assert passes[0].validation > np.log(items)
    assert best < np.log(items) - 0.2  # log(items / 2) is all that can be known
    with torch.no_grad():
        vectors = table(torch.arange(items)).numpy()
    likeness = vectors @ vectors.T
    same = (np.arange(items)[:, None] - np.arange(items)[None, :]) % 2 == 0
    assert likeness[same & ~np.eye(items, dtype=bool)].mean() > likeness[~same].mean() + 0.1
