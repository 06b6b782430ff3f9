"""A row's logit is its own: it does not depend on which rows and requests share its batch.

Some graphs here misbehave on purpose: they let the padded length into the logit, as INT8 scales and fused kernels may.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tritonrank import engine
from tritonrank.engine import OnnxEngine, available_cores, run_in_batches, token_counts

VOCABULARY = 50
HIDDEN = 16
Request = dict[str, np.ndarray[Any, Any]]

table = np.random.default_rng(1).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
head = np.random.default_rng(2).normal(size=(HIDDEN, 1)).astype(np.float32)


def save_graph(folder: Path) -> Path:
    """logit = head of the mean embedding over ALL tokens, padding included: it would show another padded length."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "token_axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["scored"]),
        # The mask has to be an input that counts, if only with a thousandth per token.
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "token_axis"], ["length"], keepdims=1),
        helper.make_node("Mul", ["length", "thousandth"], ["bonus"]),
        helper.make_node("Add", ["scored", "bonus"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info(name, TensorProto.INT32, ["rows", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(head, "head"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "token_axis"),
            numpy_helper.from_array(np.array(0.001, dtype=np.float32), "thousandth"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def expected_logit(ids: list[int]) -> float:
    """The same by hand, for one row alone in the padding that it is promised: its length rounded up to eight."""
    padded = ids + [0] * (-len(ids) % 8)
    return float(table[padded].mean(axis=0, dtype=np.float64) @ head[:, 0] + 0.001 * len(ids))


def request_of(rows: list[list[int]], width: int | None = None) -> Request:
    """Rows of ids, padded on the right with 0 to the longest or wider."""
    width = max([width or 0, *map(len, rows)])
    ids = np.zeros((len(rows), width), dtype=np.int32)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}


def random_requests(seed: int, rows_of_requests: list[int]) -> list[list[list[int]]]:
    random = np.random.default_rng(seed)
    return [
        [random.integers(1, VOCABULARY, size=random.integers(1, 40)).tolist() for _ in range(rows)]
        for rows in rows_of_requests
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_graph(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(model: Path) -> OnnxEngine:
    return OnnxEngine(model, threads=1, rows_per_batch=5)


# The ONNX engine


def test_every_row_gets_the_logit_it_has_alone(running: OnnxEngine) -> None:
    requests = random_requests(3, [7, 1, 0, 23])
    answers = running.run([request_of(rows) for rows in requests])
    assert [answer.shape for answer in answers] == [(7,), (1,), (0,), (23,)]
    for rows, answer in zip(requests, answers, strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, [expected_logit(row) for row in rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 64])
def test_neighbours_and_order_do_not_move_a_logit(model: Path, rows_per_batch: int) -> None:
    requests = random_requests(4, [5, 9, 30])
    together = OnnxEngine(model, 1, rows_per_batch).run([request_of(rows) for rows in requests])
    other = OnnxEngine(model, 1, rows_per_batch=7)
    for rows, expected in zip(requests, together, strict=True):
        alone = [other.run([request_of([row])])[0][0] for row in rows]
        backwards = other.run([request_of(rows[::-1], width=77)])[0][::-1]
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(backwards, expected, rtol=0, atol=1e-6)
    reordered = other.run([request_of(rows) for rows in reversed(requests)])
    for answer, expected in zip(reversed(reordered), together, strict=True):
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_the_toy_graph_would_show_another_padding(running: OnnxEngine) -> None:
    """Otherwise the tests above would show nothing."""
    row = [7] * 9
    tight, loose = (request_of([row], width) for width in (16, 24))
    logits = [float(running.run_padded({n: r[n] for n in running.input_names})[0, 0]) for r in (tight, loose)]
    assert abs(logits[0] - expected_logit(row)) < 1e-5
    assert abs(logits[1] - logits[0]) > 1e-2


def test_only_the_inputs_of_the_graph_are_fed(running: OnnxEngine) -> None:
    assert sorted(running.input_names) == ["attention_mask", "input_ids"]
    assert running.run([request_of([[1, 2]])])[0].shape == (1,)


def test_a_request_without_an_input_of_the_graph_is_an_error(running: OnnxEngine) -> None:
    request = request_of([[1, 2]])
    del request["input_ids"]
    with pytest.raises(KeyError, match="input_ids"):
        running.run([request])


def test_no_requests_have_no_logits(running: OnnxEngine) -> None:
    assert running.run([]) == []
    assert token_counts([]) == (0, 0)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no protobuf")
    with pytest.raises(Exception, match=r"(?i)protobuf|model"):
        OnnxEngine(tmp_path / "model.onnx")


# Batches


class Recorder:
    """Runs nothing; a row's logit is made of all of its ids, so it tells which row it belongs to."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.rows = 0

    def __call__(self, tensors: Request) -> np.ndarray[Any, Any]:
        assert {tensor.shape for tensor in tensors.values()} == {tensors["input_ids"].shape}
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.int32)}
        self.shapes.append(tensors["input_ids"].shape)
        self.rows += len(tensors["input_ids"])
        lengths = tensors["attention_mask"].sum(axis=1)
        assert (tensors["input_ids"].shape[1] - np.maximum(lengths, 1) < 8).all()  # never padded for a neighbour
        assert not (tensors["input_ids"] * (1 - tensors["attention_mask"])).any()
        rows = zip(tensors["input_ids"].tolist(), lengths, strict=True)
        return np.array([[signature(row[:length])] for row, length in rows])


def signature(ids: list[int]) -> np.float32:
    return np.float32(sum((place + 1) * value for place, value in enumerate(ids)))


row_lists = st.lists(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=27), min_size=1, max_size=6), min_size=0, max_size=5
)


@settings(max_examples=150, deadline=None)
@given(requests=row_lists, rows_per_batch=st.integers(1, 4), extra=st.integers(0, 30))
def test_rows_are_regrouped_and_handed_back(requests: list[list[list[int]]], rows_per_batch: int, extra: int) -> None:
    recorder = Recorder()
    padded = [request_of(rows, width=extra) for rows in requests]
    answers = run_in_batches(recorder, padded, ["input_ids", "attention_mask"], rows_per_batch)
    assert [answer.tolist() for answer in answers] == [[signature(row) for row in rows] for rows in requests]
    assert recorder.rows == sum(map(len, requests))
    assert all(rows <= rows_per_batch and tokens % 8 == 0 for rows, tokens in recorder.shapes)
    by_length: dict[int, int] = {}
    for rows in requests:
        for row in rows:
            padded_length = next(length for length in range(8, 64, 8) if length >= len(row))
            by_length[padded_length] = by_length.get(padded_length, 0) + 1
    assert len(recorder.shapes) == sum(-(-rows // rows_per_batch) for rows in by_length.values())  # no more than needed


@settings(max_examples=50, deadline=None)
@given(requests=row_lists)
def test_token_counts_are_what_really_runs(requests: list[list[list[int]]]) -> None:
    recorder = Recorder()
    padded = [request_of(rows) for rows in requests]
    run_in_batches(recorder, padded, ["input_ids", "attention_mask"], 3)
    needed = sum(len(row) for rows in requests for row in rows)
    assert token_counts(padded) == (sum(rows * tokens for rows, tokens in recorder.shapes), needed)


def test_an_engine_that_loses_a_row_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        run_in_batches(lambda tensors: np.zeros((1, 1)), [request_of([[1], [2]])], ["input_ids"], 8)


def test_a_row_without_a_single_token_still_has_a_width() -> None:
    """A run of no tokens at all would end in an error deep inside a graph that takes the first token's state."""
    recorder = Recorder()
    run_in_batches(recorder, [request_of([[], [3]], width=16)], ["input_ids", "attention_mask"], 4)
    assert recorder.shapes == [(2, 8)]


# Cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("20000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
        ("rubbish", 8),
        ("x y", 8),
    ],
)
def test_cores_are_those_of_the_mask_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(engine, "Path", lambda _: tmp_path / "cpu.max")
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert available_cores() == cores


def test_without_a_quota_the_mask_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing: Callable[[str], Path] = lambda _: tmp_path / "none"  # noqa: E731
    monkeypatch.setattr(engine, "Path", missing)
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert available_cores() == 3


def test_this_machine_has_a_core() -> None:
    assert available_cores() >= 1
