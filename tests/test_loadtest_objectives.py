"""Objectives, and runs that are known to meet or to miss each of them."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests.machine import describe_machine
from loadtests.objectives import (
    DEFAULT_FILE,
    Objectives,
    ObjectivesError,
    judged,
    memory_growth,
    read_objectives,
    recovery_seconds,
    saturation,
)
from loadtests.results import Run, RunFileError, read_run, write_run

SLO = yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8"))
NOTHING = {"p50": None, "p90": None, "p99": None, "max": None, "mean": None}

Values = dict[str, Any]


def spread(p50: float | None, p99: float | None) -> Values:
    return NOTHING | {"p50": p50, "p99": p99}


def phase(name: str, start: float, end: float, *, offered: int = 100, good: int = 100, **changes: Any) -> Values:
    seconds = end - start
    totals = {
        "seconds": seconds,
        "offered": offered,
        "sent": offered,
        "answered": good,
        "good": good,
        "failed": {"rejected": offered - good} if offered > good else {},
        "offered_per_second": offered / seconds,
        "answered_per_second": good / seconds,
        "goodput_per_second": good / seconds,
        "candidates_per_second": 100 * good / seconds,
        "error_rate": (offered - good) / offered if offered else 0.0,
        "latency": spread(150, 500) if good else NOTHING,
        "service": NOTHING,
        "rejection": spread(2, 20) if offered > good else NOTHING,
    }
    rate = {"steady": 4, "spike": 12}.get(name)  # as our objectives have it
    return {"name": name, "start_second": start, "end_second": end, "rate": rate, "totals": totals | changes}


def run_of(*phases: Values, rss: Callable[[int], int] = lambda second: 10**9, **changes: Any) -> Run:
    """A run with these phases; every second of them has ten requests, of which the phase's share is good."""
    seconds = max(one["end_second"] for one in phases)
    rows = []
    for second in range(int(seconds)):
        inside = next(one for one in phases if one["start_second"] <= second < one["end_second"])
        totals = inside["totals"]
        good = round(10 * totals["good"] / totals["offered"]) if totals["offered"] else 0
        counts = {"offered": 10, "sent": 10, "answered": good, "good": good}
        nothing = {"latency": NOTHING, "service": NOTHING, "rejection": NOTHING}
        rows.append(
            {"second": second, "phase": inside["name"], "candidates": 0, "bytes": 0, "in_flight": 0} | counts | nothing
        )
    values = {
        "name": "made",
        "started": datetime(2026, 11, 1, tzinfo=UTC),
        "seconds": seconds,
        "machine": describe_machine(),
        "versions": {},
        "workload": {
            "path": "w.jsonl",
            "sha256": "0",
            "requests": 9,
            "laps": 1,
            "candidates_p50": 100,
            "candidates_max": 100,
        },
        "shape": {"name": "loadtest"},
        "target": {"url": "grpc://127.0.0.1:1", "protocol": "grpc", "artifact": "a"},
        "deadline_ms": 2_000,
        "phases": list(phases),
        "totals": phases[0]["totals"],
        "per_second": rows,
        "server": [
            {"second": second, "interval_seconds": 1, "rss_bytes": rss(second)} for second in range(int(seconds))
        ],
        "client": {"lag": NOTHING, "allowed_lag_ms": 50, "senders": 9, "most_in_flight": 3, "valid": True},
    }
    return Run.model_validate(copy.deepcopy(values) | changes)


def missed(run: Run, **parts: Any) -> set[str]:
    """What the run misses of our objectives, with some of their parts changed."""
    values = {name: SLO[name] | parts.get(name, {}) for name in SLO}
    found = judged(run, Objectives.model_validate(values))
    return {f"{verdict.phase}: {verdict.objective}" for verdict in found.verdicts if not verdict.met}


STEADY = phase("steady", 0, 10)
SPIKE = [phase("before", 0, 5), phase("spike", 5, 10, good=40), phase("after", 10, 20)]
OVERLOAD = [
    phase("saturation", 0, 10, latency=spread(300, 600)),
    phase("overload", 10, 20, offered=300, good=95, latency=spread(700, 1_100)),
    phase("recovery", 20, 30, offered=50, good=50),
]
SOAK = phase("soak", 0, 600)


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([STEADY], set()),
        ([phase("steady", 0, 10, latency=spread(301, 900))], {"steady: p50 latency"}),
        ([phase("steady", 0, 10, latency=spread(100, 1_001))], {"steady: p99 latency"}),
        ([phase("steady", 0, 10, good=99)], {"steady: error rate", "steady: goodput"}),
        ([phase("steady", 0, 10, good=99, error_rate=0)], {"steady: goodput"}),
        (
            [phase("steady", 0, 10, good=0, latency=NOTHING)],
            {"steady: p50 latency", "steady: p99 latency", "steady: error rate", "steady: goodput"},
        ),
        (
            [phase("steady", 0, 10, offered=0, good=0, latency=NOTHING)],
            {"steady: p50 latency", "steady: p99 latency", "steady: error rate", "steady: goodput"},
        ),
        (SPIKE, set()),
        ([*SPIKE[:2], phase("after", 10, 14, good=0), phase("late", 14, 20)], set()),
        ([*SPIKE[:2], phase("after", 10, 16, good=0), phase("late", 16, 20)], {"spike: recovery"}),
        ([*SPIKE[:2], phase("after", 10, 20, good=80)], {"spike: recovery"}),
        ([SPIKE[0], phase("spike", 5, 10, latency=spread(150, 1_801)), SPIKE[2]], {"spike: p99 latency"}),
        (OVERLOAD, set()),
        (
            [OVERLOAD[0], phase("overload", 10, 20, offered=300, good=84), OVERLOAD[2]],
            {"overload: goodput, of its peak"},
        ),
        (
            [
                OVERLOAD[0],
                phase("overload", 10, 20, offered=300, good=95, latency=spread(9, 1_201), rejection=spread(9, 1_501)),
                OVERLOAD[2],
            ],
            {"overload: p99 of accepted, of that at saturation", "overload: p99 of refusals"},
        ),
        (
            [
                OVERLOAD[0],
                phase("overload", 10, 20, offered=300, good=95, failed={"expired": 205}, rejection=NOTHING),
                OVERLOAD[2],
            ],
            {"overload: p99 of refusals"},
        ),
        ([OVERLOAD[0], phase("overload", 10, 20, offered=300, good=300), OVERLOAD[2]], set()),
        ([*OVERLOAD[:2], phase("recovery", 20, 30, good=70)], {"overload: recovery"}),
        ([SOAK], set()),
        ([phase("soak", 0, 600, offered=6_000, good=5_999)], {"soak: error rate"}),
        ([phase("ramp 4/s", 0, 10, offered=40, good=40), phase("ramp 7/s", 10, 20, offered=70, good=70)], set()),
        (
            [phase("ramp 4/s", 0, 10, offered=40, good=40), phase("ramp 7/s", 10, 20, offered=70, good=60)],
            {"ramp: saturation"},
        ),
        ([phase("ramp 4/s", 0, 10, offered=40, good=20)], {"ramp: saturation"}),
    ],
)
def test_each_objective_is_met_or_missed(phases: list[Values], expected: set[str]) -> None:
    assert missed(run_of(*phases)) == expected


def test_memory_that_grows_is_found_and_a_full_cache_is_not() -> None:
    assert missed(run_of(SOAK, rss=lambda second: 10**9 + 200_000 * second)) == {"soak: memory growth"}
    filled = run_of(SOAK, rss=lambda second: 10**9 + 10**7 * min(second, 55))
    assert missed(filled) == set(), "it filled in the first minute"
    grown = run_of(*OVERLOAD, rss=lambda second: 10**9 + (10**8 if second > 15 else 0))
    assert missed(grown) == {"overload: memory growth"}
    assert missed(run_of(SOAK, server=[])) == {"soak: memory growth"}, "not seen is not met"
    assert memory_growth(filled, (0, 1), (599, 600)) == pytest.approx(0.55, abs=0.02)


def test_another_load_is_no_answer() -> None:
    assert missed(run_of(STEADY, deadline_ms=3_000)) == {"all: load"}
    shorter = run_of(STEADY).model_dump()["workload"] | {"candidates_p50": 10, "candidates_max": 10}
    assert missed(run_of(STEADY, workload=shorter)) == {"all: load"}
    for rate in (1, None):
        assert missed(run_of(STEADY | {"rate": rate})) == {"all: load"}
        assert missed(run_of(SPIKE[0], SPIKE[1] | {"rate": rate}, SPIKE[2])) == {"all: load"}


def test_an_invalid_run_never_passes() -> None:
    run = judged(run_of(STEADY), read_objectives())
    assert run.passed
    assert not run.model_copy(update={"client": run.client.model_copy(update={"valid": False})}).passed


def test_saturation_is_the_last_step_before_the_first_that_was_not_sustained() -> None:
    steps = [(20, 20), (40, 40), (60, 57), (80, 70), (100, 99)]
    phases = [
        phase(f"ramp {n}/s", 10 * n, 10 * n + 10, offered=offered, good=good) for n, (offered, good) in enumerate(steps)
    ]
    assert saturation(run_of(*phases)) == 6
    assert saturation(run_of(*phases), 0.99) == 4
    assert saturation(run_of(STEADY)) is None


def test_recovery_is_how_long_requests_still_went_wrong() -> None:
    run = run_of(*OVERLOAD[:2], phase("bad", 20, 23, good=0), phase("good", 23, 30))
    assert recovery_seconds(run, 20) == 3
    assert recovery_seconds(run, 23) == 0
    assert recovery_seconds(run_of(*OVERLOAD[:2]), 10) is None
    assert recovery_seconds(run, 30) is None, "nothing was offered afterwards"
    for phases, why in (
        (SPIKE[:2], "nothing was offered afterwards"),
        ([*SPIKE[:2], phase("after", 10, 20, good=0)], "went wrong"),
    ):
        verdicts = judged(run_of(*phases), read_objectives()).verdicts
        assert any(why in verdict.why for verdict in verdicts if verdict.objective == "recovery")


def test_a_run_that_no_objective_is_about_is_not_judged() -> None:
    with pytest.raises(ObjectivesError, match="whose phases are before"):
        judged(run_of(phase("before", 0, 5)), read_objectives())


def test_what_is_left_out_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(yaml.safe_dump({"load": SLO["load"], "steady": {"p50_ms": 200}}), encoding="utf-8")
    verdicts = judged(run_of(STEADY, *SPIKE[1:2]), read_objectives(path)).verdicts
    assert [verdict.objective for verdict in verdicts] == ["load", "p50 latency"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("load: [", "not valid YAML"),
        ("- 1", "valid dictionary"),
        ("steady: {p50_ms: 1}", "load: Field required"),
        ("load: {rate: 4, candidates: 100, deadline_ms: 2000}\nsteady: {p50: 3}", "steady.p50"),
        (
            "load: {rate: -4, candidates: 100, deadline_ms: 2000}",
            "load.rate: Input should be greater than 0 (found -4)",
        ),
        ("load: {rate: 4, candidates: 1001, deadline_ms: x}", "2 fault(s)"),
        ("load: {rate: 4, candidates: 9, deadline_ms: 9}\nsteady: {error_rate: 1.5}", "steady.error_rate"),
        (
            "load: {rate: 4, candidates: 9, deadline_ms: 9}\nspike: {answered_p99_ms: 9}\noverload: {rejection_ms: 10}",
            "spike.answered_p99_ms 9, overload.rejection_ms 10: nothing is slower than load.deadline_ms 9",
        ),
    ],
)
def test_faults_of_objectives_are_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ObjectivesError) as raised:
        read_objectives(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    with pytest.raises(ObjectivesError, match="There is one to copy"):
        read_objectives(tmp_path / "none.yaml")


# The file of a run


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    run = judged(run_of(*OVERLOAD), read_objectives())
    path = tmp_path / "runs" / "run.json"
    write_run(run, path)
    assert read_run(path) == run
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "EOF"), ("{}", "machine: Field required"), ('{"format": 2}', "format: Input should be 1"), ("[]", "object")],
)
def test_a_file_that_is_no_run_is_told(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunFileError) as raised:
        read_run(path)
    assert said in str(raised.value)
    with pytest.raises(RunFileError, match="Make one"):
        read_run(tmp_path / "none.json")
    with pytest.raises(RunFileError, match="choose another"):
        write_run(run_of(STEADY), path / "below.json")
