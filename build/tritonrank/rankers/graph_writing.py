"""PyTorch -> ONNX: the two ways in which graphs are written here."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tritonrank.artifacts.weight_file import save_graph


def trace_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
    target: Path,
    opset: int,
) -> None:
    """Write the graph of a module of our own, by running it once on these inputs.

    Args:
        module: what to write.
        inputs: by name, in the order of the module's arguments.
        axes: the dynamic ones of inputs and outputs, with their names.
        outputs: names, in their order.
        target: the file.
        opset: of ONNX.
    """
    # In a folder of its own: over 2 GB the exporter writes a file per weight, and two graphs' weights share names.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        traced = Path(scratch) / target.name
        # The tracing exporter: its graphs hold standard operators under readable names, which quantization refers to.
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(traced),
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(named) for name, named in axes.items()},
        )
        if any(path != traced for path in traced.parent.iterdir()):
            save_graph(onnx.load(traced), target)
        else:
            traced.replace(target)
    onnx.checker.check_model(str(target), full_check=True)  # by its path: over 2 GB there is no other way


def write_classifier(checkpoint_folder: Path, target: Path, opset: int) -> None:
    """Export a checkpoint of transformers through optimum, then narrow the inputs to int32: every engine takes it, and
    it halves the traffic."""
    from optimum.exporters.onnx import main_export

    scratch = target.with_suffix(".export")
    try:
        main_export(
            str(checkpoint_folder),
            scratch,
            task="text-classification",
            opset=opset,
            do_validation=False,
            no_post_process=True,
            framework="pt",
        )
        model = onnx.load(scratch / "model.onnx")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _narrow_inputs(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _narrow_inputs(model: onnx.ModelProto) -> None:
    for tensor in model.graph.input:
        if tensor.type.tensor_type.elem_type != TensorProto.INT64:
            continue
        wide = f"{tensor.name}_int64"
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[position] = wide
        cast = helper.make_node("Cast", [tensor.name], [wide], name=f"widen_{tensor.name}", to=TensorProto.INT64)
        model.graph.node.insert(0, cast)
        tensor.type.tensor_type.elem_type = TensorProto.INT32
