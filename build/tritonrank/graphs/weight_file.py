"""Weights beside their graphs: one file that many graphs refer to (ONNX external data), each tensor in it once.

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
ALIGNMENT = 4_096
"""A page, so that a tensor can be mapped from the file."""


def share_weights(folder: Path) -> None:
    """Let the graphs of a draft refer to one file of weights; a single graph keeps its own.

    Args:
        folder: holds the graphs of a ranker, and gets weights.bin.
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
