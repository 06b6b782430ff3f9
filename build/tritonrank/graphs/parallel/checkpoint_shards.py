"""A decoder's checkpoint cut into ranks that PyTorch computes together: what ``serve.executor: torch`` serves with
``tensor_parallel`` above 1.

    shards.json                                     ranks, device, and the passes that an engine runs
    config.json                                     of the whole decoder
    replicated.safetensors                          embeddings, norms, head, biases after a sum
    rank0.safetensors   rank1.safetensors           each rank's heads and neurons

Weights are cut by their names, as ``tritonrank_runtime.torch_ranks`` puts them together. Like shards of graphs, they
prove themselves before they are published: real requests go through N processes on the CPU, with gloo between them.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tritonrank_runtime.decoder import DECODER, NAMES
from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.shard_runner import SHARDS_FILE
from tritonrank_runtime.shard_workers import ShardWorkers, sharded_engine
from tritonrank_runtime.torch_passes import CONFIG_FILE, WEIGHTS_FILE, read_config

from tritonrank.errors import ArtifactError
from tritonrank.rankers.agreement import largest_difference
from tritonrank.rankers.scorers import RequestTensors

TOLERANCE = 1e-4
"""Sums in another order differ in the last digits."""


def write_checkpoint_shards(checkpoint: Path, folder: Path, ranks: int, device: str) -> dict[str, Any]:
    """Cut every weight of a checkpoint.

    Args:
        checkpoint: holds config.json and model.safetensors of a decoder.
        folder: gets the shards.
        ranks: how many.
        device: on which they will serve: cpu, or cuda with as many GPUs.

    Returns:
        ``rank_bytes`` of each rank's share of the layers, and ``replicated_bytes`` of what every rank holds besides.

    Raises:
        ArtifactError: it is no decoder, or cannot be cut into so many ranks.
    """
    from safetensors.torch import load_file, save_file
    from tritonrank_runtime.torch_ranks import REPLICATED_WEIGHTS, cut_axis, rank_config, rank_weights

    config = read_config(checkpoint)
    if config["model_type"] != DECODER:
        raise ArtifactError(
            f"{checkpoint}: ranks of PyTorch are there for decoders, and this is {config['model_type']}. Set "
            "serve.executor to onnxruntime, or tensor_parallel to 1"
        )
    try:
        rank_config(SimpleNamespace(**config), ranks)
    except ExecutorError as error:
        raise ArtifactError(f"{checkpoint}: {error}") from None
    replicated: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in range(ranks)]
    for name, weight in load_file(checkpoint / WEIGHTS_FILE).items():
        if (axis := cut_axis(name)) is None:
            replicated[name] = weight
            continue
        for share, piece in zip(own, weight.chunk(ranks, dim=axis), strict=True):
            share[name] = piece.contiguous()
    save_file(replicated, folder / REPLICATED_WEIGHTS)
    for rank, share in enumerate(own):
        save_file(share, folder / rank_weights(rank))
    shutil.copyfile(checkpoint / CONFIG_FILE, folder / CONFIG_FILE)
    describe(folder, ranks, device)
    return {"rank_bytes": [_bytes(share) for share in own], "replicated_bytes": _bytes(replicated)}


def describe(folder: Path, ranks: int, device: str) -> None:
    """Write shards.json: to an engine the ranks look like the graphs of the decoder."""
    states = list(NAMES.states)
    graphs = {
        NAMES.shared_file: {"inputs": [NAMES.shared], "outputs": states},
        NAMES.rows_file: {"inputs": [*states, NAMES.rows], "outputs": ["logits"]},
    }
    nothing_split: dict[str, Any] = {"split_inputs": {}, "split_outputs": {}}
    described = {
        "ranks": ranks,
        "executor": "torch",
        "device": device,
        "graphs": {name: graph | nothing_split for name, graph in graphs.items()},
    }
    (folder / SHARDS_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def compare_with_checkpoint(checkpoint: Path, folder: Path, requests: Sequence[RequestTensors]) -> float:
    """Score the same requests with the whole checkpoint and with ranks, on the CPU whatever they will serve on.

    Returns:
        the largest |logit difference|.

    Raises:
        ArtifactError: it is more than rounding explains.
    """
    from tritonrank_runtime.torch_engine import open_torch_engine

    whole = open_torch_engine(checkpoint).run(requests)
    with ShardWorkers(folder, device="cpu") as workers:
        sharded = sharded_engine(workers).run(requests)
    difference = largest_difference(whole, sharded)
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"{folder}: the ranks' logits differ by {difference:.1e} from those of {checkpoint} (tolerance "
            f"{TOLERANCE:.0e}). Leave tensor_parallel at 1, and report this: it is a fault of tritonrank"
        )
    return difference


def _bytes(weights: dict[str, Any]) -> int:
    return sum(one.numel() * one.element_size() for one in weights.values())
