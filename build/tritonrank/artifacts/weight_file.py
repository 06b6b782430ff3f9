"""Weights beside their graphs: one file that many graphs refer to (ONNX external data), each tensor in it once.

A graph of more than 2 GB has to have its weights in a file of their own, because protobuf holds no more: ``save_graph``
writes every graph that is made here, and sees to it.

A shard is written as one graph and again as segments, and both graphs of a shared-context ranker have the same
embeddings and layers. Inside each of those files the weights would lie four times on the disk; here they lie once, and
processes that map the file share its pages.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO, Self

import onnx
from onnx import external_data_helper, numpy_helper
from tritonrank_runtime.engine import WEIGHTS_FILE
from tritonrank_runtime.engines import model_files

SMALLEST = 1_024
"""Bytes from which a tensor goes into the file; readers want to see small ones (shapes, scalars) in the graph."""
LARGEST_WHOLE = 2**31 - 2**24
"""Bytes of tensors up to which a graph holds them itself; what is left below 2 GB is for its nodes."""
OWN_SUFFIX = ".data"
"""Behind a graph's name: the file of the weights of this graph alone."""
ALIGNMENT = 4_096
"""A page, so that a tensor can be mapped from the file."""


def share_weights(folder: Path) -> None:
    """Let the graphs of a draft refer to one file of weights; a single graph keeps its own.

    Args:
        folder: holds the graphs of a ranker, and gets weights.bin; files of weights of single graphs go.
    """
    graphs = model_files(folder)
    if len(graphs) < 2:
        return
    models = {path: onnx.load(path) for path in graphs}
    with WeightFile(folder / WEIGHTS_FILE) as weights:
        for model in models.values():
            for tensor in model.graph.initializer:
                weights.take(tensor)
    for path, model in models.items():
        onnx.save(model, path)
        _own_file(path).unlink(missing_ok=True)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph; one that is larger than a file of protobuf may be, with its weights in a file beside it.

    Args:
        model: its tensors are moved into that file, so it is not to be used again where ``is_large`` holds.
        path: of the graph.
    """
    _own_file(path).unlink(missing_ok=True)
    if is_large(model):
        with WeightFile(_own_file(path)) as weights:
            for tensor in model.graph.initializer:
                weights.take(tensor)
    onnx.save(model, path)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a graph cannot hold its weights itself."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_WHOLE


def _own_file(path: Path) -> Path:
    return path.with_name(path.name + OWN_SUFFIX)


class WeightFile:
    """A file of tensors being written; use it as a context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        """Bytes of the tensors, without the gaps between them."""
        self._places: dict[bytes, tuple[int, int]] = {}
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's data into the file, unless it is small; the graph has to lie in the file's folder."""
        data = numpy_helper.to_array(tensor).tobytes()
        if len(data) < SMALLEST:
            return
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            start = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(start)
            self._file.write(data)
            self._places[key] = (start, len(data))
            self.bytes += len(data)
        start, length = self._places[key]
        for kind in ("float_data", "int32_data", "int64_data", "uint64_data", "double_data"):
            tensor.ClearField(kind)
        tensor.raw_data = b""  # the helper wants to see some; with it, onnx.save would write the tensor again
        external_data_helper.set_external_data(tensor, self.path.name, start, length)
        tensor.ClearField("raw_data")
