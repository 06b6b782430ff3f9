"""The decoder over packed rows: the weights of ``decoder_network.py``, the residual stream in FP32.

A request's prefix and its branches are rows of one matrix in every product; attention alone tells them apart. Queries,
keys and values come from one product, the gate and what passes it from another. The last layer makes queries, output
and FFN for branches' last tokens alone. Products compute in FP16, or BF16. The residual stream stays FP32: single
numbers of it grow to thousands in many families, beside which FP16 would lose what layers add; it costs two bytes more
per number in two of a layer's nine kernels.

Contexts of returning users are their prefixes, kept as an encoder's contexts are; keys are turned already.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonrank_runtime.decoder_layer import softcapped
from tritonrank_runtime.packed.decoder_operations import (
    ACTIVATIONS,
    DECODER_OPERATIONS,
    PLAIN_NAMES,
    DecoderOperations,
    RmsNorm,
    Turning,
)
from tritonrank_runtime.packed.network import PackedPasses
from tritonrank_runtime.packed.operations import operations_named
from tritonrank_runtime.rotary import frequencies

FULL = "full_attention"
HEAD_MULTIPLE = 16


def unsupported(config: Any) -> str | None:
    """Why a decoder of these settings is not computed in packed rows; None where it is.

    Such a one is computed by ``decoder_network.py``'s own passes.
    """
    windows = [kind for kind in config.layer_types if kind != FULL]
    reasons = {
        f"norm: {config.norm}": config.norm != "rms",
        f"position: {config.position}": config.position != "rotary",
        f"ffn: {config.ffn}": config.ffn != "gated",
        f"hidden_act: {config.hidden_act}": _activation(config) not in ACTIVATIONS,
        "norms behind attention and FFN": config.post_norms,
        "a cap of attention scores": config.attention_softcap is not None,
        f"layers of {', '.join(dict.fromkeys(windows))}": bool(windows),
        f"heads of {config.head_size} numbers, not a multiple of {HEAD_MULTIPLE}": config.head_size % HEAD_MULTIPLE,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), None)


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class _Layer(NamedTuple):
    attention_norm: RmsNorm
    query_key_value: _Linear
    turning: Turning
    attention_out: _Linear
    ffn_norm: RmsNorm
    gate_in: _Linear
    ffn_out: _Linear


class PackedDecoder(PackedPasses):
    """Of a DecoderNetwork that ``unsupported`` has nothing to say of, folded or not."""

    gains_by_compiling = False
    _operations: DecoderOperations

    @classmethod
    def key_heads(cls, config: Any) -> int:
        return int(config.num_key_value_heads)

    @torch.no_grad()
    def _open(self, network: Any, attention: str) -> None:
        config = self.config
        self._operations = operations_named(attention, int(config.head_size), DECODER_OPERATIONS)
        self._heads = int(config.num_attention_heads)
        self._activation = _activation(config)
        self._words = self._here(network.embeddings.words.weight)
        self._word_scale = float(network.embeddings.scale)
        self._frequencies = frequencies(config.head_size, config.rope_theta, config.rope_scaling, self.device)
        self._layers = [self._layer_here(layer) for layer in network.layers]
        self._norm = self._norm_here(network.norm)
        head = network.head
        self._head = _Linear(self._exact(head.weight), self._exact(head.bias))

    def _layer_here(self, layer: Any) -> _Layer:
        return _Layer(
            self._norm_here(layer.attention_norm),
            self._linear_here(layer.query, layer.key, layer.value),
            self._turning_here(layer),
            self._linear_here(layer.attention_out),
            self._norm_here(layer.ffn_norm),
            self._linear_here(layer.ffn_gate, layer.ffn_in),
            self._linear_here(layer.ffn_out),
        )

    def _turning_here(self, layer: Any) -> Turning:
        ones = torch.ones(layer.head_size, device=self.device)
        norms = layer.query_norm, layer.key_norm
        query, key = (ones if norm is None else self._norm_here(norm).weight for norm in norms)
        weights = torch.stack([query * (layer.scale * self._operations.query_factor), key])
        return Turning(weights, None if layer.query_norm is None else layer.query_norm.epsilon)

    def _linear_here(self, *linears: nn.Linear) -> _Linear:
        """Several as one, whose outputs lie side by side."""
        weight = torch.cat([self._here(one.weight) for one in linears])
        biases = [one.bias for one in linears if one.bias is not None]
        return _Linear(weight, torch.cat([self._here(one) for one in biases]) if biases else None)

    def _norm_here(self, norm: Any) -> RmsNorm:
        weight = self._exact(norm.weight)
        return RmsNorm(1.0 + weight if norm.offset else weight, norm.epsilon)

    def _exact(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, torch.float32)

    def logits(self, tables: Mapping[str, Tensor]) -> Tensor:
        operations, key_width = self._operations, self.key_width
        hidden = functional.embedding(tables["token_ids"], self._words).float() * self._word_scale
        turns = self._turns(tables["positions"])
        view, lasts_view = operations.prepare(tables, self.pool.shape[1], is_causal=True)
        added: Tensor | None = None
        for layer, pool in zip(self._layers[:-1], self.pool[:-1], strict=True):
            normed = operations.add_rms(hidden, added, layer.attention_norm, self.dtype)
            projected = functional.linear(normed, *layer.query_key_value)
            operations.turn(projected[:, : self.width + key_width], self._heads, turns, layer.turning)
            query, keys_values = projected[:, : self.width], projected[:, self.width :]
            self._keep(keys_values, pool, tables)
            added = self._finish(layer, hidden, operations.attend(query, keys_values, pool, view))
        layer, pool = self._layers[-1], self.pool[-1]
        weight, bias = layer.query_key_value
        normed = operations.add_rms(hidden, added, layer.attention_norm, self.dtype)
        keys_values = functional.linear(normed, weight[self.width :], None if bias is None else bias[self.width :])
        operations.turn(keys_values[:, :key_width], 0, turns, layer.turning)
        self._keep(keys_values, pool, tables)
        lasts, normed, turns = (one.index_select(0, tables["scored_rows"]) for one in (hidden, normed, turns))
        query = functional.linear(normed, weight[: self.width], None if bias is None else bias[: self.width])
        operations.turn(query, self._heads, turns, layer.turning)
        added = self._finish(layer, lasts, operations.attend(query, keys_values, pool, lasts_view))
        return self._scores(operations.add_rms(lasts, added, self._norm, torch.float32))

    def _finish(self, layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        """What the FFN adds to the stream, which has attention's output added to it."""
        attended = functional.linear(mixed, *layer.attention_out)
        normed = self._operations.add_rms(hidden, attended, layer.ffn_norm, self.dtype)
        inner = self._operations.gated(functional.linear(normed, *layer.gate_in), self._activation)
        return functional.linear(inner, *layer.ffn_out)

    def _scores(self, lasts: Tensor) -> Tensor:
        rows = softcapped(functional.linear(lasts, *self._head), self.config.logit_softcap)
        return rows[:, 0] - rows[:, 1] if self.config.head_rows == 2 else rows[:, 0]

    def _turns(self, positions: Tensor) -> Tensor:
        angles = positions[:, None].float() * self._frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def _activation(config: Any) -> str:
    name: str = config.hidden_act
    return PLAIN_NAMES.get(name, name)
