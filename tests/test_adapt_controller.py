"""The controller against a server of one queue, in made-up time: order of levels, hysteresis, no flapping, recovery."""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tritonrank_gateway.adapt import Bounds, Controller, Forecaster, Level, Seen, ladder_of
from tritonrank_gateway.adapt.pace import Pace, PaceSettings
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_recommend.blend import LevelsFile

LOOK_SECONDS = 0.25
ITEMS = 200
FIXED_UNITS, UNITS_PER_ITEM, SPEED = 400.0, 20.0, 44_000.0
"""A full list is 4,400 units, so that ten are done in a second; the smallest one takes a fifth of that."""


@dataclass
class Ran:
    """What became of a run: by second the level, how long requests waited, changes."""

    levels: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    changes: int = 0
    queue: list[float] = field(default_factory=list)


def run(
    controller: Controller, rate: Callable[[float], float], seconds: float, *, seed: int = 1, slow: float = 1.0
) -> Ran:
    """One queue, one server; requests come by chance at the given rate."""
    chance, ran = random.Random(seed), Ran()
    now, next_arrival, looked_at = 0.0, 0.0, 0.0
    waiting: deque[tuple[float, float, Level]] = deque()  # when it came, seconds of work left, at which level
    arrivals, busy, in_flight = 0, 0.0, 0.0
    demand, done = [0.0] * len(controller.levels), [0.0] * len(controller.levels)
    step, shown = 0.005, controller.level
    while now < seconds:
        now += step
        while next_arrival <= now:
            next_arrival += chance.expovariate(max(rate(next_arrival), 1e-9))
            arrivals += 1
            taken = controller.level_behind(sum(units_of(level) for _, _, level in waiting), ITEMS)
            ran.served.append(taken.number)
            for level in controller.levels:
                demand[level.number] += units_of(level)
            if taken.model != "none":
                work = slow * (FIXED_UNITS + UNITS_PER_ITEM * taken.ranked(ITEMS)) / SPEED
                work *= 0.3 if taken.model == "smaller" else 1.0
                waiting.append((now, work, taken))
        left = step
        busy += step if waiting else 0.0
        in_flight += step * len(waiting)
        while waiting and left > 0:
            came, work, level = waiting.popleft()
            if work > left:
                waiting.appendleft((came, work - left, level))
                break
            left -= work
            done[level.number] += units_of(level)
            ran.waited.append(now - came)
        if now - looked_at >= LOOK_SECONDS - 1e-9:
            units = sum(units_of(level) for _, _, level in waiting)
            controller.look(
                Seen(now, now, now - looked_at, arrivals, demand, done, busy, in_flight / busy if busy else 0.0, units)
            )
            ran.changes += controller.level is not shown
            shown, looked_at, arrivals, busy, in_flight = controller.level, now, 0, 0.0, 0.0
            demand, done = [0.0] * len(controller.levels), [0.0] * len(controller.levels)
            ran.levels.append(controller.level.number)
            ran.queue.append(controller.queue_seconds)
    return ran


def units_of(level: Level) -> float:
    return (FIXED_UNITS + UNITS_PER_ITEM * ITEMS) * level.cost(ITEMS)


def controller_of(**options: bool) -> Controller:
    return Controller(ladder_of(ITEMS, 25, **options), Bounds(queue_s=0.25))


@pytest.mark.parametrize("seed", range(4))
def test_half_of_saturation_is_served_in_full(seed: int) -> None:
    ran = run(controller_of(), lambda now: 5.0, 120, seed=seed)
    assert ran.served.count(0) > 0.93 * len(ran.served)


@pytest.mark.parametrize("seed", range(4))
def test_five_times_the_steady_rate(seed: int) -> None:
    """Levels that can do it are found in a second and stay; after the spike all is ranked in full within 10 s."""
    ran = run(controller_of(), lambda now: 25.0 if 30 <= now < 60 else 5.0, 100, seed=seed)
    assert max(ran.waited) < 1.0
    assert {ran.levels[look] for look in range(130, 238)} <= {3, 4}
    assert ran.served.count(5) == 0  # retrieval's order alone was never needed
    assert next(look for look in range(240, 400) if ran.levels[look] == 0) * LOOK_SECONDS - 60 < 10
    assert ran.changes <= 12


@pytest.mark.parametrize("seed", range(4))
def test_who_comes_before_the_first_look_at_a_spike_finds_a_short_queue(seed: int) -> None:
    """Forty a second where ten can be done in full: in one look's time that is a queue of a second."""
    ran = run(controller_of(), lambda now: 40.0 if 30 <= now < 30.5 else 4.0, 40, seed=seed)
    assert max(ran.waited) < 0.75
    assert ran.served.count(0) > 0.7 * len(ran.served)


def test_behind_a_long_queue_a_list_is_ranked_as_cheaply_as_the_queue_is_long() -> None:
    controller = controller_of()
    assert controller.level_behind(1e9, ITEMS).number == 0, "nothing is known of its speed"
    run(controller, lambda now: 5.0, 30)
    speed = controller._speed_of(0)
    seconds = controller.bounds.queue_s
    found = [
        controller.level_behind(times * seconds * speed, ITEMS).number for times in (1.45, 1.55, 1.65, 1.8, 1.95, 9.0)
    ]
    assert found == [0, 1, 2, 3, 4, 4]
    controller.level = controller.levels[-1]
    assert controller.level_behind(1e9, ITEMS) is controller.levels[-1]


def test_a_rate_between_two_levels_does_not_make_them_take_turns() -> None:
    # 15 a second: half the candidates are just too much, a quarter is easy.
    ran = run(controller_of(), lambda now: 5.0 if now < 20 else 15.0, 140)
    changes = sum(one != other for one, other in zip(ran.levels[120:], ran.levels[121:], strict=False))
    assert changes <= 12  # in 110 seconds
    assert max(ran.waited) < 1.0


def test_a_request_in_work_is_no_queue_that_keeps_full_quality_away() -> None:
    """Whenever it is looked, one request is in work, which takes as long as the bound on the queue allows."""
    controller = Controller(ladder_of(ITEMS, 25), Bounds(queue_s=0.1))
    full, levels = units_of(controller.levels[0]), range(len(controller.levels))

    def look(number: int, arrivals: int, in_flight: float) -> None:
        units = [arrivals * units_of(level) for level in controller.levels]
        done = [LOOK_SECONDS * SPEED if level == controller.level.number else 0.0 for level in levels]
        at, waiting = number * LOOK_SECONDS, in_flight * units_of(controller.level)
        controller.look(Seen(at, at, LOOK_SECONDS, arrivals, units, done, LOOK_SECONDS, in_flight, waiting))

    for number in range(40):
        look(number, 8, 8.0)  # 32 a second, of which ten are done in full
    assert controller.level.number
    for number in range(40, 60):
        look(number, 1, 1.0)
    assert controller.level.number == 0
    assert controller.queue_seconds == pytest.approx(full / SPEED, rel=0.1), "beyond half of the bound all the time"


def test_a_ranker_that_became_slower_is_noticed_by_its_queue() -> None:
    controller = controller_of()
    run(controller, lambda now: 5.0, 30)
    ran = run(controller, lambda now: 5.0, 40, slow=3.0)
    assert ran.levels[-1] > 0
    assert max(ran.queue[80:]) < 1.0


def test_the_smaller_ranker_comes_after_fewest_candidates_and_before_none() -> None:
    levels = ladder_of(ITEMS, 25, has_smaller=True)
    assert [level.name for level in levels] == [
        "full", "candidates-150", "candidates-100", "candidates-50", "candidates-25", "smaller", "retrieval",
    ]  # fmt: skip
    assert [level.cost(ITEMS) for level in levels] == sorted((level.cost(ITEMS) for level in levels), reverse=True)
    ran = run(Controller(levels, Bounds(queue_s=0.25)), lambda now: 5.0 if now < 20 else 80.0, 60)
    assert {ran.levels[look] for look in range(140, 240)} <= {5, 6}
    assert 5 in ran.levels[140:]
    ran = run(Controller(ladder_of(ITEMS, 25), Bounds(queue_s=0.25)), lambda now: 5.0 if now < 20 else 300.0, 40)
    assert ran.levels[-1] == 5


def test_a_floor_leaves_out_what_is_below_it() -> None:
    assert [level.candidates for level in ladder_of(200, 60)] == [None, 150, 100, 60, 0]
    assert [level.candidates for level in ladder_of(10, 25)] == [None, 0]


def test_a_build_that_ranks_the_first_alone_begins_with_these() -> None:
    file = LevelsFile(full=200, ndcg=0.1, users=500, by_candidates={"60": 0.99, "200": 1.0}, retrieval=0.9, ranked=60)
    for own, full in ((0, 60), (100, 100), (300, 200)):
        pace = Pace(PaceSettings(ranked=own), Load(10, 1.0), Metrics(), None, file)
        assert pace.in_full == full
        assert all(level.ranked(full) <= full for level in pace.controller.levels)
    pace = Pace(PaceSettings(), Load(10, 1.0), Metrics(), None, file)
    assert pace.controller.levels[0].quality == pytest.approx(0.99)
    pace.measured(None)
    assert pace.in_full == 200


def test_quality_is_what_the_build_measured_and_between_depths_along_a_line() -> None:
    file = LevelsFile(
        full=200, ndcg=0.2, users=60, by_candidates={"25": 0.8, "100": 0.96, "200": 1.0}, retrieval=0.6,
        by_rung={"a" * 64: 0.9},
    )  # fmt: skip
    found = {level.name: level.quality for level in ladder_of(200, 25, has_smaller=True, file=file)}
    assert found == pytest.approx(
        {
            "full": 1.0, "candidates-150": 0.98, "candidates-100": 0.96, "candidates-50": 0.8 + 0.16 / 3,
            "candidates-25": 0.8, "smaller": 0.72, "retrieval": 0.6,
        }
    )  # fmt: skip
    assert all(math.isnan(level.quality) for level in ladder_of(200, 25))


def test_other_levels_keep_what_was_measured_of_the_same_ones() -> None:
    controller = controller_of()
    run(controller, lambda now: 5.0, 30)
    assert controller.utilisation(0) == pytest.approx(0.5, abs=0.25)
    controller.replace_levels(ladder_of(100, 25))
    assert controller.utilisation(0) == pytest.approx(0.5, abs=0.25)
    assert controller.level.number < len(controller.levels)


def test_replicas_are_wished_for_what_is_forecast_in_full() -> None:
    controller = controller_of()
    run(controller, lambda now: 5.0, 200)
    few = controller.wished_replicas
    run(controller, lambda now: 25.0, 60)
    assert few == 1
    assert 4 <= controller.wished_replicas <= 7  # 2.5 times what one can do at all, of which 60% are wanted


def test_forecast_of_a_daily_curve_is_better_than_the_last_value() -> None:
    """Held out is the fourth day: each minute of it is forecast a quarter of an hour before."""
    chance, forecaster = random.Random(2), Forecaster()

    def rate(unix: float) -> float:
        return 20.0 + 15.0 * math.sin(2 * math.pi * unix / 86_400)

    def count(unix: float) -> float:
        mean = 60 * rate(unix)
        return max(0.0, chance.gauss(mean, math.sqrt(mean)))

    errors: dict[str, list[float]] = {"own": [], "last": []}
    told: list[float] = []
    for minute in range(4 * 1_440):
        unix = 60.0 * minute
        if minute >= 3 * 1_440 and told:
            ahead = unix + 900
            errors["own"].append(abs(forecaster.forecast(900) - rate(ahead)))
            errors["last"].append(abs(told[-1] / 60 - rate(ahead)))
        told.append(count(unix))
        forecaster.add(told[-1], unix + 59)
    assert sum(errors["own"]) < 0.5 * sum(errors["last"])


def test_what_was_never_seen_is_forecast_as_nothing_and_silence_is_no_demand() -> None:
    forecaster = Forecaster()
    assert forecaster.forecast(60) == 0
    for minute in range(30):
        forecaster.add(600, 60.0 * minute)
    assert forecaster.forecast(60) == pytest.approx(10, rel=0.05)
    forecaster.add(0, 60.0 * 120)
    assert forecaster.forecast(60) < 0.5
    forecaster.add(5, 0.0)  # a clock that was set back
    assert math.isfinite(forecaster.highest(300))
