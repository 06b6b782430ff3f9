"""See inside a graph: run it with some of its tensors as outputs, feed by feed."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonrank_runtime.engine import Feed
from tritonrank_runtime.sessions import open_session

from tritonrank.artifacts.weight_file import save_graph


def watched_values(source: Path, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[dict[str, NDArray[Any]]]:
    """The values of FP32 tensors of a graph for each feed, by name; nothing is kept between feeds."""
    model = onnx.load(source)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as scratch:
        save_graph(model, Path(scratch) / source.name)
        session = open_session(Path(scratch) / source.name)
    for feed in feeds:
        yield dict(zip(names, session.run(list(names), feed), strict=True))
