"""Logits become probabilities: a rising curve fitted to the clicks of validation users, checked on those of test users.

A ranker's logits say which candidate is better, not how likely it is that one is right. Platt's method fits a sigmoid
of two numbers (Platt 1999), isotonic regression any rising curve (Zadrozny & Elkan 2002). Neither changes an order; the
isotonic one makes ties. The probability is that of a candidate among candidates like those of the examples: one
positive among so many sampled others. Where the application's lists are made otherwise, so are its rates.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import Draft
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.errors import DataError
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.judge.reliability import RELIABILITY_FILE, reliability
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe

Method = Literal["platt", "isotonic"]
MOST_POINTS = 200
"""Of an isotonic curve: it travels in the server's config."""

Values = NDArray[np.float64]


def calibrate(recipe: Recipe, workspace: Workspace, method: Method, draft: Draft) -> None:
    """Fit on validation examples, and record how true the probabilities are on test examples.

    Args:
        recipe: which model is served.
        workspace: with that model and the dataset.
        method: of fitting.
        draft: gets scores.json and reliability.json.

    Raises:
        DataError: validation has no positive, or nothing else.
    """
    folder = workspace.loaded_model(recipe)
    dataset, rules, scorer = Dataset.read(workspace.dataset), TextRules.load(folder), open_scorer(folder)

    def scored(examples: Sequence[Example]) -> tuple[Values, Values]:
        scores = [scorer.score(request) for request in requests_of(dataset, examples, rules)]
        labels = [np.asarray(example.labels, dtype=np.float64) for example in examples]
        flat, clicked = np.concatenate(scores).astype(np.float64), np.concatenate(labels)
        has_text = flat > NO_TEXT_SCORE
        return flat[has_text], (clicked[has_text] > 0).astype(np.float64)

    calibration = fit(*scored(dataset.validation), method)
    replace(score_meaning(folder), calibration=calibration).save(draft.folder)
    scores, labels = scored(dataset.test)
    found = {
        "sigmoid": reliability(1 / (1 + np.exp(-scores)), labels),
        method: reliability(probabilities(calibration, scores), labels),
    }
    (draft.folder / RELIABILITY_FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draft.metrics |= {"method": method, "model": draft.parents["model"].artifact} | {
        f"{name}: {key}": one[key] for name, one in found.items() for key in ("calibration error", "brier")
    }


def fit(scores: ArrayLike, labels: ArrayLike, method: Method) -> dict[str, Any]:
    """The curve as clients are told it.

    Args:
        scores: logits.
        labels: 1 where the candidate was right, else 0.
        method: platt gives ``a`` and ``b`` of sigmoid(a * score + b); isotonic points ``x`` and ``y`` of a line
            between which is interpolated.

    Raises:
        DataError: all labels are equal.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(np.unique(truth)) < 2:
        raise DataError(
            "calibration: the validation examples have no positive, or nothing else, so no rate can be fitted; take "
            "more of them: examples.validation_users"
        )
    if method == "platt":
        fitted = LogisticRegression(C=1e6).fit(values[:, np.newaxis], truth)
        # A ranker that ranks backwards must not be hidden by a falling curve: an order is never turned round.
        slope = max(float(fitted.coef_[0, 0]), 0.0)
        return {"method": "platt", "a": slope, "b": float(fitted.intercept_[0])}
    curve = IsotonicRegression(out_of_bounds="clip").fit(values, truth)
    x, y = curve.X_thresholds_, curve.y_thresholds_
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return {"method": "isotonic", "x": x[kept].tolist(), "y": y[kept].tolist()}


def probabilities(calibration: Mapping[str, Any], scores: ArrayLike) -> Values:
    """What a curve makes of logits; the gateway computes the same."""
    values = np.asarray(scores, dtype=np.float64)
    if calibration["method"] == "platt":
        return np.asarray(1 / (1 + np.exp(-(calibration["a"] * values + calibration["b"]))))
    return np.asarray(np.interp(values, calibration["x"], calibration["y"]))
