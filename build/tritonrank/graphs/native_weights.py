"""The graphs that CPUs serve, INT8 or FP32, become ``native.safetensors``: what the native engine computes from.

All numbers come from the graphs, so that the engine computes what was judged: integers, scales, smoothing factors,
layers that the noise limit left in FP32. The checkpoint's config says what a graph does not: heads, activation, first
position. Nodes and tensors are known by their names, which are those of the modules that were exported; the names of
each Hugging Face family become those of the shared-context ranker, as everywhere (``rankers/modeling.py``).

A linear layer stands in both graphs of a shared-context ranker with one weight, and with steps of its input that each
graph has for itself. What a graph multiplies an input by and does not quantize (SmoothQuant's factor before a layer
that stayed in FP32) moves into the weight.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tritonrank_runtime.engine import MODEL_FILE
from tritonrank_runtime.images import SOFT_TOKENS
from tritonrank_runtime.native.weights import BFLOAT16, LAYER_LINEARS, NativeConfig, NativeWeights
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE, SHARED_CONTEXT

from tritonrank.errors import ArtifactError
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.modeling import FAMILIES, first_position, shared_context_name

ROWS, SCALES = "_rows", "_scales"
"""What the two tables that replace one of word embeddings in eight bits are called: its name and this."""
PASS_FILES = {SHARED_CONTEXT: (CONTEXT_FILE, CANDIDATES_FILE)}
"""The graph of each pass, the context's first; a joint ranker has one graph for both."""
ACTIVATION_NAMES = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}
"""What the native engine calls activations that compute the same."""
HEADS = {
    "bert": ("pooler.dense", "tanh", "classifier"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "camembert": ("classifier.dense", "tanh", "classifier.out_proj"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
}
"""Of each family's classifier: the dense layer over the first token, what follows it, and what gives the score."""
_OF_CALL = re.compile(rf"^({'|'.join(LAYER_LINEARS)})(?:_(\d+))?$")
"""How the exporter names the calls of a shared-context ranker's layers: in their order."""


class _Input(NamedTuple):
    """What a graph does to the input of a linear layer."""

    scale: float = 0.0
    zero_point: int = 0
    factor: NDArray[np.float32] | None = None
    is_added_to: bool = False
    """whether a residual reads it as it was rounded: it is quantized without a factor of its own"""


class _Linear(NamedTuple):
    weight: NDArray[Any]
    """(inputs, outputs), FP32 or INT8"""
    weight_scale: NDArray[np.float32] | None
    input: _Input


def native_weights(graphs: Path, config: Any, floats: str = "float32") -> NativeWeights:
    """The weights of a ranker from its graphs.

    Args:
        graphs: folder of the graphs that ONNX Runtime serves on a CPU, INT8 or FP32.
        config: of the checkpoint that they were exported from.
        floats: float32, or bfloat16 for the weights of layers that are not INT8.

    Raises:
        ArtifactError: the ranker has a layer, a head or positions that the native engine does not know; says which.
        ExecutorError: the weights do not fit together.
    """
    is_shared = config.model_type == SHARED_CONTEXT
    if not is_shared and config.model_type not in FAMILIES:
        raise ArtifactError(
            f"{graphs}: the native engine has no {config.model_type} layers; it has {', '.join(sorted(FAMILIES))}"
        )
    if getattr(config, SOFT_TOKENS, 0):
        raise ArtifactError(f"{graphs}: the native engine reads no images; ONNX Runtime does")
    files = PASS_FILES.get(config.model_type, (MODEL_FILE,))
    read = [_Graph(graphs / name, config.model_type) for name in files]
    tensors = _plain_tensors(read[-1], config)
    linears = [graph.linears() for graph in read]
    for name in dict.fromkeys(name for found in linears for name in found):
        tensors |= _linear_tensors(name, [found.get(name) for found in linears], read[-1].tensors, graphs)
    if not is_shared:
        _fold_scale(tensors, architecture_of(config).head_size(config))
    sizes = _config(config, tensors, read[-1], linears[-1])
    if floats == "bfloat16":
        for name in sizes.linears():
            weight = tensors[f"{name}.weight"]
            if weight.dtype == np.float32 and name.startswith("layers."):
                tensors[f"{name}.weight"] = bfloat16_bits(weight)
    weights = NativeWeights(sizes, tensors)
    weights.check(str(graphs))
    return weights


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest BF16 numbers, ties to even, as their bits; for finite numbers."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(BFLOAT16)


class _Graph:
    """One graph's tensors by our names, and its linear layers."""

    def __init__(self, path: Path, family: str) -> None:
        self._path, self._family = path, family
        self._graph = onnx.load(path).graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._graph.initializer}
        self._made_by = {name: node for node in self._graph.node for name in node.output}
        self._added = {name for node in self._graph.node if node.op_type == "Add" for name in node.input}
        self.tensors = {self._our_name(name): tensor for name, tensor in self._constants.items()}

    @property
    def layer_norm_eps(self) -> float:
        norms = [node for node in self._graph.node if node.op_type == "LayerNormalization"]
        found = {attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"}
        if len(found) != 1:
            raise ArtifactError(f"{self._path}: LayerNorms with epsilons {sorted(found)}; expected one for all")
        return float(found.pop())

    def linears(self) -> dict[str, _Linear]:
        """The layers' products with constant weights, by our names; heads are not among them."""
        found = {}
        for node in self._graph.node:
            if node.op_type != "MatMul" or (weight := self._weight(node.input[1])) is None:
                continue
            name = self._layer_name(node.name)
            if not re.match(r"layers\.\d+\.|embeddings\.project$", name):
                continue
            if name in found:
                raise ArtifactError(f"{self._path}: {node.name}: a second product of {name}")
            found[name] = _Linear(*weight, self._input(node.input[0]))
        return found

    def _weight(self, name: str) -> tuple[NDArray[Any], NDArray[np.float32] | None] | None:
        if name in self._constants:
            return self._constants[name], None
        node = self._made_by.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self._constants:
            return None
        weight, scale = self._constants[node.input[0]], self._constants[node.input[1]]
        if np.any(self._constants[node.input[2]]):
            raise ArtifactError(f"{self._path}: {node.name}: weights with zero points; expected symmetric ones")
        return weight, np.broadcast_to(scale, weight.shape[1]).astype(np.float32)

    def _input(self, name: str) -> _Input:
        scale, zero_point, is_added_to = 0.0, 0, False
        node = self._made_by.get(name)
        if node is not None and node.op_type == "DequantizeLinear":
            is_added_to = name in self._added
            scale, zero_point = float(self._constants[node.input[1]]), int(self._constants[node.input[2]])
            name = self._made_by[node.input[0]].input[0]
            node = self._made_by.get(name)
        is_smoothed = node is not None and node.op_type == "Mul" and node.input[1] == f"{node.input[0]}_factor"
        factor = self._constants[node.input[1]] if node is not None and is_smoothed else None
        return _Input(scale, zero_point, factor, is_added_to)

    def _layer_name(self, node_name: str) -> str:
        path = node_name.strip("/").removesuffix("/MatMul").replace("/", ".")
        if called := _OF_CALL.match(path):
            return f"layers.{called[2] or 0}.{called[1]}"
        return self._our_name(path)

    def _our_name(self, name: str) -> str:
        """Without what stands before the encoder's own names."""
        for stripped in (name, name.partition(".")[2]):
            found = shared_context_name(stripped, self._family)
            if re.match(r"(layers|embeddings|head)\.", found):
                return found
        return name


def _plain_tensors(graph: _Graph, config: Any) -> dict[str, NDArray[Any]]:
    """Embeddings, norms, pooler and head."""
    named = graph.tensors
    words = named.get("embeddings.words.weight")
    if words is None:
        rows, scales = (named.get(f"embeddings.words.weight{part}") for part in (ROWS, SCALES))
        if rows is None or scales is None:
            raise ArtifactError("the graph has no table of word embeddings that is known")
        words = rows.astype(np.float32) * scales
    tensors = {"embeddings.words": words, "embeddings.positions": named["embeddings.positions.weight"]}
    segments = named.get("embeddings.segments.weight")
    if segments is not None and len(segments) > 1:
        tensors["embeddings.segments"] = segments
    elif segments is not None:  # RoBERTa's only one is the same for every token
        tensors["embeddings.positions"] = tensors["embeddings.positions"] + segments
    tensors |= {name: tensor for name, tensor in named.items() if re.search(r"norm\.(weight|bias)$", name)}
    parts = {"head": "head"} if config.model_type == SHARED_CONTEXT else _head_parts(config, named)
    for ours, theirs in parts.items():
        for part in ("weight", "bias"):
            found = named.get(f"{theirs}.{part}")
            if found is None:
                raise ArtifactError(f"the graph has no {theirs}.{part}: the native engine does not know this head")
            tensors[f"{ours}.{part}"] = np.ascontiguousarray(found.T) if part == "weight" else found
    return tensors


def _head_parts(config: Any, named: Mapping[str, Any]) -> dict[str, str]:
    dense, _, score = HEADS[config.model_type]
    names = [name.removesuffix(".weight") for name in named]
    return {
        ours: next((name for name in names if f".{name}".endswith(f".{theirs}")), theirs)
        for ours, theirs in (("pooler", dense), ("head", score))
    }


def _linear_tensors(
    name: str, by_pass: list[_Linear | None], named: Mapping[str, NDArray[Any]], place: Path
) -> dict[str, NDArray[Any]]:
    there = [one for one in by_pass if one is not None]
    first, inputs = there[0], [_Input() if one is None else one.input for one in by_pass]
    for other in there[1:]:
        if not np.array_equal(first.weight, other.weight) or not _same(first.weight_scale, other.weight_scale):
            raise ArtifactError(f"{place}: {name} has another weight in each graph; expected one. Quantize again")
        if not _same(first.input.factor, other.input.factor):
            raise ArtifactError(f"{place}: {name} has another smoothing factor in each graph; expected one")
    inputs = [*inputs, *inputs][:2]  # a joint ranker's only pass counts for both
    is_quantized = any(one.scale for one in inputs)
    weight, factor = first.weight, first.input.factor
    if factor is not None and not is_quantized:
        weight, factor = (weight * factor[:, np.newaxis]).astype(np.float32), None
    tensors: dict[str, NDArray[Any]] = {f"{name}.weight": weight}
    if (bias := named.get(f"{name}.bias")) is not None and not name.endswith(".key"):
        tensors[f"{name}.bias"] = bias  # what a key's bias adds to all scores of a query, softmax does not see
    if first.weight_scale is not None:
        tensors[f"{name}.weight_scale"] = first.weight_scale
    if is_quantized:
        tensors[f"{name}.input_scale"] = np.array([one.scale for one in inputs], dtype=np.float32)
        tensors[f"{name}.input_zero_point"] = np.array([one.zero_point for one in inputs], dtype=np.uint8)
    if factor is not None:
        tensors[f"{name}.input_factor"] = factor
    return tensors


def _same(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other))


def _fold_scale(tensors: dict[str, NDArray[Any]], head_size: int) -> None:
    """The scale of the scores into the query projections, where a shared-context ranker's export has it already."""
    scale = np.float32(head_size**-0.5)
    for name in [name for name in tensors if re.match(r"layers\.\d+\.query\.weight$", name)]:
        linear = name.removesuffix(".weight")
        scaled = f"{linear}.weight_scale" if f"{linear}.weight_scale" in tensors else name
        for part in (scaled, f"{linear}.bias"):
            tensors[part] = tensors[part] * scale


def _config(
    config: Any, tensors: Mapping[str, NDArray[Any]], graph: _Graph, linears: Mapping[str, _Linear]
) -> NativeConfig:
    architecture = architecture_of(config)
    activation = getattr(config, "hidden_act", None) or config.activation  # DistilBERT has its own word
    is_shared = config.model_type == SHARED_CONTEXT
    positions, embedding_size = tensors["embeddings.positions"].shape
    segments = tensors.get("embeddings.segments")
    hidden_size, intermediate_size = tensors["layers.0.ffn_in.weight"].shape
    layers = sum(name.endswith(".ffn_out.weight") for name in tensors)
    return NativeConfig(
        architecture="shared-context" if is_shared else "joint",
        layers=layers,
        hidden_size=hidden_size,
        embedding_size=embedding_size,
        heads=architecture.heads(config),
        head_size=architecture.head_size(config),
        intermediate_size=intermediate_size,
        vocabulary=len(tensors["embeddings.words"]),
        positions=positions,
        segments=0 if segments is None else len(segments),
        first_position=first_position(config),
        context_positions=config.context_positions if is_shared else 0,
        activation=ACTIVATION_NAMES.get(activation, activation),
        layer_norm_eps=graph.layer_norm_eps,
        pooler_size=0 if is_shared else tensors["pooler.weight"].shape[1],
        pooler_activation="none" if is_shared else HEADS[config.model_type][1],
        rounded_residuals=tuple(n for n in range(layers) if linears[f"layers.{n}.query"].input.is_added_to),
    )
