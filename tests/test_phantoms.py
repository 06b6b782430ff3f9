"""Work that never reaches the scorer keeps nobody waiting, and what goes straight to it is bounded: a real server.

Its ranker is one whose steps are models of their own.

The ranker is the tiny one with a pause for each token, as if it were a larger one, and with recipes' own limits.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import Served, set_parameters
from live import NO_DEADLINE, PROTOCOLS, counter_files, infer, metric, statistics, wait_until
from tritonclient.utils import InferenceServerException
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import ServeSettings
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.server import LocalTriton
from tritonrank_client import DeadlineExceeded, Overloaded, RankClient, Retry
from tritonrank_runtime.cores import available_cores

pytestmark = pytest.mark.slow  # requests wait in real time

SECONDS_PER_TOKEN = 2e-5
"""A request of a thousand candidates then takes about half a second, one of three a few milliseconds."""
DIRECT_SECONDS = 1.0
"""What the scorer gives to work that comes without a deadline."""
SLOWER = """
import time

from tritonrank_runtime import sessions

open_at_once = sessions.open_session


class Slow:
    def __init__(self, session):
        self.session = session

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, names, feed):
        time.sleep(SECONDS_PER_TOKEN * feed["candidate_ids"].size)
        return self.session.run(names, feed)


def open_slow(path, *given):
    session = open_at_once(path, *given)
    return Slow(session) if path.name == "candidates.onnx" else session


sessions.open_session = open_slow
"""
ONCE = Retry(attempts=1)
MANY = [" ".join(f"w{place}x{word}" for word in range(7)).encode() for place in range(1_000)]
SMALL = {"query": [b"oak"], "history": [b"lamp"], "items": [b"desk", b"lamp", b"chair"]}
LARGE = SMALL | {"items": MANY}


@pytest.fixture(scope="module")
def slow(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("phantoms") / "repository"
    write_models(ServeSettings(threads=1), workspace.int8, repository, available_cores(), in_one=False)
    write_golden_cases({"artifact": "phantoms", "recipe": "tiny", "stage": "int8"}, [], repository)
    set_parameters(repository / "score", deadline_us=str(int(1e6 * DIRECT_SECONDS)), max_candidates="4000")
    with (repository / "score" / "1" / "model.py").open("a", encoding="utf-8") as file:
        file.write(SLOWER.replace("SECONDS_PER_TOKEN", str(SECONDS_PER_TOKEN)))
    with LocalTriton(repository) as triton:
        served = cast(Served, SimpleNamespace(triton=triton, urls={"http": triton.http_url, "grpc": triton.grpc_url}))
        for tensors in (SMALL, LARGE, SMALL):  # measured: the gate has an idea of what takes how long
            infer(served, "grpc", "rank", tensors)
        yield served


def small_requests(slow: Served, seconds: float, rate: float = 10, timeout: float = 1.0) -> list[str]:
    """How each of so many requests per second ended."""
    ends = []
    began = time.monotonic()
    with RankClient(slow.triton.grpc_url, retry=ONCE, timeout=timeout) as client:
        for number in range(int(seconds * rate)):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            try:
                client.rank(query="oak", history=["lamp"], items=["desk", "lamp", "chair"])
                ends.append("ok")
            except (Overloaded, DeadlineExceeded) as error:
                ends.append(f"{type(error).__name__}: {error}")
    return ends


def again_and_again(slow: Served, tensors: Mapping[str, Any], rate: float, seconds: float) -> int:
    """Call ``tokenize`` alone; how often it answered."""
    answered = 0
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        with suppress(InferenceServerException):
            infer(slow, "grpc", "tokenize", tensors)
            answered += 1
    return answered


@pytest.mark.parametrize(
    ("tensors", "rate"), [(LARGE, 1), ({"items": [b"a"]}, 40)], ids=["1,000 candidates", "small ones"]
)
def test_calls_of_tokenize_alone_refuse_nobody(slow: Served, tensors: dict[str, Any], rate: float) -> None:
    with ThreadPoolExecutor(1) as pool:
        attack = pool.submit(again_and_again, slow, SMALL | tensors, rate, 5)
        ends = small_requests(slow, 5)
    assert attack.result() >= 0.8 * rate * 5, "the attack took place"
    assert set(ends) == {"ok"}


def test_requests_whose_clients_gave_up_refuse_nobody(slow: Served) -> None:
    """Rank calls that end between the steps, and then others with little time, one after the other."""
    with RankClient(slow.triton.grpc_url, retry=ONCE) as client:
        client.rank(items=["warm"])
        for _ in range(4):
            with pytest.raises((DeadlineExceeded, Overloaded)):
                client.rank(query="oak", items=[text.decode() for text in MANY], timeout=0.02)
            with suppress(InferenceServerException):
                infer(slow, "grpc", "tokenize", LARGE, timeout_us=1_000)  # as far as such a call may come
    assert set(small_requests(slow, 3, rate=20, timeout=0.5)) == {"ok"}


def test_long_rows_straight_to_the_scorer_are_refused_and_hold_nobody_up(slow: Served) -> None:
    rows = np.random.default_rng(1).integers(1_000, 9_000, (1, 200, 250), dtype=np.int32)
    tensors = {"context_ids": rows[:, 0, :30], "candidate_ids": rows}
    with ThreadPoolExecutor(2) as pool:
        attacks = [pool.submit(outcome, slow, protocol, "score", tensors) for protocol in PROTOCOLS]
        ends = small_requests(slow, 2)
    for attack in attacks:
        assert attack.result() == "candidate_ids: rows of 250 tokens; the limit is 25"
    long_context = {"context_ids": rows[:, 0, :80], "candidate_ids": rows[..., :25]}
    assert outcome(slow, "grpc", "score", long_context).startswith("context_ids: rows of 80 tokens; the limit is ")
    assert set(ends) == {"ok"}


@pytest.mark.parametrize("deadline", [{}, NO_DEADLINE], ids=["no deadline", "a far one"])
def test_direct_work_ends_at_the_deadline_of_the_server(slow: Served, deadline: dict[str, np.ndarray]) -> None:
    """Rows as long as they may be, for two seconds of work."""
    rows = np.random.default_rng(1).integers(1_000, 9_000, (1, 4_000, 25), dtype=np.int32)
    tensors = {"context_ids": rows[:, 0], "candidate_ids": rows} | deadline
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(lambda _: outcome(slow, "grpc", "score", tensors), range(3))]
    took = time.monotonic() - began
    assert all(one.startswith("Request timeout expired") for one in found), found
    assert took < 2 * DIRECT_SECONDS + 1, "two at a time"
    assert set(small_requests(slow, 1)) == {"ok"}


def test_work_whose_deadline_passes_is_stopped_and_makes_room(slow: Served) -> None:
    """A thousand candidates take about half a second; two callers wait for a fifth of it."""

    def stopped() -> float:
        return metric(slow, "tritonrank_requests_stopped_total", model="score")

    stopped_before, before = stopped(), statistics(slow, "score")
    rows = np.random.default_rng(2).integers(1_000, 9_000, (1, 1_000, 25), dtype=np.int32)
    tensors = {"context_ids": rows[:, 0], "candidate_ids": rows}
    began = time.monotonic()
    soon = {"deadline": np.full((1, 1), int(1e6 * (began + 0.1)), dtype=np.int64)}
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda _: outcome(slow, "grpc", "score", tensors | soon), range(2))]
    took = time.monotonic() - began
    assert all(one.startswith("Request timeout expired") for one in found), found
    assert (statistics(slow, "score") - before).inferences == 2, "it began both"
    wait_until(lambda: stopped() > stopped_before, "the metrics page has it")
    assert took < 0.5, "less than one of them takes"
    assert set(small_requests(slow, 1)) == {"ok"}


def test_what_cannot_be_done_in_time_is_refused_at_once(slow: Served) -> None:
    rejected = metric(slow, "tritonrank_requests_rejected_total", model="tokenize", reason="too_long")
    infer(slow, "grpc", "rank", LARGE)
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match=r"Request timeout expired: about \d+ ms of work"):
        infer(slow, "grpc", "rank", LARGE, timeout_us=100_000)
    assert time.monotonic() - began < 0.5, "half a second of work was not begun"
    wait_until(
        lambda: metric(slow, "tritonrank_requests_rejected_total", model="tokenize", reason="too_long") == rejected + 1,
        "it is counted",
    )
    with RankClient(slow.triton.grpc_url) as client, pytest.raises(DeadlineExceeded, match="ms of work"):
        client.rank(items=[text.decode() for text in MANY], timeout=0.15)
    infer(slow, "grpc", "rank", LARGE)


@pytest.mark.parametrize("deep", [False, True], ids=["the ensemble's folder", "all"])
def test_a_queue_folder_that_is_cleaned_up_is_made_again(slow: Served, deep: bool) -> None:
    folder = counter_files(slow, "score")[0].parent
    shutil.rmtree(folder.parent if deep else folder)
    for protocol in PROTOCOLS:
        infer(slow, protocol, "rank", SMALL)
    assert counter_files(slow, "score")
    assert set(small_requests(slow, 1)) == {"ok"}


def outcome(slow: Served, protocol: str, model: str, tensors: Mapping[str, Any]) -> str:
    try:
        infer(slow, protocol, model, tensors)
    except InferenceServerException as error:
        return str(error.message())
    return "ok"
