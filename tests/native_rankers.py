"""Random rankers for the native engine, and the networks that they should agree with."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tritonrank_runtime.native import NativeConfig, NativeWeights
from tritonrank_runtime.network import SharedContextNetwork

SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "embedding_size": 48,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "head_size": 16,
    "intermediate_size": 80,
    "max_position_embeddings": 640,
    "context_positions": 400,
    "type_vocab_size": 2,
    "first_position": 0,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ACTIVATION_NAMES = {"swish": "silu"}


def random_network(seed: int = 3, **changes: Any) -> SharedContextNetwork:
    """A network with weights large enough for attention to choose, ready to score (not folded)."""
    torch.manual_seed(seed)
    network = SharedContextNetwork(SimpleNamespace(**SIZES | changes))
    for name, parameter in network.named_parameters():
        spread = 0.2 if parameter.ndim > 1 else 0.1
        center = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, center, spread)
    return network.eval()


def native_weights(network: SharedContextNetwork) -> NativeWeights:
    """A network in FP32, folded on the way."""
    config, folded = network.config, network.folded()
    tensors = {name.removesuffix(".weight"): tensor for name, tensor in _tables(folded).items()}
    for name, module in folded.named_modules():
        if isinstance(module, torch.nn.Linear):
            tensors[f"{name}.weight"] = module.weight.T
            if module.bias is not None:
                tensors[f"{name}.bias"] = module.bias
        elif isinstance(module, torch.nn.LayerNorm):
            tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return NativeWeights(
        NativeConfig(
            "shared-context",
            config.num_hidden_layers,
            config.hidden_size,
            config.embedding_size,
            config.num_attention_heads,
            config.head_size,
            config.intermediate_size,
            config.vocab_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.first_position,
            config.context_positions,
            ACTIVATION_NAMES.get(config.hidden_act, config.hidden_act),
            config.layer_norm_eps,
        ),
        {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in tensors.items()},
    )


def _tables(network: SharedContextNetwork) -> dict[str, Tensor]:
    found = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Embedding)}
    return {f"{name}.weight": module.weight for name, module in found.items()}


def random_rows(generator: np.random.Generator, lengths: list[int], vocabulary: int = 211) -> NDArray[np.int32]:
    """Rows of random ids, padded with -1."""
    rows = np.full((len(lengths), max(lengths)), -1, dtype=np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = generator.integers(0, vocabulary, size=length)
    return rows


@torch.inference_mode()
def torch_logits(network: SharedContextNetwork, context: NDArray[np.int32], rows: NDArray[np.int32]) -> Any:
    """What the network says in FP64, row by row, so that padding has no part in it."""
    folded = network.folded().double()
    keys, values = folded.encode_context(torch.from_numpy(context).long())
    found = [folded.score_candidates(keys, values, torch.from_numpy(row[row >= 0]).long()[None]) for row in rows]
    return torch.cat(found).numpy()


class QuantizedLinear(torch.nn.Module):
    """What a Q/DQ graph computes for one linear layer, in the type of its input: the reference for INT8."""

    def __init__(self, weights: NativeWeights, name: str, pass_number: int) -> None:
        super().__init__()
        linear = weights.linear(name)
        weight = linear.weight.astype(np.float64)
        if linear.weight.dtype == np.uint16:
            weight = (linear.weight.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        scales = np.float64(1) if linear.weight_scale is None else linear.weight_scale.astype(np.float64)
        self.weight = torch.from_numpy(weight * scales)
        self.bias = None if linear.bias is None else torch.from_numpy(linear.bias.astype(np.float64))
        self.factor = torch.from_numpy(np.ones(len(weight)) if linear.input_factor is None else linear.input_factor)
        self.scale = 0.0 if linear.input_scale is None else float(linear.input_scale[pass_number])
        self.zero = 0 if linear.input_zero_point is None else int(linear.input_zero_point[pass_number])

    def rounded(self, rows: Tensor) -> Tensor:
        """Quantized and dequantized."""
        if not self.scale:
            return rows
        steps = (rows * self.factor / self.scale).round() + self.zero
        return (steps.clamp(0, 255) - self.zero) * self.scale

    def forward(self, rows: Tensor) -> Tensor:
        product = self.rounded(rows) @ self.weight
        return product if self.bias is None else product + self.bias


def quantized_weights(weights: NativeWeights, seed: int = 5, floats: tuple[str, ...] = ()) -> NativeWeights:
    """INT8 with scales of its own for each pass, zero points, and smoothing factors; some layers stay in FP32.

    Args:
        weights: in FP32.
        seed: of the factors.
        floats: ends of the names of linear layers that stay.
    """
    generator = np.random.default_rng(seed)
    tensors = dict(weights.tensors)
    for name in weights.config.linears():
        if name == "head" or name.endswith(floats):
            continue
        weight = weights.linear(name).weight
        if not name.endswith("attention_out"):
            factor = generator.uniform(0.5, 1.5, size=len(weight)).astype(np.float32)
            tensors[f"{name}.input_factor"] = factor
            weight = weight / factor[:, None]
        scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
        tensors[f"{name}.weight"] = np.rint(weight / scale).astype(np.int8)
        tensors[f"{name}.weight_scale"] = scale
        tensors[f"{name}.input_scale"] = np.array([0.03, 0.02], dtype=np.float32)
        tensors[f"{name}.input_zero_point"] = np.array([120, 133], dtype=np.uint8)
    return NativeWeights(weights.config, tensors)


def _round_residual(layer: Any) -> None:
    finish = layer._finish
    layer._finish = lambda rows, mixed: finish(layer.query.rounded(rows), mixed)


def bfloat16_weights(weights: NativeWeights) -> NativeWeights:
    """All linear layers but the head in BF16."""
    tensors = dict(weights.tensors)
    for name in weights.config.linears():
        if name != "head":
            weight = torch.from_numpy(weights.linear(name).weight).bfloat16()
            tensors[f"{name}.weight"] = weight.view(torch.uint16).numpy()
    return NativeWeights(weights.config, tensors)


@torch.inference_mode()
def reference_logits(
    network: SharedContextNetwork, weights: NativeWeights, context: NDArray[np.int32], rows: NDArray[np.int32]
) -> Any:
    """As ``torch_logits``, with the linear layers of these weights."""
    passes = []
    for number in range(2):
        made = network.folded().double()
        for name in weights.config.linears():
            if name != "head":
                parent, _, last = name.rpartition(".")
                setattr(made.get_submodule(parent), last, QuantizedLinear(weights, name, number))
        for layer in weights.config.rounded_residuals:
            _round_residual(made.layers[layer])
        passes.append(made)
    keys, values = passes[0].encode_context(torch.from_numpy(context).long())
    tokens = [torch.from_numpy(row[row >= 0]).long()[None] for row in rows]
    return torch.cat([passes[1].score_candidates(keys, values, one) for one in tokens]).numpy()
