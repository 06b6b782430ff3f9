"""native.safetensors: what the native engine computes from. Names, shapes and types, and their checks.

The network is that of ``network.py``, folded: the scale of the scores is in the query projection, keys have no bias,
and the bias of the values is in that of the attention's output. A joint ranker adds a dense layer over the first token
(BERT's pooler, RoBERTa's dense) between the encoder and the head. One file holds one ranker; its metadata, under
``config``, is the JSON of ``NativeConfig``.

Tensors, FP32 where nothing else is said:

    embeddings.words (vocabulary, embedding size), embeddings.positions (positions, embedding size), and, where the
    family has them, embeddings.segments (segments, embedding size); embeddings.norm.weight and .bias
    embeddings.project: a linear, where embeddings are narrower than the encoder
    layers.N.query, .key, .value (hidden -> heads * head size), .attention_out (back), .ffn_in, .ffn_out: linears
    layers.N.attention_norm.weight and .bias, layers.N.ffn_norm.weight and .bias
    pooler: a linear (hidden -> any size), of joint rankers that have one
    head: a linear (-> 1), never quantized

A linear NAME is NAME.weight (inputs, outputs): FP32, INT8, or uint16, which holds the bits of BF16 numbers; and

    NAME.bias (outputs), where it has one
    NAME.weight_scale (outputs): of INT8 weights, by output channel
    NAME.input_scale (2) and NAME.input_zero_point (2) uint8: steps of the input, first for the context's pass and then
        for the candidates' (a joint ranker uses the second alone); a scale of 0 says that the pass leaves it out. INT8
        weights need them; beside FP32 weights they say that the input is rounded to these steps, as it is where one
        activation feeds layers of both kinds
    NAME.input_factor (inputs): multiplies the input before it is quantized (SmoothQuant)

INT8 computes what the Q/DQ graph does: round(x * factor / scale) + zero point, within 0 to 255, times the weights in
32-bit integers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT

NATIVE_FILE = "native.safetensors"
CONFIG = "config"
"""The key of the file's metadata that holds the configuration."""
ACTIVATIONS = ("none", "gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh")
"""In the order of the library's codes; "swish" is "silu"."""
PASSES = 2
"""The context's and the candidates'."""
LAYER_LINEARS = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
BFLOAT16 = np.dtype(np.uint16)
"""numpy has no BF16, so that its bits stand in the file."""


@dataclass(frozen=True)
class NativeConfig:
    """The sizes of a network.

    Args:
        architecture: shared-context or joint.
        layers, hidden_size, embedding_size, heads, head_size, intermediate_size: of the encoder; heads * head_size need
            not be hidden_size.
        vocabulary, positions, segments: rows of the embedding tables; 0 segments = no such table.
        first_position: row of the position table for a row's first token (RoBERTa's is 2).
        context_positions: where candidates' positions begin, behind ``first_position``; 0 for a joint ranker.
        activation: of the FFN, one of ACTIVATIONS.
        layer_norm_eps: of all norms.
        pooler_size: outputs of the joint ranker's dense layer; 0 = it has none.
        pooler_activation: what follows it, one of ACTIVATIONS.
        rounded_residuals: layers in which attention adds to the rounded input of the query instead of the exact one: in
            a Q/DQ graph whatever reads an activation that is quantized without a factor of its own reads it rounded.
    """

    architecture: str
    layers: int
    hidden_size: int
    embedding_size: int
    heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    positions: int
    segments: int
    first_position: int
    context_positions: int
    activation: str
    layer_norm_eps: float
    pooler_size: int = 0
    pooler_activation: str = "none"
    rounded_residuals: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_size

    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every linear, by its name."""
        hidden, width, inner = self.hidden_size, self.width, self.intermediate_size
        sizes = {"query": (hidden, width), "key": (hidden, width), "value": (hidden, width)}
        sizes |= {"attention_out": (width, hidden), "ffn_in": (hidden, inner), "ffn_out": (inner, hidden)}
        found = {f"layers.{n}.{name}": size for n in range(self.layers) for name, size in sizes.items()}
        if self.embedding_size != hidden:
            found["embeddings.project"] = (self.embedding_size, hidden)
        if self.pooler_size:
            found["pooler"] = (hidden, self.pooler_size)
        return found | {"head": (self.pooler_size or hidden, 1)}

    def floats(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that are no linear's, by their names."""
        embedding, hidden = self.embedding_size, self.hidden_size
        found: dict[str, tuple[int, ...]] = {
            "embeddings.words": (self.vocabulary, embedding),
            "embeddings.positions": (self.positions, embedding),
            "embeddings.norm.weight": (embedding,),
            "embeddings.norm.bias": (embedding,),
        }
        if self.segments:
            found["embeddings.segments"] = (self.segments, embedding)
        for layer in range(self.layers):
            for norm in ("attention_norm", "ffn_norm"):
                found |= {f"layers.{layer}.{norm}.{part}": (hidden,) for part in ("weight", "bias")}
        return found


@dataclass(frozen=True)
class Linear:
    """One linear layer; see the top of this file."""

    weight: NDArray[Any]
    bias: NDArray[np.float32] | None = None
    weight_scale: NDArray[np.float32] | None = None
    input_scale: NDArray[np.float32] | None = None
    input_zero_point: NDArray[np.uint8] | None = None
    input_factor: NDArray[np.float32] | None = None


_PARTS: dict[str, np.dtype[Any]] = {
    "bias": np.dtype(np.float32),
    "weight_scale": np.dtype(np.float32),
    "input_scale": np.dtype(np.float32),
    "input_zero_point": np.dtype(np.uint8),
    "input_factor": np.dtype(np.float32),
}


@dataclass(frozen=True)
class NativeWeights:
    """A ranker for the native engine: its sizes, and its tensors by name."""

    config: NativeConfig
    tensors: Mapping[str, NDArray[Any]]

    def linear(self, name: str) -> Linear:
        """One of ``config.linears()``."""
        return Linear(self.tensors[f"{name}.weight"], **{part: self.tensors.get(f"{name}.{part}") for part in _PARTS})

    def check(self, place: str) -> None:
        """Refuse what the library could not compute with: afterwards it may trust every shape.

        Args:
            place: named in the message, with the tensor or the setting.

        Raises:
            ExecutorError: something is missing, left over, or of another shape, type or range.
        """
        _check_config(self.config, place)
        known = self._check_floats(place)
        for name, size in self.config.linears().items():
            known |= self._check_linear(f"{name}.", size, place)
        if further := sorted({*self.tensors} - known):
            raise _wrong(place, further[0], "no such tensor is known")

    def write(self, path: Path) -> None:
        """Check, and write the file.

        Raises:
            ExecutorError: as ``check``.
        """
        from safetensors.numpy import save_file

        self.check(str(path))
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}
        save_file(tensors, path, {CONFIG: json.dumps(asdict(self.config))})

    @classmethod
    def read(cls, path: Path) -> "NativeWeights":
        """Read the file, and check it.

        Raises:
            ExecutorError: there is none, it is damaged, or it does not hold what it should.
        """
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ExecutorError(f"{path}: it is read by safetensors: pip install safetensors") from None
        if not path.is_file():
            raise _wrong(str(path), "file", "there is none")
        try:
            with safe_open(path, framework="numpy") as file:
                found = json.loads((file.metadata() or {})[CONFIG])
                found["rounded_residuals"] = tuple(found["rounded_residuals"])
                weights = cls(NativeConfig(**found), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _wrong(str(path), "file", f"not readable ({type(error).__name__}: {error})") from None
        weights.check(str(path))
        return weights

    def _check_floats(self, place: str) -> set[str]:
        shapes = self.config.floats()
        for name, shape in shapes.items():
            self._check_tensor(name, shape, np.dtype(np.float32), place)
        return set(shapes)

    def _check_linear(self, name: str, size: tuple[int, int], place: str) -> set[str]:
        """Returns the names of its tensors."""
        weight = self.tensors.get(f"{name}weight")
        dtype = np.dtype(np.float32) if weight is None else weight.dtype
        if dtype not in (np.dtype(np.float32), np.dtype(np.int8), BFLOAT16):
            raise _wrong(place, f"{name}weight", f"{dtype}; expected float32, int8 or uint16 (BF16)")
        self._check_tensor(f"{name}weight", size, dtype, place)
        shapes = {"bias": (size[1],), "weight_scale": (size[1],), "input_factor": (size[0],)}
        shapes |= {"input_scale": (PASSES,), "input_zero_point": (PASSES,)}
        present = {part for part in _PARTS if f"{name}{part}" in self.tensors}
        needed = {"weight_scale", "input_scale", "input_zero_point"} if dtype == np.int8 else set()
        if present & {"input_scale", "input_zero_point"}:
            needed |= {"input_scale", "input_zero_point"}
        for part in sorted(present | needed):
            self._check_tensor(f"{name}{part}", shapes[part], _PARTS[part], place)
        if "weight_scale" in present and dtype != np.int8:
            raise _wrong(place, f"{name}weight_scale", f"the weight is {dtype}; INT8 weights alone have scales")
        if "input_factor" in present and "input_scale" not in present:
            raise _wrong(place, f"{name}input_factor", "only quantized inputs have factors")
        if "input_scale" in present:
            self._check_scales(f"{name}input_scale", dtype, place)
        return {f"{name}{part}" for part in present | {"weight"}}

    def _check_scales(self, name: str, dtype: np.dtype[Any], place: str) -> None:
        """Of the inputs: INT8 weights cannot do without, in any pass that has the layer."""
        context, candidates = self.tensors[name].tolist()
        last = f"layers.{self.config.layers - 1}."
        is_in_context = self.config.architecture == SHARED_CONTEXT and not (
            name.startswith(last) and name.removeprefix(last).partition(".")[0] not in ("key", "value")
        )
        least = [context if is_in_context else 1.0, candidates] if dtype == np.int8 else [1.0]
        if min(context, candidates) < 0 or not all(least):
            raise _wrong(
                place, name, f"{[context, candidates]}; expected steps above 0 in every pass that has the layer"
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> None:
        found = self.tensors.get(name)
        if found is None:
            raise _wrong(place, name, f"missing; expected {dtype} {list(shape)}")
        if found.shape != shape or found.dtype != dtype:
            raise _wrong(place, name, f"{found.dtype} {list(found.shape)}; expected {dtype} {list(shape)}")
        if dtype == np.float32 and not np.isfinite(found).all():
            raise _wrong(place, name, "holds numbers that are not finite")


def _check_config(config: NativeConfig, place: str) -> None:
    if config.architecture not in (SHARED_CONTEXT, JOINT):
        raise _wrong(place, "architecture", f"{config.architecture!r}; expected {SHARED_CONTEXT} or {JOINT}")
    for name in ("activation", "pooler_activation"):
        if getattr(config, name) not in ACTIVATIONS:
            raise _wrong(place, name, f"{getattr(config, name)!r}; expected one of {', '.join(ACTIVATIONS)}")
    least = dict.fromkeys(("segments", "first_position", "context_positions", "pooler_size"), 0)
    for name, value in asdict(config).items():
        if isinstance(value, int) and value < least.get(name, 1):
            raise _wrong(place, name, f"{value}; expected at least {least.get(name, 1)}")
    if not {*config.rounded_residuals} <= {*range(config.layers)}:
        raise _wrong(place, "rounded_residuals", f"{list(config.rounded_residuals)}; there are {config.layers} layers")
    if config.layer_norm_eps <= 0:
        raise _wrong(place, "layer_norm_eps", f"{config.layer_norm_eps}; expected above 0")
    if config.positions <= config.first_position + config.context_positions:
        raise _wrong(place, "positions", f"{config.positions}; candidates begin behind the last of them")
    if config.architecture == SHARED_CONTEXT and config.pooler_size:
        raise _wrong(place, "pooler_size", "a shared-context ranker has no pooler")


def _wrong(place: str, what: str, message: str) -> ExecutorError:
    return ExecutorError(f"{place}: {what}: {message}. Write the file anew: tritonrank build RECIPE")
