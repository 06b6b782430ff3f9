"""Other ways to run the shared-context network in PyTorch, which gpu-check times beside the engine's.

Pair by pair is what a joint ranker would cost. The padded way gives every request one of a few shapes, so that a CUDA
graph can be captured of each.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonrank_runtime.architecture import Input
from tritonrank_runtime.engine import Logits, Tensors
from tritonrank_runtime.padding import side_by_side
from tritonrank_runtime.shared_context import INPUT_NAMES

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tritonrank_runtime.network import SharedContextNetwork

CONTEXT_MULTIPLE, TOKEN_MULTIPLE, CANDIDATE_MULTIPLE = 16, 8, 8
"""Shapes that a captured graph is padded to."""
WARMUP_RUNS = 3
"""Before a capture: libraries allocate their workspaces in the first runs."""
PAIRS_PER_RUN = 256
"""Of a thousand long pairs the masks alone would take much memory."""


class PairByPair:
    """A shared-context ranker as a joint one works: the context once more for every candidate. The same scores."""

    def __init__(self, network: "SharedContextNetwork", device: str) -> None:
        self._network, self._device = network, device

    def run(self, request: Tensors) -> Logits:
        import torch

        context, candidates = (torch.from_numpy(request[name]).to(self._device) for name in INPUT_NAMES)
        with torch.inference_mode():
            parts = [
                self._network(*self._pairs(context, part))[:, 0] for part in torch.split(candidates, PAIRS_PER_RUN)
            ]
            logits: Logits = torch.cat(parts).float().cpu().numpy()
        return logits

    def _pairs(self, context: "Tensor", candidates: "Tensor") -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
        """Arguments of ``forward``: one sequence per candidate."""
        import torch

        pairs, tokens = candidates.shape
        repeated = context.expand(pairs, -1)
        is_token = candidates >= 0
        places = torch.arange(tokens, device=context.device) + self._network.config.context_positions
        positions = torch.cat([torch.arange(len(context), device=context.device), places])
        segments = torch.cat([torch.zeros_like(repeated), is_token.to(repeated.dtype) * 2 - 1], dim=1)
        first_tokens = torch.full((pairs, 1), len(context), device=context.device)
        token_ids = torch.cat([repeated, candidates.clamp(min=0)], dim=1)
        return token_ids, positions.expand(pairs, -1), segments, first_tokens


class PaddedRunner:
    """``score_batch`` on requests that are padded to a few shapes, as captured graphs and plans need them.

    Args:
        score_batch: a network's.
        longest: as ``padded`` takes it.
    """

    def __init__(self, score_batch: "Callable[[Tensor, Tensor], Tensor]", longest: tuple[int, int]) -> None:
        self._score_batch, self._longest = score_batch, longest

    def run(self, request: Tensors) -> Logits:
        import torch

        context, candidates = (torch.from_numpy(tensor) for tensor in padded(request, self._longest))
        with torch.no_grad():
            logits = self._score_batch(context, candidates)
        found: Logits = logits[0, : len(request["candidate_ids"])].float().numpy()
        return found


class CudaGraphRunner:
    """``score_batch`` captured once per padded shape, then replayed: one launch instead of hundreds.

    Args:
        score_batch: a network's.
        longest: as ``padded`` takes it.
    """

    def __init__(self, score_batch: "Callable[[Tensor, Tensor], Tensor]", longest: tuple[int, int]) -> None:
        self._score_batch, self._longest = score_batch, longest
        self._memory: Any = None
        """shared by all graphs: no two run at once, and nothing in it outlives a run but the logits"""
        self._captured: dict[tuple[int, ...], _Captured] = {}

    def run(self, request: Tensors) -> Logits:
        import torch

        arrays = padded(request, self._longest)
        shape = (*arrays[0].shape, *arrays[1].shape)
        captured = self._captured.get(shape)
        if captured is None:
            captured = self._captured[shape] = self._capture(arrays)
        for held, array in zip(captured.inputs, arrays, strict=True):
            held.copy_(torch.from_numpy(array))
        captured.graph.replay()
        found: Logits = captured.logits[0, : len(request["candidate_ids"])].float().cpu().numpy()  # waits
        return found

    def _capture(self, arrays: "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]") -> "_Captured":
        import torch

        inputs = tuple(torch.from_numpy(array).cuda() for array in arrays)
        # As PyTorch's documentation of CUDA graphs asks: first runs on a stream beside the current one.
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(beside):
            for _ in range(WARMUP_RUNS):
                self._score_batch(*inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, pool=self._memory):
            logits = self._score_batch(*inputs)
        self._memory = self._memory or graph.pool()
        return _Captured(graph, inputs, logits)


@dataclass(frozen=True)
class _Captured:
    graph: "torch.cuda.CUDAGraph"
    inputs: "tuple[Tensor, ...]"
    logits: "Tensor"


def padded(request: Tensors, longest: tuple[int, int]) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """context_ids (1, tokens) and candidate_ids (1, candidates, tokens), padded with -1 to round numbers.

    Args:
        request: what to pad.
        longest: tokens of a context and of a candidate that the ranker has positions for; a pruned one has as many as
            its longest texts, which need not be a round number.
    """
    context, candidates = (request[name] for name in INPUT_NAMES)
    shape = [
        min(-(-size // multiple) * multiple, most)
        for size, multiple, most in (
            (len(context), CONTEXT_MULTIPLE, longest[0]),
            (candidates.shape[0], CANDIDATE_MULTIPLE, sys.maxsize),
            (candidates.shape[1], TOKEN_MULTIPLE, longest[1]),
        )
    ]
    return side_by_side([context], shape=shape[:1]), side_by_side([candidates], shape=shape[1:])


def runs_here(inputs: Sequence[Input]) -> bool:
    """Whether rankers with these inputs have the network that is run here; decoders have ``decoder_ways.py``."""
    return [one.name for one in inputs] == [*INPUT_NAMES]


def smallest_request() -> Tensors:
    return {"context_ids": np.ones(1, dtype=np.int32), "candidate_ids": np.ones((1, 1), dtype=np.int32)}
