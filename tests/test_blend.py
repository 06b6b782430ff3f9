"""The blend: what it looks at, what it learns, how it is read again."""

import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tritonrank.retrieval.blend_learning import Learnt, fit_linear, fit_trees, learn, ranker_alone
from tritonrank.retrieval.blend_lists import BlendList, Moment
from tritonrank_recommend.blend import BlendError, open_blend
from tritonrank_recommend.blend.features import feature_matrix
from tritonrank_recommend.blend.models import Linear, LinearModel
from tritonrank_recommend.blend.reader import BLEND_FILE, TREES_FILE, BlendFile, ServedBlend
from tritonrank_recommend.catalogue.interface import Candidates

NAMES = ["ranker", "ranker.z", "fused", "rank.knn", "score.ease.z", "popularity", "age", "field.price"]


def candidates(size: int, seed: int = 0) -> Candidates:
    random = np.random.default_rng(seed)
    ease = random.normal(size=size).astype(np.float32)
    ease[0] = np.nan
    return Candidates(
        [f"i{number}" for number in range(size)],
        np.sort(random.random(size).astype(np.float32))[::-1],
        {"knn": np.arange(size, dtype=np.int32) - 1},
        {"ease": ease},
        random.random(size).astype(np.float32) * 9,
        np.full(size, np.nan, dtype=np.float32),
        [""] * size,
        [{"price": price} for price in random.random(size).tolist()],
    )


def written(folder: Path, learnt: Learnt, names: list[str] = NAMES) -> Path:
    folder.mkdir()
    files = {
        BLEND_FILE: msgspec.json.encode(BlendFile(method=learnt.method, features=names, linear=learnt.linear)),
    }
    if learnt.trees:
        files[TREES_FILE] = learnt.trees.encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"artifact": "a" * 64, "files": hashes, "stage": "blend"}))
    return folder


def lists(count: int, *, seed: int = 1, size: int = 40) -> list[BlendList]:
    """The positive has a high EASE score, a slightly higher logit, and nothing else."""
    random, made = np.random.default_rng(seed), []
    for number in range(count):
        found = candidates(size, seed + number)
        positive = int(random.integers(1, size))
        logits = random.normal(size=size).astype(np.float32)
        logits[positive] += 0.5
        found.scores["ease"][positive] += 2.5
        features = feature_matrix(NAMES, found, logits)
        moment = Moment(f"u{number}:3", "", [], [], f"i{positive}", 0.0)
        made.append(BlendList(moment, found.ids, features, logits, positive))
    return made


def test_features_are_what_their_names_say() -> None:
    found = candidates(4)
    logits = np.array([1.0, 3.0, 1.0, 3.0], dtype=np.float32)
    found.fields[:] = [{"price": 2.5}, {"price": "7"}, {"price": "seven"}, {}]
    matrix = feature_matrix(NAMES, found, logits)
    by_name = dict(zip(NAMES, matrix.T, strict=True))
    np.testing.assert_allclose(by_name["ranker"], logits)
    np.testing.assert_allclose(by_name["ranker.z"], [-1, 1, -1, 1])
    np.testing.assert_allclose(by_name["rank.knn"], [0, 1 / 60, 1 / 61, 1 / 62], rtol=1e-6)
    assert np.isnan(by_name["score.ease.z"][0])
    assert abs(by_name["score.ease.z"][1:].mean()) < 1e-6
    np.testing.assert_allclose(by_name["popularity"], np.log1p(found.popularity), rtol=1e-6)
    assert np.isnan(by_name["age"]).all()
    np.testing.assert_array_equal(by_name["field.price"], [2.5, 7.0, np.nan, np.nan])


def test_equal_scores_have_no_z_score() -> None:
    matrix = feature_matrix(["ranker.z"], candidates(3), np.full(3, 0.1, dtype=np.float32))
    assert (matrix == 0).all()


def test_what_is_for_new_users_alone_is_nothing_for_others() -> None:
    names = ["popularity.z", "popularity.z.cold", "fused.cold"]
    found, logits = candidates(4), np.zeros(4, dtype=np.float32)
    with_history = feature_matrix(names, found, logits)
    assert (with_history[:, 1:] == 0).all()
    nobody = dataclasses.replace(found, scores={"ease": np.full(4, np.nan, dtype=np.float32)})
    cold = feature_matrix(names, nobody, logits)
    np.testing.assert_array_equal(cold[:, 1], with_history[:, 0])
    np.testing.assert_array_equal(cold[:, 2], found.fused)


def test_a_source_that_was_not_asked_is_not_known() -> None:
    matrix = feature_matrix(["rank.lexical", "score.lexical"], candidates(3), np.zeros(3, dtype=np.float32))
    assert np.isnan(matrix).all()


def test_the_sum_finds_what_tells_positives_and_keeps_to_its_signs() -> None:
    signs = np.zeros(len(NAMES), dtype=np.int64)
    fitted = fit_linear(lists(150), NAMES, signs, 0.01)
    weights = dict(zip(NAMES, fitted.weights, strict=True))
    assert weights["score.ease.z"] > 1
    assert max(abs(weights["popularity"]), abs(weights["field.price"])) < 0.3
    signs[NAMES.index("score.ease.z")] = -1
    assert dict(zip(NAMES, fit_linear(lists(150), NAMES, signs, 0.01).weights, strict=True))["score.ease.z"] == 0


def test_a_strong_penalty_leaves_the_order_of_the_ranker() -> None:
    one = lists(60)[0]
    fitted = LinearModel(fit_linear(lists(60), NAMES, np.zeros(len(NAMES), dtype=np.int64), 1e6))
    assert np.argsort(-fitted.score(one.features)).tolist() == np.argsort(-one.logits).tolist()


def test_trees_keep_to_their_signs() -> None:
    signs = np.array([name == "score.ease.z" for name in NAMES], dtype=np.int64)
    import lightgbm

    booster = lightgbm.Booster(model_str=fit_trees(lists(60), NAMES, signs, 3))
    rows = np.repeat(lists(1)[0].features[1:2], 50, axis=0)
    rows[:, NAMES.index("score.ease.z")] = np.linspace(-3, 3, 50)
    scores = booster.predict(rows)
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] > scores[0]


def test_few_lists_leave_the_ranker_alone() -> None:
    assert learn(lists(20), NAMES, "auto", [], [], 1).method == "ranker"


def test_what_helps_is_chosen_and_lists_without_a_positive_are_left_out() -> None:
    missed = [BlendList(one.moment, one.ids, one.features, one.logits, None) for one in lists(20, seed=900)]
    learnt = learn([*lists(60), *missed], NAMES, "auto", ["score.ease.z"], [], 1)
    assert learnt.method == "linear"
    assert learnt.lists == 60
    assert learnt.cross_validated
    assert learnt.cross_validated["linear"] > learnt.cross_validated["ranker"] + 0.1


def test_a_blend_is_read_as_it_was_learnt(tmp_path: Path) -> None:
    signs = np.zeros(len(NAMES), dtype=np.int64)
    one = lists(1, seed=77)[0]
    fitted = fit_linear(lists(60), NAMES, signs, 0.03)
    for method, learnt in {
        "linear": Learnt("linear", fitted),
        "ranker": Learnt("ranker", ranker_alone(NAMES)),
        "lambdamart": Learnt("lambdamart", trees=fit_trees(lists(60), NAMES, signs, 3)),
    }.items():
        blend = open_blend(written(tmp_path / method, learnt))
        scores, parts = blend.score(one.features), blend.parts(one.features)
        assert (blend.artifact, blend.method, list(blend.names)) == ("a" * 64, method, NAMES)
        assert scores.shape == (40,)
        assert parts.shape == one.features.shape
        # What the features add explains all differences between candidates.
        np.testing.assert_allclose(parts.sum(axis=1), scores - scores.mean(), atol=1e-4)
        assert blend.score(one.features[:0]).shape == (0,)


def test_the_ranker_alone_is_its_order() -> None:
    one = lists(1)[0]
    np.testing.assert_allclose(LinearModel(ranker_alone(NAMES)).score(one.features), one.logits)


def test_damaged_blends_are_refused(tmp_path: Path) -> None:
    fitted = ranker_alone(NAMES)
    torn = written(tmp_path / "torn", Learnt("ranker", fitted))
    (torn / BLEND_FILE).write_bytes((torn / BLEND_FILE).read_bytes()[:-9])
    odd = written(tmp_path / "odd", Learnt("ranker", fitted), [*NAMES[:-1], "moon"])
    short = Linear(means=fitted.means, scales=fitted.scales, weights=fitted.weights[:2], unknown=fitted.unknown)
    wrong = written(tmp_path / "short", Learnt("ranker", short))
    for folder, place in ((torn, BLEND_FILE), (odd, "moon"), (wrong, "linear.weights"), (tmp_path / "none", "none")):
        with pytest.raises(BlendError, match=re.escape(place)) as caught:
            open_blend(folder)
        assert "tritonrank build" in str(caught.value)


def test_trees_of_other_features_are_refused(tmp_path: Path) -> None:
    signs = np.zeros(len(NAMES), dtype=np.int64)
    trees = fit_trees(lists(60), NAMES, signs, 3)
    folder = written(tmp_path / "trees", Learnt("lambdamart", trees=trees), [*NAMES[:-1], "field.weight"])
    with pytest.raises(BlendError, match=TREES_FILE):
        open_blend(folder)


@pytest.mark.alone
@pytest.mark.parametrize("method", ["linear", "lambdamart"])
def test_200_candidates_take_a_millisecond(tmp_path: Path, method: str) -> None:
    signs = np.zeros(len(NAMES), dtype=np.int64)
    learnt = (
        Learnt("linear", fit_linear(lists(60), NAMES, signs, 0.03))
        if method == "linear"
        else Learnt("lambdamart", trees=fit_trees(lists(60), NAMES, signs, 3))
    )
    blend = open_blend(written(tmp_path / method, learnt))
    assert isinstance(blend, ServedBlend)
    found, logits = candidates(200), np.zeros(200, dtype=np.float32)
    took = []
    for _ in range(50):
        begun = time.thread_time()
        blend.score(blend.features(found, logits))
        took.append(time.thread_time() - begun)
    assert sorted(took)[25] < 0.002
