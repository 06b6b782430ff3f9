"""The native engine as the graphs that ``SharedContextEngine`` and ``JointEngine`` run: it looks like sessions of ONNX
Runtime. Rows are packed: padding is never computed. Each call computes in the thread that calls it, which waits without
Python's lock.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.engine import MODEL_FILE, Graph, RowsError
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.native.model import NativeModel, check_ids, row_lengths
from tritonrank_runtime.native.weights import NATIVE_FILE, NativeWeights
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.shared_context import CANDIDATES_FILE, CONTEXT_FILE


def open_native_graphs(folder: Path, kernels: str = "") -> dict[str, Graph]:
    """The graphs of a folder's ranker, by the names of the files that they stand for.

    Args:
        folder: holds native.safetensors.
        kernels: as for ``NativeModel``.

    Raises:
        ExecutorError: the file is missing or damaged, there is no library and no compiler, or the processor lacks what
            the kernels need.
    """
    model = NativeModel(NativeWeights.read(folder / NATIVE_FILE), kernels)
    if model.config.architecture == JOINT:
        return {MODEL_FILE: NativePairs(model)}
    return {CONTEXT_FILE: NativeContext(model), CANDIDATES_FILE: NativeCandidates(model)}


class NativeContext:
    """What an engine takes for context.onnx."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self._longest = model.config.positions - model.config.first_position

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]:
        name = "context_ids"
        ids = check_ids(name, input_feed[name], self._model.config.vocabulary, self._longest)
        if not ids.size:
            raise RowsError(f"{name}: expected at least one token")
        return self._model.context(ids)

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name="context_ids")]


class NativeCandidates:
    """What an engine takes for candidates.onnx."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        config = model.config
        self._longest = config.positions - config.first_position - config.context_positions

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]:
        name = "candidate_ids"
        config = self._model.config
        ids = check_ids(name, input_feed[name], config.vocabulary, self._longest, least=PADDING)
        lengths = row_lengths(name, ids > PADDING)
        context = [np.ascontiguousarray(input_feed[f"context_{part}"], np.float32) for part in ("keys", "values")]
        for part, tensor in zip(("keys", "values"), context, strict=True):
            expected = (config.layers, config.heads, context[0].shape[2], config.head_size)
            if tensor.shape != expected or not tensor.size:
                raise RowsError(f"context_{part}: shape {list(tensor.shape)}; the ranker's are {list(expected)}")
        return [self._model.score(ids[ids > PADDING], lengths, context=context)]

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name=name) for name in ("context_keys", "context_values", "candidate_ids")]


class NativePairs:
    """What an engine takes for a joint model.onnx."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        config = model.config
        self._longest = config.positions - config.first_position
        has_types = config.segments > 1  # one for everything needs no tensor
        names = ("input_ids", "attention_mask", *(["token_type_ids"] if has_types else []))
        self._inputs = [SimpleNamespace(name=name) for name in names]

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]:
        config = self._model.config
        mask = input_feed["attention_mask"]
        lengths = row_lengths("attention_mask", mask > 0)
        is_token = mask > 0
        packed = {}
        for name, limit in (("input_ids", config.vocabulary), ("token_type_ids", config.segments)):
            if name not in input_feed:
                continue
            if input_feed[name].shape != mask.shape:
                raise RowsError(f"{name}: shape {list(input_feed[name].shape)}; attention_mask has {list(mask.shape)}")
            # Behind the longest row there may be padding without end: it is not computed, and needs no position.
            packed[name] = check_ids(name, input_feed[name][:, : int(lengths.max())], limit, self._longest)
            packed[name] = packed[name][is_token[:, : packed[name].shape[1]]]
        return [self._model.score(packed["input_ids"], lengths, packed.get("token_type_ids"))[:, np.newaxis]]

    def get_inputs(self) -> Sequence[Any]:
        return self._inputs
