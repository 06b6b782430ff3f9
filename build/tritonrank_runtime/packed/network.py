"""The encoder over packed rows: the weights of ``network.py``, with as few launches per layer as there can be.

What a launch computes is in ``packing.py``'s tables, and no shape depends on data: a CUDA graph of it can be captured
once per bucket. Queries, keys and values come from one product; the last layer makes queries for the segments' first
tokens alone, and keys and values for all. Scale, and the biases of keys and values, are folded into other weights.
It computes in FP16, or BF16, which holds larger numbers and an eighth of the precision; norms and softmax are FP32
inside, and so is the head: logits in FP16 would tie with each other.

Contexts of returning users: their keys and values lie in ``pool``, where a launch reads them and keeps those of new
ones; which rows of the pool are whose is the caller's affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tritonrank_runtime.packed.operations import (
    OPERATIONS,
    Embeddings,
    EncoderOperations,
    Norm,
    Operations,
    operations_named,
)
from tritonrank_runtime.packed.packing import PackedBatch


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor


class _Layer(NamedTuple):
    query_key_value: _Linear
    attention_out: _Linear
    attention_norm: Norm
    ffn_in: _Linear
    activation: nn.Module
    ffn_out: _Linear
    ffn_norm: Norm


class PackedPasses(ABC):
    """Packed rows -> one logit per segment, whatever the layers are.

    Args:
        network: in FP32; it stays as it is.
        dtype: what it computes in: float16, bfloat16 or float32.
        device: where.
        attention: "triton", or "sdpa" for PyTorch alone; see ``operations.py``.
        pool_rows: tokens of contexts whose keys and values there is room for; 0: none are kept.

    Raises:
        ExecutorError: that attention cannot run here.
    """

    gains_by_compiling = True
    """whether torch.compile finds anything to fuse"""
    _operations: Operations

    def __init__(
        self,
        network: Any,
        dtype: torch.dtype = torch.float16,
        device: str = "cuda",
        attention: str = "triton",
        pool_rows: int = 0,
    ) -> None:
        self.config = config = network.config
        self.dtype, self.device = dtype, torch.device(device)
        self.width = int(config.num_attention_heads * config.head_size)
        self.key_width = self.key_heads(config) * int(config.head_size)
        self._open(network, attention)
        shape = (config.num_hidden_layers, pool_rows, 2 * self.key_width)
        self.pool = torch.zeros(shape, dtype=dtype, device=self.device)
        """Keys and values of kept contexts, (layers, rows, keys then values of all heads)."""

    @classmethod
    @abstractmethod
    def key_heads(cls, config: Any) -> int:
        """Heads of keys and values in a layer."""

    @abstractmethod
    def _open(self, network: Any, attention: str) -> None:
        """Choose the operations of that attention, and read the weights."""

    @abstractmethod
    def logits(self, tables: Mapping[str, Tensor]) -> Tensor:
        """As a call, of the tables by name: what torch.compile is given."""

    @classmethod
    def kept_row_bytes(cls, config: Any, dtype: torch.dtype) -> int:
        """Bytes that the keys and values of one kept token take."""
        return int(config.num_hidden_layers * 2 * cls.key_heads(config) * config.head_size * dtype.itemsize)

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits of the segments, FP32 (batch.sizes.segments,); those behind the last segment mean nothing.

        Args:
            batch: on this network's device.
        """
        return self.logits(batch.tables)

    def _keep(self, keys_values: Tensor, pool: Tensor, tables: Mapping[str, Tensor]) -> None:
        if pool.shape[0] and tables["keep_from"].shape[0]:
            self._operations.keep(keys_values, pool, tables)

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()


class PackedNetwork(PackedPasses):
    """Of a SharedContextNetwork or a PairNetwork that is not folded."""

    _operations: EncoderOperations

    @classmethod
    def key_heads(cls, config: Any) -> int:
        return int(config.num_attention_heads)

    def _open(self, network: Any, attention: str) -> None:
        self._operations = operations_named(attention, int(self.config.head_size), OPERATIONS)
        self._read_weights(network.folded())

    @torch.no_grad()
    def _read_weights(self, folded: Any) -> None:
        embeddings = folded.embeddings
        words = self._here(embeddings.words.weight)
        positions = self._here(embeddings.positions.weight[self.config.first_position :])
        types = embeddings.segments
        no_types = torch.zeros(1, words.shape[1], dtype=self.dtype, device=self.device)
        self._embeddings = Embeddings(
            words, positions, no_types if types is None else self._here(types.weight), self._norm_here(embeddings.norm)
        )
        self._project = None if embeddings.project is None else self._linear_here(embeddings.project)
        self._layers = [self._layer_here(layer) for layer in folded.layers]
        self._head = folded.head.float().to(self.device)

    def _layer_here(self, layer: Any) -> _Layer:
        factor = self._operations.query_factor
        no_bias = torch.zeros_like(layer.query.bias)
        weight = torch.cat([layer.query.weight * factor, layer.key.weight, layer.value.weight])
        bias = torch.cat([layer.query.bias * factor, no_bias, no_bias])
        return _Layer(
            _Linear(self._here(weight), self._here(bias)),
            self._linear_here(layer.attention_out),
            self._norm_here(layer.attention_norm),
            self._linear_here(layer.ffn_in),
            layer.activation,
            self._linear_here(layer.ffn_out),
            self._norm_here(layer.ffn_norm),
        )

    def _linear_here(self, linear: nn.Linear) -> _Linear:
        return _Linear(self._here(linear.weight), self._here(linear.bias))

    def _norm_here(self, norm: nn.LayerNorm) -> Norm:
        return Norm(self._here(norm.weight), self._here(norm.bias), norm.eps)

    def logits(self, tables: Mapping[str, Tensor]) -> Tensor:
        hidden = self._operations.embed(tables, self._embeddings)
        if self._project is not None:
            hidden = functional.linear(hidden, *self._project)
        view, firsts_view = self._operations.prepare(tables, self.pool.shape[1])
        for layer, pool in zip(self._layers[:-1], self.pool[:-1], strict=True):
            projected = functional.linear(hidden, *layer.query_key_value)
            query, keys_values = projected[:, : self.width], projected[:, self.width :]
            self._keep(keys_values, pool, tables)
            hidden = self._finish(layer, hidden, self._operations.attend(query, keys_values, pool, view))
        layer, pool = self._layers[-1], self.pool[-1]
        weight, bias = layer.query_key_value
        keys_values = functional.linear(hidden, weight[self.width :])
        self._keep(keys_values, pool, tables)
        firsts = hidden.index_select(0, tables["scored_rows"])
        query = functional.linear(firsts, weight[: self.width], bias[: self.width])
        firsts = self._finish(layer, firsts, self._operations.attend(query, keys_values, pool, firsts_view))
        found: Tensor = self._head(firsts.float())
        return found.squeeze(-1)

    def _finish(self, layer: _Layer, rows: Tensor, mixed: Tensor) -> Tensor:
        add_norm = self._operations.add_norm
        attended = add_norm(rows, functional.linear(mixed, *layer.attention_out), layer.attention_norm)
        inner = layer.activation(functional.linear(attended, *layer.ffn_in))
        return add_norm(attended, functional.linear(inner, *layer.ffn_out), layer.ffn_norm)
