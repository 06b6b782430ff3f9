"""ONNX files that keep weights elsewhere: within the artifact they may, outside it they are refused by name."""

import struct
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonrank.artifacts import verify_artifact, write_artifact
from tritonrank.artifacts.onnx_paths import INSIDE, NoOnnxError, foreign_paths, named_files
from tritonrank.errors import ArtifactError

OUTSIDE = ("../weights.bin", "/etc/passwd", "a/../../b", "C:\\x", "..\\x", "\\\\host\\x", "D:x", "", "a\0b")
WITHIN = ("weights.bin", "folder/weights.bin", "..weights", "a..b/c")


def kept_in(path: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", path), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(*tensors: TensorProto, nodes: Any = None) -> onnx.ModelProto:
    shape = [helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", shape[:1], shape[1:], list(tensors)))


def written(model: onnx.ModelProto, folder: Path) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("path", [*OUTSIDE, *WITHIN], ids=repr)
def test_a_path_that_leads_out_is_told(tmp_path: Path, path: str) -> None:
    file = written(model_of(kept_in("fine.bin"), kept_in(path)), tmp_path)
    assert named_files(file) == {"fine.bin", path}
    assert foreign_paths(file) == ([path] if path in OUTSIDE else [])


def places() -> dict[str, onnx.ModelProto]:
    """A model for each place that a tensor can be in."""
    inner = model_of(kept_in("../x")).graph
    found = {
        "an attribute": model_of(nodes=[helper.make_node("Constant", [], ["y"], value=kept_in("../x"))]),
        "attributes": model_of(nodes=[helper.make_node("A", [], ["y"], values=[kept_in("../x")])]),
        "a graph in a graph": model_of(nodes=[helper.make_node("If", ["x"], ["y"], then_branch=inner)]),
        "graphs": model_of(nodes=[helper.make_node("A", ["x"], ["y"], branches=[inner])]),
    }
    for name in ("a sparse tensor's values", "a function", "training", "indices"):
        found[name] = model_of()
    found["a sparse tensor's values"].graph.sparse_initializer.add().values.CopyFrom(kept_in("../x"))
    found["indices"].graph.sparse_initializer.add().indices.CopyFrom(kept_in("../x"))
    found["a function"].functions.add().node.append(helper.make_node("C", [], ["y"], value=kept_in("../x")))
    found["training"].training_info.add().algorithm.CopyFrom(inner)
    return found


@pytest.mark.parametrize("place", places())
def test_it_is_found_wherever_it_hides(tmp_path: Path, place: str) -> None:
    assert foreign_paths(written(places()[place], tmp_path)) == ["../x"]


def test_no_way_to_a_tensor_is_left_out() -> None:
    """The fields that are walked are all that lead to tensors, in the messages of the onnx that is installed."""
    names = {
        "ModelProto": "model", "TrainingInfoProto": "training", "FunctionProto": "function", "GraphProto": "graph",
        "NodeProto": "node", "AttributeProto": "attribute", "SparseTensorProto": "sparse", "TensorProto": "tensor",
    }  # fmt: skip
    seen, waiting = set(), [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message: Descriptor = waiting.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        inner = [field for field in message.fields if field.message_type is not None]
        waiting += [field.message_type for field in inner]
        led = {field.number: names[field.message_type.name] for field in inner if field.message_type.name in names}
        if message.name == "TensorProto":
            led = {field.number: "entry" for field in inner if field.name == "external_data"}
        assert led == dict(INSIDE.get(names.get(message.name, ""), {})), message.name
    assert set(names) <= seen


def test_what_is_cut_off_or_no_onnx_is_told_apart(tmp_path: Path) -> None:
    whole = written(model_of(kept_in("fine.bin")), tmp_path).read_bytes()
    file = tmp_path / "torn.onnx"
    for data in (whole[:-1], whole[: len(whole) // 2], b"\xff" * 40, b"PK\x03\x04 an archive", b"\x3a\xff\xff\xff\x7f"):
        file.write_bytes(data)
        with pytest.raises(NoOnnxError):
            named_files(file)
    deep = b""
    for _ in range(2_000):  # a graph in a node in a graph ...
        for key in (0x32, 0x2A, 0x0A):
            deep = bytes([key]) + varint(len(deep)) + deep
    file.write_bytes(b"\x3a" + varint(len(deep)) + deep)
    with pytest.raises(NoOnnxError, match="deep"):
        named_files(file)


def varint(number: int) -> bytes:
    made = b""
    while number > 0x7F:
        made, number = made + struct.pack("B", number & 0x7F | 0x80), number >> 7
    return made + struct.pack("B", number)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(data)
        file.flush()
        try:
            named_files(Path(file.name))
        except NoOnnxError:
            return


def test_an_artifact_with_weights_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    for name, path in (("good", "weights.bin"), ("bad", "../../weights.bin")):
        folder = tmp_path / name
        with write_artifact(folder, "export", {}, {}) as draft:
            (draft.folder / "weights.bin").write_bytes(b"\0" * 16)
            written(model_of(kept_in(path)), draft.folder)
        if name == "good":
            verify_artifact(folder)
            continue
        with pytest.raises(ArtifactError, match=r"model\.onnx") as error:
            verify_artifact(folder)
        assert path in str(error.value)
