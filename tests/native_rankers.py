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


def native_pair_weights(model: Any) -> NativeWeights:
    """A BERT or RoBERTa classifier of transformers in FP32, folded as the contract wants it."""
    config, is_bert = model.config, model.config.model_type == "bert"
    encoder = getattr(model, model.base_model_prefix)
    scale = (config.hidden_size // config.num_attention_heads) ** -0.5
    linears: dict[str, tuple[Tensor, Tensor | None]] = {}
    tensors: dict[str, Tensor] = {
        f"embeddings.{ours}": getattr(encoder.embeddings, theirs).weight
        for ours, theirs in (
            ("words", "word_embeddings"),
            ("positions", "position_embeddings"),
            ("segments", "token_type_embeddings"),
        )
    }
    norms = {"embeddings.norm": encoder.embeddings.LayerNorm}
    for number, layer in enumerate(encoder.encoder.layer):
        name, own = f"layers.{number}", layer.attention.self
        out = layer.attention.output
        linears |= {
            f"{name}.query": (own.query.weight * scale, own.query.bias * scale),
            f"{name}.key": (own.key.weight, None),
            f"{name}.value": (own.value.weight, None),
            f"{name}.attention_out": (out.dense.weight, out.dense.bias + out.dense.weight @ own.value.bias),
            f"{name}.ffn_in": (layer.intermediate.dense.weight, layer.intermediate.dense.bias),
            f"{name}.ffn_out": (layer.output.dense.weight, layer.output.dense.bias),
        }
        norms |= {f"{name}.attention_norm": out.LayerNorm, f"{name}.ffn_norm": layer.output.LayerNorm}
    pooler, head = (
        (encoder.pooler.dense, model.classifier) if is_bert else (model.classifier.dense, model.classifier.out_proj)
    )
    linears |= {"pooler": (pooler.weight, pooler.bias), "head": (head.weight, head.bias)}
    for name, (weight, bias) in linears.items():
        tensors[f"{name}.weight"] = weight.T
        if bias is not None:
            tensors[f"{name}.bias"] = bias
    for name, norm in norms.items():
        tensors |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    native = NativeConfig(
        architecture="joint",
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        embedding_size=config.hidden_size,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        segments=config.type_vocab_size,
        first_position=0 if is_bert else config.pad_token_id + 1,
        context_positions=0,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        pooler_size=config.hidden_size,
        pooler_activation="tanh",
    )
    return NativeWeights(native, {name: np.ascontiguousarray(one.detach().numpy()) for name, one in tensors.items()})
