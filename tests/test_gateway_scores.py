"""Logits become scores at the very end, in double precision; a ranker says itself which ones it has."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
from tritonrank_client import NO_TEXT_SCORE
from tritonrank_gateway.load import LEAST_BUSY_SECONDS, Load, units_of
from tritonrank_gateway.refusal import Refusal
from tritonrank_gateway.scores import scores_of, sigmoid


def test_the_sigmoid_keeps_apart_what_half_precision_makes_equal() -> None:
    logits = [9.0, 9.001, 9.002, 12.5, 12.51]
    told = scores_of({"activation": "sigmoid"}).told(logits, "sigmoid")
    assert len(set(told)) == len(logits)
    assert told == sorted(told)
    half = (1 / (1 + np.exp(-np.array(logits, dtype=np.float16)))).astype(np.float16)
    assert len(set(half.tolist())) < len(logits)
    assert told == pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits], abs=1e-15)


@pytest.mark.parametrize("logit", [-1e9, -800.0, -745.0, 0.0, 40.0, 800.0, 1e9, NO_TEXT_SCORE])
def test_no_logit_is_too_large(logit: float) -> None:
    assert 0 <= sigmoid(logit) <= 1
    assert sigmoid(0.0) == 0.5


def test_own_scores_are_those_that_the_checkpoint_names() -> None:
    assert scores_of({}).own == "logit"
    assert scores_of({"activation": "none"}).own == "logit"
    assert scores_of({"activation": "sigmoid"}).own == "sigmoid"
    assert scores_of({}).probability == "sigmoid"


def test_platt_and_isotonic() -> None:
    platt = scores_of({"calibration": json.dumps({"method": "platt", "a": 2.0, "b": -1.0})})
    assert platt.probability == "calibrated"
    assert platt.told([0.5, 3.0], "calibrated") == pytest.approx([0.5, 1 / (1 + math.exp(-5))])
    x, y = [-2.0, 0.0, 1.0], [0.1, 0.4, 0.9]
    isotonic = scores_of({"calibration": json.dumps({"method": "isotonic", "x": x, "y": y})})
    logits = [-9.0, -2.0, -1.0, 0.0, 0.25, 1.0, 9.0]
    assert isotonic.told(logits, "calibrated") == pytest.approx(np.interp(logits, x, y).tolist())
    assert isotonic.told([NO_TEXT_SCORE], "calibrated") == [0.0]


@pytest.mark.parametrize(
    "parameters",
    [
        {"activation": "softmax"},
        {"calibration": "{"},
        {"calibration": "{}"},
        {"calibration": '{"method": "beta"}'},
        {"calibration": '{"method": "isotonic", "x": [1, 0], "y": [0, 1]}'},
        {"calibration": '{"method": "isotonic", "x": [], "y": []}'},
    ],
)
def test_a_parameter_that_cannot_be_read_is_named(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        scores_of(parameters)


def test_calibrated_scores_need_a_calibration() -> None:
    with pytest.raises(ValueError, match="score_type"):
        scores_of({}).told([1.0], "calibrated")


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_queued_seconds_are_what_waits_over_what_is_done_in_a_second() -> None:
    clock = Clock()
    load = Load(max_in_flight=100, max_queued_s=3.0, clock=clock)
    for _ in range(20):  # 100 units in 0.1 s each
        with load.admitted(100, 10.0) as queued:
            assert queued == 0
            clock.seconds += 0.1
    clock.seconds += 60  # nothing waits: idle time is no measure of speed
    with load.admitted(1_000, 10.0):
        assert load.queued_seconds == pytest.approx(1.0, rel=0.01)
        with pytest.raises(Refusal), load.admitted(1, seconds_left=0.5):  # it would come too late
            pass
        with load.admitted(2_500, 10.0) as queued:
            assert queued == pytest.approx(1.0, rel=0.01)
            with pytest.raises(Refusal, match=r"3\.5 s of work") as refused, load.admitted(1, 10.0):
                pass
            assert refused.value.retry_after == 4
    assert (load.in_flight, load.queued_seconds) == (0, 0)


def test_what_is_given_up_says_nothing_about_speed() -> None:
    clock = Clock()
    load = Load(10, 10.0, clock)
    with suppress(RuntimeError), load.admitted(1_000_000, 10.0):
        clock.seconds += LEAST_BUSY_SECONDS
        raise RuntimeError
    assert load.queued_seconds == 0
    assert units_of(200, 10, 100) == 700
