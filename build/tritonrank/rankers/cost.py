"""What a request costs, counted before anything is measured. A multiply-add is two operations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonrank_runtime.length_groups import candidate_lengths

from tritonrank.rankers.anatomy import head_size_of, heads_of
from tritonrank.rankers.modeling import SharedContextConfig
from tritonrank.rankers.scorers import EngineScorer, Request, RequestTensors


def gflop_per_request(config: Any, scorer: EngineScorer, requests: Sequence[Request]) -> float:
    """Mean GFLOP that a ranker needs for these requests; padding and embedding look-ups are not counted.

    Args:
        config: a transformers config of an encoder, or a SharedContextConfig.
        scorer: gives the tensors of a request.
        requests: what to average over.
    """
    return gflop_of(config, [scorer.tensors(request) for request in requests])


def gflop_of(config: Any, requests: Sequence[RequestTensors]) -> float:
    """The same for requests that are tokenized already."""
    count = _shared_context_flop if isinstance(config, SharedContextConfig) else _joint_flop
    return float(np.mean([count(config, tensors) for tensors in requests])) / 1e9


def _joint_flop(config: Any, tensors: RequestTensors) -> float:
    """Per layer and token: the linear layers, and both attention products over the whole row."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or config.hidden_dim  # DistilBERT calls it hidden_dim
    width = heads_of(config) * head_size_of(config)
    linear = 2 * (4 * hidden * width + 2 * hidden * intermediate)
    rows = tensors["attention_mask"].sum(axis=1).astype(np.float64)
    return float(layers * (linear * rows.sum() + 4 * width * (rows**2).sum()))


def _shared_context_flop(config: SharedContextConfig, tensors: RequestTensors) -> float:
    """Context once, candidates against it; the last layer has keys and values for all, the rest for [CLS] alone."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_size
    keys_and_values = 2 * 2 * hidden * width
    others = 2 * (2 * hidden * width + 2 * hidden * config.intermediate_size)
    context = float(tensors["context_ids"].size)
    rows = candidate_lengths(tensors["candidate_ids"]).astype(np.float64)
    seen = 4 * width * (context**2 + (rows * (context + rows)).sum())
    seen_by_first = 4 * width * (context + rows).sum()
    tokens = context + rows.sum()
    inner = (config.num_hidden_layers - 1) * ((keys_and_values + others) * tokens + seen)
    return float(inner + keys_and_values * tokens + others * len(rows) + seen_by_first)
