"""The two kinds of a blend: a weighted sum as JSON, and LightGBM's trees as its own text. Neither is a pickle."""

from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


class Model(Protocol):
    """Scores rows of features."""

    def score(self, features: Matrix) -> Matrix:
        """[rows], higher is better."""

    def parts(self, features: Matrix) -> Matrix:
        """[rows, features] what each adds to the score, as differences to the average row."""


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """A weighted sum of standardised features; each list has one number per feature.

    Attributes:
        means: of the feature over what it was learnt from.
        scales: its standard deviation.
        weights: per standard deviation.
        unknown: what is added where the feature is not known, in place of weight x value.
    """

    means: list[float]
    scales: list[float]
    weights: list[float]
    unknown: list[float]


class LinearModel:
    """A weighted sum."""

    def __init__(self, linear: Linear) -> None:
        self._means = np.array(linear.means, dtype=np.float32)
        self._factors = np.array(linear.weights, dtype=np.float32) / np.array(linear.scales, dtype=np.float32)
        self._unknown = np.array(linear.unknown, dtype=np.float32)

    def score(self, features: Matrix) -> Matrix:
        return np.asarray(self._terms(features).sum(axis=1), dtype=np.float32)

    def parts(self, features: Matrix) -> Matrix:
        terms = self._terms(features)
        return np.asarray(terms - terms.mean(axis=0), dtype=np.float32)

    def _terms(self, features: Matrix) -> Matrix:
        terms = (features - self._means) * self._factors
        return np.asarray(np.where(np.isnan(features), self._unknown, terms), dtype=np.float32)


class TreeModel:
    """Trees of LightGBM. One thread: 200 candidates are less work than waking a second one."""

    def __init__(self, text: str) -> None:
        """Raises lightgbm's LightGBMError where the text is no model of its."""
        import lightgbm  # 0.3 s, which a gateway with a linear blend need not spend

        self._booster: Any = lightgbm.Booster(model_str=text)

    @property
    def names(self) -> list[str]:
        """Of the features that the trees were learnt from."""
        return list(self._booster.feature_name())

    def score(self, features: Matrix) -> Matrix:
        return np.asarray(self._booster.predict(features, num_threads=1), dtype=np.float32)

    def parts(self, features: Matrix) -> Matrix:
        """SHAP values of the trees (Lundberg et al. 2020, https://doi.org/10.1038/s42256-019-0138-9)."""
        contributions = np.asarray(self._booster.predict(features, num_threads=1, pred_contrib=True), dtype=np.float32)
        effects = contributions[:, :-1]  # the last column is the average over what was learnt from
        return np.asarray(effects - effects.mean(axis=0), dtype=np.float32)
