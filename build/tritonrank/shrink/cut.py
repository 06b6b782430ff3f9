"""A ranker becomes a smaller one: the weights that stay are copied into a dense model of the same class.

What leaves computes exactly as if it had been zeroed: a head's columns of the attention output, a neuron's column of
the last FFN matrix. Heads that share one of keys and values leave with it. Layers, tokens and positions that leave are
simply not there.
"""

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from tritonrank_runtime.image_tokens import image_tokens

from tritonrank.rankers.anatomy import Sizes, head_group_of, head_size_of, part_name, resized
from tritonrank.rankers.architectures import architecture_of

PRUNING_FILE = "pruning.json"
TOKEN_ID_SETTINGS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


@dataclass(frozen=True)
class Kept:
    """What stays, as numbers in the model that was cut, in ascending order."""

    layers: list[int]
    heads: list[list[int]]
    """per kept layer; of heads that share one of keys and values, all or none"""
    neurons: list[list[int]]
    """per kept layer"""
    tokens: list[int]
    positions: int
    """first rows of the position table"""

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.layers), len(self.heads[0]), len(self.neurons[0]), len(self.tokens), self.positions)

    def save(self, folder: Path) -> None:
        (folder / PRUNING_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Kept":
        return cls(**json.loads((folder / PRUNING_FILE).read_text(encoding="utf-8")))


def everything(sizes: Sizes) -> Kept:
    """Nothing is cut."""
    return Kept(
        layers=list(range(sizes.layers)),
        heads=[list(range(sizes.heads))] * sizes.layers,
        neurons=[list(range(sizes.ffn_neurons))] * sizes.layers,
        tokens=list(range(sizes.vocabulary)),
        positions=sizes.positions,
    )


def cut(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The smaller model, in evaluation mode; the given one stays as it is."""
    config = deepcopy(model.config)
    architecture_of(config).keep_layers(config, kept.layers)
    config = resized(config, kept.sizes)
    places = {token: place for place, token in enumerate(kept.tokens)}
    for setting in TOKEN_ID_SETTINGS:
        token = getattr(config, setting, None)  # one that no tokenizer has may have gone
        if isinstance(token, list):  # of several that end a text
            setattr(config, setting, [places[one] for one in token if one in places])
        elif token is not None:
            setattr(config, setting, places.get(token))
    smaller: PreTrainedModel = type(model)(config)
    smaller.load_state_dict(dict(_cut_weights(model, kept)))
    if (images := image_tokens(model)) is not None and (copied := image_tokens(smaller)) is not None:
        copied.table = images.table
    return smaller.eval()


def _cut_weights(model: PreTrainedModel, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    head_size, group = head_size_of(model.config), head_group_of(model.config)
    new_number = {layer: number for number, layer in enumerate(kept.layers)}
    for name, weight in model.state_dict().items():
        part = part_name(model, name)
        if part == "embeddings.words.weight":
            yield name, weight[torch.tensor(kept.tokens)]
        elif part == "embeddings.positions.weight":
            yield name, weight[: kept.positions].clone()
        elif in_layer := re.fullmatch(r"layers\.(\d+)\.(.+)", part):
            layer = int(in_layer[1])
            if layer in new_number:
                number = new_number[layer]
                heads = kept.heads[number]
                rows = _rows_of_heads(heads, head_size), _rows_of_heads(sorted({h // group for h in heads}), head_size)
                weight = _cut_layer_weight(in_layer[2], weight, *rows, torch.tensor(kept.neurons[number]))
                yield re.sub(r"\b(layers?)\.\d+\.", rf"\1.{number}.", name, count=1), weight
        else:
            yield name, weight


def _cut_layer_weight(part: str, weight: Tensor, head_rows: Tensor, key_rows: Tensor, neurons: Tensor) -> Tensor:
    if part.startswith("query."):
        return weight[head_rows]
    if part.startswith(("key.", "value.")):
        return weight[key_rows]
    if part == "attention_out.weight":
        return weight[:, head_rows]
    if part.startswith(("ffn_in.", "ffn_gate.")):
        return weight[neurons]
    return weight[:, neurons] if part == "ffn_out.weight" else weight


def _rows_of_heads(heads: Sequence[int], head_size: int) -> Tensor:
    return (torch.tensor(heads)[:, None] * head_size + torch.arange(head_size)).flatten()
