"""What a request costs, counted before anything is measured. A multiply-add is two operations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.scorers import EngineScorer, Request, RequestTensors


def gflop_per_request(config: Any, scorer: EngineScorer, requests: Sequence[Request]) -> float:
    """Mean GFLOP that a ranker needs for these requests; padding and embedding look-ups are not counted.

    Args:
        config: of a ranker of whichever architecture.
        scorer: gives the tensors of a request.
        requests: what to average over.
    """
    return gflop_of(config, [scorer.tensors(request) for request in requests])


def gflop_of(config: Any, requests: Sequence[RequestTensors]) -> float:
    """The same for requests that are tokenized already."""
    architecture = architecture_of(config)
    return float(np.mean([architecture.flop(config, tensors) for tensors in requests])) / 1e9
