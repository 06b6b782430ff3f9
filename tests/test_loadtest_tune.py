"""The search finds what is better, says so only beyond the noise, goes on where it stopped, spares the artifacts."""

import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import Build
from misbehaving_server import QUEUE_FULL, MisbehavingServer
from optuna.trial import TrialState
from tritonrank.recipe import load_recipe, setting_rows

from loadtests import tune_trial
from loadtests.objectives import Objectives, read_objectives
from loadtests.target import LiveServer
from loadtests.tune import (
    AS_IT_IS,
    TURNS,
    Outcome,
    identity_of,
    is_gain,
    open_study,
    search,
    search_space,
    write_outcome,
)
from loadtests.tune_trial import Bench, Choices, Measurement, TrialError, assemble, set_options

SPACE = {
    "serve.instances": [AS_IT_IS, 2, 4],
    "serve.threads": [AS_IT_IS, 1],
    "serve.queue_requests": [AS_IT_IS, 500],
}
IDENTITY = "one"


class Machine:
    """Measures without a server: four instances of one thread are best, and equal settings differ by ``noise``."""

    def __init__(self, gain: float = 1.5, noise: float = 0.0) -> None:
        self.gain, self.noise = gain, noise
        self.asked: list[dict[str, object]] = []
        self.random = random.Random(1)

    def __call__(self, choices: Choices) -> Measurement:
        self.asked.append(dict(choices))
        right = (choices.get("serve.instances") == 4) + (choices.get("serve.threads") == 1)
        per_second = 10 * (1 + (self.gain - 1) * right / 2) * (1 + self.noise * (2 * self.random.random() - 1))
        return Measurement(per_second, p50_ms=50, p99_ms=100)


class Clock:
    """Every measurement takes ten seconds, which pass without waiting."""

    def __init__(self, machine: Callable[[Choices], Measurement]) -> None:
        self.now, self.machine = 0.0, machine

    def monotonic(self) -> float:
        return self.now

    def measure(self, choices: Choices) -> Measurement:
        self.now += 10
        return self.machine(choices)


GRAPHS = ("context.onnx", "candidates.onnx")
"""Of a shared-context ranker."""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "tune" / "journal.log"


def searched(
    journal: Path, machine: Callable[[Choices], Measurement], monkeypatch: pytest.MonkeyPatch, seconds: float = 1_000
) -> tuple[Outcome, list[str]]:
    clock, lines = Clock(machine), list[str]()
    monkeypatch.setattr("loadtests.tune.time.monotonic", clock.monotonic)
    monkeypatch.setattr("loadtests.tune.REPEATS_BEFORE_END", 10)
    return search(open_study(journal, IDENTITY), SPACE, clock.measure, seconds, lines.append), lines


def test_the_best_is_found_and_measured_again(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    outcome, lines = searched(journal, machine, monkeypatch)
    assert {"serve.instances": 4, "serve.threads": 1}.items() <= outcome.best.items()
    assert outcome.gain == pytest.approx(1.5)
    assert machine.asked[0] == {}  # the recipe as it is comes first
    assert machine.asked[-2 * TURNS :] == [{}, outcome.best] * TURNS  # and again at the end, by turns
    measured = [json.dumps(one, sort_keys=True) for one in machine.asked[: -2 * TURNS]]
    assert len(measured) == len(set(measured))  # nothing twice
    assert len(lines) == len(machine.asked)


def test_luck_is_hardly_ever_called_a_gain() -> None:
    draws = random.Random(1)

    def draw(mean: float) -> list[Measurement]:
        return [Measurement(mean * (1 + 0.4 * (draws.random() - 0.5)), 50, 100) for _ in range(TURNS)]

    called = sum(is_gain(draw(10), draw(10)) for _ in range(2_000))
    assert called / 2_000 < 0.07
    assert all(is_gain(draw(10), draw(16)) for _ in range(100))


def test_what_is_no_gain() -> None:
    def three(*values: float, missed: bool = False) -> list[Measurement]:
        return [Measurement(value, 50, 100, ("p99",) if missed else (), 1.0) for value in values]

    assert is_gain(three(10, 10, 11), three(12, 12, 12))
    assert not is_gain(three(10, 10, 12), three(12, 12, 12))  # one is as good
    assert not is_gain(three(10.0, 10.0, 10.0), three(10.1, 10.1, 10.1))  # too little to matter
    assert not is_gain(three(10, 10, 10), three(12, 12))  # one of them could not be measured
    assert not is_gain(three(10, 10, 10), three(20, 20, 20, missed=True))
    assert is_gain(three(10, 10, 10, missed=True), three(20, 20, 20, missed=True))


def test_what_does_not_repeat_is_not_recommended(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(choices: Choices) -> Measurement:
        measured.append(dict(choices))
        is_second_look = measured.count({}) > 1
        return Measurement(10.0 if is_second_look else 10.0 + len(choices), 50, 100)

    measured: list[dict[str, object]] = []
    outcome, _ = searched(journal, measure, monkeypatch)
    assert outcome.candidate
    assert outcome.gain == 1.0
    assert outcome.best == {}


def test_the_budget_leaves_time_for_the_second_look(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    searched(journal, machine, monkeypatch, seconds=100)
    assert 2 * TURNS + 2 <= len(machine.asked) <= 10


def test_missed_objectives_cost_everything(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(choices: Choices) -> Measurement:
        if choices.get("serve.instances") == 4:  # fast, but not in time
            return Measurement(100.0, 50, 5_000, missed=("p99 latency <= 1000 ms",), excess=4.0)
        return Measurement(12.0 if choices.get("serve.threads") == 1 else 10.0, 50, 100)

    outcome, _ = searched(journal, measure, monkeypatch)
    assert outcome.best["serve.threads"] == 1
    assert outcome.best.get("serve.instances") != 4
    missed = [Measurement(100, 1, 1, ("a",), excess) for excess in (0.1, 2.0)]
    assert missed[1].value < missed[0].value < Measurement(0.01, 1, 1).value


def test_settings_that_do_not_start_are_told_and_left(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()

    def measure(choices: Choices) -> Measurement:
        if choices.get("serve.instances") == 4:
            raise TrialError("the server ran out of memory\nlast lines")
        return machine(choices)

    outcome, lines = searched(journal, measure, monkeypatch)
    assert outcome.best["serve.threads"] == 1
    assert any("serve.instances=4" in key for key in outcome.failed)
    assert any(line.endswith("the server ran out of memory") for line in lines)


def test_a_recipe_that_cannot_be_served_ends_the_search(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(choices: Choices) -> Measurement:
        raise TrialError("no server")

    with pytest.raises(TrialError, match="no server"):
        searched(journal, measure, monkeypatch)
    # Once that is mended the recipe as it is comes first again.
    machine = Machine()
    searched(journal, machine, monkeypatch)
    assert machine.asked[0] == {}


def test_an_interrupted_search_goes_on(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Machine()

    def measure(choices: Choices) -> Measurement:
        if len(first.asked) == 5:
            raise KeyboardInterrupt
        return first(choices)

    with pytest.raises(KeyboardInterrupt):
        searched(journal, measure, monkeypatch)
    assert [trial.state for trial in open_study(journal, IDENTITY).trials].count(TrialState.FAIL) == 1
    second = Machine()
    outcome, _ = searched(journal, second, monkeypatch)
    again = second.asked[: -2 * TURNS]
    assert not [choices for choices in again if choices in first.asked]
    assert outcome.trials == len(first.asked) + len(again)
    assert outcome.gain == pytest.approx(1.5)


def test_other_conditions_are_another_study(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched(journal, Machine(), monkeypatch)
    assert open_study(journal, "another").trials == []


@pytest.fixture
def bench(certain: Build, tmp_path: Path) -> Bench:
    """A build that was assembled, and may be changed."""
    build = certain.copied(tmp_path / "artifacts")
    (tmp_path / "workload.jsonl").write_text("not read here")
    repository = build.workspace.repository / "ranker" / "1"
    repository.mkdir(parents=True)
    for name in GRAPHS:
        (repository / name).touch()
    (build.workspace.repository / "manifest.json").write_text("{}")
    return Bench(build.recipe_path, (), build.workspace.root, tmp_path / "workload.jsonl", read_objectives())


@pytest.mark.parametrize("stage", ["int8", "repository"])
def test_what_was_built_anew_is_measured_anew(bench: Bench, stage: str) -> None:
    before = identity_of(bench, SPACE)
    assert identity_of(bench, SPACE) == before
    manifest = bench.artifacts / stage / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    assert identity_of(bench, SPACE) != before


def test_the_space_is_made_of_settings_that_exist(bench: Bench) -> None:
    known = {row.key for row in setting_rows()}
    space = search_space(bench.artifacts, cores=4)
    assert set(space) <= known
    assert all(values[0] == AS_IT_IS for values in space.values())
    for key, values in space.items():
        for value in values[1:]:
            load_recipe(bench.recipe, list(set_options({key: value})))
    shared = set(space)
    for name in GRAPHS:
        (bench.artifacts / "repository" / "ranker" / "1" / name).unlink()
    assert shared ^ set(search_space(bench.artifacts, cores=4)) == {"serve.rows_per_batch"}
    with pytest.raises(TrialError, match="Build it first"):
        search_space(bench.artifacts / "nothing", cores=4)


def test_the_result_is_what_the_pipeline_takes(bench: Bench, tmp_path: Path) -> None:
    best = {"serve.instances": 3, "serve.threads": "auto", "serve.queue_requests": 500}
    one, other = Measurement(10.0, 50, 100), Measurement(12.0, 40, 90)
    outcome = Outcome(best, best, [one, one], [other, other], 0.02, 7, {"serve.threads=9": "why"})
    path = write_outcome(outcome, tmp_path / "out", bench)
    serve = load_recipe(bench.recipe, [f"@{path}"]).serve
    assert (serve.instances, serve.threads, serve.queue_requests) == (3, "auto", 500)
    assert "1.20 times the recipe as it is" in path.read_text()
    told = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert told["gain"] == pytest.approx(1.2)
    assert told["failed"] == {"serve.threads=9": "why"}
    # Nothing better: the earlier advice must not stay.
    write_outcome(Outcome({}, best, [one], [one], 0.0, 9), tmp_path / "out", bench)
    assert not path.exists()


@pytest.mark.slow
def test_assembling_a_trial_leaves_the_artifacts_alone(bench: Bench) -> None:
    before = {path: path.stat().st_mtime_ns for path in bench.artifacts.rglob("*") if path.is_file()}
    assemble(bench, {"serve.instances": 3, "serve.threads": 2})
    config = (bench.work / "repository" / "ranker" / "config.pbtxt").read_text()
    assert re.search(r'key: "lanes"\s+value \{\s+string_value: "3"', config)
    assert 'key: "threads"' in config
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_artifacts_of_another_recipe_are_not_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = bench.workload.with_name("python")
    stand_in.write_text("#!/bin/sh\necho 'prepare    up to date  x'\necho 'finetune   -> artifacts'\nexec sleep 60\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr("loadtests.tune_trial.sys.executable", str(stand_in))
    with pytest.raises(TrialError, match=r"finetune would run again.*tritonrank build"):
        assemble(bench, {})
    stand_in.write_text("#!/bin/sh\necho 'no such setting'\nexit 1\n")
    with pytest.raises(TrialError, match="assemble failed:\nno such setting"):
        assemble(bench, {})
    monkeypatch.setattr("loadtests.tune_trial.ASSEMBLE_SECONDS", 0.3)
    stand_in.write_text("#!/bin/sh\necho 'at work'\nexec sleep 60\n")
    with pytest.raises(TrialError, match=r"has not ended after 0\.3 s"):
        assemble(bench, {})


def test_without_a_build_there_is_nothing_to_tune(bench: Bench) -> None:
    shutil.rmtree(bench.artifacts / "repository")
    with pytest.raises(TrialError, match="Build it first"):
        assemble(bench, {})


@pytest.mark.slow
def test_settings_with_which_nothing_is_answered_are_no_measurement(
    small_workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a very slow trial either: the recipe as it is would look like a gain beside it."""
    server = MisbehavingServer()
    server.behave(QUEUE_FULL)
    urls = server.urls
    live = LiveServer(urls["grpc"], urls["http"], "", None)
    monkeypatch.setattr(tune_trial, "assemble", lambda *_: None)
    monkeypatch.setattr(tune_trial, "open_target", lambda *_: nullcontext(live))
    objectives = Objectives.model_validate(
        {"load": {"rate": 5, "candidates": 4, "deadline_ms": 500}, "steady": {"p99_ms": 400}}
    )
    bench = tune_trial.Bench(tmp_path / "r.yaml", (), tmp_path, small_workload, objectives, seconds=1.0, clients=1)
    try:
        with pytest.raises(tune_trial.TrialError, match="nothing was answered"):
            bench.measure({})
    finally:
        server.close()
