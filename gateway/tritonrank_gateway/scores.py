"""Logits -> the scores that a caller sees. Everything in float64, at the very end: half precision makes ties.

logit        what the ranker computed
sigmoid      1 / (1 + exp(-logit)), between 0 and 1
calibrated   a probability, by what was fitted on labelled data when the ranker was built (Platt or isotonic)
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tritonrank_client import NO_TEXT_SCORE

ScoreType = Literal["logit", "sigmoid", "calibrated"]
Calibration = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Scores:
    """How the scores of a ranker may be told.

    Attributes:
        own: what the checkpoint itself names as its scores: logit or sigmoid.
        calibrate: logit -> probability, where the ranker was calibrated.
    """

    own: ScoreType = "logit"
    calibrate: Calibration | None = None

    @property
    def probability(self) -> ScoreType:
        """The best there is for a dialect that promises numbers between 0 and 1."""
        return "sigmoid" if self.calibrate is None else "calibrated"

    def told(self, logits: Sequence[float], score_type: ScoreType) -> list[float]:
        """The scores of logits. An item without text has the lowest one.

        Raises:
            ValueError: calibrated scores of a ranker that was not calibrated.
        """
        if score_type == "logit":
            return list(logits)
        if score_type == "sigmoid":
            return [sigmoid(logit) for logit in logits]
        if self.calibrate is None:
            raise ValueError(
                "score_type: 'calibrated' needs a ranker that was calibrated when built; use 'sigmoid' or 'logit'"
            )
        return [0.0 if logit == NO_TEXT_SCORE else self.calibrate(logit) for logit in logits]


def scores_of(parameters: Mapping[str, str]) -> Scores:
    """How to tell the scores of a ranker, by the parameters `activation` and `calibration` of its config.

    Raises:
        ValueError: a parameter cannot be read; the message names it.
    """
    activation = parameters.get("activation", "none")
    if activation not in ("none", "sigmoid"):
        raise ValueError(f"parameter activation of the model: expected none or sigmoid, got {activation!r}")
    return Scores("sigmoid" if activation == "sigmoid" else "logit", _calibration(parameters.get("calibration", "")))


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(max(logit, -745.0))  # exp(-746) is 0 in float64
    return power / (1.0 + power)


def _calibration(text: str) -> Calibration | None:
    if not text:
        return None
    try:
        fitted = json.loads(text)
        if fitted["method"] == "platt":
            slope, offset = float(fitted["a"]), float(fitted["b"])
            return lambda logit: sigmoid(slope * logit + offset)
        if fitted["method"] == "isotonic":
            return _isotonic([float(one) for one in fitted["x"]], [float(one) for one in fitted["y"]])
        raise ValueError(f"method {fitted['method']!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"parameter calibration of the model: {type(error).__name__} {error}") from error


def _isotonic(logits: list[float], probabilities: list[float]) -> Calibration:
    """Straight lines between the fitted points, and flat beyond them."""
    if not logits or len(logits) != len(probabilities) or sorted(logits) != logits:
        raise ValueError("isotonic: expected as many y as x, ascending")

    def calibrate(logit: float) -> float:
        after = bisect_right(logits, logit)
        if after == 0 or after == len(logits):
            return probabilities[min(after, len(logits) - 1)]
        low, high = logits[after - 1], logits[after]
        share = (logit - low) / (high - low)
        return probabilities[after - 1] + share * (probabilities[after] - probabilities[after - 1])

    return calibrate
