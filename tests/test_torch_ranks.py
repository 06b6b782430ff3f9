"""Ranks of PyTorch: processes with gloo between them score as the whole decoder does, keep prefixes, and come back.

On GPUs the same code adds up by NCCL, which is not run here.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_decoder import NO, REQUESTS, YES, one_by_one, padded
from tiny_decoders import causal_model
from transformers import PreTrainedModel
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.gpu_check.parallel_cost import read_sums
from tritonrank.graphs.parallel.checkpoint_shards import compare_with_checkpoint, describe, write_checkpoint_shards
from tritonrank.rankers.decoder_weights import decoder_from, yes_no_head
from tritonrank.recipe import load_recipe
from tritonrank.serve.triton_config import model_configs
from tritonrank_runtime.decoder import NAMES
from tritonrank_runtime.engine import EngineLostError, ExecutorError
from tritonrank_runtime.shard_workers import ShardWorkers, sharded_engine
from tritonrank_runtime.torch_ranks import TorchRank, possible_ranks, rank_config

RANKS = 2
TOLERANCE = 1e-4
TENSORS = [
    {"prefix_ids": np.array(prefix, np.int32), "branch_ids": padded(branches).numpy().astype(np.int32)}
    for prefix, branches in REQUESTS
]


@pytest.fixture(scope="module")
def qwen3() -> PreTrainedModel:
    return causal_model("qwen3")


@pytest.fixture(scope="module")
def checkpoint(qwen3: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    decoder_from(qwen3, "qwen3", yes_no_head(qwen3, YES, NO)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shards(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_checkpoint_shards(checkpoint, folder, RANKS, "cpu")
    return folder


@pytest.fixture(scope="module")
def workers(shards: Path) -> Iterator[ShardWorkers]:
    with ShardWorkers(shards, state_bytes=100_000) as workers:
        yield workers


@pytest.mark.slow
def test_ranks_score_as_the_language_model(workers: ShardWorkers, qwen3: PreTrainedModel) -> None:
    engine = sharded_engine(workers)
    for found, request in zip(engine.run(TENSORS), REQUESTS, strict=True):
        np.testing.assert_allclose(found, one_by_one(qwen3, *request), atol=TOLERANCE)


@pytest.mark.slow
def test_prefixes_that_were_dropped_are_computed_again(workers: ShardWorkers) -> None:
    """Whether their keys and values were kept or not, the bits are the same."""
    engine = sharded_engine(workers)
    once = engine.run(TENSORS)
    for prefix in range(40):  # 100 kB hold a few
        engine.run([{**TENSORS[0], "prefix_ids": np.full(20, prefix + 3, np.int32)}])
    for one, other in zip(once, engine.run(TENSORS), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_ids_beyond_the_vocabulary_are_an_error_and_no_more(workers: ShardWorkers) -> None:
    engine = sharded_engine(workers)
    before = engine.run(TENSORS[:1])[0]
    with pytest.raises(RuntimeError, match="prefix_ids: ids from"):
        engine.run([{**TENSORS[0], "prefix_ids": np.full(5, 10_000, np.int32)}])
    np.testing.assert_array_equal(engine.run(TENSORS[:1])[0], before)


@pytest.mark.slow
def test_a_rank_that_dies_fails_its_run_and_all_come_back(workers: ShardWorkers) -> None:
    engine = sharded_engine(workers)
    before = engine.run(TENSORS[:1])[0]
    restarts = workers.restarts
    os.kill(workers.processes[1], signal.SIGKILL)
    try:
        found = engine.run(TENSORS[:1])[0]
    except (EngineLostError, RuntimeError):  # it was seen while a run had begun
        found = engine.run(TENSORS[:1])[0]
    np.testing.assert_array_equal(found, before)
    assert workers.restarts == restarts + 1


def test_each_rank_has_a_file_of_its_share(checkpoint: Path, shards: Path) -> None:
    whole, same = load_file(checkpoint / "model.safetensors"), load_file(shards / "replicated.safetensors")
    own = [load_file(shards / f"rank{rank}.safetensors") for rank in range(RANKS)]
    assert {*same, *own[0]} == {*whole}
    assert not {*same} & {*own[0]}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in own[0]} == {
        *("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out"),
    }
    for name in own[0]:
        axis = 1 if name.endswith(("attention_out.weight", "ffn_out.weight")) else 0
        assert torch.equal(torch.cat([one[name] for one in own], dim=axis), whole[name])


@pytest.mark.slow
def test_the_stage_proves_ranks_for_gpus_without_any(checkpoint: Path, tmp_path: Path) -> None:
    """Here with gloo, whatever they will serve on; a rank of other weights is noticed."""
    write_checkpoint_shards(checkpoint, tmp_path, RANKS, "cuda")
    assert compare_with_checkpoint(checkpoint, tmp_path, TENSORS) < TOLERANCE
    assert json.loads((tmp_path / "shards.json").read_text())["device"] == "cuda"
    (tmp_path / "rank1.safetensors").write_bytes((tmp_path / "rank0.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="the ranks' logits differ by"):
        compare_with_checkpoint(checkpoint, tmp_path, TENSORS)


def test_gpus_that_are_not_there_are_an_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match="2 ranks need as many GPUs; PyTorch sees 0"):
        TorchRank(shards, 0, RANKS, "cuda", str(tmp_path / "meeting"))


def test_numbers_of_ranks_that_do_not_divide_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"into 4 ranks.*num_key_value_heads 2; tensor_parallel may be 1, 2$"):
        write_checkpoint_shards(checkpoint, tmp_path, 4, "cpu")
    smollm2 = SimpleNamespace(num_attention_heads=9, num_key_value_heads=3, intermediate_size=1_536)
    assert possible_ranks(smollm2) == [1, 3]
    assert rank_config(smollm2, 3).num_attention_heads == 3


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "shared-context"}')
    with pytest.raises(ArtifactError, match="ranks of PyTorch are there for decoders, and this is shared-context"):
        write_checkpoint_shards(tmp_path, tmp_path, 2, "cpu")


def test_what_an_engine_sees_are_the_graphs_of_a_decoder(tmp_path: Path) -> None:
    describe(tmp_path, 4, "cuda")
    described = json.loads((tmp_path / "shards.json").read_text())
    assert [*described["graphs"]] == [NAMES.shared_file, NAMES.rows_file]


def test_a_recipe_may_ask_for_them_with_a_decoder_alone() -> None:
    tiny = Path(__file__).with_name("tiny.yaml")
    asked = ["tensor_parallel=2", "serve.executor=torch", "serve.device=cuda"]
    assert load_recipe(tiny, [*asked, "model.architecture=decoder"]).tensor_parallel == 2
    with pytest.raises(RecipeError, match="of PyTorch for a decoder"):
        load_recipe(tiny, asked)


def test_ranks_take_their_gpus_themselves() -> None:
    """One scorer starts them all: an instance on each GPU would start as many groups."""
    settings = load_recipe(Path(__file__).with_name("tiny.yaml"), ["serve.executor=torch", "serve.device=cuda"]).serve
    settings = settings.model_copy(update={"instances": "auto"})
    of_ranks = model_configs(settings, NAMES.inputs, 16, RANKS)["score"].instance_group[0]
    assert (of_ranks.kind, of_ranks.count) == (pb.ModelInstanceGroup.KIND_CPU, 1)
    alone = model_configs(settings, NAMES.inputs, 16, in_one=False)["score"].instance_group[0]
    assert alone.kind == pb.ModelInstanceGroup.KIND_GPU


@pytest.mark.slow
def test_sums_are_measured_between_processes(tmp_path: Path) -> None:
    """A rehearsal, which says so; with GPUs it is NCCL that is measured."""
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command = [*program, "tritonrank.gpu_check.sum_speed", "--cpu", "--out", str(tmp_path / "sums.json")]
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"})
    sums = read_sums(tmp_path / "sums.json")
    assert sums.origin.startswith("rehearsal: gloo between processes of one CPU, no GPU")
    assert [size for size, _ in sums.seconds[2]] == [2**power for power in range(12, 21)]
    assert all(seconds > 0 for _, seconds in sums.seconds[2])


def test_sums_need_several_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tritonrank.gpu_check.sum_speed", "--out", str(tmp_path / "sums.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "torchrun --nproc-per-node N" in done.stderr
