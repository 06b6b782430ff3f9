"""The parts of a ranker that pruning counts and cuts, under one set of names for every family.

The names are those of the shared-context ranker's modules (``layers.3.query``); its size is described by five numbers
that every layer shares. A joint ranker stays a model of its own Hugging Face family: fewer layers, neurons, tokens
and positions are ordinary numbers of its config, and fewer heads are its ``pruned_heads``, which transformers and
everything that loads through it (optimum's ONNX export) honour. The heads that stay are moved to the front, so that
what is missing is always the last ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.modeling import shared_context_name


@dataclass(frozen=True)
class Sizes:
    """What can be pruned. All layers are alike."""

    layers: int
    heads: int
    ffn_neurons: int
    vocabulary: int
    positions: int
    """rows of the position table, those that the family keeps for itself included"""


def sizes_of(config: Any) -> Sizes:
    """The sizes that a config describes, of either architecture."""
    return Sizes(
        layers=config.num_hidden_layers,
        heads=heads_of(config),
        ffn_neurons=getattr(config, _ffn_setting(config)),
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
    )


def heads_of(config: Any) -> int:
    """Attention heads per layer that are there; all layers have equally many."""
    return architecture_of(config).heads(config)


def head_size_of(config: Any) -> int:
    return architecture_of(config).head_size(config)


def head_group_of(config: Any) -> int:
    """Attention heads that share one of keys and values, and go or stay together."""
    return architecture_of(config).head_group(config)


def resized(config: Any, sizes: Sizes) -> Any:
    """A copy of the config with other sizes."""
    copy = deepcopy(config)
    architecture_of(copy).keep_layers(copy, range(sizes.layers))
    architecture_of(copy).set_heads(copy, sizes.heads)
    setattr(copy, _ffn_setting(copy), sizes.ffn_neurons)
    copy.vocab_size = sizes.vocabulary
    copy.max_position_embeddings = sizes.positions
    return copy


def parts_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the encoder under the shared-context ranker's names."""
    return {part_name(model, name): module for name, module in model.named_modules()}


def part_name(model: PreTrainedModel, name: str) -> str:
    """The shared-context name of a module or parameter of a ranker of either architecture."""
    return shared_context_name(name.removeprefix(f"{model.base_model_prefix}."), model.config.model_type)


@contextmanager
def only_layers(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """While this lasts the model has only these of its layers; no weight is copied."""
    architecture, config = architecture_of(model.config), deepcopy(model.config)
    owner, attribute = architecture.layer_list(model)
    all_layers, whole = getattr(owner, attribute), vars(model.config).copy()
    architecture.keep_layers(config, kept)
    setattr(owner, attribute, nn.ModuleList(all_layers[layer] for layer in kept))
    vars(model.config).update(vars(config))
    try:
        yield
    finally:
        setattr(owner, attribute, all_layers)
        vars(model.config).update(whole)


def _ffn_setting(config: Any) -> str:
    return "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
