"""A simulated fleet: work is neither lost nor made, sizes follow rules, and each way of steering shows its worth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.simulate.cost import Cost, CostError, line_of, read_cost
from loadtests.simulate.fleet import Fleet
from loadtests.simulate.forecasts import DAY_MINUTES, alike, judge_forecast
from loadtests.simulate.play import play
from loadtests.simulate.scaler import CPU_TARGET, Autoscaler, CpuReading
from loadtests.simulate.scenarios import PEAK_SHARE, SPIKE, STEADY_SHARE, scenarios
from loadtests.simulate.waiting import Machine, Work, waited

COST = Cost(
    seconds_per_request=0.004,
    seconds_per_candidate=0.0004,
    ndcg_share={0: 0.8, 50: 0.95, 100: 0.98, 200: 1.0},
    start_seconds=40,
    queue_seconds=0.5,
)
WHOLE = COST.seconds(200)


def fleet_of(gateways: int = 2, size: int = 20, most: int = 40) -> Fleet:
    return Fleet(gateways, size, most, start_seconds=40, queue_seconds=0.5, random=np.random.default_rng(1))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("load", [0.5, 0.9, 2.5])
def test_what_arrives_is_done_refused_or_waits(load: float) -> None:
    fleet, cost = fleet_of(), np.full(2, WHOLE)
    arrived = refused = done = 0.0
    for tick in range(400):
        step = fleet.step(0.25 * tick, 0.25, np.full(2, load * 10 / WHOLE * 0.25), cost)
        arrived, refused = arrived + step.arrived.sum(), refused + step.refused.sum()
        done += step.done_seconds.sum()
        assert step.queue_seconds.max() <= 0.5 + 1e-9
        assert step.busy.max() <= 1 + 1e-9
    waiting = step.queue_seconds.sum() * 10
    assert (arrived - refused) * WHOLE == pytest.approx(done + waiting, rel=1e-6)
    # Beyond what it can do, a fleet does all that it can; below, chance alone may refuse a little.
    assert refused / arrived == pytest.approx(max(0.0, 1 - 1 / load), abs=0.02)


def test_a_new_replica_answers_after_its_start() -> None:
    fleet = fleet_of()
    fleet.resize(30, now=100)
    assert (fleet.size, fleet.live(139).sum(), fleet.live(141).sum()) == (30, 20, 30)
    fleet.resize(10, now=150)
    assert (fleet.size, fleet.live(150).sum()) == (10, 10)


def test_lost_replicas_cannot_be_started_until_they_are_back() -> None:
    fleet, arriving, cost = fleet_of(most=20), np.full(2, 1.0), np.full(2, WHOLE)
    fleet.step(0, 0.25, 400 * arriving, cost)
    waiting = fleet.step(0.25, 0.25, 0 * arriving, cost).queue_seconds.sum() * 10
    fleet.lose(0.5)
    fleet.resize(20, now=1)
    assert (fleet.size, fleet.live(1).sum()) == (10, 10)
    step = fleet.step(1, 0.25, 0 * arriving, cost)
    left = step.queue_seconds.sum() * 5 + step.done_seconds.sum()
    assert left == pytest.approx(waiting, rel=0.5), "what waited at the lost ones went to the others, as far as it fits"
    assert left > 0.6 * waiting
    assert fleet.give_back(2) == 10
    assert (fleet.live(41).sum(), fleet.live(42).sum()) == (10, 20)


def test_the_autoscaler_keeps_to_its_rules() -> None:
    scaler = Autoscaler(least=4, most=100)
    assert scaler.size(0, 20, 21.5) == 20, "within the tolerance"
    assert scaler.size(5, 20, 90) == 20, "between two looks"
    assert scaler.size(15, 20, 90) == 40, "at most twice as many at a time"
    assert scaler.size(30, 40, 1_000) == 80
    assert scaler.size(45, 80, 1_000) == 100, "the most there may be"
    assert scaler.size(60, 100, 5) == 100, "down only when nobody wished more for five minutes"
    assert [scaler.size(60 + 15 * look, 100, 5) for look in range(1, 21)][-1] == 5
    assert Autoscaler(least=4, most=100).size(0, 4, 0.0) == 4


def test_cpu_wishes_for_what_brings_the_mean_to_its_target() -> None:
    reading = CpuReading()
    assert reading.wished(0, 0.9, 20) == pytest.approx(20 * 0.9 / CPU_TARGET)
    assert reading.wished(10, 0.3, 20) == pytest.approx(20 * 0.6 / CPU_TARGET)
    assert reading.wished(100, 0.3, 20) == pytest.approx(20 * 0.3 / CPU_TARGET), "the old ones are forgotten"


def test_cost_is_the_line_through_what_was_measured() -> None:
    assert line_of({50: 0.03, 100: 0.05, 200: 0.09}) == pytest.approx((0.01, 0.0004))
    assert line_of({50: 0.019, 100: 0.04, 200: 0.08})[0] == 0.0, "nothing costs less than nothing"
    with pytest.raises(CostError):
        line_of({50: 0.01, 100: 0.09, 200: 0.05})
    assert (COST.seconds(0), COST.seconds(100)) == (0.0, pytest.approx(0.044))
    assert [COST.share(depth) for depth in (0, 25, 75, 200)] == pytest.approx([0.8, 0.875, 0.965, 1.0])


def test_the_cost_that_is_shipped_was_measured() -> None:
    cost = read_cost()
    assert cost.measured
    assert 0 < cost.seconds(cost.most_candidates) < 10
    assert cost.share(cost.most_candidates) == 1


def test_a_cost_that_cannot_be_used_names_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    with pytest.raises(CostError, match=r"cost\.json: No such file.*python -m loadtests simulate"):
        read_cost(file)
    file.write_text(COST.model_dump_json(exclude={"seconds_per_candidate"}), encoding="utf-8")
    with pytest.raises(CostError, match=r"cost\.json: seconds_per_candidate"):
        read_cost(file)
    file.write_text(COST.model_dump_json().replace('"0":0.8,', ""), encoding="utf-8")
    with pytest.raises(CostError, match="ndcg_share"):
        read_cost(file)


def test_loads_are_what_their_words_say() -> None:
    known = scenarios()
    day, spike = known["day"].loads(), known["spike"].loads()
    assert day.max() == pytest.approx(PEAK_SHARE, rel=1e-3)
    assert day.max() / day.min() == pytest.approx(4, rel=0.01)
    assert spike.max() / spike.min() == pytest.approx(SPIKE)
    assert spike[0] == spike[-1] == STEADY_SHARE
    past = known["day"].past(10)
    assert past[0][0] == -2 * 86_400
    assert sum(count for _, count in past) == pytest.approx(2 * 86_400 * 10 * day.mean(), rel=0.01)
    assert not known["spike"].past(10)


def test_in_a_spike_levels_serve_what_a_fixed_size_refuses() -> None:
    spike = replace(scenarios(tick_seconds=0.5)["spike"], seconds=480.0, counts_from=280.0)
    found = {policy: play(spike, policy, 12, COST) for policy in ("fixed size", "CPU", "levels", "levels and wish")}
    fixed, cpu, levels, both = found.values()
    assert fixed.refused > 0.3, "2.5 times what they can do, for most of the time"
    assert fixed.shortened == cpu.shortened == 0
    assert fixed.replica_hours == levels.replica_hours == pytest.approx(12 * 200 / 3_600)
    assert levels.refused < 0.1 * fixed.refused
    assert levels.shortened > 0.1
    assert both.ndcg_lost < min(one.ndcg_lost for one in (fixed, cpu, levels))
    assert both.most_replicas > 12
    assert len(fixed.course.seconds) == len(fixed.course.replicas)


def test_a_fixed_fleet_stays_small_while_a_third_is_gone() -> None:
    loss = replace(scenarios(tick_seconds=0.5)["loss"], seconds=600.0, counts_from=330.0)
    found = play(loss, "fixed size", 12, COST)
    assert found.most_replicas == 8
    assert found.refused == pytest.approx(1 - 8 / 12 / PEAK_SHARE, abs=0.02)


def test_the_verb_writes_results_and_a_page(tmp_path: Path) -> None:
    cost, out = tmp_path / "cost.json", tmp_path / "fleet.json"
    cost.write_text(COST.model_dump_json(), encoding="utf-8")
    found = run("simulate", "--cost", cost, "--replicas", "4", "--only", "loss", "--tick", "2", "--out", out)
    assert found.exit_code == 0, found.output
    told = json.loads(found.output.splitlines()[-1])
    rows = json.loads(Path(told["results"]).read_text(encoding="utf-8"))["results"]
    assert {(row["scenario"], row["replicas"]) for row in rows} == {("loss", 4)}
    assert len(rows) == 4
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--replicas", "3"), "--replicas 3"),
        (("--replicas", "many"), "--replicas many"),
        (("--only", "day,night"), "night"),
        (("--cost", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_cannot_be_played_is_told(arguments: tuple[str, str], named: str) -> None:
    found = run("simulate", *arguments)
    assert found.exit_code == 2
    assert named in found.output + found.stderr


def test_a_forecast_is_held_against_what_came() -> None:
    day = 1_000 + 500 * np.sin(np.arange(DAY_MINUTES) / DAY_MINUTES * 2 * np.pi)
    same = judge_forecast(np.tile(day, 3), 2 * DAY_MINUTES, 10)
    assert same.seasonal == 0, "the same every day"
    assert same.naive == pytest.approx(1, rel=0.01), "by its definition"
    assert same.mase < 0.5
    shuffled = np.random.default_rng(0).permutation(np.tile(day, 3))
    assert judge_forecast(shuffled, 2 * DAY_MINUTES, 10).mase > same.mase


def test_the_forecast_beats_the_naive_one_on_a_day_of_the_workload() -> None:
    counts = alike(np.random.default_rng(3), 10.0, 3)
    found = judge_forecast(counts, 2 * DAY_MINUTES, 5)
    assert found.mase < 0.9
    assert found.mase < min(found.naive, found.seasonal)


def test_where_all_but_a_few_could_be_ranked_not_everybody_goes_without() -> None:
    """With a dear request the cheapest level needs nearly all there is: 0.97 of it at 2.5 times the fleet's work."""
    dear = COST.model_copy(update={"seconds_per_request": 0.012, "seconds_per_candidate": 0.000372})
    spike = replace(scenarios(tick_seconds=0.25)["spike"], seconds=420.0, counts_from=330.0)
    found = play(spike, "levels", 12, dear)
    assert found.degraded < 0.3
    assert found.refused < 0.1


def test_waiting_is_that_of_a_shared_processor() -> None:
    """One thread, nothing beside it: the mean of M/G/1 with processor sharing is S / (1 - rate x S), whatever the
    work's parts (Kleinrock 1967)."""
    work, machine = Work(before=5.0, ranker=10.0, after=5.0, other=0.0), Machine(threads=1, together=1.0, lanes=1_000)
    took = waited(work, machine, rate=25.0, pages=20_000, seed=1)
    assert len(took) == 20_000 - 400
    assert np.mean(took) == pytest.approx(20 / (1 - 0.025 * 20), rel=0.05)
    alone = waited(work, Machine(threads=2, together=2.0), rate=0.1, pages=200)
    assert alone[0] == pytest.approx(15.0), "two threads that do not disturb each other halve the ranker's time"


def test_no_order_of_the_same_work_makes_a_page_that_waits_fast() -> None:
    heavy, light = (Work(6.0, ranker, 3.0, 14.0) for ranker in (45.0, 16.0))
    both = {lanes: waited(heavy, Machine(lanes=lanes), 8.6, 6_000) for lanes in (1, 2)}
    p99 = {lanes: took[int(0.99 * len(took))] for lanes, took in both.items()}
    assert min(p99.values()) > 0.85 * max(p99.values())
    less = waited(light, Machine(), 8.6, 6_000)
    assert less[int(0.99 * len(less))] < p99[2] / 2


def test_the_verb_says_what_follows_from_the_work() -> None:
    done = run("waiting", "--pages", "2000")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["rate"] == pytest.approx(told["most"] / 2, abs=0.02)
    assert told["milliseconds"].keys() == {"1", "2"}
    assert run("waiting", "--rate", "1000").exit_code == 2
