"""``ranker``: one process that tokenizes, computes and selects; what it does beside what every ranker does.

Live scores, queues, deadlines and bad input are in tests/test_serving.py and tests/test_bad_input.py.
"""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import Served, set_parameters
from google.protobuf import text_format
from live import PROTOCOLS, ask, busy_scorer, infer, metric, settled, wait_until
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts.workspace import Workspace
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import ServeSettings
from tritonrank.serve.models import write_models
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.triton_config import as_text, lanes, model_configs
from tritonrank_client import DeadlineExceeded, RankClient, Retry
from tritonrank_runtime.context_cache import ContextCache
from tritonrank_runtime.engines import ENGINE_PARAMETERS
from tritonrank_runtime.lanes import Lanes
from tritonrank_runtime.repository import model_folders
from tritonrank_runtime.threads import Threads

ROOT = Path(__file__).parents[1]
BERT = ("input_ids", "attention_mask", "token_type_ids")
SHARED = ("context_ids", "candidate_ids")
SETTINGS = ServeSettings(max_candidates=5, deadline_ms=50, queue_requests=2, threads=2, executor="torch")
MANY = [f"oak desk number {number}" for number in range(200)]
SLOW = """
import time

at_once = TritonPythonModel.initialize


def initialize(self, args):
    at_once(self, args)
    run = self.engine._rows.run

    class Slow:
        def run(self, names, feed):
            time.sleep(0.02)
            return run(names, feed)

    self.engine._rows = Slow()


TritonPythonModel.initialize = initialize
"""


# What is assembled


@pytest.mark.parametrize("tensors", [BERT, SHARED], ids=["joint", "shared-context"])
def test_the_ensemble_is_one_step_with_the_same_face(tensors: tuple[str, ...]) -> None:
    one, steps = (model_configs(SETTINGS, tensors, cores=8, in_one=in_one) for in_one in (True, False))
    assert set(one) == {"rank", "ranker"}
    assert (one["rank"].input, one["rank"].output) == (steps["rank"].input, steps["rank"].output)
    assert one["rank"].parameters == steps["rank"].parameters
    (step,) = one["rank"].ensemble_scheduling.step
    assert set(step.input_map) == {tensor.name for tensor in one["ranker"].input}
    assert set(step.output_map) == {tensor.name for tensor in one["ranker"].output}
    for config in one.values():
        assert text_format.Parse(as_text(config), pb.ModelConfig()) == config
    assert one["ranker"].WhichOneof("scheduling_choice") is None, "its own lanes batch"


@pytest.mark.parametrize("tensors", [BERT, SHARED], ids=["joint", "shared-context"])
def test_the_model_finds_the_parameters_that_it_reads(tensors: tuple[str, ...]) -> None:
    source = (ROOT / "model_repository" / "ranker" / "1" / "model.py").read_text(encoding="utf-8")
    reading = (ROOT / "build" / "tritonrank_runtime" / "request_reading.py").read_text(encoding="utf-8")
    written = set(model_configs(SETTINGS, tensors, cores=8)["ranker"].parameters) - set(ENGINE_PARAMETERS)
    assert set(re.findall(r'settings\["(\w+)"\]', source)) <= written
    assert written <= set(re.findall(r'"(\w+)"', source)) | set(re.findall(r"^    (\w+): int", reading, re.MULTILINE))


@pytest.mark.parametrize(
    ("tensors", "device", "count", "tokens"),
    [(SHARED, "cpu", 4, 0), (BERT, "cpu", 4, 16_384), (SHARED, "cuda", 1, 65_536), (BERT, "cuda", 1, 65_536)],
)
def test_lanes_and_what_they_take_follow_the_device(
    tensors: tuple[str, ...], device: str, count: int, tokens: int
) -> None:
    settings = ServeSettings.model_validate({"executor": "torch", "device": device})
    config = model_configs(settings, tensors, cores=16)["ranker"]
    assert (config.parameters["lanes"].string_value, config.parameters["batch_tokens"].string_value) == (
        str(count),
        str(tokens),
    )
    assert [group.count for group in config.instance_group] == [1], "one process, or one on each GPU"
    assert lanes(ServeSettings(instances=3), 64) == 3


def test_weights_and_texts_lie_there_once(workspace: Workspace) -> None:
    assert {path.name for path in workspace.repository.iterdir() if path.is_dir()} == {"rank", "ranker"}
    assert len({*model_folders(workspace.repository)}) == 1


# The parts


def test_a_lane_takes_the_oldest_and_those_behind_it_within_the_budget() -> None:
    gate, done, taken = threading.Event(), threading.Semaphore(0), []

    def work(lane: int, jobs: list[str]) -> None:
        gate.wait(10)
        taken.append((lane, jobs))
        for _ in jobs:
            done.release()

    waiting = Lanes[str](1, work, most_tokens=10)
    for name, tokens in (("first", 1), ("a", 4), ("b", 6), ("c", 1), ("large", 50), ("d", 1)):
        waiting.put(name, tokens)
        if name == "first":
            wait_until(lambda: not waiting._waiting, "the lane takes it")
    gate.set()
    for _ in range(6):
        assert done.acquire(timeout=10)
    waiting.close()
    assert taken == [(0, ["first"]), (0, ["a", "b"]), (0, ["c"]), (0, ["large"]), (0, ["d"])]


def test_closed_lanes_do_what_waits_first() -> None:
    done: list[int] = []
    waiting = Lanes[int](3, lambda _, jobs: done.extend(jobs))
    for number in range(50):
        waiting.put(number, 1)
    waiting.close()
    assert sorted(done) == [*range(50)]


def test_nobody_waits_for_helpers_that_work_for_another() -> None:
    threads, gate = Threads(2), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(threads.run, [lambda: gate.wait(10)] * 2, 0)  # a caller and the only helper
        time.sleep(0.05)
        done: list[int] = []
        began = time.monotonic()
        threads.run([lambda: done.append(1), lambda: done.append(2)], 0)
        assert time.monotonic() - began < 5
        assert sorted(done) == [1, 2]
        gate.set()
        other.result()


def test_threads_that_share_the_memory_of_contexts_count_right() -> None:
    cache = ContextCache(20_000)
    contexts = [np.full(5, number, dtype=np.int32) for number in range(30)]

    def look(number: int) -> float:
        found = cache.get(contexts[number % 30], lambda ids: {"keys": np.full(100, ids[0], dtype=np.float64)})
        return float(found["keys"][0])

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(look, range(3_000))] == [number % 30 for number in range(3_000)]
    assert cache.hits + cache.misses == 3_000
    assert 0 < cache.bytes <= 20_000
    assert cache.bytes == sum(len(key) + entry["keys"].nbytes for key, entry in cache._entries.items())


# Live


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_process_answers_as_three_steps_do(served: Served, held_out: list[Request], protocol: str) -> None:
    tensors = {
        "query": [b"oak"],
        "history": [text.encode() for text in held_out[0].history],
        "items": [*(text.encode() for text in held_out[0].items), b"", b'{"title": "Lamp", "price": 3}'],
    }
    for joint in ("", "_joint"):
        one, steps = (infer(served, protocol, f"rank{joint}{kind}", tensors) for kind in ("", "_steps"))
        assert set(one) == set(steps)
        for name, values in one.items():
            assert values.tolist() == steps[name].tolist(), name


def test_a_request_is_tokenized_while_another_is_computed(served: Served) -> None:
    def texts() -> float:
        return metric(served, "tritonrank_texts_total", model="ranker", field="items")

    with ThreadPoolExecutor(1) as pool:
        with busy_scorer(served):
            before = settled(texts)
            waiting = pool.submit(infer, served, "grpc", "rank", {"items": [b"desk", b"lamp"]})
            wait_until(lambda: texts() == before + 2, "the second is read")
            assert not waiting.done()
        assert len(waiting.result()["indices"]) == 2


def test_the_steps_of_a_request_are_told(served: Served) -> None:
    def told() -> list[float]:
        return [metric(served, f"tritonrank_{step}_seconds_total", model="ranker") for step in ("tokenize", "score")]

    before = settled(told)
    began = time.monotonic()
    with RankClient(served.triton.grpc_url) as client:
        client.rank(items=["desk"])
    wait_until(lambda: all(now > then for now, then in zip(told(), before, strict=True)), "they are counted")
    assert sum(told()) - sum(before) < time.monotonic() - began


@pytest.fixture(scope="module")
def slow(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Each run of some candidates takes 20 ms; two lanes, cut as for two cores."""
    repository = tmp_path_factory.mktemp("slow") / "repository"
    shutil.copytree(workspace.repository, repository)
    set_parameters(repository / "ranker", lanes="2")
    (repository / "ranker" / "config.pbtxt").open("a").write('parameters {key: "threads" value {string_value: "1"}}\n')
    with (repository / "ranker" / "1" / "model.py").open("a", encoding="utf-8") as code:
        code.write(SLOW)
    with LocalTriton(repository) as triton:
        yield triton


@pytest.mark.slow
def test_work_whose_deadline_passes_is_stopped_and_makes_room(slow: LocalTriton) -> None:
    with RankClient(slow.grpc_url, retry=Retry(attempts=1)) as client:
        client.rank(items=["warm"])
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.rank(items=MANY, timeout=0.05)
        few = client.rank(items=["desk", "lamp"], timeout=1)
        assert len(few.ranking) == 2
        assert time.monotonic() - began < 1


@pytest.mark.slow
def test_a_small_request_does_not_wait_for_a_large_one(slow: LocalTriton) -> None:
    with RankClient(slow.grpc_url, timeout=10) as client, ThreadPoolExecutor(1) as pool:
        client.rank(items=["warm"])
        large = pool.submit(client.rank, items=[f"{text} {place}" for place in range(3) for text in MANY])
        time.sleep(0.05)
        ask(client, Request("", [], ["desk"]))
        assert not large.done(), "the other lane was free"
        large.result()


def test_a_repository_in_three_steps_can_be_opened_too(workspace: Workspace, tmp_path: Path) -> None:
    write_models(ServeSettings(), workspace.int8, tmp_path, cores=2, in_one=False)
    folders = model_folders(tmp_path)
    assert [folder.parent.name for folder in folders] == ["tokenize", "score", "select"]
    assert not (folders.scorer / "tokenizer.json").exists(), "texts are the tokenizer's"
