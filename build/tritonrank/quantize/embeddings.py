"""Word embeddings in eight bits: a quarter of the bytes of the largest table of a small ranker.

Each row (token) gets a scale of its own, its largest magnitude over 127. The rows of a text are looked up first and
scaled then, so that the table is never unpacked: Gather -> Cast -> Mul with the looked-up scales. Products come later
and see ordinary floats; what is lost is one rounding per number, which the following LayerNorm does not enlarge.
"""

import re
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tritonrank_runtime.engines import model_files

from tritonrank.artifacts.weight_file import save_graph
from tritonrank.graphs.native_weights import ROWS, SCALES

WORD_TABLE = re.compile(r"(^|\.)embeddings\.(words|word_embeddings)\.weight$")
LARGEST = 127


def shrink_folder(folder: Path) -> None:
    """Rewrite every graph of a folder that is still a draft."""
    for path in model_files(folder):
        shrink_word_embeddings(path)


def shrink_word_embeddings(path: Path) -> int:
    """Rewrite a graph in place, in a folder that is still a draft.

    Args:
        path: a graph of a ranker of either architecture; one without a word table in FP32 stays as it is.

    Returns:
        Look-ups rewritten.
    """
    model = onnx.load(path)
    tables = {t.name: t for t in model.graph.initializer if WORD_TABLE.search(t.name) and len(t.dims) == 2}
    tables = {name: table for name, table in tables.items() if table.data_type == TensorProto.FLOAT}
    lookups = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in tables]
    if not lookups:
        return 0
    for name in {node.input[0] for node in lookups}:
        _replace_table(model.graph, tables[name])
    for node in lookups:
        _rewrite(model.graph, node)
    save_graph(model, path)
    onnx.checker.check_model(str(path))
    return len(lookups)


def _rewrite(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    table, indices, output = node.input[0], node.input[1], node.output[0]
    node.input[0], node.output[0] = table + ROWS, f"{output}_rows"
    further = [
        helper.make_node(
            "Cast", [node.output[0]], [f"{output}_floats"], name=f"{node.name}_floats", to=TensorProto.FLOAT
        ),
        helper.make_node("Gather", [table + SCALES, indices], [f"{output}_scales"], name=f"{node.name}_scales"),
        helper.make_node("Mul", [f"{output}_floats", f"{output}_scales"], [output], name=f"{node.name}_scaled"),
    ]
    place = list(graph.node).index(node) + 1
    for offset, added in enumerate(further):
        graph.node.insert(place + offset, added)


def _replace_table(graph: onnx.GraphProto, table: TensorProto) -> None:
    weights = numpy_helper.to_array(table)
    scales = np.maximum(np.abs(weights).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(LARGEST)
    rows = np.rint(weights / scales).astype(np.int8)
    graph.initializer.extend(
        [
            numpy_helper.from_array(rows, table.name + ROWS),
            numpy_helper.from_array(scales.astype(np.float32), table.name + SCALES),
        ]
    )
    graph.initializer.remove(table)
