"""Impatient callers of large lists hold nobody up: a real server with a joint ranker as slow as a larger one is.

Two requests of 1,000 candidates whose callers gave up after half a second once made such a server refuse everybody for
as long as their work took.
"""

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import ServeSettings
from tritonrank.serve.models import engine_inputs, known_ids, longest_rows
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.triton_config import as_text, model_configs
from tritonrank_client import DeadlineExceeded, Overloaded, RankClient, RankError, Retry
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.text import RequestTokenizer

pytestmark = pytest.mark.slow  # requests wait in real time

SECONDS_PER_TOKEN = 0.0003
"""Padding included. 1,000 candidates of at least 16 tokens then take 5 s."""
ROWS_PER_GROUP = 32
GROUP_SECONDS = ROWS_PER_GROUP * 32 * SECONDS_PER_TOKEN
PATIENCE_SECONDS = 0.5
BUSY_MACHINE_SECONDS = 1.0
"""What scheduling may add where other tests run."""
SLOWER = """
import time

at_once = TritonPythonModel.initialize


def initialize(self, args):
    at_once(self, args)
    run = self.engine.run_padded

    def after_a_pause(feed):
        time.sleep(SECONDS_PER_TOKEN * feed["input_ids"].size)
        return run(feed)

    self.engine.run_padded = after_a_pause


TritonPythonModel.initialize = initialize
"""
MANY = [f"desk {place}" for place in range(1_000)]
MOST_TRIES = 6
FEW = ["desk", "lamp", "chair", "tent", "bag"]


@pytest.fixture(scope="module")
def slow(joint_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    repository = tmp_path_factory.mktemp("abandoned") / "repository"
    shutil.copytree(joint_workspace.repository, repository)
    inputs = engine_inputs(repository / "ranker" / "1")
    tokenizer = RequestTokenizer.from_folder(repository / "ranker" / "1")
    limits = {"longest_rows": longest_rows(inputs, tokenizer), "ids": known_ids(inputs, tokenizer)}
    settings = ServeSettings(threads=1, rows_per_batch=ROWS_PER_GROUP)
    for name, config in model_configs(settings, inputs, available_cores(), **limits).items():
        (repository / name / "config.pbtxt").write_text(as_text(config), encoding="utf-8")
    with (Path(repository) / "ranker" / "1" / "model.py").open("a", encoding="utf-8") as file:
        file.write(SLOWER.replace("SECONDS_PER_TOKEN", str(SECONDS_PER_TOKEN)))
    with LocalTriton(repository) as triton:
        yield triton


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_two_abandoned_requests_block_others_no_longer_than_a_group_takes(slow: LocalTriton, protocol: str) -> None:
    url = slow.grpc_url if protocol == "grpc" else slow.http_url
    with RankClient(url, retry=Retry(attempts=1), timeout=2.0) as client:
        client.rank(query="oak", items=FEW)

        def give_up(_: int) -> str:
            try:
                client.rank(query="oak", items=MANY, timeout=PATIENCE_SECONDS)
                return "answered"
            except RankError as error:
                return type(error).__name__

        with ThreadPoolExecutor(2) as callers:
            ends = [*callers.map(give_up, range(2))]
        began = time.monotonic()
        assert set(ends) <= {"DeadlineExceeded", "Overloaded"}
        while True:  # as a shop does that asks again and again
            try:
                client.rank(query="oak", items=FEW)
                break
            except (Overloaded, DeadlineExceeded):
                assert time.monotonic() - began < GROUP_SECONDS + BUSY_MACHINE_SECONDS, "the work goes on for nobody"
                time.sleep(0.01)
        assert time.monotonic() - began < GROUP_SECONDS + BUSY_MACHINE_SECONDS
        for _ in range(10):
            assert len(client.rank(query="oak", items=FEW).ranking) == len(FEW)


def test_an_idle_server_refuses_at_once_what_it_has_measured_to_be_too_long(slow: LocalTriton) -> None:
    waited = []
    with RankClient(slow.grpc_url, retry=Retry(attempts=1)) as client:
        for _ in range(MOST_TRIES):  # work that is stopped tells how fast it is, unless a busy machine never began it
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                client.rank(query="oak", items=MANY, timeout=0.8)
            if re.search(r"about \d+ ms of work", str(caught.value)):
                break
            waited.append(str(caught.value))
            time.sleep(2 * GROUP_SECONDS)
        else:
            pytest.fail(f"never refused at once: {waited}")
    assert time.monotonic() - began < 0.8, "nobody waited for the deadline"
