"""When requests are due: known rates give known times, whatever the workload's own rate was."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from loadtests.loadtest import loadtest_plan
from loadtests.objectives import read_objectives
from loadtests.shapes import SHAPES, Plan, PlanError, PlannedPhase, arrivals, plan_of, read_plan, warm_up

EVEN = [0.5 * (place + 1) for place in range(200)]
"""A workload with a request every half second."""


def due(plan: Plan, times: list[float] = EVEN) -> np.ndarray:
    return np.array([arrival.due for arrival in arrivals(plan, times)])


def test_a_steady_plan_replays_the_workload_at_its_own_rate() -> None:
    found = due(plan_of("steady", rate=8, seconds=10))
    assert found == pytest.approx(np.arange(1, 80) / 8)


def test_poisson_gaps_stay_poisson_gaps() -> None:
    random = np.random.default_rng(1)
    times = random.exponential(1 / 3, 4_000).cumsum().tolist()
    found = due(plan_of("steady", rate=50, seconds=70), times)
    gaps = np.diff(found)
    assert len(found) == pytest.approx(50 * 70, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_a_rate_that_climbs_gives_the_integral_of_it() -> None:
    """From 2/s to 10/s in 20 s: 2 t + 0.2 t^2 requests after t seconds."""
    phase = PlannedPhase(name="climb", seconds=20, rate=2, last_rate=10)
    found = due(Plan(shape="ramp", phases=[phase]))
    assert len(found) == pytest.approx(phase.requests, abs=1)
    assert 2 * found + 0.2 * found**2 == pytest.approx(np.arange(1, len(found) + 1))


def test_phases_follow_each_other_without_a_gap() -> None:
    phases = [PlannedPhase(name=str(rate), seconds=10, rate=rate) for rate in (4, 0, 20)]
    found = due(Plan(shape="steps", phases=phases))
    counts, _ = np.histogram(found, bins=[0, 10, 20, 30.001])
    assert counts.tolist() == pytest.approx([40, 0, 200], abs=1)
    assert (np.diff(found) > 0).all()


def test_a_short_workload_begins_again() -> None:
    found = list(arrivals(plan_of("steady", rate=10, seconds=5), [0.3, 1.0, 2.0]))
    assert [arrival.place for arrival in found[:7]] == [0, 1, 2, 0, 1, 2, 0]
    assert [arrival.number for arrival in found] == list(range(len(found)))
    assert len(found) == pytest.approx(50, abs=1)


def test_a_workload_that_arrives_all_at_once_can_still_be_sent() -> None:
    assert len(due(plan_of("steady", rate=10, seconds=5), [0.0, 0.0])) == pytest.approx(50, abs=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_takes_the_time_it_was_given(shape: str) -> None:
    plan = plan_of(shape, rate=6, seconds=30, warm_up_seconds=5)
    assert plan.seconds == pytest.approx(35)
    assert [phase.counts for phase in plan.phases] == [False] + [True] * (len(plan.phases) - 1)
    ends = [end for *_, end in plan.spans()]
    assert ends == pytest.approx(list(itertools.accumulate(phase.seconds for phase in plan.phases)))


def test_an_overload_is_three_times_saturation() -> None:
    rates = {phase.name: phase.rate for phase in plan_of("overload", rate=10, seconds=60).phases}
    assert rates == {"saturation": 10, "overload": 30, "recovery": 5}


def test_a_ramp_begins_where_it_is_told() -> None:
    rates = [phase.rate for phase in plan_of("ramp", rate=20, seconds=60, start=0.1).phases]
    assert (min(rates), max(rates)) == (pytest.approx(2), pytest.approx(20))


def test_a_ramp_climbs_by_equal_factors_up_to_its_rate() -> None:
    rates = np.array([phase.rate for phase in plan_of("ramp", rate=20, seconds=60).phases])
    assert rates[-1] == pytest.approx(20)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(rates[1] / rates[0]))


def test_a_load_test_stays_within_its_seconds_and_keeps_the_agreed_rate() -> None:
    objectives = read_objectives()
    plan = loadtest_plan(objectives, capacity=11.0, seconds=180)
    assert plan.seconds == pytest.approx(180)
    rates = {phase.name: phase.rate for phase in plan.phases}
    assert rates["steady"] == rates["before"] == objectives.load.rate
    assert rates["spike"] == objectives.load.spike * objectives.load.rate
    assert max(rate for name, rate in rates.items() if name.startswith("ramp")) == pytest.approx(1.3 * 11)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_of("spike", rate=6, seconds=30)
    path = tmp_path / "plan.json"
    path.write_text(plan.model_dump_json(), encoding="utf-8")
    assert read_plan(path) == plan


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"phases": []}, "phases"),
        ({"phases": [{"name": "a", "seconds": 0, "rate": 1}]}, "phases.0.seconds"),
        ({"phases": [{"name": "a", "seconds": 1, "rate": -1}]}, "phases.0.rate"),
        ({"phases": [{"name": "a", "seconds": 1, "rate": 1}] * 2}, "two phases are called 'a'"),
        ({"phases": [{"name": "a", "seconds": 1, "rate": 0}]}, "no request is due"),
        ({"phases": [{"name": "a", "seconds": 1, "rate": 1, "speed": 2}]}, "phases.0.speed"),
    ],
)
def test_faults_of_a_plan_are_named(values: dict[str, object], named: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"shape": "mine"} | values), encoding="utf-8")
    with pytest.raises(PlanError) as raised:
        read_plan(path)
    assert named in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match="rate"):
        plan_of("steady", rate=-1, seconds=5)
    with pytest.raises(PlanError, match=r"plan\.json: No such file"):
        read_plan(Path("plan.json"))
    assert warm_up(3, 8).rate == 4
