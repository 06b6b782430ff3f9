"""Probabilities for the scores of a build: fitted on validation users, told to clients, shown in the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import DataError
from tritonrank.judge.calibration import Method, fit, probabilities
from tritonrank.judge.reliability import read_reliability, reliability, wilson_interval
from tritonrank.pipeline.assemble import stage as assemble_stage
from tritonrank.pipeline.calibrate import fitting_calibration, stage
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe

GENERATOR = np.random.default_rng(7)
SCORES = GENERATOR.normal(scale=3, size=4_000)
LABELS = (GENERATOR.random(4_000) < 1 / (1 + np.exp(-(0.5 * SCORES - 1)))).astype(float)
METHODS: tuple[Method, ...] = ("platt", "isotonic")


def test_platt_finds_the_curve_that_made_the_labels() -> None:
    found = fit(SCORES, LABELS, "platt")
    assert (found["a"], found["b"]) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.15))


@pytest.mark.parametrize("method", METHODS)
def test_a_fitted_curve_is_truer_than_a_sigmoid_and_keeps_the_order(method: Method) -> None:
    said = probabilities(fit(SCORES[::2], LABELS[::2], method), SCORES[1::2])
    plain = reliability(1 / (1 + np.exp(-SCORES[1::2])), LABELS[1::2])
    assert reliability(said, LABELS[1::2])["calibration error"] < 0.4 * plain["calibration error"]
    assert (np.diff(said[np.argsort(SCORES[1::2])]) >= 0).all()


def test_reliability_is_scikit_learns() -> None:
    said = 1 / (1 + np.exp(-SCORES))
    found = reliability(said, LABELS)
    rates, means = calibration_curve(LABELS, said, n_bins=10, strategy="quantile")
    np.testing.assert_allclose([one["rate"] for one in found["bins"]], rates, atol=0.01)
    np.testing.assert_allclose([one["said"] for one in found["bins"]], means, atol=0.01)
    assert found["brier"] == pytest.approx(brier_score_loss(LABELS, said))


def test_a_backwards_ranker_is_not_turned_round() -> None:
    assert fit(-SCORES, LABELS, "platt")["a"] == 0


def test_labels_of_one_kind_are_refused() -> None:
    with pytest.raises(DataError, match=r"examples\.validation_users"):
        fit(SCORES, np.zeros_like(SCORES), "platt")


def test_wilsons_interval() -> None:
    assert wilson_interval(0.5, 100) == (pytest.approx(0.404, abs=1e-3), pytest.approx(0.596, abs=1e-3))
    assert wilson_interval(0, 10)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_calibrated_build_tells_its_clients(
    method: Method, workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    copy = Workspace(shutil.copytree(workspace.root, tmp_path / "tiny", symlinks=True))
    assert fitting_calibration(tiny_recipe, copy) == {}
    made = bring_up_to_date(stage(tiny_recipe, copy, method))
    assert set(read_reliability(copy.calibration)) == {"sigmoid", method}
    assert all(np.isfinite(value) for value in made.metrics.values() if isinstance(value, float))
    bring_up_to_date(assemble_stage(tiny_recipe, copy))
    config = (copy.repository / "rank" / "config.pbtxt").read_text()
    assert json.dumps(json.dumps(score_meaning(copy.calibration).calibration)) in config
    # Another model has other scores.
    manifest = json.loads((copy.loaded_model(tiny_recipe) / "manifest.json").read_text())
    (copy.loaded_model(tiny_recipe) / "manifest.json").write_text(json.dumps(manifest | {"artifact": "0" * 64}))
    assert fitting_calibration(tiny_recipe, copy) == {}
    assert read_manifest(copy.repository).parents["calibration"] == made.artifact
