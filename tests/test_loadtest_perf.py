"""perf_analyzer's files become the figures they say, and whatever is wrong with it is told by file and column.

The files in tests/perf_analyzer are what the real one wrote (of its profile the texts were taken out); a stand-in puts
them where it would. The real one measures the tests' server at the end.
"""

import csv
import json
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import Served
from tritonrank.data.workload import make_workload
from tritonrank.data.workload_settings import WorkloadSettings
from tritonrank_client._wire import build_request
from typer.testing import CliRunner

from loadtests import agree as agreement
from loadtests.__main__ import app
from loadtests.agree import Agreement, compare
from loadtests.generator import GeneratorError
from loadtests.perf import Sweep, run_sweep
from loadtests.perf_analyzer import Level, Measured, PerfAnalyzerError, input_data, measure, read_row, sendable
from loadtests.results import Run, Spread, read_run
from loadtests.target import LiveServer, TargetError, open_target
from loadtests.workload import WorkloadRequest, read_workload

ROOT = Path(__file__).parents[1]
SAVED = Path(__file__).parent / "perf_analyzer"
CLIENTS, RATE = Level("concurrency", 4), Level("rate", 8)

STAND_IN = """#!{python}
import json, shutil, sys, time
from pathlib import Path
options = sys.argv[1:]
if options == ["--version"]:
    print("Perf Analyzer Version 2.51.0 (commit abc)", file=sys.stderr)
    sys.exit()
name = options[options.index("-f") + 1].removesuffix(".csv")
rows = json.loads(Path(name + ".input.json").read_text())["data"]
with open("asked.jsonl", "a") as file:
    file.write(json.dumps({{"options": options, "first": rows[0]["items"]["content"], "rows": len(rows)}}) + "\\n")
saved = Path("{saved}")
load = next(float(options[place + 1]) for place, option in enumerate(options) if option.endswith("-range"))
if len(rows) < load:
    print("Error: request-count can not be less than concurrency\\nUsage: all of it", file=sys.stderr)
    sys.exit(99)
if "{behaviour}" == "hang":
    time.sleep(60)
if "{behaviour}" == "refuse" or ("{behaviour}" == "refuse rates" and "--request-rate-range" in options):
    print((saved / "refused.txt").read_text())
    sys.exit(99)
for path in saved.glob("*c4.*"):
    shutil.copyfile(path, path.name.replace("c4", name))
print((saved / "c4.txt").read_text())
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    return make_stand_in(tmp_path, "answer")


def make_stand_in(folder: Path, behaviour: str, saved: Path = SAVED) -> Path:
    launcher = folder / "perf_analyzer"
    launcher.write_text(STAND_IN.format(python=sys.executable, saved=saved, behaviour=behaviour))
    launcher.chmod(0o755)
    return launcher


def requests(count: int = 3) -> list[WorkloadRequest]:
    return [
        WorkloadRequest(n, float(n), f"user {n}", "tent", ["a", "b"], [f"item {n}", "ü"], [f"{n}", "x"], None)
        for n in range(count)
    ]


def measured(
    launcher: Path, folder: Path, level: Level = CLIENTS, longest_seconds: float = 20, rows: int = 8
) -> Measured:
    return measure(
        level,
        requests(rows),
        url="grpc://127.0.0.1:8001",
        protocol="grpc",
        folder=folder,
        launcher=launcher,
        longest_seconds=longest_seconds,
    )


def asked(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


def test_it_sends_the_tensors_that_our_client_sends() -> None:
    (one,) = requests(1)
    ours = build_request(
        query=one.query, history=one.history, items=one.items, item_ids=one.item_ids, top_k=0, request_id=""
    )
    (row,) = input_data([one])["data"]
    assert set(row) == {tensor.name for tensor in ours.tensors}
    for tensor in ours.tensors:
        sent = [value.decode() if isinstance(value, bytes) else int(value) for value in tensor.values]
        assert row[tensor.name] == {"content": sent, "shape": list(tensor.values.shape)}


def test_requests_without_history_are_left_out() -> None:
    first, second, third = requests()
    assert sendable([first, replace(second, history=[]), third]) == [first, third]


def test_latencies_are_those_of_its_own_report(stand_in: Path, tmp_path: Path) -> None:
    done = measured(stand_in, tmp_path / "out")
    level, told = done.level, read_row(SAVED / "c4.csv")
    assert level.requests == 60
    ordered = sorted(round((end - start) * 1e6) for start, end in done.times)
    for percentile, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        # It takes the value at that share of the list, we the one before (nearest rank).
        assert round(1_000 * getattr(level.latency, percentile)) == ordered[math.ceil(share * 60) - 1]
        assert min(abs(told[f"{percentile} latency"] - ordered[min(59, int(share * 60) + by)]) for by in (-1, 0)) <= 1
    # The report counts the wait at the end of its windows.
    assert told["Inferences/Second"] < level.answered_per_second < 1.2 * told["Inferences/Second"]
    assert level.answered_per_second == pytest.approx(level.requests / level.seconds, rel=1e-3)


def test_the_breakdown_names_every_model_in_the_order_of_the_flow(stand_in: Path, tmp_path: Path) -> None:
    level = measured(stand_in, tmp_path / "out").level
    assert [model.model for model in level.models] == ["rank", "tokenize", "score", "select"]
    score = level.models[2]
    with (SAVED / "score_v1.c4.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert score.queue_us == float(row["Server Queue"])
    assert score.compute_us == float(row["Server Compute Infer"])
    parts = sum(float(row[f"Server Compute {part}"]) for part in ("Input", "Infer", "Output"))
    assert score.computing_us == pytest.approx(parts)
    assert score.overhead_us == 4
    assert level.network_us == read_row(SAVED / "c4.csv")["Network+Server Send/Recv"]


def test_files_are_kept_but_not_the_texts(stand_in: Path, tmp_path: Path) -> None:
    measured(stand_in, tmp_path / "out")
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"concurrency-4.csv", "score_v1.concurrency-4.csv", "concurrency-4.txt"} <= kept
    assert not {"concurrency-4.json", "concurrency-4.input.json"} & kept


def test_arrivals_are_open_and_clients_wait(stand_in: Path, tmp_path: Path) -> None:
    for level in (CLIENTS, RATE):
        measured(stand_in, tmp_path / "out", level)
    clients, rate = (one["options"] for one in asked(tmp_path / "out"))
    assert isinstance(clients, list)
    assert isinstance(rate, list)
    assert {"--sync", "--concurrency-range"} <= set(clients)
    assert {"--async", "--request-rate-range", "poisson"} <= set(rate)
    for options in (clients, rate):
        assert options[options.index("--request-count") + 1] == "8"
        assert options[options.index("-u") + 1] == "127.0.0.1:8001"


def test_a_refusing_server_gives_a_level_without_figures(tmp_path: Path) -> None:
    measured(make_stand_in(tmp_path, "answer"), tmp_path / "out")
    done = measured(make_stand_in(tmp_path, "refuse"), tmp_path / "out")
    assert "Exceeds maximum queue size" in done.level.failed
    assert "exit code 99" in done.level.failed
    assert done.level.requests == 0
    assert not done.times
    # What the earlier run left must not pass for this one's.
    assert not list((tmp_path / "out").glob("*.csv"))


def test_what_it_says_of_a_wrong_option_is_told(stand_in: Path, tmp_path: Path) -> None:
    done = measured(stand_in, tmp_path / "out", rows=3)
    assert done.level.failed.endswith("Error: request-count can not be less than concurrency")


def test_a_hanging_server_is_given_up(tmp_path: Path) -> None:
    done = measured(make_stand_in(tmp_path, "hang"), tmp_path / "out", longest_seconds=0.5)
    assert "no end after 0.5 s" in done.level.failed


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("c4.csv", "Client Recv", "Client Received", "no column 'Client Recv'"),
        ("score_v1.c4.csv", "Server Queue", "Queue", "no column 'Server Queue'"),
        ("score_v1.c4.csv", "57642", "soon", "column 'Server Queue': 'soon' is not a number"),
        ("tokenize_v1.c4.csv", "4,", "nan,", "is not a figure"),
        ("c4.csv", "\n4,", "\n4,1\n4,", "2 rows; expected one"),
        ("c4.json", "experiments", "experiment", "not a profile"),
        ("c4.json", '"response_timestamps":[', '"response_timestamps":["x",', "not a profile"),
    ],
)
def test_damaged_files_are_named(file: str, old: str, new: str, told: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    for path in SAVED.iterdir():
        (saved / path.name).write_text(path.read_text())
    text = (saved / file).read_text()
    assert old in text
    (saved / file).write_text(text.replace(old, new))
    with pytest.raises(PerfAnalyzerError, match=told) as error:
        measured(make_stand_in(tmp_path, "answer", saved), tmp_path / "out")
    assert file.replace("c4", "concurrency-4") in str(error.value)


def test_texts_longer_than_127_bytes_are_read(tmp_path: Path) -> None:
    """perf_analyzer writes texts as they went over the wire, with the bytes of their lengths."""
    saved = tmp_path / "saved"
    shutil.copytree(SAVED, saved)
    profile = (saved / "c4.json").read_bytes()
    where = profile.index(b'"response_outputs"')
    inputs = b'"request_inputs":{"query":"\x96\\u0000\\u0000\\u0000desk"},'
    (saved / "c4.json").write_bytes(profile[:where] + inputs + profile[where:])
    done = measured(make_stand_in(tmp_path, "answer", saved), tmp_path / "out")
    assert done.level == measured(make_stand_in(tmp_path, "answer"), tmp_path / "other").level


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PerfAnalyzerError, match=r"absent\.csv: cannot be read"):
        read_row(tmp_path / "absent.csv")


def test_without_perf_analyzer_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(PerfAnalyzerError, match="make tools"):
        measured(tmp_path / "absent", tmp_path)
    (tmp_path / "broken").write_text("neither a script nor a program")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(PerfAnalyzerError, match="make tools"):
        measured(tmp_path / "broken", tmp_path)


@pytest.mark.parametrize(
    ("concurrency", "rates"),
    [("0", "none"), ("2:1", "1"), ("many", "1"), ("1", "0"), ("none", "none"), ("none", "auto")],
)
def test_a_sweep_needs_something_to_do(concurrency: str, rates: str) -> None:
    with pytest.raises(ValueError, match="--"):
        Sweep.parse(concurrency, rates, 10)


def test_a_sweep_is_parsed() -> None:
    assert Sweep.parse("1:3", "auto", 7) == Sweep((1, 2, 3), None, 7)
    assert Sweep.parse("4,1", "2.5", 7) == Sweep((4, 1), (2.5,), 7)
    assert Sweep.parse("none", "1,2", 7) == Sweep((), (1.0, 2.0), 7)


def sweep(launcher: Path, folder: Path, rows: int = 8) -> Run:
    server = LiveServer("grpc://127.0.0.1:1", "http://127.0.0.1:1", "", None)  # nobody is there
    file = folder / "workload.jsonl"
    agreement.write_rows(requests(rows), file)
    return run_sweep(server, "grpc", file, read_workload(file), Sweep((1, 2), None, 3), folder / "out", launcher)


def test_every_level_sends_requests_that_are_new(stand_in: Path, tmp_path: Path) -> None:
    run = sweep(stand_in, tmp_path)
    sent = asked(tmp_path / "out")
    assert [one["first"] for one in sent[:3]] == [["item 0", "ü"], ["item 3", "ü"], ["item 6", "ü"]]
    # As many as asked for; of a high rate as many as come in a second, which perf_analyzer insists on.
    wanted = [max(3, math.ceil(level.value)) for level in run.perf]
    assert [one["rows"] for one in sent] == wanted
    assert max(wanted) > 3
    assert run.workload.laps == pytest.approx(sum(wanted) / 8, abs=0.01)


def test_rates_follow_from_what_the_clients_got(stand_in: Path, tmp_path: Path) -> None:
    run = sweep(stand_in, tmp_path)
    best = max(level.answered_per_second for level in run.perf if level.mode == "concurrency")
    rates = [level.value for level in run.perf if level.mode == "rate"]
    assert rates == [pytest.approx(share * best, abs=0.01) for share in (0.3, 0.5, 0.7, 0.9)]
    assert [phase.rate for phase in run.phases] == [None, None, *rates]
    assert run.versions["perf_analyzer"] == "2.51.0"


def test_levels_that_fail_do_not_end_the_sweep(tmp_path: Path) -> None:
    run = sweep(make_stand_in(tmp_path, "refuse rates"), tmp_path)
    assert [bool(level.failed) for level in run.perf] == [False, False, True, True, True, True]
    assert len(run.phases) == 2
    assert len(run.failures) == 4
    assert run.client.valid


@pytest.mark.parametrize(("behaviour", "code"), [("answer", 0), ("refuse", 1)])
def test_the_exit_code_says_whether_anything_was_measured(behaviour: str, code: int, tmp_path: Path) -> None:
    file = tmp_path / "workload.jsonl"
    agreement.write_rows(requests(), file)
    options = ["--workload", str(file), "--concurrency", "1", "--rates", "none", "--requests", "3"]
    places = ["--perf-analyzer", str(make_stand_in(tmp_path, behaviour)), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["perf", "grpc://127.0.0.1:1", *options, *places])
    assert done.exit_code == code, done.output
    assert len(read_run(tmp_path / "out" / "perf.json").perf) == 1


@pytest.mark.parametrize("target", ["grpc://host", "ftp://host:1", "grpc://host:none", "no/such/folder"])
def test_a_target_is_a_url_or_a_folder(target: str) -> None:
    with pytest.raises(TargetError), open_target(target):
        pass


def test_agreement_has_two_sides() -> None:
    found = Agreement("grpc", {"locust": [108.0, 112.0], "perf_analyzer": [100.0, 100.0]})
    assert found.ratio == pytest.approx(1.1)
    assert found.is_within(0.101)
    assert not found.is_within(0.09)
    swapped = Agreement("grpc", {"locust": [100.0], "perf_analyzer": [110.0]})
    assert not swapped.is_within(0.09)


def test_a_generator_without_answers_is_told(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sweep(stand_in, tmp_path)
    silent = run.model_copy(update={"totals": run.totals.model_copy(update={"answered": 0, "service": Spread()})})
    monkeypatch.setattr(agreement, "generate", lambda *_: silent)
    with pytest.raises(GeneratorError, match="Locust: no request was answered"):
        compare("grpc://127.0.0.1:1", "grpc", requests(8), stand_in)


def test_the_record_of_an_agreement_says_where_and_of_what(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = sweep(stand_in, tmp_path), tmp_path / "records" / "agree.json"
    monkeypatch.setattr(agreement, "generate", lambda *_: run)
    monkeypatch.setattr(agreement, "served_settings", lambda _: {"score.instances": "2"})
    options = ["--workload", str(tmp_path / "workload.jsonl"), "--requests", "5", "--perf-analyzer", str(stand_in)]
    done = CliRunner().invoke(app, ["agree", "http://127.0.0.1:1", *options, "--allowed", "9", "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert (record["protocol"], record["settings"], record["workload"]["rows"]) == ("http", {"score.instances": "2"}, 5)
    assert record["machine"]["processor"]
    assert len(record["p50"]["locust"]) == 4
    assert record.items() >= json.loads(done.stdout.splitlines()[-1]).items()


@pytest.fixture(scope="module")
def workload(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "workload.jsonl"
    return make_workload(served.workspace.root, path, WorkloadSettings(requests=60, candidates="8"))


@pytest.fixture
def live(served: Served) -> LiveServer:
    triton = served.triton
    return LiveServer(triton.grpc_url, triton.http_url, triton.metrics_url, triton.pid)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_real_one_measures_the_real_server(
    protocol: str, live: LiveServer, workload: Path, perf_analyzer: Path, tmp_path: Path
) -> None:
    spoken = "grpc" if protocol == "grpc" else "http"
    run = run_sweep(
        live, spoken, workload, read_workload(workload), Sweep((1,), (10.0,), 15), tmp_path / protocol, perf_analyzer
    )
    clients, rate = run.perf
    assert not clients.failed, clients.failed
    assert not rate.failed, rate.failed
    assert clients.requests == rate.requests == 15
    assert [model.model for model in clients.models] == ["rank", "ranker"]
    spent = sum(model.queue_us + model.computing_us for model in clients.models[1:])
    assert 0 < spent / 1_000 < 1.5 * (clients.latency.mean or 0)
    assert run.target.artifact
    assert run.totals.candidates_per_second == pytest.approx(8 * run.totals.answered_per_second, rel=0.01)
    scored = [model for second in run.server for model in second.models if model.model == "ranker"]
    assert sum(model.requests for model in scored) >= 30
    assert all(second.rss_bytes for second in run.server)


@pytest.mark.slow
def test_both_generators_measure_the_same_rows(live: LiveServer, workload: Path, perf_analyzer: Path) -> None:
    rows = sendable(read_workload(workload))[:10]
    found = compare(live.grpc_url, "grpc", rows, perf_analyzer)
    assert found.requests["perf_analyzer"] == [10, 10, 10, 10]
    assert all(count > 0 for count in found.requests["locust"])
    # How close they are is for `loadtests agree` to say, on a machine of its own. A wrong unit, or a p50 of something
    # else than a request, is off by more than any neighbour on this one makes it.
    assert 1 / 5 < found.ratio < 5, found.p50
    assert all(0.1 < p50 < 30_000 for of_one in found.p50.values() for p50 in of_one), "milliseconds"


def test_what_a_hanging_perf_analyzer_started_is_killed_with_it(tmp_path: Path) -> None:
    """Its pipe would keep us waiting, and its load would go on."""
    launcher, note = tmp_path / "launcher", tmp_path / "child"
    launcher.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {note}\nwait\n")
    launcher.chmod(0o755)
    done = measured(launcher, tmp_path / "out", longest_seconds=1)
    assert "killed" in done.level.failed
    child = int(note.read_text())
    deadline = time.monotonic() + 5  # a killed process takes a moment to end
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("tent", "tent"),
        ('{"title": "tent"}', '{"": "{\\"title\\": \\"tent\\"}"}'),
        ('  {"title": "ü"}', '{"": "  {\\"title\\": \\"ü\\"}"}'),
        ("{not json", '{"": "{not json"}'),
        ("[1]", "[1]"),
    ],
)
def test_a_text_that_is_json_is_sent_as_the_text_itself(text: str, sent: str) -> None:
    row = WorkloadRequest(0, 0.0, "u", text, [text], [text, "b"], ["0", "1"], None)
    (entry,) = input_data([row])["data"]
    assert (entry["history"]["content"], entry["items"]["content"]) == ([sent], [sent, "b"])
    assert entry["query"]["content"] == [text], "a query is never fields"
