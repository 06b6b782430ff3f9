"""A load test in which nothing was asked or nothing was answered passes nowhere, whatever else it finds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from misbehaving_server import QUEUE_FULL, Behaviour, MisbehavingServer
from refused_ports import refused_address
from typer.testing import CliRunner

from loadtests import fairness, generator
from loadtests.__main__ import app
from loadtests.results import Run, read_run

ALONE = pytest.mark.alone  # a generator that is starved says so, and the run is not valid
LOAD = {"rate": 10, "candidates": 4, "deadline_ms": 500}
LATENCY_ONLY = {"load": LOAD, "steady": {"p99_ms": 400}}
SAYS_HOW_MANY = {"load": LOAD, "steady": {"error_rate": 0.9, "goodput": 0.1}}
ANY_MAY_FAIL = {"load": LOAD, "steady": {"error_rate": 1}}
REFUSALS_ARE_QUICK = {"load": LOAD | {"deadline_ms": 2_500}, "overload": {"rejection_ms": 2_000}}
DEAD = "grpc://DEAD"
ATTEMPTS = 5  # of 14 requests each, where a single late one makes the p99


class EveryOther(Behaviour):
    """Refuses each second request."""

    def __init__(self) -> None:
        self.asked = 0

    def outputs(self, asked: Any) -> Any:
        self.asked += 1
        return QUEUE_FULL if self.asked % 2 else asked.rank()


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@pytest.fixture
def verb(server: MisbehavingServer, small_workload: Path, tmp_path: Path) -> Callable[..., Result]:
    """Runs a verb against the server, or where nobody listens, with ``objectives`` in a file of their own.

    A run that is not valid, for its generator was late, says nothing: it is run again, as a person would.
    """

    def call(name: str, *arguments: object, objectives: Any = None, target: str | None = None) -> Result:
        options = [str(argument) for argument in arguments]
        if objectives is not None:
            (tmp_path / "slo.yaml").write_text(yaml.safe_dump(objectives), encoding="utf-8")
            options += ["--slo", str(tmp_path / "slo.yaml")]
        url = f"grpc://{refused_address()}" if target == DEAD else target or server.urls["grpc"]
        out = ["--out", str(tmp_path / "run.json")]
        for _ in range(ATTEMPTS):
            result = CliRunner().invoke(app, [name, url, "--workload", str(small_workload), *out, *options])
            if name != "run" or result.exit_code != 1 or last_line(result)["valid"]:
                break
        return result

    return call


RUN = ("--rate", 10, "--seconds", 1.5, "--warm-up", 0, "--deadline-ms", 500)


def last_line(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("target", "objectives"),
    [
        (DEAD, None),
        *(
            pytest.param(*case, marks=[pytest.mark.slow, ALONE])
            for case in ((DEAD, ANY_MAY_FAIL), (None, SAYS_HOW_MANY))
        ),
    ],
    ids=["stopped server", "stopped server, any may fail", "refusing server"],
)
def test_a_run_without_an_answer_never_passes(
    verb: Callable[..., Result], server: MisbehavingServer, tmp_path: Path, target: str | None, objectives: Any
) -> None:
    server.behave(QUEUE_FULL)
    result = verb("run", *RUN, objectives=objectives, target=target)
    found = last_line(result)
    assert (result.exit_code, found["passed"], found["valid"]) == (1, False, True), result.output
    assert "nothing was answered" in found["why"][0]
    assert 'class="headline bad"' in (tmp_path / "run.html").read_text(encoding="utf-8")
    kept = read_run(tmp_path / "run.json")
    assert kept.totals.error_rate == 1
    again = CliRunner().invoke(app, ["report", str(tmp_path / "run.json")])
    assert "nothing was answered" in again.output


@pytest.mark.slow
@ALONE
@pytest.mark.parametrize(
    ("objectives", "code"), [(None, 1), (LATENCY_ONLY, 1), (SAYS_HOW_MANY, 0)], ids=["none", "latency", "how many"]
)
def test_failures_are_fine_only_where_an_objective_says_how_many(
    verb: Callable[..., Result], server: MisbehavingServer, objectives: Any, code: int
) -> None:
    server.behave(EveryOther())
    result = verb("run", *RUN, objectives=objectives)
    found = last_line(result)
    assert (result.exit_code, found["passed"]) == (code, code == 0), result.output
    assert ("requests failed" in " ".join(found["why"])) == (code == 1)
    assert 0 < found["error_rate"] < 1


def test_a_run_that_is_answered_passes_without_objectives(verb: Callable[..., Result]) -> None:
    result = verb("run", *RUN)
    assert (result.exit_code, last_line(result)["passed"], last_line(result)["why"]) == (0, True, []), result.output


@pytest.mark.slow
def test_quick_refusals_alone_stand_no_overload(
    verb: Callable[..., Result], server: MisbehavingServer, tmp_path: Path
) -> None:
    """Refused within two seconds, every single one: the only objective is met."""
    server.behave(QUEUE_FULL)
    result = verb("overload", "--seconds", 3, "--saturation", 10, objectives=REFUSALS_ARE_QUICK)
    assert (result.exit_code, last_line(result)["passed"]) == (1, False), result.output
    overload = [one for one in read_run(tmp_path / "run.json").verdicts if one.phase == "overload"]
    assert [one.met for one in overload] == [True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "objectives"),
    [
        ("soak", ("--minutes", 0.05, "--saturation", 10), {"load": LOAD, "soak": {"memory_growth": 9}}),
        ("loadtest", ("--seconds", 4), LATENCY_ONLY),
        ("overload", ("--seconds", 2), REFUSALS_ARE_QUICK),
        ("compare", (), None),
        ("perf", ("--perf-analyzer", "nowhere"), None),
        ("agree", ("--perf-analyzer", "nowhere"), None),
    ],
)
def test_no_verb_passes_against_a_stopped_server(
    verb: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: tuple[object, ...],
    objectives: Any,
) -> None:
    monkeypatch.setattr("loadtests.session.CAPACITY_SECONDS", 1.0)
    other = (f"grpc://{refused_address()}",) if name == "compare" else ()
    result = verb(name, *other, *arguments, objectives=objectives, target=DEAD)
    assert result.exit_code in (1, 2), result.output
    assert last_line(result)["passed"] is False


def test_a_workload_without_requests_and_a_generator_that_died(
    verb: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    result = verb("run", *RUN, "--workload", empty)
    assert (result.exit_code, last_line(result)["passed"], last_line(result)["valid"]) == (2, False, False)
    assert str(empty) in last_line(result)["why"][0]

    broken = tmp_path / "locustfile.py"
    broken.write_text("import os\nos._exit(0)\n", encoding="utf-8")
    monkeypatch.setattr(generator, "LOCUSTFILE", broken)
    result = verb("run", *RUN)
    assert (result.exit_code, last_line(result)["passed"], last_line(result)["valid"]) == (2, False, False)
    assert "Locust ended" in last_line(result)["why"][0]


def test_a_sweep_with_a_level_without_figures_has_not_passed(small_workload: Path, tmp_path: Path) -> None:
    from test_loadtest_perf import make_stand_in

    launcher = make_stand_in(tmp_path, "refuse rates")
    options = ["--concurrency", "1", "--rates", "5", "--requests", "3", "--perf-analyzer", str(launcher)]
    places = ["--workload", str(small_workload), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["perf", "grpc://127.0.0.1:1", *options, *places])
    found = last_line(result)
    assert (result.exit_code, found["passed"], found["levels"], found["failed"]) == (1, False, 1, 1), result.output


@pytest.mark.slow
@ALONE
def test_a_phase_that_nobody_answered_is_not_outweighed_by_others(verb: Callable[..., Result], tmp_path: Path) -> None:
    verb("run", *RUN)
    run = read_run(tmp_path / "run.json")
    answered, silent = run.phases[0], run.phases[0].model_copy(update={"name": "spike"})
    silent = silent.model_copy(update={"totals": silent.totals.model_copy(update={"answered": 0, "good": 0})})

    def with_phases(*phases: object) -> Run:
        return run.model_copy(update={"phases": list(phases)})

    assert with_phases(answered).passed
    assert not with_phases(answered, silent).passed
    assert with_phases(answered, silent.model_copy(update={"counts": False})).passed
    steps = [one.model_copy(update={"name": f"ramp {rate}/s"}) for rate, one in ((4, answered), (9, silent))]
    assert with_phases(*steps).passed, "the last steps of a ramp are beyond saturation"


def test_fairness_of_no_request_is_no_fairness() -> None:
    with pytest.raises(ValueError, match="compare nothing"):
        fairness.compare("grpc://127.0.0.1:1", [], [], 0)
