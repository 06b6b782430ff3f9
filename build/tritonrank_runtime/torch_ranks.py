"""One rank of a decoder in PyTorch: its share of every layer, on its own GPU, with sums over the ranks by NCCL.

A share is a whole network of smaller sizes: heads, key heads and neurons divided by the ranks, so the ordinary passes
run it. Only the two layers that sum over heads and neurons differ: what the ranks have is added up before their bias
(Shoeybi et al. 2019, "Megatron-LM", section 3). Not with PyTorch's DTensor: dispatching one of its products took 157 us
of this processor where the plain one takes 8, and a decoder has hundreds.

On CPUs the sums are gloo's: a rehearsal, with the same code but for the device. Nothing here has run on two GPUs.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from tritonrank_runtime.decoder import NAMES
from tritonrank_runtime.decoder_network import DecoderNetwork
from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.torch_passes import RowsPass, SharedPass, as_half, read_config

REPLICATED_WEIGHTS = "replicated.safetensors"
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Settings of which every rank has its share."""
BY_COLUMN = ("query", "key", "value", "ffn_gate", "ffn_in")
BY_ROW = ("attention_out", "ffn_out")
TOGETHER_SECONDS = 120.0


def rank_weights(rank: int) -> str:
    """The name of the file with a rank's share."""
    return f"rank{rank}.safetensors"


def rank_config(config: Any, ranks: int) -> Any:
    """The sizes of one rank's share.

    Raises:
        ExecutorError: the number of ranks does not divide the heads, the key heads or the neurons.
    """
    if wrong := [f"{name} {getattr(config, name)}" for name in DIVIDED if getattr(config, name) % ranks]:
        raise ExecutorError(
            f"this decoder cannot be cut into {ranks} ranks, which does not divide its {', '.join(wrong)}; "
            f"tensor_parallel may be {', '.join(map(str, possible_ranks(config)))}"
        )
    share = copy(config)
    for name in DIVIDED:
        setattr(share, name, getattr(config, name) // ranks)
    return share


def possible_ranks(config: Any) -> list[int]:
    """The numbers of ranks that share out a decoder evenly."""
    sizes = [int(getattr(config, name)) for name in DIVIDED]
    return [ranks for ranks in range(1, min(sizes) + 1) if not any(size % ranks for size in sizes)]


def cut_axis(name: str) -> int | None:
    """The axis along which a weight of a checkpoint is cut, by its name; None for what every rank has whole."""
    layer, _, kind = name.rpartition(".")
    module = layer.rpartition(".")[2]
    if module in BY_COLUMN:
        return 0
    return 1 if module in BY_ROW and kind == "weight" else None


class SummedLinear(nn.Module):
    """A layer split by row: the ranks' products are added up, then the bias counts once."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        """rows (..., this rank's features) -> (..., all features), the same on all ranks."""
        total = nn.functional.linear(rows, self.weight)
        dist.all_reduce(total)
        return total if self.bias is None else total + self.bias


def rank_network(config: Any, ranks: int, weights: Mapping[str, Tensor]) -> DecoderNetwork:
    """One rank's network in FP32 on the CPU, as it serves.

    Args:
        config: of the whole decoder.
        ranks: how many.
        weights: what this rank holds, whole and cut.
    """
    network = DecoderNetwork(rank_config(config, ranks))
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    network = network.folded()
    for layer in network.layers:
        for name in BY_ROW:
            setattr(layer, name, SummedLinear(getattr(layer, name)))
    return network


class TorchRank:
    """All that one rank computes; looks like a ``ShardRunner``.

    Keys and values of a prefix stay on the device. What goes back as its keys is a name, its token ids: whoever brings
    them again gets the same scores, from what was kept or from what is computed again.

    Args:
        folder: holds config.json, replicated.safetensors and a file for each rank.
        rank: which.
        ranks: how many.
        device: cpu, or cuda: then rank n is on the n-th GPU.
        meeting: a file that does not exist yet, where the ranks find each other.
        state_bytes: of keys and values that are kept at the most; those of the last prefix always are.

    Raises:
        ExecutorError: PyTorch sees too few GPUs.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, device: str, meeting: str, state_bytes: int = 0) -> None:
        from safetensors.torch import load_file

        if device == "cpu":
            torch.set_num_threads(1)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        elif torch.cuda.device_count() < ranks:
            raise ExecutorError(f"{ranks} ranks need as many GPUs; PyTorch sees {torch.cuda.device_count()}")
        else:
            device = f"cuda:{rank}"
            torch.cuda.set_device(device)
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        config = SimpleNamespace(**read_config(folder))
        weights = load_file(folder / REPLICATED_WEIGHTS) | load_file(folder / rank_weights(rank))
        network = rank_network(config, ranks, weights)
        network = network if device == "cpu" else as_half(network, device)
        longest = config.max_position_embeddings
        self._prefix = SharedPass(NAMES, network, network.encode_prefix, longest - 1, device)
        self._branches = RowsPass(NAMES, network, network.score_branches, longest, device, counts_on=True)
        self._state_bytes = state_bytes
        self._states: OrderedDict[bytes, tuple[Tensor, Tensor]] = OrderedDict()

    def run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the prefix or the branches; all ranks have to do so with the same feed, in the same order."""
        if name == NAMES.shared_file:
            prefix_ids = feed[NAMES.shared]
            self._state(prefix_ids)
            return dict(zip(NAMES.states, (prefix_ids, np.empty(0, np.int32)), strict=True))
        states = dict(zip(NAMES.states, self._state(feed[NAMES.states[0]]), strict=True))
        (logits,) = self._branches.run(["logits"], states | {NAMES.rows: feed[NAMES.rows]})
        return {"logits": logits}

    def _state(self, prefix_ids: NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Keys and values of a prefix: those that were kept, or computed now.

        All ranks see the same prefixes in the same order, so all keep the same and meet in every sum.
        """
        key = prefix_ids.tobytes()
        if key in self._states:
            self._states.move_to_end(key)
            return self._states[key]
        keys, values = self._prefix.run(NAMES.states, {NAMES.shared: prefix_ids})
        self._states[key] = keys, values
        while len(self._states) > 1 and sum(map(_bytes, self._states.values())) > self._state_bytes:
            self._states.popitem(last=False)
        return keys, values


def _bytes(state: tuple[Tensor, Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in state)
