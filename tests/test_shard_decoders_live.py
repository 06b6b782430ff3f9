"""A decoder in ranks under the real server: processes of ONNX Runtime and of PyTorch, also after one was killed."""

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tiny_prompts
from live import wait_until
from numpy.typing import NDArray
from test_decoder import NO, YES
from test_frame import QWEN3
from test_shard_workers import RANKS, SECONDS, workers_below
from tiny_decoders import causal_model
from tokenizers import Tokenizer
from tritonrank.artifacts import read_manifest, write_artifact
from tritonrank.artifacts.stage import bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ServerError
from tritonrank.graphs.export import export_graphs
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.pipeline import assemble, shard
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.rankers.scorers import Request
from tritonrank.rankers.server_scorer import ServerScorer
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import serving
from tritonrank_client import RankClient, Retry
from tritonrank_runtime.decoder import DECODER
from tritonrank_runtime.text import TOKENIZER_FILE, TextRules, copy_text_files

pytestmark = [pytest.mark.slow, pytest.mark.long]  # starts Triton with processes below it

TOLERANCE = 1e-4
WAYS = [("onnxruntime", RANKS), ("onnxruntime", 4), ("torch", RANKS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 that reads its texts in the published prompt."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = Tokenizer.from_str(tiny_prompts.qwen().backend_tokenizer.to_str())
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
    model = causal_model("qwen3", vocab_size=tokenizer.get_vocab_size(), **sizes)
    decoder_from(model, "qwen3", yes_no_head(model, YES, NO)).save_pretrained(folder)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    TextRules("{title}", 12, 4, 40, 16, DECODER, QWEN3).save(folder)
    return folder


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_graphs(checkpoint, folder)
    copy_text_files(checkpoint, folder)
    return folder


@pytest.mark.parametrize(("executor", "ranks"), WAYS)
def test_triton_serves_a_decoder_in_ranks_and_survives_a_killed_one(
    checkpoint: Path,
    whole: Path,
    tiny_recipe: Recipe,
    workspace: Workspace,
    held_out: list[Request],
    tmp_path: Path,
    executor: str,
    ranks: int,
) -> None:
    settings = tiny_recipe.serve.model_copy(update={"executor": executor, "deadline_ms": 1_000 * SECONDS})
    exact = tiny_recipe.quantize.model_copy(update={"method": "none"})
    recipe = tiny_recipe.model_copy(update={"tensor_parallel": ranks, "serve": settings, "quantize": exact})
    own = Workspace.of(recipe, tmp_path)
    model, source = (own.teacher, checkpoint) if executor == "torch" else (own.onnx, whole)
    with write_artifact(model, "export", {}, {}) as draft:
        shutil.copytree(source, draft.folder, dirs_exist_ok=True)
    with write_artifact(own.dataset, "prepare", {}, {}) as draft:
        shutil.copytree(workspace.dataset, draft.folder, dirs_exist_ok=True, ignore=lambda *_: ["manifest.json"])
    bring_up_to_date(shard.stage(recipe, own))
    metrics = read_manifest(own.shards).metrics
    assert len(metrics["rank_bytes"]) == ranks
    assert metrics["difference_on_requests"] < TOLERANCE
    bring_up_to_date(assemble.stage(recipe, own))
    for folder in (model, own.shards):  # the repository holds all that is served
        shutil.rmtree(folder)
    repository = own.repository
    asked = [Request(one.query, one.history, one.items[:12]) for one in held_out[:6]]
    scorer = open_scorer(whole)
    expected = [scorer.score(one) for one in asked]
    assert min(np.ptp(one) for one in expected) > 100 * TOLERANCE
    with (
        serving(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        RankClient(server.grpc_url, timeout=SECONDS, retry=Retry(attempts=1)) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        ask = ServerScorer(client).score
        for found, known in zip(pool.map(ask, asked), expected, strict=True):
            np.testing.assert_allclose(found, known, atol=TOLERANCE)
        pids = workers_below(os.getpid())
        assert len(pids) == ranks
        os.kill(pids[1], signal.SIGKILL)
        wait_until(lambda: len({*workers_below(os.getpid())} - {*pids}) == ranks, "the ranks are started again")
        found: list[NDArray[np.float32]] = []

        def answers() -> bool:
            """Not while ranks load; and where that takes seconds, the supervisor brings the whole server back."""
            with suppress(ServerError):
                found.append(ask(asked[0]))
            return bool(found)

        wait_until(answers, "requests are answered again", SECONDS)
        np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCE)
