"""One interface over everything that can score a request, so that one judge follows the model down the line.

A scorer takes requests as a client would send them and gives one score per candidate: PyTorch in process, ONNX
Runtime in process, or a live server (``server_scorer.py``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tritonrank_runtime.architectures import architecture_of_type
from tritonrank_runtime.candidate_rows import NO_ROW, candidate_scores
from tritonrank_runtime.joint import run_in_batches
from tritonrank_runtime.length_groups import candidate_lengths, length_groups
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.rankers.modeling import SharedContextRanker
from tritonrank.rankers.server_scorer import Request as Request  # both are part of this interface
from tritonrank.rankers.server_scorer import ServerScorer as ServerScorer

Scores = NDArray[np.float32]
RequestTensors = dict[str, NDArray[np.int32]]


class Scorer(Protocol):
    def score(self, request: Request) -> Scores:
        """One score per candidate, in the order of the candidates; higher is better."""
        ...


def tensors_of(request: Request, tokenizer: RequestTokenizer) -> RequestTensors:
    """A request as the engine takes it."""
    return tokenizer.tensors(tokenizer.context(request.query, request.history), tokenizer.items(request.items))


class EngineScorer:
    """Tokenizes as the server does and runs the rows through an engine in this process."""

    def __init__(self, tokenizer: RequestTokenizer, run: Callable[[Sequence[RequestTensors]], list[Scores]]):
        self.tokenizer = tokenizer
        self._run = run

    def tensors(self, request: Request) -> RequestTensors:
        """What the engine takes for a request, by input name."""
        return tensors_of(request, self.tokenizer)

    def score(self, request: Request) -> Scores:
        """As the server: an item without text is not scored, and gets NO_TEXT_SCORE."""
        candidates = self.tokenizer.items(request.items)
        has_text = np.array([bool(ids) for ids in candidates], dtype=bool)
        context = self.tokenizer.context(request.query, request.history)
        logits = self._run([self.tokenizer.tensors(context, [ids for ids in candidates if ids] or [()])])[0]
        return candidate_scores(logits, np.where(has_text, np.cumsum(has_text) - 1, NO_ROW).astype(np.int32))


def torch_scorer(model: torch.nn.Module, tokenizer: RequestTokenizer, rows_per_batch: int = 64) -> EngineScorer:
    """A PyTorch ranker on the device it is on, in the precision it has.

    Args:
        model: a sequence-classification model with one label, or a SharedContextRanker.
        tokenizer: its rules name the same architecture.
        rows_per_batch: rows in one run of a joint ranker at the most.
    """
    if isinstance(model, SharedContextRanker):
        return EngineScorer(tokenizer, lambda requests: [_score_split(model, tensors) for tensors in requests])
    names = model_input_names(model)
    device = next(model.parameters()).device

    @torch.inference_mode()
    def run_batch(tensors: RequestTensors) -> Scores:
        inputs = {name: torch.from_numpy(tensor).long().to(device) for name, tensor in tensors.items()}
        return np.asarray(model(**inputs).logits.float().cpu().numpy())

    return EngineScorer(tokenizer, lambda requests: run_in_batches(run_batch, requests, names, rows_per_batch))


@torch.inference_mode()
def _score_split(model: SharedContextRanker, tensors: RequestTensors) -> Scores:
    context_ids, candidate_ids = (
        torch.from_numpy(tensors[name]).long().to(model.device) for name in ("context_ids", "candidate_ids")
    )
    keys, values = model.encode_context(context_ids)
    logits = np.empty(len(candidate_ids), dtype=np.float32)
    for tokens, rows in length_groups(candidate_lengths(tensors["candidate_ids"])):
        logits[rows] = model.score_candidates(keys, values, candidate_ids[rows, :tokens]).float().cpu().numpy()
    return logits


def model_input_names(model: torch.nn.Module) -> list[str]:
    """The tensors that a joint ranker takes."""
    config: Any = model.config
    return architecture_of_type(config.model_type).input_names(config)
