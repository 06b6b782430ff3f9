"""An open model of the native library: weights handed over, and rows checked before the library sees them."""

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import ExecutorError, RowsError
from tritonrank_runtime.native.library import LinearStruct, ModelStruct, RowsStruct, kernels_here, load_library
from tritonrank_runtime.native.weights import ACTIVATIONS, BFLOAT16, LAYER_LINEARS, NativeWeights

KINDS = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, BFLOAT16: 2}
"""TritonrankLinear.kind of api.h."""
SIZES = (
    *("layers", "hidden_size", "embedding_size", "heads", "head_size", "intermediate_size", "vocabulary"),
    *("positions", "segments", "first_position", "context_positions"),
)
"""What NativeConfig and TritonrankModel call alike."""
NORMS = ("attention_norm.weight", "attention_norm.bias", "ffn_norm.weight", "ffn_norm.bias")


class NativeModel:
    """A ranker in the library's memory, closed with this object.

    Args:
        weights: checked ones.
        kernels: plain, avx2, avx512 or avx512_bf16; "" = the best that this processor runs.

    Raises:
        ExecutorError: there is no library, this processor does not run the kernels, or there is no memory.
    """

    def __init__(self, weights: NativeWeights, kernels: str = "") -> None:
        self.config = weights.config
        self._library = load_library()
        self.kernels = kernels_here(kernels)
        if not self.kernels:
            raise ExecutorError(f"this processor does not run the native engine's kernels {kernels!r}; take others: ''")
        self._kept: list[Any] = []  # what the library's pointers point to
        model = self._model(weights)
        opened = self._library.tritonrank_open(ctypes.byref(model), self.kernels.encode())
        if not opened:
            raise ExecutorError("no memory for the native engine's weights; look at it: free -m")
        self._opened = ctypes.c_void_p(opened)
        weakref.finalize(self, self._library.tritonrank_close, self._opened)

    def context(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of one row of checked ids, each (layers, heads, tokens, head_size)."""
        config = self.config
        shape = (config.layers, config.heads, len(ids), config.head_size)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        starts = np.array([0, len(ids)], dtype=np.int64)
        rows = RowsStruct(1, _pointer(starts), _pointer(ids), None, 0, 0)
        arguments = (ctypes.byref(rows), _pointer(keys), _pointer(values))
        _require_memory(self._library.tritonrank_context(self._opened, *arguments))
        return keys, values

    def score(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        types: NDArray[np.int32] | None = None,
        context: Sequence[NDArray[np.float32]] = (),
    ) -> NDArray[np.float32]:
        """Logits of rows.

        Args:
            ids: of all rows, one after the other, checked.
            lengths: of the rows, at least 1.
            types: their segments, checked; None: that of candidates.
            context: keys and values as ``context`` gives them; none: the rows attend to themselves alone.
        """
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        logits = np.empty(len(lengths), dtype=np.float32)
        place = None if types is None else _pointer(types)
        rows = RowsStruct(len(lengths), _pointer(starts), _pointer(ids), place, 1, self.config.context_positions)
        keys, values, tokens = (*map(_pointer, context), context[0].shape[2]) if context else (None, None, 0)
        arguments = (ctypes.byref(rows), keys, values, tokens, _pointer(logits))
        _require_memory(self._library.tritonrank_score(self._opened, *arguments))
        return logits

    def _model(self, weights: NativeWeights) -> ModelStruct:
        config = weights.config
        names = [f"layers.{n}.{name}" for n in range(config.layers) for name in LAYER_LINEARS]
        linears = (LinearStruct * len(names))(*(self._linear(weights, name) for name in names))
        norms = [f"layers.{n}.{name}" for n in range(config.layers) for name in NORMS]
        places = (ctypes.c_void_p * len(norms))(*(self._place(weights.tensors[name]) for name in norms))
        self._kept += [linears, places]
        further = {
            field: self._linear(weights, name) if f"{name}.weight" in weights.tensors else LinearStruct()
            for field, name in (("project", "embeddings.project"), ("pooler", "pooler"), ("head", "head"))
        }
        tables = {"words": "embeddings.words", "position_table": "embeddings.positions"}
        tables |= {"segment_table": "embeddings.segments"} if config.segments else {}
        norm = [self._place(weights.tensors[f"embeddings.norm.{part}"]) for part in ("weight", "bias")]
        return ModelStruct(
            **{name: getattr(config, name) for name in SIZES},
            activation=ACTIVATIONS.index(config.activation),
            pooler_activation=ACTIVATIONS.index(config.pooler_activation),
            epsilon=config.layer_norm_eps,
            **{field: self._place(weights.tensors[name]) for field, name in tables.items()},
            embedding_norm=(ctypes.c_void_p * 2)(*norm),
            norms=ctypes.addressof(places),
            linears=ctypes.addressof(linears),
            **further,
        )

    def _linear(self, weights: NativeWeights, name: str) -> LinearStruct:
        linear = weights.linear(name)
        inputs, outputs = linear.weight.shape
        parts = {field: None if part is None else self._place(part) for field, part in vars(linear).items()}
        rounds = name in {f"layers.{layer}.query" for layer in weights.config.rounded_residuals}
        kind = KINDS[linear.weight.dtype]
        return LinearStruct(kind=kind, inputs=inputs, outputs=outputs, rounds_residual=rounds, **parts)

    def _place(self, tensor: NDArray[Any]) -> int:
        """Where a tensor lies, which stays there as long as this object."""
        kept = np.ascontiguousarray(tensor)
        self._kept.append(kept)
        return _pointer(kept)


def check_ids(name: str, ids: NDArray[Any], limit: int, longest: int, least: int = 0) -> NDArray[np.int32]:
    """Ids that the tables have rows for, as the library takes them: it looks them up without looking at them.

    Args:
        name: of the tensor.
        ids: rows of them along the last axis.
        limit: the first id that there is not.
        longest: tokens of a row at the most.
        least: the least id that there is.

    Raises:
        RowsError: names the tensor and what is wrong.
    """
    if ids.shape[-1] > longest:
        raise RowsError(f"{name}: rows of {ids.shape[-1]} tokens; the ranker has {longest} positions for them")
    if ids.size and (ids.min() < least or ids.max() >= limit):
        raise RowsError(f"{name}: ids from {ids.min()} to {ids.max()}; the ranker knows {least} to {limit - 1}")
    return np.ascontiguousarray(ids, dtype=np.int32)


def row_lengths(name: str, is_token: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tokens of each row of (rows, tokens).

    Raises:
        RowsError: a row has none, or padding stands before one.
    """
    lengths = np.asarray(is_token.sum(axis=1), dtype=np.int64)
    if not lengths.all() or not np.array_equal(is_token, np.arange(is_token.shape[1]) < lengths[:, np.newaxis]):
        raise RowsError(f"{name}: expected rows of tokens, at least one each, then padding")
    return lengths


def _pointer(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _require_memory(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a run of the native engine")
