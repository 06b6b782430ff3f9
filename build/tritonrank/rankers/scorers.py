"""One interface over everything that can score a request, so that one judge follows the model down the line.

A scorer takes requests as a client would send them and gives one score per candidate: PyTorch in process, ONNX
Runtime in process, or a live server (``server_scorer.py``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tritonrank_runtime.candidate_rows import NO_ROW, candidate_scores
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.rankers.architecture import RequestTensors as RequestTensors
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.server_scorer import Request as Request  # both are part of this interface
from tritonrank.rankers.server_scorer import ServerScorer as ServerScorer

Scores = NDArray[np.float32]


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


def torch_scorer(model: Any, tokenizer: RequestTokenizer, rows_per_batch: int = 64) -> EngineScorer:
    """A PyTorch ranker on the device it is on, in the precision it has.

    Args:
        model: a ranker of whichever architecture.
        tokenizer: its rules name the same architecture.
        rows_per_batch: rows in one run of a joint ranker at the most.
    """
    return EngineScorer(tokenizer, architecture_of(model.config).torch_run(model, rows_per_batch))
