"""A workload is what was asked for, the same each time, and what the load tests' own reader accepts."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import TESTS
from stage_runs import prepared
from test_cli import main
from tritonrank.artifacts import write_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.negatives import POPULARITY_EXPONENT
from tritonrank.data.workload import make_workload
from tritonrank.data.workload_settings import (
    LognormalSizes,
    WeightedSizes,
    WorkloadSettings,
    candidate_sizes,
    workload_settings,
    zipf_exponent,
)
from tritonrank.errors import ArtifactError, DataError, RecipeError
from tritonrank.recipe import load_recipe
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import RULES_FILE, TextRules

from loadtests.workload import WorkloadError, WorkloadRequest, read_workload

ROOT = Path(__file__).parents[1]
RECIPE = load_recipe(TESTS / "tiny.yaml")
JUDGED = RECIPE.examples.judged_negatives + 1
TEST_USERS = RECIPE.examples.test_users


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """artifacts/tiny with a dataset and text rules, and no model; tests must not change it."""
    workspace = Workspace.of(RECIPE, tmp_path_factory.mktemp("artifacts"))
    prepared(RECIPE, workspace.dataset)
    workspace.teacher.mkdir()
    TextRules(**RECIPE.text.model_dump()).save(workspace.teacher)
    return workspace.root


@pytest.fixture(scope="module")
def dataset(artifacts: Path) -> Dataset:
    return Dataset.read(artifacts / "dataset")


@pytest.fixture
def make(artifacts: Path, tmp_path: Path) -> Callable[..., list[WorkloadRequest]]:
    """Writes a workload with these settings and reads it with the load tests' reader."""

    def run(**values: Any) -> list[WorkloadRequest]:
        return read_workload(make_workload(artifacts, tmp_path / "workload.jsonl", WorkloadSettings(**values)))

    return run


def text_of(dataset: Dataset, item: str) -> str:
    return render_fields(RECIPE.text.item_template, dataset.items[item])


def met_items(artifacts: Path) -> dict[str, set[str]]:
    events = pl.read_parquet(artifacts / "dataset" / "events.parquet")
    return {user: set(items) for user, items in events.group_by("user_id").agg("item_id").iter_rows()}


def content(request: WorkloadRequest) -> tuple[str, str, tuple[str, ...]]:
    return request.user_id, request.query, tuple(request.history)


# What is in a workload


def test_the_reader_gives_back_what_was_written(artifacts: Path, tmp_path: Path) -> None:
    path = make_workload(artifacts, tmp_path / "out" / "w.jsonl", WorkloadSettings(requests=150, candidates=JUDGED))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [asdict(request) for request in read_workload(path)] == lines
    assert [line["number"] for line in lines] == list(range(150))
    assert list(path.parent.iterdir()) == [path]


def test_judged_examples_come_first_and_unchanged(make: Callable[..., list[WorkloadRequest]], dataset: Dataset) -> None:
    requests = make(requests=200, candidates=JUDGED)
    for request, example in zip(requests[:TEST_USERS], dataset.test, strict=True):
        assert request.user_id == example.user_id
        assert request.query == example.query
        assert request.history == [text_of(dataset, i) for i in example.history[-RECIPE.text.history_items :]]
        assert request.item_ids == example.candidates
        assert request.labels == example.labels
    assert all(request.labels is None for request in requests[TEST_USERS:])


@pytest.mark.parametrize("candidates", [str(JUDGED - 1), "5:0.5,30:0.5", "lognormal:30:0.2"])
def test_other_lists_have_no_labels_and_the_same_contexts(
    candidates: str, make: Callable[..., list[WorkloadRequest]], dataset: Dataset
) -> None:
    judged = make(requests=200, candidates=JUDGED)
    requests = make(requests=200, candidates=candidates)
    assert all(request.labels is None for request in requests)
    assert list(map(content, requests)) == list(map(content, judged))


@pytest.mark.parametrize("users", ["fresh", "zipf:1.1"])
def test_candidates_are_different_items_that_the_user_never_met(
    users: str, make: Callable[..., list[WorkloadRequest]], dataset: Dataset, artifacts: Path
) -> None:
    met = met_items(artifacts)
    for request in make(requests=300, candidates="1:1,10:1,100:1", users=users):
        assert len(request.items) in (1, 10, 100)
        assert len(set(request.item_ids)) == len(request.item_ids)
        assert met[request.user_id].isdisjoint(request.item_ids)
        assert request.items == [text_of(dataset, item) for item in request.item_ids]


def test_candidates_are_drawn_by_popularity(
    make: Callable[..., list[WorkloadRequest]], dataset: Dataset, artifacts: Path
) -> None:
    """With one candidate each, the counts are those of single draws by weight among what the user never met."""
    requests = make(requests=20_000, candidates="1", users="zipf:0")
    liked = Counter(dataset.training_events.filter(pl.col("label") == 1)["item_id"].to_list())
    weights = np.array([(liked[item] + 1) ** POPULARITY_EXPONENT for item in dataset.items])
    expected = np.zeros(len(weights))
    met = met_items(artifacts)
    for user, visits in Counter(request.user_id for request in requests).items():
        allowed = weights * np.array([item not in met[user] for item in dataset.items])
        expected += visits * allowed / allowed.sum()
    drawn = Counter(request.item_ids[0] for request in requests)
    counts = np.array([drawn[item] for item in dataset.items])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(weights) - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_order_of_candidates_says_nothing(make: Callable[..., list[WorkloadRequest]], dataset: Dataset) -> None:
    """Drawing without replacement gives popular items first; the list must not show it."""
    popularity = Counter(dataset.training_events.filter(pl.col("label") == 1)["item_id"].to_list())
    requests = make(requests=1_000, candidates="60")
    first = np.mean([popularity[item] for request in requests for item in request.item_ids[:30]])
    second = np.mean([popularity[item] for request in requests for item in request.item_ids[30:]])
    assert abs(first - second) < 0.02 * first


def test_fresh_contexts_are_all_different_and_true(
    make: Callable[..., list[WorkloadRequest]], dataset: Dataset, artifacts: Path
) -> None:
    requests = make(requests=1_000, candidates="3", history_items=50)
    assert len(set(map(content, requests))) == len(requests)
    events = pl.read_parquet(artifacts / "dataset" / "events.parquet").filter(pl.col("label") == 1)
    for request in requests[:: len(requests) // 50]:
        mine = events.filter(pl.col("user_id") == request.user_id)
        liked, queries = mine["item_id"].to_list(), mine["query"].to_list()
        before = [
            (query, [text_of(dataset, item) for item in liked[:place] if item != liked[place]])
            for place, query in enumerate(queries)
        ]
        assert (request.query, request.history) in before
        assert request.query or request.history


def test_fresh_requests_are_spread_over_the_users(make: Callable[..., list[WorkloadRequest]], dataset: Dataset) -> None:
    users = dataset.training_events["user_id"].n_unique()
    counts = Counter(request.user_id for request in make(requests=3 * users, candidates="3"))
    assert len(counts) == users
    assert max(counts.values()) <= 4  # one more where the newest context came as a test example already


def test_too_few_contexts_are_counted(make: Callable[..., list[WorkloadRequest]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only (\d+) different contexts; ask for --requests \1 or fewer") as raised:
        make(requests=1_000_000, candidates="3")
    assert list(tmp_path.iterdir()) == []
    (there,) = [int(word) for word in str(raised.value).split() if word.isdigit() and word != "1000000"][:1]
    assert len(set(map(content, make(requests=there, candidates="3")))) == there
    with pytest.raises(DataError):
        make(requests=there + 1, candidates="3")


def test_zipf_users_return_with_their_context(make: Callable[..., list[WorkloadRequest]]) -> None:
    requests = make(requests=4_000, candidates="3", users="zipf:1.1")
    contexts: dict[str, set[Any]] = {}
    for request in requests:
        contexts.setdefault(request.user_id, set()).add(content(request))
    assert all(len(found) == 1 for found in contexts.values())
    counts = np.array([count for _, count in Counter(r.user_id for r in requests).most_common()])
    ranks = np.arange(1, 151) ** -1.1
    assert counts[:5] / 4_000 == pytest.approx((ranks / ranks.sum())[:5], abs=0.03)
    lists = {tuple(request.item_ids) for request in requests}
    assert len(lists) > 3_000  # who returns is offered something else


def test_zipf_labels_the_first_visit_of_a_judged_user(
    make: Callable[..., list[WorkloadRequest]], dataset: Dataset
) -> None:
    judged = {example.user_id: example for example in dataset.test}
    seen = set()
    for request in make(requests=500, candidates=JUDGED, users="zipf:1.1"):
        is_first = request.user_id in judged and request.user_id not in seen
        assert (request.labels is not None) == is_first
        if is_first:
            assert request.item_ids == judged[request.user_id].candidates
            assert request.labels == judged[request.user_id].labels
        seen.add(request.user_id)
    assert seen & set(judged)


@pytest.mark.parametrize("history_items", [0, 2, 200])
def test_history_is_as_long_as_asked_for(
    history_items: int, make: Callable[..., list[WorkloadRequest]], dataset: Dataset
) -> None:
    requests = make(requests=TEST_USERS, candidates=JUDGED, history_items=history_items)
    for request, example in zip(requests, dataset.test, strict=True):
        kept = example.history[len(example.history) - min(history_items, len(example.history)) :]
        assert request.history == [text_of(dataset, item) for item in kept]


def test_the_rules_of_what_is_served_come_first(artifacts: Path, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(artifacts, root)
    served = root / "repository" / "tokenize" / "1"
    served.mkdir(parents=True)
    TextRules(**RECIPE.text.model_dump() | {"history_items": 1, "item_template": "{title}!"}).save(served)
    requests = read_workload(make_workload(root, None, WorkloadSettings(requests=20, candidates="5")))
    assert {len(request.history) for request in requests} == {1}
    assert all(text.endswith("!") for request in requests for text in request.items + request.history)
    assert (root / "workload.jsonl").is_file()


def test_items_without_a_text_are_not_offered(artifacts: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The server refuses them, and a load test would time the refusal."""
    root = tmp_path / "tiny"
    shutil.copytree(artifacts, root)
    blank = dataset.test[0].candidates[3]
    with write_artifact(root / "dataset", "prepare", {}, {}) as draft:
        for path in (artifacts / "dataset").glob("*.parquet"):
            shutil.copyfile(path, draft.folder / path.name)
        items = pl.read_parquet(draft.folder / "items.parquet")
        fields = [pl.when(pl.col("item_id") == blank).then(pl.lit(",")).otherwise(pl.col("title")).alias("title")]
        fields += [pl.when(pl.col("item_id") == blank).then(pl.lit("")).otherwise(pl.col("brand")).alias("brand")]
        items.with_columns(fields).write_parquet(draft.folder / "items.parquet")
    TextRules(**RECIPE.text.model_dump() | {"item_template": "{brand}"}).save(root / "teacher")
    requests = read_workload(make_workload(root, None, WorkloadSettings(requests=300, candidates=JUDGED)))
    assert not any(blank in request.item_ids for request in requests)
    assert requests[0].user_id == dataset.test[0].user_id
    assert requests[0].labels is None  # its list could not be sent unchanged
    for request, example in zip(requests, dataset.test, strict=False):
        assert (request.labels is None) == (blank in example.candidates)


# The same each time


def test_the_same_seed_gives_the_same_bytes(artifacts: Path, tmp_path: Path) -> None:
    """In another process too, where Python's own hashes differ."""
    settings = {"requests": 400, "candidates": "lognormal:20:0.4", "users": "zipf:1.1", "seed": 5}
    here = make_workload(artifacts, tmp_path / "here.jsonl", WorkloadSettings(**settings)).read_bytes()
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tritonrank", "workload", str(artifacts), "--out", str(tmp_path / "there.jsonl")]
    subprocess.run([*command, *options], check=True, timeout=60, capture_output=True, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / "there.jsonl").read_bytes() == here
    other = make_workload(artifacts, tmp_path / "other.jsonl", WorkloadSettings(**settings | {"seed": 6}))
    assert other.read_bytes() != here


@pytest.mark.parametrize("users", ["fresh", "zipf:1.1"])
@pytest.mark.parametrize("candidates", ["7", str(JUDGED), "lognormal:20:0.4", "5:1,10:2"])
def test_a_longer_workload_begins_with_the_shorter_one(
    users: str, candidates: str, make: Callable[..., list[WorkloadRequest]]
) -> None:
    shorter = make(requests=130, candidates=candidates, users=users)
    assert make(requests=260, candidates=candidates, users=users)[:130] == shorter


def test_arrivals_are_poisson_at_the_rate_asked_for(make: Callable[..., list[WorkloadRequest]]) -> None:
    times = np.array([r.at_seconds for r in make(requests=5_000, candidates="1", users="zipf:1", rate=40)])
    gaps = np.diff(times, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 40, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 40, rel=0.1)
    assert (gaps > 3 / 40).mean() == pytest.approx(np.exp(-3), abs=0.01)


def test_a_day_has_its_quiet_and_its_busy_hours(make: Callable[..., list[WorkloadRequest]]) -> None:
    """24 hours in 200 s, at four times the quietest rate in the afternoon, and the mean that was asked for."""
    requests = make(requests=8_000, candidates="1", users="zipf:1", rate=40, arrivals="day:4")
    times = np.array([request.at_seconds for request in requests])
    assert times[-1] == pytest.approx(200, rel=0.03)
    hours, _ = np.histogram(times, bins=24, range=(0, 200))
    expected = 8_000 / 24 * (1 - 0.6 * np.cos(2 * np.pi * (np.arange(24) + 0.5 - 4) / 24))
    assert (np.abs(hours - expected) < 5 * np.sqrt(expected)).all()
    assert hours[15:17].sum() == pytest.approx(4 * hours[3:5].sum(), rel=0.25)


def test_a_spike_is_a_spike(make: Callable[..., list[WorkloadRequest]]) -> None:
    """Base rate b and 10 b for a tenth of the time: b = mean / 1.9."""
    requests = make(requests=8_000, candidates="1", users="zipf:1", rate=40, arrivals="spike:10")
    tenths, _ = np.histogram([request.at_seconds for request in requests], bins=20, range=(0, 200))
    base = 40 / 1.9 * 10
    expected = np.array([base] * 9 + [10 * base] * 2 + [base] * 9)
    assert (np.abs(tenths - expected) < 5 * np.sqrt(expected) + 0.02 * expected).all()


@pytest.mark.parametrize("users", ["fresh", "zipf:1.1"])
def test_some_come_back_soon(users: str, make: Callable[..., list[WorkloadRequest]]) -> None:
    requests = make(requests=600, candidates=JUDGED, users=users, returns=0.4, returns_within=10)
    found = [content(request) for request in requests]
    soon = [found[place] in found[max(0, place - 10) : place] for place in range(600)]
    assert np.mean(soon) >= 0.34  # by Zipf's law some more come back by themselves
    if users == "fresh":
        assert np.mean(soon) <= 0.46
        assert len(set(found)) == 600 - sum(soon), "who does not come back is new"
    lists = {tuple(request.item_ids) for request in requests}
    assert len(lists) == 600, "who comes back is offered something else"
    assert make(requests=300, candidates=JUDGED, users=users, returns=0.4, returns_within=10) == requests[:300]


# Settings


@pytest.mark.parametrize(
    "arrivals", ["", "Day", "steady:2", "day:1", "day:0.5", "spike:1e3", "spike:2000", "day:-4", "day:٣"]
)
def test_wrong_arrivals_are_refused(arrivals: str) -> None:
    with pytest.raises(RecipeError, match="--arrivals '"):
        workload_settings({"arrivals": arrivals})


def test_sizes_follow_their_distribution() -> None:
    random = np.random.default_rng(0)
    lognormal = candidate_sizes("lognormal:100:0.8").draw(random, 20_000)
    assert np.median(lognormal) == pytest.approx(100, rel=0.03)
    assert np.quantile(lognormal, 0.9) == pytest.approx(100 * np.exp(0.8 * 1.2816), rel=0.04)
    wide = candidate_sizes("lognormal:1000:5").draw(random, 1_000)
    assert (wide.min(), wide.max()) == (1, 1_000)
    counts = Counter(candidate_sizes("10:0.5,100:0.4,1000:0.1").draw(random, 20_000).tolist())
    for size, share in ((10, 0.5), (100, 0.4), (1_000, 0.1)):
        assert counts[size] / 20_000 == pytest.approx(share, abs=0.015)
    assert candidate_sizes("7").draw(random, 3).tolist() == [7, 7, 7]


def test_each_form_is_understood() -> None:
    assert candidate_sizes("100") == WeightedSizes((100,), (1.0,))
    assert candidate_sizes("lognormal:80:0.9") == LognormalSizes(80, 0.9)
    assert candidate_sizes("10:5,100:4") == WeightedSizes((10, 100), (5, 4))
    assert zipf_exponent("fresh") is None
    assert zipf_exponent("zipf:1.1") == 1.1
    assert WorkloadSettings(candidates=100).candidates == "100"


@pytest.mark.parametrize(
    "candidates",
    [
        *("", " 10", "0", "1001", "-5", "1e2", "ten", "10.5", "1_0", "٣", "10,100", "10:0.5,100", "10:0.5,", "10:0"),
        *("10:-1", "10:nan", "10:1,10:2", "0:1", "10:1:2", "10:1e5", "normal:100:5", "lognormal", "lognormal:100"),
        *("lognormal:100:0", "lognormal:100:nan", "lognormal:0:1", "lognormal:2000:1", "lognormal:100:9"),
        "lognormal:100:0.8:5",
    ],
)
def test_wrong_candidates_are_refused(candidates: str) -> None:
    with pytest.raises(RecipeError, match=r"--candidates '") as raised:
        workload_settings({"candidates": candidates})
    assert "tritonrank workload --help" in str(raised.value)


@pytest.mark.parametrize(
    "users", ["", "Fresh", "zipf", "zipf:", "zipf:-1", "zipf:11", "zipf:inf", "uniform", "zipf:1:2"]
)
def test_wrong_users_are_refused(users: str) -> None:
    with pytest.raises(RecipeError, match=r"--users '"):
        workload_settings({"users": users})


def test_all_faults_are_in_one_message() -> None:
    values = {"requests": 0, "rate": float("nan"), "seed": -1, "history_items": 201, "users": "x", "request": 5}
    with pytest.raises(RecipeError) as raised:
        workload_settings(values)
    message = str(raised.value)
    assert message.startswith("6 fault(s)")
    for option in ("--requests", "--rate", "--seed", "--history-items 201", "--users 'x'"):
        assert f"\n  {option}" in message
    assert "--request: no such setting; there are --requests, --candidates" in message


# What can go wrong


def test_a_catalogue_too_small_is_named_before_anything_is_written(
    make: Callable[..., list[WorkloadRequest]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="--candidates") as raised:
        make(requests=200, candidates="150")
    assert "200 of 200 requests" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    possible = str(raised.value).split()[-1]
    assert len(make(requests=200, candidates=possible)) == 200
    with pytest.raises(DataError):
        make(requests=200, candidates=str(int(possible) + 1))


def test_missing_and_damaged_artifacts_are_named(artifacts: Path, tmp_path: Path) -> None:
    settings = WorkloadSettings(requests=10, candidates="3")
    with pytest.raises(ArtifactError, match="build what is in it: tritonrank build RECIPE"):
        make_workload(tmp_path / "absent", None, settings)
    root = tmp_path / "tiny"
    shutil.copytree(artifacts, root)
    (root / "teacher" / RULES_FILE).write_text('{"item_template": "{title}"}')
    with pytest.raises(ArtifactError, match=rf"{RULES_FILE}: not the text rules of a model"):
        make_workload(root, None, settings)
    shutil.copyfile(artifacts / "teacher" / RULES_FILE, root / "teacher" / RULES_FILE)
    with (root / "dataset" / "events.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match=r"events\.parquet: changed since it was built"):
        make_workload(root, None, settings)
    shutil.rmtree(root / "dataset")
    with pytest.raises(ArtifactError, match=r"no artifact here.*tritonrank build"):
        make_workload(root, None, settings)
    assert not (root / "workload.jsonl").exists()


def test_an_interrupted_write_leaves_the_old_file(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "workload.jsonl"
    path.write_text("old")
    encode, calls = json.dumps, iter(range(10))

    def fail_later(*arguments: Any, **options: Any) -> str:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return encode(*arguments, **options)

    monkeypatch.setattr("tritonrank.data.workload.json.dumps", fail_later)
    with pytest.raises(KeyboardInterrupt):
        make_workload(artifacts, path, WorkloadSettings(requests=20, candidates="3"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(artifacts: Path, tmp_path: Path) -> None:
    settings = WorkloadSettings(requests=5, candidates="3")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "below.jsonl"):
        with pytest.raises(ArtifactError, match=r"cannot be written \(.+\); choose another file with --out"):
            make_workload(artifacts, path, settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# The command


def test_the_command_prints_a_table_the_path_and_json(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ":100:.jsonl"
    options = ["--requests", 200, "--candidates", JUDGED, "--rate", 50, "--out", path]
    assert main(monkeypatch, "workload", artifacts, *options) == 0
    *_, shown, last = capsys.readouterr().out.splitlines()
    assert shown == f"-> {path}"
    summary = json.loads(last)
    requests = read_workload(path)
    assert summary["workload"] == str(path)
    assert summary["requests"] == summary["contexts"] == len(requests) == 200
    assert summary["judged"] == TEST_USERS
    assert summary["candidates"] == {"p50": JUDGED, "p90": JUDGED, "max": JUDGED}
    assert summary["history"]["max"] == RECIPE.text.history_items
    assert summary["requests_per_second"] == pytest.approx(200 / requests[-1].at_seconds, rel=1e-3)
    assert summary["bytes"] == path.stat().st_size


def test_the_command_reports_errors_in_one_message(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "workload", tmp_path / "absent") == 2
    assert capsys.readouterr().err.startswith("ArtifactError: ")
    assert main(monkeypatch, "workload", artifacts, "--candidates", "many", "--rate", "-1") == 2
    error = capsys.readouterr().err
    assert error.startswith("RecipeError: 2 fault(s)")
    assert "lognormal:100:0.8" in error  # not an emoji between the two numbers
    assert main(monkeypatch, "workload", artifacts, "--candidate", "10") == 2


# The reader

GOOD = {
    "number": 0,
    "at_seconds": 0.25,
    "user_id": "7",
    "query": "",
    "history": [],
    "items": ["a", "b"],
    "item_ids": ["1", "2"],
    "labels": [0, 1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [("number", value) for value in (1, -1, 0.0, True, "0", None)]
    + [("at_seconds", value) for value in (-1, "0", True, None, float("nan"), float("inf"), 10**400)]
    + [("user_id", value) for value in (7, None, "\ud83d")]
    + [("query", value) for value in (None, ["shoes"], "half \udc00")]
    + [("history", value) for value in (None, "shoes", [1], [None], ["\ud83d"])]
    + [("items", value) for value in ([], None, "ab", [1, 2], ["a", " "], ["a"] * 1_001)]
    + [("item_ids", value) for value in (["1"], ["1", "1"], [1, 2], None, "12")]
    + [("labels", value) for value in ([1], [0, 2], [0, True], [0, 1.0], "01", [])]
    + [("label", [0, 1])],
)
def test_the_reader_names_file_line_and_field(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    for number in (1, 2):  # a fault of the first line, and of the second
        lines = [GOOD | {"number": n} for n in range(number)]
        changed = value + number - 1 if field == "number" and type(value) is int else value
        lines[-1] = lines[-1] | {field: changed}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(WorkloadError, match=rf"w\.jsonl:{number}: (item_ids|{field}): ") as raised:
            read_workload(path)
        assert isinstance(raised.value, ValueError)
        assert len(str(raised.value)) < 250 + len(str(path))


@pytest.mark.parametrize("field", GOOD)
def test_the_reader_wants_every_field(field: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({name: value for name, value in GOOD.items() if name != field}))
    with pytest.raises(WorkloadError, match=rf"w\.jsonl:1: {field}: is missing; expected "):
        read_workload(path)


@pytest.mark.parametrize(
    ("second_line", "complaint"),
    [
        (b"", "not a line of JSON"),
        (b"\n", "not a line of JSON"),
        (b'{"number": 1, "at_sec', "not a line of JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"user_id": "\xff"}', "not valid UTF-8 at byte 13"),
        (b"[" * 200_000, "not a line of JSON"),
        (json.dumps(GOOD | {"number": 1, "at_seconds": 0.2}).encode(), "at_seconds: 0.2 is before"),
    ],
)
def test_the_reader_refuses_broken_lines(second_line: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + second_line + b"\n")
    with pytest.raises(WorkloadError, match=rf"w\.jsonl:2: {complaint}"):
        read_workload(path)


def test_the_reader_wants_a_file_with_requests(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.jsonl", "absent.jsonl", "."):
        with pytest.raises(WorkloadError, match="tritonrank workload artifacts"):
            read_workload(tmp_path / name)


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = GOOD | {"query": "a\u2028b\u0085c\rd\x1ee", "items": ["x\ny", "z"], "labels": None}
    path = tmp_path / "w.jsonl"
    path.write_bytes(json.dumps(odd, ensure_ascii=False).encode())  # without a line feed at the end
    assert asdict(read_workload(path)[0]) == odd


def test_the_reader_needs_only_the_standard_library() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import loadtests.workload
tops = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(tops - set(sys.stdlib_module_names) - {{"loadtests", "__main__"}}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
