"""The data path of the targets for GPUs, through the real server: padded requests, batched by Triton, give the scores
of the target for CPUs. Only the scorer's backend is another one (``stand_in_scorer.py``): the bundled server has none
for GPUs."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TESTS
from google.protobuf import text_format
from live import Scores, ask, largest_difference, settled
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts.workspace import Target, Workspace
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline.gpu_targets import assemble_target
from tritonrank.rankers.scorers import EngineScorer, Request
from tritonrank.recipe import Recipe
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import check_golden_cases
from tritonrank.serve.triton_config import as_text
from tritonrank_client import InvalidRequest, RankClient
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.joint import JOINT

pytestmark = pytest.mark.slow  # a server of its own

CANDIDATE_BUCKETS = (4, 16, 64)
MOST_REQUESTS = 3
PATIENCE_US = 150_000
"""The batcher waits so long for batch mates, so that a test need not be lucky to see some."""


@dataclass(frozen=True)
class Padded:
    """A running repository of target onnxruntime around the stand-in scorer."""

    triton: LocalTriton
    repository: Path
    in_process: EngineScorer
    """the graphs that target cpu serves"""
    warmed_up: list[list[list[int]]]
    """``executions`` when the server was ready"""

    @property
    def is_joint(self) -> bool:
        return self.in_process.tokenizer.rules.architecture == JOINT

    @property
    def token_buckets(self) -> list[int]:
        return list(map(int, self.parameter("token_buckets").split(",")))

    def parameter(self, name: str) -> str:
        return str(read_config(self.repository, "tokenize").parameters[name].string_value)

    def executions(self) -> list[list[list[int]]]:
        return executions_of(self.repository)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.triton.metrics_url, timeout=10) as page:
            (line,) = [one for one in page.read().decode().splitlines() if one.startswith(f"{name}{{")]
        return float(line.rsplit(" ", 1)[1])


@pytest.fixture(scope="module", params=["shared-context", "joint"])
def padded(
    request: pytest.FixtureRequest,
    tiny_recipe: Recipe,
    joint_recipe: Recipe,
    workspace: Workspace,
    joint_workspace: Workspace,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Padded]:
    is_joint = request.param == "joint"
    recipe, built = (joint_recipe, joint_workspace) if is_joint else (tiny_recipe, workspace)
    changed = {"candidate_buckets": [*CANDIDATE_BUCKETS], "token_buckets": [48 if is_joint else 9]}
    tensorrt = recipe.tensorrt.model_copy(update=changed | {"requests": MOST_REQUESTS})
    served = {"max_candidates": CANDIDATE_BUCKETS[-1], "tokenizers": 2}
    serve = recipe.serve.model_copy(update=served)
    own = Workspace(tmp_path_factory.mktemp("padded") / "tiny")
    shutil.copytree(built.root, own.root)
    target_recipe = recipe.model_copy(update={"tensorrt": tensorrt, "serve": serve})
    repository = assemble_target(target_recipe, own, Target.ONNXRUNTIME)
    put_stand_in(repository)
    with LocalTriton(repository) as triton:
        yield Padded(triton, repository, open_scorer(built.onnx), executions_of(repository))


def executions_of(repository: Path) -> list[list[list[int]]]:
    """Shapes of the requests of each execution since the models were loaded, warm-up included."""
    lines = (repository / "score" / "1" / "executions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def put_stand_in(repository: Path) -> None:
    """Another backend for the scorer, and what only GPUs have goes; all else stays as it was assembled."""
    config = read_config(repository, "score")
    config.backend = "python"
    for field in ("platform", "default_model_filename", "optimization", "instance_group"):
        config.ClearField(field)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    config.dynamic_batching.max_queue_delay_microseconds = PATIENCE_US
    (repository / "score" / "config.pbtxt").write_text(as_text(config), encoding="utf-8")
    shutil.copyfile(TESTS / "stand_in_scorer.py", repository / "score" / "1" / "model.py")


def read_config(repository: Path, model: str) -> pb.ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def requests_of_sizes(held_out: list[Request], sizes: list[int]) -> list[Request]:
    """Held-out requests with so many candidates each: texts of others besides, all of them different."""
    texts = list(dict.fromkeys(item for request in held_out for item in request.items))
    return [
        Request(request.query, request.history, texts[place : place + size])
        for place, (request, size) in enumerate(zip(held_out, sizes, strict=False))
    ]


def ask_all(padded: Padded, requests: list[Request], at_once: int) -> list[Scores]:
    with RankClient(padded.triton.grpc_url, timeout=60) as client, ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda request: ask(client, request), requests))


def test_scores_are_those_of_the_cpu_target(padded: Padded, held_out: list[Request]) -> None:
    sizes = [1, 3, 4, 5, 16, 17, 40, 64]
    requests = requests_of_sizes(held_out, sizes)
    requests += [Request("", [], requests[3].items), Request("", requests[0].history, requests[2].items * 2)]
    found = ask_all(padded, requests, at_once=1)
    expected = [padded.in_process.score(request) for request in requests]
    assert [len(scores) for scores in found] == [*sizes, 5, 8]
    assert largest_difference(found, expected) < 1e-4
    assert float(np.std(np.concatenate(expected))) > 0.01  # scores differ by far more than the tolerance
    check_golden_cases(padded.repository, padded.triton.grpc_url)


def test_items_without_text_come_last_beside_padding(padded: Padded, held_out: list[Request]) -> None:
    (request,) = requests_of_sizes(held_out, [5])
    mixed = replace(request, items=["", *request.items[:3], " ", *request.items[3:]])
    alone, found, nothing = ask_all(padded, [request, mixed, replace(request, items=["", " "])], at_once=1)
    assert found[[1, 2, 3, 5, 6]].tolist() == alone.tolist()
    assert found[[0, 4]].tolist() == nothing.tolist() == [NO_TEXT_SCORE] * 2
    assert largest_difference([found], [padded.in_process.score(mixed)]) < 1e-4


def test_every_request_has_the_shape_of_a_bucket(padded: Padded, held_out: list[Request]) -> None:
    before = len(padded.executions())
    sizes = [2, 9, 50]
    ask_all(padded, requests_of_sizes(held_out, sizes), at_once=1)
    found = padded.executions()[before:]
    assert [len(shapes) for shapes in found] == [1, 1, 1]
    first = [] if padded.is_joint else [1]
    for (shape,), bucket in zip(found, CANDIDATE_BUCKETS, strict=True):
        assert shape[:-1] == [*first, bucket]
        assert shape[-1] in padded.token_buckets


def test_requests_of_a_bucket_share_an_execution(padded: Padded, held_out: list[Request]) -> None:
    texts = list(dict.fromkeys(item for request in held_out for item in request.items))
    longest = max(texts, key=lambda text: len(padded.in_process.tokenizer.items([text])[0]))
    others = [text for text in texts if text != longest]
    requests = [
        Request(request.query, request.history, [longest, *others[9 * place : 9 * place + 4 + place]])
        for place, request in enumerate(held_out[:9])
    ]
    before = len(padded.executions())
    found = ask_all(padded, requests, at_once=len(requests))
    assert largest_difference(found, [padded.in_process.score(request) for request in requests]) < 1e-4
    together = [len(shapes) for shapes in padded.executions()[before:]]
    assert sum(together) == len(requests)
    assert max(together) > 1
    if not padded.is_joint:
        assert max(together) <= MOST_REQUESTS
    for shapes in padded.executions()[before:]:
        assert len({tuple(shape) for shape in shapes}) == 1


def test_warm_up_ran_every_bucket(padded: Padded) -> None:
    ran = {tuple(shape[1:]) for shapes in padded.warmed_up for shape in shapes}
    tokens = padded.token_buckets
    joint, shared = {(one,) for one in tokens}, {(many, one) for many in CANDIDATE_BUCKETS for one in tokens}
    assert ran == (joint if padded.is_joint else shared)
    requests_of_warmups = [sum(shape[0] for shape in shapes) for shapes in padded.warmed_up]
    assert set(requests_of_warmups) == (set(CANDIDATE_BUCKETS) if padded.is_joint else {1, MOST_REQUESTS})


def test_more_candidates_than_the_largest_bucket_are_refused(padded: Padded, held_out: list[Request]) -> None:
    (large,) = requests_of_sizes(held_out, [CANDIDATE_BUCKETS[-1] + 1])
    with (
        RankClient(padded.triton.grpc_url) as client,
        pytest.raises(InvalidRequest, match=r"items: 65 elements; the limit is 64"),
    ):
        client.rank(query="", history=[], items=large.items)


def test_padding_is_counted(padded: Padded, held_out: list[Request]) -> None:
    names = ["tritonrank_tokens_computed_total", "tritonrank_tokens_needed_total"]
    before = settled(lambda: [padded.metric(name) for name in names])
    (request,) = requests_of_sizes(held_out, [5])
    ask_all(padded, [request], at_once=1)
    after = settled(lambda: [padded.metric(name) for name in names])
    computed, needed = (now - then for now, then in zip(after, before, strict=True))
    tensors = padded.in_process.tensors(request)
    if padded.is_joint:
        assert needed == tensors["attention_mask"].sum()
        assert computed in [16 * tokens for tokens in padded.token_buckets]
    else:
        context = padded.in_process.tokenizer.longest_rows["context_ids"]
        assert needed == tensors["context_ids"].size + (tensors["candidate_ids"] >= 0).sum()
        assert computed in [context + 16 * tokens for tokens in padded.token_buckets]
