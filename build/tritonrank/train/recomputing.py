"""Gradient checkpointing: a layer keeps what went into it and nothing else, and is computed again in the backward pass.

Activations then take the memory of one layer and one row of states per layer (Chen et al. 2016). It is done here for
layers of whichever architecture, since transformers' own switch reaches its own families alone.
"""

from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tritonrank.train.sharding import layer_method, layers_of


def recompute_layers(ranker: PreTrainedModel) -> None:
    """From now on every layer of the ranker is computed again where it is differentiated, dropout as the first time."""
    for layer in layers_of(ranker):
        name = layer_method(layer)
        setattr(layer, name, _recomputed(getattr(layer, name)))


def keep_layers(ranker: PreTrainedModel) -> None:
    """Undo ``recompute_layers``."""
    for layer in layers_of(ranker):
        layer.__dict__.pop(layer_method(layer), None)


def _recomputed(method: Any) -> Any:
    @wraps(method)
    def computed(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return method(*arguments, **named)
        return checkpoint(method, *arguments, use_reentrant=False, **named)

    return computed
