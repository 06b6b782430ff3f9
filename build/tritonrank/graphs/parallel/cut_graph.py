"""One rank's share of a ranker's graph, cut by a ``shard_plan``.

The shard has the graph's own tensors and operators, with smaller weights; only the sums over the ranks are new: a
``DistCollective`` behind each product that was split by row. That operator is TensorRT's (ONNX has none); ONNX Runtime
gets the same shard as segments (``segments.py``). The bias of such a layer is added after the sum, so it counts once,
and the graphs of all ranks have the same operators. Scales of Q/DQ are those of the whole graph: one per output channel
is cut with a weight split by column, and stays whole for one split by row.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tritonrank.errors import ArtifactError
from tritonrank.graphs.graph_view import GraphView, attribute, constant_tensors, label
from tritonrank.graphs.parallel.cut_plan import CONSTANT_CHAIN, Cut, Plan, Resize

PARTIAL = "_partial"
"""What is added to the name of a tensor while it is one rank's addend."""
SHARE = "_share"
"""What is added to the name of a constant of which a rank has a piece."""


def cut_graph(model: onnx.ModelProto, plan: Plan, rank: int, ranks: int, name: str) -> onnx.ModelProto:
    """The shard of one rank.

    Args:
        model: the whole graph.
        plan: what to cut in it.
        rank: from 0.
        ranks: how many share the work.
        name: what errors call the graph.

    Returns:
        A graph whose initializers end in ``SHARE`` where they were cut; Constant nodes became initializers.

    Raises:
        ArtifactError: the number of ranks does not divide the heads or the neurons.
    """
    if ranks not in plan.ranks():
        heads = ", ".join(f"{size} ({where})" for size, where in plan.extents.items() if size % ranks)
        raise ArtifactError(
            f"{name}: cannot be cut into {ranks} ranks; that does not divide {heads}. "
            f"tensor_parallel may be {', '.join(map(str, plan.ranks()))}"
        )
    return _Cutter(model, plan, rank, ranks, name).run()


class _Cutter:
    def __init__(self, model: onnx.ModelProto, plan: Plan, rank: int, ranks: int, name: str) -> None:
        self._source, self._plan, self._rank, self._ranks, self._name = model, plan, rank, ranks, name
        self._view = GraphView(model)
        self._constants = dict(constant_tensors(model.graph))
        self._nodes: list[onnx.NodeProto] = []
        self._cut_names: dict[tuple[str, int], str] = {}
        self._resized: dict[tuple[str, int], str] = {}

    def run(self) -> onnx.ModelProto:
        cuts: dict[int, list[Cut]] = {}
        for cut in self._plan.cuts:
            cuts.setdefault(cut.node, []).append(cut)
        resizes = {resize.node: resize for resize in self._plan.resizes}
        reduces = set(self._plan.reduces)
        for place, source in enumerate(self._source.graph.node):
            if source.op_type == "Constant" and source.output[0] in self._constants:
                continue
            node = onnx.NodeProto()
            node.CopyFrom(source)
            for cut in cuts.get(place, ()):
                node.input[cut.place] = self._share_of(node.input[cut.place], cut.axis)
            if place in resizes:
                node.input[1] = self._resize(node.input[1], resizes[place])
            self._nodes.append(node)
            if place in reduces:
                self._nodes.append(self._all_reduce(node))
        return self._assembled()

    def _all_reduce(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Rename a product's result to its partial sum, and make the sum under the old name."""
        whole = node.output[0]
        node.output[0] = whole + PARTIAL
        return helper.make_node(
            "DistCollective",
            [whole + PARTIAL],
            [whole],
            name=f"{label(node)}/all_reduce",
            collective_operation="all_reduce",
            reduce_op="sum",
            root=-1,
            nb_rank=self._ranks,
        )

    def _share_of(self, name: str, axis: int) -> str:
        """The rank's piece of a constant, along with what stands between the stored tensor and its use."""
        if (name, axis) in self._cut_names:
            return self._cut_names[name, axis]
        share = f"{name}{SHARE}{axis}"
        if name in self._constants:
            whole = numpy_helper.to_array(self._constants[name])
            piece: NDArray[np.generic] = np.ascontiguousarray(np.split(whole, self._ranks, axis=axis)[self._rank])
            self._constants[share] = numpy_helper.from_array(piece, share)
        else:
            node = onnx.NodeProto()
            node.CopyFrom(self._view.producers[name])
            assert node.op_type in CONSTANT_CHAIN, node.op_type
            node.name, node.output[0] = f"{label(node)}{SHARE}{axis}", share
            node.input[0] = self._share_of(node.input[0], axis)
            self._cut_scales(node, axis)
            self._nodes.append(node)
        self._cut_names[name, axis] = share
        return share

    def _cut_scales(self, node: onnx.NodeProto, axis: int) -> None:
        """Scales and zero points run along one axis of the weight: the one that is cut, or the other."""
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            return
        if attribute(node, "block_size", 0):
            raise ArtifactError(f"{self._name}: {label(node)} has a scale per block, which is not cut yet")
        for number, scale in enumerate(node.input[1:], start=1):
            size = 1 if not scale else int(np.prod(self._constants[scale].dims, dtype=np.int64))
            if size > 1 and attribute(node, "axis", 1) == axis:
                node.input[number] = self._share_of(scale, 0)

    def _resize(self, name: str, resize: Resize) -> str:
        """A reshape's target with one element divided among the ranks; others may use the old one."""
        if (name, resize.place) in self._resized:
            return self._resized[name, resize.place]
        resized = f"{name}{SHARE}{resize.place}"
        if name in self._constants:
            target = numpy_helper.to_array(self._constants[name]).copy()
            target.reshape(-1)[resize.place] //= self._ranks
            self._constants[resized] = numpy_helper.from_array(target, resized)
        else:
            node = onnx.NodeProto()
            node.CopyFrom(self._view.producers[name])
            node.name, node.output[0] = f"{label(node)}{SHARE}{resize.place}", resized
            source = resize.place if node.op_type == "Concat" else 0
            node.input[source] = self._resize(node.input[source], Resize(resize.node, 0))
            self._nodes.append(node)
        self._resized[name, resize.place] = resized
        return resized

    def _assembled(self) -> onnx.ModelProto:
        graph = self._source.graph
        shard = helper.make_model(
            helper.make_graph([], f"{graph.name} rank {self._rank} of {self._ranks}", graph.input, graph.output),
            opset_imports=self._source.opset_import,
            ir_version=self._source.ir_version,
        )
        for tensors, axes in (
            (shard.graph.input, self._plan.split_inputs),
            (shard.graph.output, self._plan.split_outputs),
        ):
            for tensor in tensors:
                if tensor.name in axes:
                    dim = tensor.type.tensor_type.shape.dim[axes[tensor.name]]
                    if dim.dim_value:
                        dim.dim_value //= self._ranks
                    else:
                        dim.Clear()
        needed = {tensor.name for tensor in graph.output}
        kept = []
        for node in reversed(self._nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        shard.graph.node.extend(reversed(kept))
        for name, constant in self._constants.items():
            if name in needed:
                tensor = shard.graph.initializer.add()
                tensor.CopyFrom(constant)
                tensor.name = name  # the tensor inside a Constant node has another or none
        return shard
