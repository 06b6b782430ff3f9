"""The stage ``blend`` and the judge of the whole, on a small build with a real catalogue."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import msgspec
import numpy as np
import polars as pl
import pytest
from recommend_stand_ins import candidates_of
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.stage import run_stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import DataError, GateError, RecipeError
from tritonrank.pipeline import blend as blend_stage
from tritonrank.recipe import Recipe, load_recipe
from tritonrank.report.page import make_report
from tritonrank.report.recommend_table import show_quality
from tritonrank.retrieval import blend_make
from tritonrank.retrieval.blend_lists import Moment, blend_list, moments, with_cold
from tritonrank.retrieval.blend_make import feature_names
from tritonrank.retrieval.counts import following, following_matrix, likes, sequences
from tritonrank.retrieval.levels import measure_levels, served_order
from tritonrank.retrieval.rankings import Known, accuracy, counted_rankings, differences, judged, places_of
from tritonrank.retrieval.recommend_quality import judge_whole, peer_files
from tritonrank.retrieval.two_stages import Lessons, learn_stages
from tritonrank_recommend.blend import BlendError, open_blend, open_levels
from tritonrank_recommend.blend.features import feature_matrix
from tritonrank_recommend.blend.first_stage import FirstStage
from tritonrank_recommend.blend.reader import BlendFile
from tritonrank_recommend.catalogue import open_catalogue

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def recipe(tiny_base: Path) -> Recipe:
    return load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_base}", "retrieval={}", "blend.method=linear"])


@pytest.fixture(scope="module")
def blended(workspace: Workspace, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The small build with a catalogue and a blend."""
    own = Workspace(tmp_path_factory.mktemp("blend") / "tiny")
    shutil.copytree(workspace.root, own.root, symlinks=True)
    dataset = Dataset.read(own.dataset)
    items = [{"item_id": item} | dict(fields) for item, fields in dataset.items.items()]
    events = dataset.training_events.select("user_id", "item_id", "timestamp", pl.col("label").cast(pl.Int64))
    tiny_catalogue(own.catalogue, items, events.iter_rows(), template=recipe.text.item_template)
    run_stage(blend_stage.stage(recipe, own))
    return own


def test_moments_are_before_what_is_held_out(blended: Workspace) -> None:
    dataset = Dataset.read(blended.dataset)
    test = {example.example_id: example for example in dataset.test}
    found = moments(blended.dataset, "test", most=1_000, seed=1)
    assert {moment.example_id for moment in found} == set(test)
    events = pl.read_parquet(blended.dataset / "events.parquet")
    for moment in found:
        example = test[moment.example_id]
        assert moment.history_ids == example.history
        assert example.labels[example.candidates.index(moment.positive)] > 0
        assert moment.positive not in moment.met
        mine = events.filter(pl.col("user_id") == example.user_id)
        later = mine.filter(pl.col("timestamp") > moment.timestamp)["item_id"].to_list()
        before = mine.filter(pl.col("timestamp") < moment.timestamp)["item_id"].to_list()
        assert set(before) - {moment.positive} <= set(moment.met)
        assert not set(moment.met) & (
            set(later) - set(before) - set(mine.filter(pl.col("timestamp") == moment.timestamp)["item_id"])
        )
    learnt_from = moments(blended.dataset, "validation", most=1_000, seed=1)
    assert len(learnt_from) > len(dataset.validation)
    held_out = {(m.example_id.rpartition(":")[0], m.positive) for m in learnt_from}
    training = dataset.training_events.filter(pl.col("label") > 0).select("user_id", "item_id")
    assert not held_out & set(training.iter_rows())


def test_the_stage_publishes_what_it_judged(blended: Workspace) -> None:
    manifest = read_manifest(blended.blend)
    blend = open_blend(blended.blend)
    assert blend.method == "linear" == manifest.metrics["method"]
    assert "ranker" in blend.names
    assert 0 < manifest.metrics["lists_with_positive"] <= manifest.metrics["lists"]
    gate = manifest.metrics["gate against ranker alone"]
    assert gate["passed"]
    assert gate["examples"] == len(moments(blended.dataset, "test", most=1_000, seed=1))
    quality = json.loads((blended.blend / "quality.json").read_text())
    by_name = {row["name"]: row for row in quality["rows"]}
    assert by_name["blend"]["ndcg@10"][0] == pytest.approx(gate["child_ndcg"], abs=1e-4)
    assert by_name["ranker alone"]["ndcg@10"][0] == pytest.approx(gate["parent_ndcg"], abs=1e-4)
    assert set(by_name) == {
        "popularity", "item kNN", "EASE", "EASE, newest weigh more", "what comes next", "two towers alone",
        "retrieval, fused", "ranker alone", "blend",
    }  # fmt: skip


def test_the_stage_says_what_fewer_candidates_cost(blended: Workspace, recipe: Recipe) -> None:
    levels = open_levels(blended.blend)
    assert levels is not None
    by_name = read_manifest(blended.blend).metrics["test_ndcg@10"]
    assert levels.ndcg == pytest.approx(by_name["blend"], abs=1e-4)
    if not levels.blend_orders_rest:
        assert levels.retrieval * levels.ndcg == pytest.approx(by_name["retrieval, fused"], abs=1e-3)
    assert open_blend(blended.blend).orders_unranked == levels.blend_orders_rest
    assert list(levels.by_candidates) == ["25", "50", "100", "150", "200"]
    assert levels.by_candidates["200"] == 1.0
    assert levels.users == len(moments(blended.dataset, "test", most=1_000, seed=1))
    assert "INT8" not in levels.by_rung  # it is what is served
    assert levels.by_rung["ONNX FP32"] == pytest.approx(1.0, abs=0.2)


def test_levels_are_those_of_the_first_candidates_ranked_and_the_rest_behind() -> None:
    """The ranker knows the positive, which is retrieved as the 60th: it takes 60 candidates to see it."""
    ids = [f"i{number}" for number in range(200)]
    moment = Moment("u:1", "", [], [], "i59", 0.0)
    catalogue = Mock(retrieve=lambda wish: candidates_of(ids))
    ranker = Mock(score=lambda name, query, history, items: np.array([item == "i59" for item in items], np.float32))
    blend = Mock(
        features=lambda _, logits: logits[:, None],
        method="linear",
        score=lambda features: np.nan_to_num(features[:, 0], nan=0.0),
    )
    blend.first_order.return_value = None
    found = measure_levels(catalogue, ranker, blend, [moment], [], {})
    assert found.ranked == 0
    assert found.ndcg == 1.0
    assert found.by_candidates == {"25": 0.0, "50": 0.0, "100": 1.0, "150": 1.0, "200": 1.0}
    assert found.retrieval == 0.0
    assert not found.blend_orders_rest


def test_the_blend_orders_what_was_not_ranked_where_that_is_better() -> None:
    """The blend knows by itself what the ranker knows, but for the method: trees have never seen it missing."""
    moment = Moment("u:1", "", [], [], "i59", 0.0)
    catalogue = Mock(retrieve=lambda wish: candidates_of([f"i{number}" for number in range(200)]))
    ranker = Mock(score=lambda name, query, history, items: np.zeros(len(items), np.float32))
    by_popularity = partial(feature_matrix, ["rank.popular"])
    for method, expected in (("linear", 1.0), ("lambdamart", 0.0)):
        # Of the 60th place alone the mark is found, wherever the list ends.
        blend = Mock(features=by_popularity, method=method, score=lambda features: -abs(features[:, 0] - 1 / 119))
        blend.first_order.return_value = None
        found = measure_levels(catalogue, ranker, blend, [moment], [], {})
        assert found.blend_orders_rest == (method == "linear")
        assert found.by_candidates["25"] == expected


@pytest.mark.parametrize(("ranked", "is_whole"), [(60, True), (59, False)])
def test_what_the_recipe_reads_is_a_level(ranked: int, is_whole: bool) -> None:
    """Half of the users like the 60th candidate, which the ranker alone knows; the others the first."""
    ids = [f"i{number}" for number in range(200)]
    tested = [Moment(f"u{number}:1", "", [], [], ("i59", "i0")[number % 2], 0.0) for number in range(80)]
    catalogue = Mock(retrieve=lambda wish: candidates_of(ids))
    ranker = Mock(score=lambda name, query, history, items: np.array([item == "i59" for item in items], np.float32))
    blend = Mock(
        features=lambda _, logits: logits[:, None],
        method="linear",
        score=lambda features: np.nan_to_num(features[:, 0], nan=0.0),
    )
    blend.first_order.return_value = None
    levels = measure_levels(catalogue, ranker, blend, tested, [], {}, ranked)
    assert levels.ranked == ranked
    assert (levels.by_candidates[str(ranked)] == 1.0) == is_whole
    assert levels.by_candidates[str(ranked)] >= 0.5, "the others are found as before"


def test_the_whole_is_judged_as_it_is_served(blended: Workspace) -> None:
    ids = [f"i{number}" for number in range(200)]
    candidates, logits = candidates_of(ids), np.arange(200, dtype=np.float32)
    one = blend_list(Moment("u:1", "", [], [], "i59", 0.0), candidates, logits[:, None], logits)
    blend = Mock(
        features=lambda _, logits: logits[:, None],
        ranked=60,
        orders_unranked=False,
        score=lambda features: features[:, 0],
    )
    blend.first_order.return_value = None
    served = served_order(blend, one)
    assert served == [*reversed(ids[:60]), *ids[60:]]
    blend.orders_unranked, blend.score = True, lambda features: np.nan_to_num(features[:, 0], nan=30.5)
    assert served_order(blend, one)[:30] == [*ids[59:30:-1], ids[60]]


def test_a_first_stage_says_what_the_ranker_reads(blended: Workspace, recipe: Recipe, tmp_path: Path) -> None:
    """It is learnt from the lists without the ranker's score, and brings more of what is liked among the first."""
    catalogue, sources = open_catalogue(blended.catalogue), recipe.retrieval.sources
    names = feature_names(sources, [])
    lists = []
    for moment in with_cold(moments(blended.dataset, "validation", most=200, seed=1)):
        candidates = catalogue.retrieve(moment.wish(sources=sources))
        logits = np.random.default_rng(1).normal(size=len(candidates.ids)).astype(np.float32)
        features = feature_matrix(names, candidates, logits)
        lists.append(blend_list(moment, candidates, features, logits))
    file = learn_stages(Lessons(lists, names, [], [], 1), "linear", 60).first_file
    assert file is not None
    assert not [name for name in file.features if name.startswith("ranker")]
    stage, found = FirstStage(file), [one for one in lists if one.positive is not None]
    places = [int(np.flatnonzero(stage.order(one.candidates) == one.positive)[0]) for one in found]
    assert np.log1p(places).mean() < np.log1p([one.positive for one in found]).mean()

    shutil.copytree(blended.blend, tmp_path / "blend")
    blend = msgspec.json.decode((tmp_path / "blend" / "blend.json").read_bytes(), type=BlendFile)
    opened = open_blend(rewritten(tmp_path / "blend", msgspec.structs.replace(blend, first=file)))
    order = opened.first_order(found[0].candidates)
    assert order is not None
    assert order.tolist() == stage.order(found[0].candidates).tolist()
    wrong = msgspec.structs.replace(file, features=["no such", *file.features[1:]])
    with pytest.raises(BlendError, match=r"first\.features: no such"):
        open_blend(rewritten(tmp_path / "blend", msgspec.structs.replace(blend, first=wrong)))


def test_reading_the_first_alone_is_published_where_it_passes_its_gate(
    blended: Workspace, recipe: Recipe, tmp_path: Path
) -> None:
    own = copied(blended, tmp_path)
    run_stage(blend_stage.stage(reading(recipe, 60), own))
    blend, levels, manifest = open_blend(own.blend), open_levels(own.blend), read_manifest(own.blend)
    assert json.loads((own.blend / "blend.json").read_text())["first"]["features"]
    assert levels is not None
    assert (levels.ranked, blend.ranked, blend.orders_unranked) == (60, 60, levels.blend_orders_rest)
    gate = manifest.metrics["gate against whole lists"]
    assert gate["passed"]
    assert gate["bound"] <= gate["budget"] == recipe.gate.budget


def test_reading_the_first_alone_is_not_published_where_the_ranker_alone_knows(
    blended: Workspace,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the user goes on to like is seldom the first of the order that reads nothing."""
    liked = {
        moment.example_id: moment.positive
        for split in ("validation", "test")
        for moment in with_cold(moments(blended.dataset, split, most=1_000, seed=recipe.seed))
    }
    knowing = Mock(score=lambda name, query, history, items: np.array([i == liked[name] for i in items], np.float32))
    monkeypatch.setattr(blend_make, "RankerScores", lambda *_: knowing)
    own = copied(blended, tmp_path)
    before = (own.blend / "manifest.json").read_bytes()
    with pytest.raises(GateError, match=r"(?s)first 1 candidates ranked against all.*fell.*--set blend\.ranked=0"):
        run_stage(blend_stage.stage(reading(recipe, 1), own))
    assert "gate passed" in capsys.readouterr().out, "that of the order against the ranker's own"
    assert (own.blend / "manifest.json").read_bytes() == before


def reading(recipe: Recipe, ranked: int) -> Recipe:
    """The recipe, with a ranker that reads so many of the retrieved candidates."""
    return recipe.model_copy(update={"blend": recipe.blend.model_copy(update={"ranked": ranked})})


def copied(build: Workspace, folder: Path) -> Workspace:
    """Another build of the same files."""
    shutil.copytree(build.root, folder / build.root.name, symlinks=True)
    return Workspace(folder / build.root.name)


def rewritten(folder: Path, file: BlendFile) -> Path:
    """A blend with another blend.json, as if it had been built so."""
    told = msgspec.json.encode(file)
    (folder / "blend.json").write_bytes(told)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["blend.json"] = hashlib.sha256(told).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_damaged_file_of_levels_is_named(blended: Workspace, tmp_path: Path) -> None:
    shutil.copytree(blended.blend, tmp_path / "blend")
    file = tmp_path / "blend" / "levels.json"
    file.write_text(file.read_text().replace("0", "1"))
    with pytest.raises(BlendError, match=r"levels\.json.*tritonrank build"):
        open_levels(tmp_path / "blend")
    file.unlink()
    assert open_levels(tmp_path / "blend") is None


def test_the_whole_is_judged_by_all_protocols(
    blended: Workspace, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = moments(blended.dataset, "test", most=1_000, seed=1)
    perfect = pl.DataFrame(
        {"example_id": [m.example_id for m in found], "items": [[*m.met[:1], m.positive] for m in found]}
    )
    perfect.write_parquet(tmp_path / "oracle.parquet")
    quality = judge_whole(recipe, blended, peer_files([f"oracle={tmp_path / 'oracle.parquet'}"]))
    full = {row["name"]: row for row in quality["full_catalogue"]["rows"]}
    assert full["oracle"]["ndcg@10"] == [1.0, 1.0, 1.0]
    manifest = read_manifest(blended.blend).metrics["test_ndcg@10"]
    assert {name: row["ndcg@10"][0] for name, row in full.items() if name != "oracle"} == manifest
    sampled = {row["name"]: row["ndcg@10"][0] for row in quality["sampled"]["rows"]}
    assert min(sampled.values()) > 0
    assert quality["cold"]["users"] > 0
    show_quality(quality)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert json.loads(last)["ndcg@10"]["oracle"] == 1.0


def test_the_report_shows_the_whole(blended: Workspace, tmp_path: Path) -> None:
    page, markdown = make_report(blended.root, tmp_path / "report.html")
    for text in (page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")):
        part = text.partition("What users see out of the whole catalogue")[2]
        assert "weighted sum" in part
        assert "two towers alone" in part
        assert "blend is better by" in part


def test_metrics_are_those_of_the_places(blended: Workspace) -> None:
    dataset = Dataset.read(blended.dataset)
    found = moments(blended.dataset, "test", most=3, seed=1)
    ids = list(dataset.items)
    known = Known(ids, likes(dataset.training_events, ids))
    others = [item for item in ids if item not in {moment.positive for moment in found}]
    lists = [[found[0].positive, *others[:30]], [*others[:15], found[1].positive], others[:40]]
    places = places_of(lists, found)
    assert places.tolist() == [1.0, 16.0, np.inf]
    measured = {name: values.tolist() for name, values in accuracy(places).items()}
    assert measured["ndcg@10"] == [1.0, 0.0, 0.0]
    assert measured["recall@20"] == [1.0, 1.0, 0.0]
    assert measured["mrr"] == [1.0, 1 / 16, 0.0]
    row = judged({"mine": lists}, found, known)[0]
    assert row["coverage@10"] == len({item for ranking in lists for item in ranking[:10]}) / len(ids)
    assert differences("mine", {"mine": lists, "none": [[], [], []]}, found)[0]["mrr"][0] == pytest.approx(
        17 / 48, abs=1e-4
    )
    for ranking, moment in zip(counted_rankings(known, found)["EASE"], found, strict=True):
        assert not set(ranking) & set(moment.met)
        assert len(set(ranking)) == len(ranking)


def test_one_user_in_five_is_learnt_from_a_second_time_as_a_new_one(blended: Workspace) -> None:
    found = moments(blended.dataset, "validation", most=1_000, seed=1)
    both = with_cold(found)
    assert both[: len(found)] == found
    again = both[len(found) :]
    assert len(again) == -(-len(found) // 5)
    assert not any(moment.history for moment in again)
    assert [moment.positive for moment in again] == [moment.positive for moment in found[::5]]
    assert len({moment.example_id for moment in both}) == len(both)


def test_what_comes_next_counts_steps() -> None:
    events = pl.DataFrame(
        [("u", "a", 1, 1), ("u", "b", 2, 1), ("u", "x", 3, 0), ("u", "c", 4, 1), ("v", "b", 9, 1), ("v", "a", 8, 1)],
        schema=["user_id", "item_id", "timestamp", "label"],
        orient="row",
    )
    items = ["a", "b", "c", "x"]
    liked = likes(events, items)
    weights = following_matrix(sequences(events, items), liked).toarray()
    # Of u a, b, c; of v a, b. A step back counts half, and popular items less.
    steps = np.array([[0, 2, 0.5, 0], [1, 0, 1, 0], [0.25, 0.5, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(weights, steps * (np.array([2, 2, 1, 0]) + 5.0) ** -0.4, rtol=1e-6)
    lists = following(sequences(events, items), liked, 1)
    assert lists.starts.tolist() == [0, 1, 2, 3, 3]
    assert lists.places.tolist() == [1, 2, 1]


def test_what_is_asked_wrongly_is_said(recipe: Recipe, blended: Workspace, tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(DataError, match="NAME=FILE"):
        peer_files(["somewhere.parquet"])
    pl.DataFrame({"example_id": ["x"], "items": [["y"]]}).write_parquet(tmp_path / "short.parquet")
    with pytest.raises(DataError, match=r"short\.parquet: no ranking for"):
        judge_whole(recipe, blended, {"short": tmp_path / "short.parquet"})
    with pytest.raises(RecipeError, match="monotone"):
        load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_base}", "retrieval={}", "blend.monotone=[moon]"])
    wrong = load_recipe(TESTS / "tiny.yaml", [f"model.base={tiny_base}", "retrieval={}", "blend.fields=[weight]"])
    with pytest.raises(RecipeError, match=r"blend\.fields"):
        run_stage(blend_stage.stage(wrong, blended))
