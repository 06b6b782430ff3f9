"""The encoder over packed rows: the weights of ``network.py``, with as few launches per layer as there can be.

What a launch computes is in ``packing.py``'s tables, and no shape depends on data: a CUDA graph of it can be captured
once per bucket. Queries, keys and values come from one product; the last layer makes queries for the segments' first
tokens alone, and keys and values for all. Scale, and the biases of keys and values, are folded into other weights.
Computes in FP16 (or BF16, which needs no care for large values and has an eighth of the precision); norms and softmax
inside are FP32, and so is the head: logits in FP16 would tie with each other.

Contexts of returning users: their keys and values lie in ``pool``, and a launch reads them there and writes those of
new ones; which rows of the pool are whose is the caller's affair.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonrank_runtime.packed.attention import Attention, attention_named
from tritonrank_runtime.packed.packing import PackedBatch


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)


class _Norm(NamedTuple):
    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.layer_norm(rows, (rows.shape[-1],), self.weight, self.bias, self.epsilon)


class _Layer(NamedTuple):
    query_key_value: _Linear
    attention_out: _Linear
    attention_norm: _Norm
    ffn_in: _Linear
    activation: nn.Module
    ffn_out: _Linear
    ffn_norm: _Norm


class PackedNetwork:
    """Packed rows -> one logit per segment.

    Args:
        network: a SharedContextNetwork, or a JointNetwork: not folded, in FP32; it stays as it is.
        dtype: what it computes in: float16, bfloat16 or float32.
        device: where.
        attention: one of ``attention.ATTENTIONS``.
        pool_rows: tokens of contexts whose keys and values there is room for; 0: none are kept.

    Raises:
        ExecutorError: that attention cannot run here.
    """

    def __init__(
        self,
        network: Any,
        dtype: torch.dtype = torch.float16,
        device: str = "cuda",
        attention: str = "triton",
        pool_rows: int = 0,
    ) -> None:
        config = network.config
        self.config = config
        self.dtype, self.device = dtype, torch.device(device)
        self.heads, self.head_size = int(config.num_attention_heads), int(config.head_size)
        self.width = self.heads * self.head_size
        self._attention: Attention = attention_named(attention, self.heads, self.head_size, self.device)
        self._read_weights(network.folded())
        shape = (len(self._layers), pool_rows, 2 * self.width)
        self.pool = torch.zeros(shape, dtype=dtype, device=self.device)
        """Keys and values of kept contexts, (layers, rows, keys then values of all heads)."""

    @torch.no_grad()
    def _read_weights(self, folded: Any) -> None:
        embeddings = folded.embeddings
        self._words = self._here(embeddings.words.weight)
        self._positions = self._here(embeddings.positions.weight[self.config.first_position :])
        self._types = None if embeddings.segments is None else self._here(embeddings.segments.weight)
        self._norm = self._norm_here(embeddings.norm)
        self._project = None if embeddings.project is None else self._linear_here(embeddings.project)
        self._layers = [self._layer_here(layer) for layer in folded.layers]
        self._head = folded.head.float().to(self.device)

    def _layer_here(self, layer: Any) -> _Layer:
        base = self._attention.query_factor
        no_bias = torch.zeros_like(layer.query.bias)
        weight = torch.cat([layer.query.weight * base, layer.key.weight, layer.value.weight])
        bias = torch.cat([layer.query.bias * base, no_bias, no_bias])
        return _Layer(
            _Linear(self._here(weight), self._here(bias)),
            self._linear_here(layer.attention_out),
            self._norm_here(layer.attention_norm),
            self._linear_here(layer.ffn_in),
            layer.activation,
            self._linear_here(layer.ffn_out),
            self._norm_here(layer.ffn_norm),
        )

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def _linear_here(self, linear: nn.Linear) -> _Linear:
        return _Linear(self._here(linear.weight), self._here(linear.bias))

    def _norm_here(self, norm: nn.LayerNorm) -> _Norm:
        return _Norm(self._here(norm.weight), self._here(norm.bias), norm.eps)

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits of the segments, FP32 (batch.sizes.segments,); those behind the last segment mean nothing.

        Args:
            batch: on this network's device.
        """
        return self.logits(batch.tables)

    def logits(self, tables: Mapping[str, Tensor]) -> Tensor:
        """As a call, of the tables by name: what torch.compile is given."""
        hidden = self._embed(tables)
        pool_rows = self.pool.shape[1]
        view = self._attention.prepare(tables["tiles"], tables["chunks"], hidden.shape[0], hidden.shape[0], pool_rows)
        for layer, pool in zip(self._layers[:-1], self.pool[:-1], strict=True):
            projected = layer.query_key_value(hidden)
            self._keep(projected, pool, tables)
            query, keys_values = projected[:, : self.width], projected[:, self.width :]
            hidden = _finish(layer, hidden, self._attention(query, keys_values, pool, view))
        firsts = tables["first_rows"]
        view = self._attention.prepare(
            tables["first_tiles"], tables["first_chunks"], firsts.shape[0], hidden.shape[0], pool_rows
        )
        layer, pool = self._layers[-1], self.pool[-1]
        weight, bias = layer.query_key_value
        keys_values = functional.linear(hidden, weight[self.width :])
        rows = hidden.index_select(0, firsts)
        query = functional.linear(rows, weight[: self.width], bias[: self.width])
        self._keep(keys_values, pool, tables)
        hidden = _finish(layer, rows, self._attention(query, keys_values, pool, view))
        found: Tensor = self._head(hidden.float())
        return found.squeeze(-1)

    def _embed(self, tables: Mapping[str, Tensor]) -> Tensor:
        embedded = functional.embedding(tables["token_ids"], self._words)
        embedded = embedded + functional.embedding(tables["positions"], self._positions)
        if self._types is not None:
            types = tables["types"].clamp(max=self._types.shape[0] - 1)
            embedded = embedded + functional.embedding(types, self._types)
        embedded = self._norm(embedded)
        return embedded if self._project is None else self._project(embedded)

    def _keep(self, projected: Tensor, pool: Tensor, tables: Mapping[str, Tensor]) -> None:
        """Write keys and values of contexts that are to be kept into the pool."""
        if pool.shape[0] and tables["keep_from"].shape[0]:
            self._attention.keep(projected[:, -2 * self.width :], pool, tables["keep_from"], tables["keep_to"])


def _finish(layer: _Layer, rows: Tensor, mixed: Tensor) -> Tensor:
    attended = layer.attention_norm(rows + layer.attention_out(mixed))
    return layer.ffn_norm(attended + layer.ffn_out(layer.activation(layer.ffn_in(attended))))
