"""What a request costs, counted before anything is measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tritonrank.scorers import EngineScorer, Request


def gflop_per_request(config: Any, scorer: EngineScorer, requests: Sequence[Request]) -> float:
    """Mean GFLOP that the joint ranker needs for these requests, padding and embedding look-ups not counted.

    Per layer and token: 2 x (4 hidden^2 + 2 hidden x intermediate) for the linear layers and 4 x hidden x row length
    for the attention products (a multiply-add is two operations).

    Args:
        config: a transformers config of an encoder.
        scorer: gives the rows of a request.
        requests: what to average over.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT calls it hidden_dim
    linear = 2 * (4 * hidden**2 + 2 * hidden * intermediate)
    lengths = [scorer.rows(request)["attention_mask"].sum(axis=1).astype(np.float64) for request in requests]
    totals = [layers * (linear * rows.sum() + 4 * hidden * (rows**2).sum()) for rows in lengths]
    return float(np.mean(totals)) / 1e9
