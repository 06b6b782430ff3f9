"""python -m loadtests, as it is typed: verdicts, exit codes, and what is said when nothing can be tested."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from misbehaving_server import Limited, MisbehavingServer, Slow
from typer.testing import CliRunner

from loadtests import session
from loadtests.__main__ import app
from loadtests.machine import Machine, describe_machine
from loadtests.results import read_run
from loadtests.shapes import plan_of
from loadtests.soak import say_what_repeats

LOAD = {"rate": 10, "candidates": 4, "deadline_ms": 1_000, "spike": 2}
STRICT = {"load": LOAD, "steady": {"p50_ms": 100, "p99_ms": 900, "goodput": 0.99}, "ramp": {"saturation": 1}}
LENIENT = {"load": LOAD, "steady": {"p50_ms": 800, "goodput": 0.9}, "spike": {"recovery_seconds": 5}}
OVERLOAD = {
    "load": LOAD,
    "overload": {
        "goodput_of_peak": 0.85,
        "p99_of_saturation": 3.5,  # 0.2 s when nobody waits, 0.6 s behind four others; and a little for a slow machine
        "rejection_ms": 200,
        "memory_growth": 0.5,
        "recovery_seconds": 2,
    },
}

ATTEMPTS = 3  # on a crowded machine the generator itself may come too late, and says so


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_on_time(server: MisbehavingServer, *arguments: object) -> Result:
    """A verb that sends a load, again where its generator was late: such a run says nothing of the server."""
    for _ in range(ATTEMPTS):
        server.asked.clear()
        result = run(*arguments)
        if result.exit_code > 1 or summary(result)["valid"]:
            break
    return result


def summary(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    yield server
    server.close()


@pytest.fixture
def objectives(tmp_path: Path) -> Any:
    def write(values: object) -> Path:
        path = tmp_path / "slo.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


@pytest.mark.slow
@pytest.mark.alone
def test_a_slowed_server_fails_the_load_test(
    server: MisbehavingServer,
    objectives: Any,
    small_workload: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_before: list[int] = []

    def describe_idle() -> Machine:
        asked_before.append(len(server.asked))
        return idle

    idle = describe_machine().model_copy(update={"load_average": -1.0})
    monkeypatch.setattr(session, "describe_machine", describe_idle)
    monkeypatch.setattr(session, "CAPACITY_SECONDS", 1.0)
    server.behave(Slow(0.3))
    out = tmp_path / "run.json"
    arguments = ("loadtest", server.urls["grpc"], "--workload", small_workload, "--seconds", 5, "--out", out)
    result = run_on_time(server, *arguments, "--slo", objectives(STRICT))
    assert result.exit_code == 1, result.output
    found = summary(result)
    assert found["missed"] == ["steady: p50 latency"]
    assert (found["passed"], found["valid"]) == (False, True), result.output
    assert "MISSED" in result.stdout
    made = read_run(out)
    assert [phase.name.split()[0] for phase in made.phases][:2] == ["warm-up", "steady"]
    assert made.verb == made.shape.name == "loadtest"
    sent = [tuple(asked.inputs["item_ids"]) for asked in server.asked]
    assert len(set(sent)) == len(sent), "the load begins behind the requests that found the capacity"
    assert made.workload.sent_before > 0
    assert (made.machine, {*asked_before}) == (idle, {0}), "its own loads are not other people's work"
    assert made.workload.laps == pytest.approx(len(sent) / 300, abs=0.02)
    assert Path(found["page"]).read_text(encoding="utf-8").startswith("<!")

    again = run("judge", out, "--slo", objectives(LENIENT))
    assert again.exit_code == 0, again.output
    assert read_run(out).passed
    assert run("judge", out, "--slo", objectives(STRICT)).exit_code == 1


@pytest.mark.slow
@pytest.mark.alone
def test_a_server_that_refuses_in_time_stands_an_overload(
    server: MisbehavingServer,
    objectives: Any,
    small_workload: Path,
    tmp_path: Path,
) -> None:
    """Two workers of 200 ms: 10 requests per second, of which four may wait; little work for a slow machine."""
    server.behave(Limited(workers=2, seconds=0.2, most_waiting=4))
    out = tmp_path / "run.json"
    arguments = ("overload", server.urls["grpc"], "--workload", small_workload, "--seconds", 9, "--saturation", 10.5)
    result = run_on_time(server, *arguments, "--slo", objectives(OVERLOAD), "--out", out)
    assert result.exit_code == 0, result.output
    made = read_run(out)
    overload = made.phase("overload")
    assert overload is not None
    assert overload.totals.failed["rejected"] > 0.5 * overload.totals.offered
    assert set(overload.totals.failed) == {"rejected"}
    assert 7.5 < overload.totals.goodput_per_second < 11.5, "what the two workers can do, and little less"
    assert len(made.verdicts) == 6


@pytest.mark.slow
@pytest.mark.alone
def test_a_soak_says_beforehand_that_its_workload_starts_over(
    server: MisbehavingServer, objectives: Any, small_workload: Path, tmp_path: Path
) -> None:
    workload, out = tmp_path / "workload.jsonl", tmp_path / "run.json"
    lines = small_workload.read_text(encoding="utf-8").splitlines(keepends=True)
    workload.write_text("".join(lines[:30]), encoding="utf-8")
    arguments = ("soak", server.urls["grpc"], "--workload", workload, "--minutes", 0.08, "--saturation", 10)
    result = run(*arguments, "--slo", objectives({"load": LOAD, "soak": {"error_rate": 0}}), "--out", out)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "The workload's 30 requests will be sent" in said
    assert read_run(out).workload.laps > 1


def test_what_the_search_for_saturation_has_sent_counts_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("soak", rate=10, seconds=10)
    say_what_repeats(plan, 150, sent_before=50)
    assert capsys.readouterr().err == ""
    say_what_repeats(plan, 150, sent_before=51)
    assert "--requests 151" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_cannot_be_judged_is_kept(
    server: MisbehavingServer, objectives: Any, small_workload: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.json"
    arguments = ("run", server.urls["http"], "--workload", small_workload, "--seconds", 1, "--warm-up", 0, "--out", out)
    result = run(*arguments, "--slo", objectives({"load": LOAD, "soak": {"error_rate": 0}}))
    assert result.exit_code == 2
    assert "no objective is about this run" in result.output
    made = read_run(out)
    assert made.totals.answered > 0
    assert {asked.protocol for asked in server.asked} == {made.target.protocol} == {"http"}, "as the URL says"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere"], "nowhere/workload.jsonl: no such workload. Write it: tritonrank workload nowhere"),
        (["run", "nowhere", "--workload", "WORKLOAD"], "nowhere: neither a URL"),
        (["run", "grpc://127.0.0.1:1"], "--workload: a URL has no workload of its own"),
        (["run", "grpc://127.0.0.1", "--workload", "WORKLOAD"], "expected grpc:// or http:// with host and port"),
        (["run", "grpc://127.0.0.1:1", "--workload", "missing.jsonl"], "missing.jsonl: No such file"),
        (["run", "grpc://127.0.0.1:1", "--workload", "WORKLOAD", "--candidates", "9"], "no request with 9 items"),
        (["run", "grpc://127.0.0.1:1", "--workload", "WORKLOAD", "--golden", "none.json"], "none.json"),
        (["run", "grpc://127.0.0.1:1", "--workload", "WORKLOAD", "--rate", "0"], "no request is due"),
        (["loadtest", "nowhere", "--slo", "none.yaml"], "none.yaml: No such file"),
        (["run", "nowhere", "--slo", "none.yaml"], "none.yaml: No such file"),
        (["soak", "nowhere", "--slo", "LOAD ONLY"], "has no limits in soak"),
        (["loadtest", "nowhere", "--slo", "LOAD ONLY"], "has no limits in steady or ramp or spike"),
        (["judge", "none.json"], "none.json: No such file or directory. Make one"),
    ],
)
def test_what_cannot_be_tested_is_told_in_one_message(
    arguments: list[str],
    said: str,
    small_workload: Path,
    objectives: Any,
) -> None:
    files = {"WORKLOAD": small_workload, "LOAD ONLY": objectives({"load": LOAD, "soak": {}})}
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert said in result.output.replace("\n", "")
    assert "Traceback" not in result.output


def test_every_verb_says_what_it_does() -> None:
    listed = run("--help").output
    for verb, command in typer.main.get_command(app).commands.items():
        assert re.search(rf"^\W*{verb} ", listed, re.MULTILINE), verb
        shown = run(verb, "--help")
        assert shown.exit_code == 0, verb
        assert " ".join(command.help.split())[:40] in " ".join(shown.output.split()), verb
