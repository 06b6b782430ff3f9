"""The peers benchmark without the peers: arithmetic, loads, tables, and systems that misbehave on purpose."""

import ast
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tritonrank.rankers.pretrained import load_tokenizer
from tritonrank.recipe import PACKAGED_MINILM
from tritonrank_runtime.text import RequestTokenizer, TextRules

from loadtests.peers import __main__ as command
from loadtests.peers import catalogue, report
from loadtests.peers.cases import Case, Fresh, PairTexts, read_cases, zipf_cases
from loadtests.peers.environments import REQUIREMENTS
from loadtests.peers.libraries import LibrarySystem
from loadtests.peers.load import Answer, Load, closed_loop, latency_summary, open_loop, percentile, poisson_arrivals
from loadtests.peers.machine import needed_gflop
from loadtests.peers.measure import FULL, SHORT, Effort, anything_answered, measure_turn
from loadtests.processes import SystemFaultError
from loadtests.workload import WorkloadError

PEERS = Path(command.__file__).parent
RULES = TextRules("{title}", query_tokens=8, history_items=6, history_tokens=60, candidate_tokens=24)
TINY = Effort(
    turns=2,
    warm_up_requests=1,
    single_seconds=0.0,
    single_requests=3,
    closed_seconds=0.0,
    closed_requests=4,
    open_seconds=0.0,
    open_requests=5,
    open_most_seconds=1.0,
    zipf_seconds=0.0,
    judged=4,
    later_turn_requests=2,
)


def case(number: int, items: int = 4, *, labelled: bool = True) -> Case:
    texts = [f"item {number}-{place}" for place in range(items)]
    labels = [int(place == number % items) for place in range(items)] if labelled else None
    return Case(number, "query", [f"seen {number}"], texts, f"query [SEP] seen {number}", texts, labels)


CASES = [case(number) for number in range(6)]


class Fake:
    """A system that is right by definition: the labels are its scores."""

    kind = "peer"

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.settings = {"model": "none"}
        self.running = False
        self.seen: list[int] = []

    def prepare(self) -> None: ...

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def start(self) -> None:
        self.running = True

    def rank(self, case: Case) -> Sequence[float]:
        self.seen.append(case.number)
        time.sleep(0.002)
        return [float(label) for label in case.labels or [0] * len(case.items)]

    def memory_bytes(self) -> int:
        return 7_000_000

    def stop(self) -> None:
        self.running = False


class CannotInstall(Fake):
    def prepare(self) -> None:
        raise RuntimeError("no matching distribution")


class CannotStart(Fake):
    def start(self) -> None:
        super().start()
        raise SystemFaultError("ended with exit code 1")


class NeverAnswers(Fake):
    def rank(self, case: Case) -> Sequence[float]:
        raise TimeoutError("no answer")


class WrongNumberOfScores(Fake):
    def rank(self, case: Case) -> Sequence[float]:
        return [1.0]


class NotANumber(Fake):
    def rank(self, case: Case) -> Sequence[float]:
        return [float("nan")] * len(case.items)


class CannotStop(Fake):
    def stop(self) -> None:
        raise OSError("will not die")


class RefusesSecondClient(Fake):
    """Answers one at a time and refuses whoever comes meanwhile."""

    def __init__(self) -> None:
        super().__init__("one at a time")
        self._busy = threading.Lock()

    def rank(self, case: Case) -> Sequence[float]:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("busy")
        try:
            time.sleep(0.01)
            return super().rank(case)
        finally:
            self._busy.release()


def quiet(_what: str) -> None: ...


# Percentiles and loads


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_the_nearest_rank(values: list[float], share: float) -> None:
    assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_p99_of_few_is_the_worst_and_nothing_has_no_percentile() -> None:
    assert latency_summary([3.0, 1.0, 2.0])["p99"] == 3.0
    assert latency_summary([]) == {"count": 0, "p50": None, "p90": None, "p99": None, "max": None, "mean": None}


def test_poisson_arrivals_are_reproducible_and_have_the_rate() -> None:
    arrivals = poisson_arrivals(20.0, 4000, seed=3)
    gaps = np.diff([0.0, *arrivals])
    assert arrivals == poisson_arrivals(20.0, 4000, seed=3)
    assert arrivals != poisson_arrivals(20.0, 4000, seed=4)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential gaps: deviation equals mean"


def test_closed_loop_keeps_its_clients_busy_and_counts_candidates() -> None:
    in_flight = Counter[str]()
    lock = threading.Lock()

    def rank(asked: Case) -> list[float]:
        with lock:
            in_flight["now"] += 1
            in_flight["most"] = max(in_flight["most"], in_flight["now"])
        time.sleep(0.01)
        with lock:
            in_flight["now"] -= 1
        return [0.0] * len(asked.items)

    done = closed_loop(rank, Fresh(CASES), clients=3, seconds=0.0, requests=9)
    assert in_flight["most"] == 3
    assert len(done.answers) == 9
    assert done.candidates_per_second == pytest.approx(9 * 4 / done.seconds)


def test_closed_loop_goes_on_until_its_time_is_over() -> None:
    done = closed_loop(Fake().rank, Fresh(CASES), clients=1, seconds=0.1, requests=1)
    assert len(done.answers) > 5
    assert 0.1 <= done.seconds < 1


def test_open_loop_charges_a_stall_to_everyone_who_waited() -> None:
    """One connection, ten arrivals 10 ms apart, the first takes 0.3 s: a closed loop would see one slow request."""
    stalls = iter([0.3])

    def rank(asked: Case) -> list[float]:
        time.sleep(next(stalls, 0.0))
        return [0.0] * len(asked.items)

    done = open_loop(rank, Fresh(CASES), [0.01 * number for number in range(1, 11)], clients=1)
    answers = sorted(done.answers, key=lambda answer: answer.scheduled)
    assert len(answers) == 10
    assert all(answer.latency_seconds > 0.2 for answer in answers)
    ends = [answer.finished for answer in answers]
    assert ends == sorted(ends), "one after the other"


def test_open_loop_sends_on_time_whatever_became_of_earlier_requests() -> None:
    sent: list[float] = []
    start = time.perf_counter()

    def rank(asked: Case) -> list[float]:
        sent.append(time.perf_counter() - start)
        time.sleep(0.5)
        return [0.0] * len(asked.items)

    open_loop(rank, Fresh(CASES), [0.02, 0.04, 0.06])
    assert max(sent) < 0.5, "before the first was answered"


@pytest.mark.parametrize("fake", [NeverAnswers(), WrongNumberOfScores(), NotANumber()])
def test_a_bad_answer_is_counted_and_scores_nothing(fake: Fake) -> None:
    done = closed_loop(fake.rank, Fresh(CASES), clients=1, seconds=0.0, requests=3)
    summary = done.summary()
    assert summary["failed"] == 3
    assert summary["candidates_per_second"] == 0.0
    assert summary["errors"]


# Quality and requests


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    load_tokenizer(PACKAGED_MINILM).save_pretrained(folder)
    RULES.save(folder)
    return folder


WORDS = ["red", "Bottle", "0.5", "L,", "(1995)", "steel", "children", "Sci-Fi", "the", "of", "grey", "&", "tent"]
texts = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(query=texts, history=st.lists(texts, max_size=9), items=st.lists(texts.filter(bool), min_size=1, max_size=4))
def test_the_peers_get_our_tokens(tokenizer_folder: Path, query: str, history: list[str], items: list[str]) -> None:
    """Whole words only: a word cut in two may be tokenized in another way, which the results report."""
    ours = RequestTokenizer.from_folder(tokenizer_folder)
    peers = PairTexts(tokenizer_folder)
    rows = ours.tensors(ours.context(query, history), ours.items(items))
    documents = [peers.document(item) for item in items]
    asked = Case(0, query, history, items, peers.context(query, history), documents, None)
    expected = [ids[mask == 1].tolist() for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)]
    assert peers.rows(asked) == expected
    head = peers.context_length(asked)
    assert all(row[:head] == expected[0][:head] for row in expected)


def write_workload(path: Path, requests: Sequence[dict[str, Any]]) -> Path:
    common = {"user_id": "u", "query": "", "history": ["red tent"]}
    lines = [
        common
        | {"number": number, "at_seconds": float(number), "item_ids": [str(i) for i in range(len(request["items"]))]}
        | request
        for number, request in enumerate(requests)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_cases_are_cut_to_one_size_and_the_judged_come_first(tmp_path: Path, tokenizer_folder: Path) -> None:
    workload = write_workload(
        tmp_path / "workload.jsonl",
        [
            {"items": ["a", "b", "c"], "labels": None},
            {"items": ["a", "b"], "labels": [0, 1]},  # too few
            {"items": ["a", "b", "c", "d"], "labels": [0, 0, 0, 1]},  # its positive is cut away
            {"items": ["a", "b", "c", "d"], "labels": [0, 1, 0, 0]},
        ],
    )
    cases = read_cases(workload, tokenizer_folder, candidates=3)
    assert [one.number for one in cases] == [3, 0, 2]
    assert [one.labels for one in cases] == [[0, 1, 0], None, None]
    assert {len(one.items) for one in cases} == {len(one.documents) for one in cases} == {3}
    with pytest.raises(WorkloadError, match="--candidates"):
        read_cases(workload, tokenizer_folder, candidates=5)


def test_fresh_cases_come_round_only_when_all_were_used() -> None:
    fresh = Fresh(CASES)
    assert [one.number for one in islice(fresh, 6)] == [0, 1, 2, 3, 4, 5]
    assert fresh.repeated == 0
    assert next(fresh).number == 0
    assert fresh.repeated == 1


def test_zipf_repeats_contexts_with_other_items() -> None:
    cases = [case(number) for number in range(50)]
    drawn = list(islice(zipf_cases(cases, seed=1), 2000))
    again = list(islice(zipf_cases(cases, seed=1), 2000))
    contexts = Counter(one.context for one in drawn).most_common()
    assert drawn == again
    assert contexts[0][1] > 5 * contexts[-1][1]
    assert len({tuple(one.items) for one in drawn if one.context == contexts[0][0]}) > 10
    assert all(one.labels is None and one.items == one.documents for one in drawn)


def test_needed_gflop_is_what_a_count_by_hand_gives(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hidden_size": 2, "num_hidden_layers": 3, "intermediate_size": 5}))
    asked = Case(0, "", [], [], "red tent", ["steel bottle"], None)  # [CLS] red tent [SEP] steel bottle [SEP]
    needed = needed_gflop(config, PairTexts(tokenizer_folder), [asked])
    linear = 2 * (4 * 4 + 2 * 2 * 5)
    assert needed["joint"] * 1e9 == pytest.approx(3 * (7 * linear + 4 * 2 * 7 * 7))
    shared = (4 + 4) * linear + 4 * 2 * (4 * 4) + 4 * 2 * (4 * (4 + 4))  # the candidate: [CLS] steel bottle [SEP]
    assert needed["shared_context"] * 1e9 == pytest.approx(3 * shared)


# Systems


def test_a_full_turn_measures_everything() -> None:
    fake = Fake()
    figures = measure_turn(fake, CASES, TINY, turn=0, seed=0, tell=quiet)
    assert "failed" not in figures
    assert not fake.running
    assert figures["quality"] == {"ndcg@10": 1.0, "judged": 4, "unanswered": 0}
    assert figures["memory_mb"] == 7.0
    assert figures["half_load"]["requests"] == 5
    assert figures["half_load"]["per_second"] == pytest.approx(
        figures["saturation"]["candidates_per_second"] / 2 / len(CASES[0].items)
    )
    assert figures["saturation"]["candidates_per_second"] == max(
        load["candidates_per_second"] for load in figures["closed"].values()
    )
    assert figures["versions"] == {"fake": "1"}


def test_judged_requests_are_the_same_for_every_system() -> None:
    """A slow system sends few requests in its loads, a fast one many; both are judged on the first four."""
    scores = []
    for requests in (3, 30):
        effort = Effort(**{**TINY.settings(), "single_requests": requests})
        scores.append(measure_turn(Fake(), CASES, effort, turn=0, seed=0, tell=quiet)["judged_answers"].scores)
    assert sorted(scores[0]) == sorted(scores[1]) == [0, 1, 2, 3]


def test_clients_that_are_refused_are_no_saturation() -> None:
    figures = measure_turn(RefusesSecondClient(), CASES, TINY, turn=0, seed=0, tell=quiet)
    assert figures["saturation"]["clients"] == 1
    assert figures["closed"]["2"]["failed"] > 0
    assert figures["closed"]["2"]["errors"] == ["RuntimeError: busy"]


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (CannotInstall(), "no matching distribution"),
        (CannotStart(), "exit code 1"),
        (NeverAnswers(), "no answer"),
        (WrongNumberOfScores(), "1 scores for 4 items"),
        (NotANumber(), "not finite"),
        (CannotStop(), "will not die"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Fake) else "",
)
def test_a_system_that_fails_is_a_result_and_is_stopped(fake: Fake, reason: str) -> None:
    figures = measure_turn(fake, CASES, TINY, turn=0, seed=0, tell=quiet)
    assert reason in figures["failed"]
    assert isinstance(fake, CannotStop) or not fake.running


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """results.json of three systems, one of which cannot start."""
    monkeypatch.setattr(command.machine, "multiplication_rates", lambda **_: {"numpy_fp32": 100.0})
    systems = [Fake(catalogue.FIRST), CannotStart("cannot [start]"), Fake("ours, fast")]
    results = command.measure_all(systems, CASES, TINY, seed=0)
    return results | {
        "machine": {"processor": "Abacus", "cores": 2, "flags": ["avx2"]},
        "gflop_per_second": {"numpy_fp32": 100.0},
        "gflop_per_request": {"joint": 90.0, "shared_context": 11.0},
    }


def test_every_system_has_its_row_and_a_failure_its_reason(measured: dict[str, Any]) -> None:
    rows = report.rows(measured)
    assert [row[0] for row in rows] == [catalogue.FIRST, "cannot [start]", "ours, fast"]
    assert {len(row) for row in rows} == {len(report.COLUMNS)}
    assert rows[1][1] == "failed: SystemFaultError: ended with exit code 1"
    assert rows[0][1] == "1.000"
    assert rows[0][4] == "1.00"
    assert [system["name"] for system in report.failed(measured)] == ["cannot [start]"]


def test_ratios_are_of_the_same_turn(measured: dict[str, Any]) -> None:
    first, _, fast = measured["systems"]
    assert len(first["single_p50_by_turn"]) == TINY.turns
    first["single_p50_by_turn"], fast["single_p50_by_turn"] = [100.0, 200.0, 90.0], [50.0, 50.0, 45.0]
    assert report.latency_ratio(fast, first) == (2.0, 2.0, 4.0)
    assert "2.00 [2.00, 4.00]" in report.rows(measured)[2]


def test_a_later_turn_adds_a_figure_and_replaces_none(measured: dict[str, Any]) -> None:
    assert measured["systems"][0]["single"]["requests"] == TINY.single_requests
    assert measured["systems"][0]["quality"]["largest_score_difference"] == 0.0
    assert measured["systems"][2]["quality"]["ndcg@10_difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert json.loads(json.dumps(measured)) == measured, "nothing in the results that JSON cannot hold"


def test_both_tables_render(measured: dict[str, Any]) -> None:
    text = report.markdown(measured)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {len(report.COLUMNS) + 1}
    assert "**cannot [start]** could not be measured" in text
    assert "Abacus, 2 cores (avx2)" in text
    assert f"of {TINY.turns} turns" in text
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(report.rich_table(measured))
    assert "cannot [start]" in console.export_text()


def test_results_do_not_tell_where_they_were_measured() -> None:
    told = command.without_paths(f"no {Path.cwd() / 'artifacts'}: look in {command.ROOT}/artifacts/x")
    assert str(command.ROOT) not in told
    assert "artifacts/x" in told


# The tree


def test_systems_have_names_of_their_own_and_the_first_exists(tmp_path: Path) -> None:
    peers = catalogue.Peers(tmp_path, tmp_path, tmp_path).systems()
    ours = catalogue.our_systems({"joint INT8": tmp_path}, {"joint INT8": tmp_path}, tmp_path)
    names = [system.name for system in [*peers, *ours]]
    assert len(set(names)) == len(names)
    assert names[0] == catalogue.FIRST
    assert any(isinstance(system, LibrarySystem) for system in ours)
    assert SHORT.judged < FULL.judged


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_requirements_are_pinned(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) > 5
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)


def test_what_the_peers_import_of_the_pipeline_is_in_few_files() -> None:
    importing = set()
    for path in PEERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importing |= {path.name for module in modules if module.split(".")[0] == "tritonrank"}
    assert importing == {"joint_twin.py", "load.py", "machine.py", "measure.py", "ours.py", "plain_triton.py"}


def test_the_command_needs_named_folders() -> None:
    assert command.named_folders(["shared FP32=a/b"]) == {"shared FP32": Path("a/b")}
    with pytest.raises(command.typer.BadParameter, match="NAME=FOLDER"):
        command.named_folders(["a/b"])


def test_the_identity_covers_every_graph_of_a_folder_and_its_weights(tmp_path: Path) -> None:
    assert catalogue.identity(tmp_path) == ""
    seen = set()
    for name, content in (
        ("context.onnx", b"a"),
        ("candidates.onnx", b"b"),
        ("weights.bin", b"c"),
        ("weights.bin", b"d"),
    ):
        (tmp_path / name).write_bytes(content)
        seen.add(catalogue.identity(tmp_path))
    assert len(seen) == 4
    assert "" not in seen


def test_a_load_of_which_nothing_was_answered_is_no_figure() -> None:
    with pytest.raises(SystemFaultError, match="Zipf: no request was answered"):
        anything_answered("Zipf", Load())
    refused = Load(answers=[Answer(Case(0, "", [], ["a"], "", ["a"], None), 0.0, 0.1, None, "refused")])
    with pytest.raises(SystemFaultError, match="refused"):
        anything_answered("open loop", refused)
