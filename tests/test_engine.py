"""A request's logits are its own: they do not depend on which rows and requests share its batch.

Some graphs here misbehave on purpose: they let the padded length into the logit, as INT8 scales and fused kernels may.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tritonrank_runtime.architecture import EngineOptions, RowLimits
from tritonrank_runtime.architectures import architecture_named
from tritonrank_runtime.engine import Graph, RowsError, Watch
from tritonrank_runtime.engines import model_files, open_engine
from tritonrank_runtime.joint import JointEngine, run_in_batches
from tritonrank_runtime.length_groups import (
    candidate_lengths,
    length_groups,
)
from tritonrank_runtime.sessions import open_session
from tritonrank_runtime.shared_context import NAMES
from tritonrank_runtime.split_engine import SplitEngine

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
def running(model: Path) -> JointEngine:
    return JointEngine(open_session(model), threads=1, rows_per_batch=5)


# The joint engine


def test_every_row_gets_the_logit_it_has_alone(running: JointEngine) -> None:
    requests = random_requests(3, [7, 1, 0, 23])
    answers = running.run([request_of(rows) for rows in requests])
    assert [answer.shape for answer in answers] == [(7,), (1,), (0,), (23,)]
    for rows, answer in zip(requests, answers, strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, [expected_logit(row) for row in rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 64])
def test_neighbours_and_order_do_not_move_a_logit(model: Path, rows_per_batch: int) -> None:
    requests = random_requests(4, [5, 9, 30])
    together = JointEngine(open_session(model), 1, rows_per_batch).run([request_of(rows) for rows in requests])
    other = JointEngine(open_session(model), 1, rows_per_batch=7)
    for rows, expected in zip(requests, together, strict=True):
        alone = [other.run([request_of([row])])[0][0] for row in rows]
        backwards = other.run([request_of(rows[::-1], width=77)])[0][::-1]
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(backwards, expected, rtol=0, atol=1e-6)
    reordered = other.run([request_of(rows) for rows in reversed(requests)])
    for answer, expected in zip(reversed(reordered), together, strict=True):
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_the_toy_graph_would_show_another_padding(running: JointEngine) -> None:
    """Otherwise the tests above would show nothing."""
    row = [7] * 9
    tight, loose = (request_of([row], width) for width in (16, 24))
    logits = [float(running.run_padded({n: r[n] for n in running.input_names})[0, 0]) for r in (tight, loose)]
    assert abs(logits[0] - expected_logit(row)) < 1e-5
    assert abs(logits[1] - logits[0]) > 1e-2


def test_only_the_inputs_of_the_graph_are_fed(running: JointEngine) -> None:
    assert sorted(running.input_names) == ["attention_mask", "input_ids"]
    assert running.run([request_of([[1, 2]])])[0].shape == (1,)


def test_a_request_without_an_input_of_the_graph_is_an_error(running: JointEngine) -> None:
    request = request_of([[1, 2]])
    del request["input_ids"]
    with pytest.raises(KeyError, match="input_ids"):
        running.run([request])


def test_no_requests_have_no_logits(running: JointEngine) -> None:
    assert running.run([]) == []
    assert running.token_counts([]) == (0, 0)


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no protobuf")
    with pytest.raises(Exception, match=r"(?i)protobuf|model"):
        open_engine(tmp_path)


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
def test_token_counts_are_what_really_runs(running: JointEngine, requests: list[list[list[int]]]) -> None:
    recorder = Recorder()
    padded = [request_of(rows) for rows in requests]
    run_in_batches(recorder, padded, ["input_ids", "attention_mask"], 3)
    needed = sum(len(row) for rows in requests for row in rows)
    assert running.token_counts(padded) == (sum(rows * tokens for rows, tokens in recorder.shapes), needed)


def test_an_engine_that_loses_a_row_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        run_in_batches(lambda tensors: np.zeros((1, 1)), [request_of([[1], [2]])], ["input_ids"], 8)


def test_a_row_without_a_single_token_still_has_a_width() -> None:
    """A run of no tokens at all would end in an error deep inside a graph that takes the first token's state."""
    recorder = Recorder()
    run_in_batches(recorder, [request_of([[], [3]], width=16)], ["input_ids", "attention_mask"], 4)
    assert recorder.shapes == [(2, 8)]


# Rows that no tokenizer makes


def test_rows_as_tokenize_makes_them_are_accepted(running: JointEngine, sharing: SplitEngine) -> None:
    for rows in random_requests(5, [1, 4, 30]):
        running.check(request_of(rows))
        sharing.check(shared_request([1, 2], rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_mask": [[1, 0, 1], [1, 1, 1]]}, "attention_mask: expected ones"),
        ({"attention_mask": [[0, 0, 0], [1, 1, 1]]}, "attention_mask: expected ones"),
        ({"attention_mask": [[1, 1, 1], [2**30, 1, 1]]}, "attention_mask: expected ones"),
        ({"attention_mask": [[-1, -1, -1], [1, 1, 1]]}, "attention_mask: expected ones"),
        ({"input_ids": [[1, 2, 3]]}, r"input_ids: shape \[1, 3\]; attention_mask has \[2, 3\]"),
        ({"token_type_ids": [[0], [0]]}, r"token_type_ids: shape \[2, 1\]"),
    ],
)
def test_other_joint_rows_are_refused_by_name(running: JointEngine, changes: dict[str, Any], message: str) -> None:
    request = request_of([[1, 2], [3, 4, 5]]) | {name: np.array(rows, np.int32) for name, rows in changes.items()}
    with pytest.raises(RowsError, match=f"^{message}"):
        running.check(request)


@pytest.mark.parametrize(
    ("context_ids", "candidate_ids", "message"),
    [
        ([], [[1]], "context_ids: expected at least one token id, none of them negative"),
        ([1, -1], [[1]], "context_ids: "),
        ([1, -7, 2], [[1]], "context_ids: "),
        ([1], np.zeros((0, 3)), "candidate_ids: expected rows of token ids, at least one each, then padding of -1"),
        ([1], np.zeros((2, 0)), "candidate_ids: "),
        ([1], [[-1, -1]], "candidate_ids: "),
        ([1], [[1, 2], [-1, -1]], "candidate_ids: "),
        ([1], [[1, -1, 2]], "candidate_ids: "),
        ([1], [[-1, 1]], "candidate_ids: "),
        ([1], [[1, -2]], "candidate_ids: "),
        ([1], [[1, -(2**31)]], "candidate_ids: "),
    ],
)
def test_other_shared_context_rows_are_refused_by_name(
    sharing: SplitEngine, context_ids: Any, candidate_ids: Any, message: str
) -> None:
    request = {"context_ids": np.array(context_ids, np.int32), "candidate_ids": np.array(candidate_ids, np.int32)}
    with pytest.raises(RowsError, match=f"^{message}"):
        sharing.check(request)


# The shared-context engine


def save_shared_graphs(folder: Path) -> Path:
    """logit = head of the mean embedding of all of a row's places, padding included, + head of the mean context key.

    So it shows the padded length, which context was used, and that keys and values are not mixed up (values are the
    doubled keys and count negatively).
    """
    opset = [helper.make_opsetid("", 18)]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(head, "head"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "token_axis"),
        numpy_helper.from_array(np.array([0, 1, 2], dtype=np.int64), "other_axes"),
        numpy_helper.from_array(np.array([0, 1], dtype=np.int64), "layer_and_head"),
        numpy_helper.from_array(np.array(0, dtype=np.int32), "nothing"),
        numpy_helper.from_array(np.array(2, dtype=np.float32), "two"),
    ]
    cache = [(name, TensorProto.FLOAT, [1, 1, "context_tokens", HIDDEN]) for name in ("context_keys", "context_values")]
    context = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "context_ids"], ["embedded"]),
            helper.make_node("Unsqueeze", ["embedded", "layer_and_head"], ["context_keys"]),
            helper.make_node("Mul", ["context_keys", "two"], ["context_values"]),
        ],
        "context",
        [helper.make_tensor_value_info("context_ids", TensorProto.INT32, ["context_tokens"])],
        [helper.make_tensor_value_info(*tensor) for tensor in cache],
        constants,
    )
    candidates = helper.make_graph(
        [
            helper.make_node("Max", ["candidate_ids", "nothing"], ["ids"]),
            helper.make_node("Gather", ["table", "ids"], ["embedded"]),
            helper.make_node("ReduceMean", ["embedded", "token_axis"], ["pooled"], keepdims=0),
            helper.make_node("Mul", ["context_keys", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "context_keys"], ["tripled"]),
            helper.make_node("Sub", ["tripled", "context_values"], ["keys"]),
            helper.make_node("ReduceMean", ["keys", "other_axes"], ["mean_key"], keepdims=0),
            helper.make_node("Add", ["pooled", "mean_key"], ["summed"]),
            helper.make_node("MatMul", ["summed", "head"], ["scored"]),
            helper.make_node("Squeeze", ["scored", "token_axis"], ["logits"]),
        ],
        "candidates",
        [
            *(helper.make_tensor_value_info(*tensor) for tensor in cache),
            helper.make_tensor_value_info("candidate_ids", TensorProto.INT32, ["candidates", "tokens"]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["candidates"])],
        constants,
    )
    for graph in (context, candidates):
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{graph.name}.onnx")
    return folder


def expected_shared_logits(context: list[int], rows: list[list[int]]) -> np.ndarray[Any, Any]:
    """The same by hand, each row in the padding of its group."""
    logits = np.full(len(rows), np.nan)
    for tokens, places in length_groups(np.array([len(row) for row in rows])):
        for place in places:
            padded = rows[place] + [0] * (tokens - len(rows[place]))
            mean = table[padded].mean(axis=0, dtype=np.float64) + table[context].mean(axis=0, dtype=np.float64)
            logits[place] = mean @ head[:, 0]
    return logits


def shared_request(context: list[int], rows: list[list[int]], width: int = 0) -> Request:
    ids = np.full((len(rows), max([width, *map(len, rows)])), -1, dtype=np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return {"context_ids": np.array(context, dtype=np.int32), "candidate_ids": ids}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shared_graphs(tmp_path_factory.mktemp("shared"))


def shared_engine(folder: Path) -> SplitEngine:
    return SplitEngine(NAMES, *shared_sessions(folder), EngineOptions(threads=1))


def shared_sessions(folder: Path) -> tuple[Graph, Graph]:
    return open_session(folder / "context.onnx"), open_session(folder / "candidates.onnx")


@pytest.fixture(scope="module")
def sharing(shared_folder: Path) -> SplitEngine:
    return shared_engine(shared_folder)


class Watched:
    """A session that keeps what it was fed with."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.feeds: list[Request] = []

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def run(self, names: list[str], feed: Request) -> Any:
        self.feeds.append(feed)
        return self.session.run(names, feed)


@pytest.fixture
def watched(shared_folder: Path) -> tuple[SplitEngine, Watched, Watched]:
    context, candidates = (Watched(session) for session in shared_sessions(shared_folder))
    return SplitEngine(NAMES, context, candidates, EngineOptions(threads=1)), context, candidates


def test_every_candidate_gets_its_logit_against_its_own_context(sharing: SplitEngine) -> None:
    many = random_requests(6, [1, 40, 7, 120])
    contexts = [[3], [4, 5, 6], [7] * 50, [8, 9]]
    answers = sharing.run([shared_request(*pair, width=60) for pair in zip(contexts, many, strict=True)])
    for context, rows, answer in zip(contexts, many, answers, strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected_shared_logits(context, rows), rtol=1e-5, atol=1e-6)


def test_other_requests_change_no_bit_of_an_answer(sharing: SplitEngine) -> None:
    requests = [shared_request([seed, 1], rows) for seed, rows in enumerate(random_requests(7, [9, 1, 33]), start=1)]
    together = sharing.run(requests)
    for request, answer in zip(requests, together, strict=True):
        np.testing.assert_array_equal(sharing.run([request])[0], answer)
    for answer, again in zip(reversed(together), sharing.run(requests[::-1]), strict=True):
        np.testing.assert_array_equal(answer, again)


def test_blocks_have_the_scores_of_a_request_of_their_own(sharing: SplitEngine) -> None:
    rows = random_requests(14, [90])[0]
    parted = shared_request([4, 5], [*rows[:40], [], *rows[40:80], [], *rows[80:]])
    sharing.check(parted)
    (together,) = sharing.run([parted])
    alone = [sharing.run([shared_request([4, 5], block)])[0] for block in (rows[:40], rows[40:80], rows[80:])]
    assert np.delete(together, [40, 81]).tobytes() == np.concatenate(alone).tobytes()
    assert np.isfinite(together).all()
    elsewhere = [sharing.run([shared_request([4, 5], part)])[0] for part in (rows[:7], rows[7:])]
    assert not np.allclose(np.concatenate(elsewhere), np.concatenate(alone))  # this graph shows a row's padding
    counts = sharing.token_counts([shared_request([4, 5], block) for block in (rows[:40], rows[40:80], rows[80:])])
    context_again = 2 * 2
    assert sharing.token_counts([parted]) == tuple(count - context_again for count in counts)


@pytest.mark.parametrize("rows", [[[], [1]], [[1], []], [[1], [], [], [2]]])
def test_rows_without_tokens_stand_between_blocks_alone(sharing: SplitEngine, rows: list[list[int]]) -> None:
    with pytest.raises(RowsError, match=r"^candidate_ids: "):
        sharing.check(shared_request([1], rows))


def test_the_context_runs_once_per_request_and_candidates_run_without_its_padding(
    watched: tuple[SplitEngine, Watched, Watched],
) -> None:
    opened, context, candidates = watched
    requests = [shared_request([1, 2, 3], rows, width=70) for rows in random_requests(8, [60, 2])]
    opened.run(requests)
    assert [feed["context_ids"].tolist() for feed in context.feeds] == [[1, 2, 3]] * 2
    assert len(candidates.feeds) < 12
    for feed in candidates.feeds:
        ids = feed["candidate_ids"]
        assert ids.flags["C_CONTIGUOUS"]
        assert (ids[:, -1] >= 0).any()  # padded to the longest of the group, and no further


def test_token_counts_and_candidate_feeds_are_what_really_runs(
    watched: tuple[SplitEngine, Watched, Watched],
) -> None:
    opened, context, candidates = watched
    requests = [shared_request([5] * 9, rows) for rows in random_requests(9, [80, 3, 1])]
    opened.run(requests)
    computed = sum(feed["context_ids"].size for feed in context.feeds)
    computed += sum(feed["candidate_ids"].size for feed in candidates.feeds)
    needed = sum(int((request["candidate_ids"] >= 0).sum()) + 9 for request in requests)
    assert opened.token_counts(requests) == (computed, needed)
    ran = list(candidates.feeds)
    given = opened.graph_feeds(requests)["candidates.onnx"]
    assert len(ran) == len(given)
    for one, other in zip(ran, given, strict=True):
        assert sorted(one) == sorted(other) == ["candidate_ids", "context_keys", "context_values"]
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("threads", [0, 1, 2, 3])
def test_threads_change_no_bit_of_an_answer(
    sharing: SplitEngine, shared_folder: Path, model: Path, threads: int
) -> None:
    rows = random_requests(10, [150, 7])
    several = open_engine(shared_folder, threads=3)
    requests = [shared_request([4, 5], one) for one in rows]
    for answer, expected in zip(several.run(requests, threads), sharing.run(requests), strict=True):
        np.testing.assert_array_equal(answer, expected)
    pairs = [request_of(one) for one in rows]
    expected = JointEngine(open_session(model), threads=1, rows_per_batch=5).run(pairs)
    for answer, one in zip(
        JointEngine(open_session(model), threads=3, rows_per_batch=5).run(pairs, threads), expected, strict=True
    ):
        np.testing.assert_array_equal(answer, one)


def test_a_run_that_fails_in_another_thread_is_an_error_and_the_engine_goes_on(shared_folder: Path) -> None:
    several = open_engine(shared_folder, threads=3)
    good = random_requests(11, [120])[0]
    for place in (0, 60, 119):
        bad = [*good[:place], [VOCABULARY + 7] * 9, *good[place + 1 :]]
        with pytest.raises(Exception, match=r"(?i)indices|out of"):
            several.run([shared_request([1], bad)])
        (answer,) = several.run([shared_request([1], good)])
        np.testing.assert_allclose(answer, expected_shared_logits([1], good), rtol=1e-5, atol=1e-6)


# Contexts that come again


def test_a_context_that_comes_again_is_not_computed_again(shared_folder: Path) -> None:
    context, candidates = shared_sessions(shared_folder)
    watched = Watched(context)
    engine = SplitEngine(NAMES, watched, candidates, EngineOptions(context_cache_bytes=1_000_000))
    first, other = (shared_request(context, [[1, 2], [3]]) for context in ([4, 5], [5, 4]))
    answers = engine.run([first, other, first, first])
    assert [feed["context_ids"].tolist() for feed in watched.feeds] == [[4, 5], [5, 4]]
    assert (engine.context_cache.hits, engine.context_cache.misses) == (2, 2)
    for answer, context in zip(answers, ([4, 5], [5, 4], [4, 5], [4, 5]), strict=True):
        np.testing.assert_allclose(answer, expected_shared_logits(context, [[1, 2], [3]]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answers[2], answers[0])


def test_without_a_cache_nothing_is_kept(shared_folder: Path) -> None:
    engine = open_engine(shared_folder)
    assert isinstance(engine, SplitEngine)
    engine.run([shared_request([4], [[1]])] * 3)
    assert (engine.context_cache.hits, engine.context_cache.misses, engine.context_cache.bytes) == (0, 3, 0)


# Work that nobody wants any more


class Impatient:
    """Wants the first few parts of a request, or all of it."""

    def __init__(self, parts: dict[int, int]) -> None:
        self._parts = dict(parts)

    def __call__(self, request: int) -> bool:
        left = self._parts.get(request)
        if left is None:
            return True
        self._parts[request] = left - 1
        return left > 0


def test_a_watch_that_wants_all_changes_no_bit(sharing: SplitEngine, running: JointEngine) -> None:
    shared = [shared_request([1, 2], [[3], [4, 5]]), shared_request([6], [[7, 8]])]
    joint = [request_of([[1, 2], [3]]), request_of([[4, 5, 6]])]
    for engine_of_both, requests in ((sharing, shared), (running, joint)):
        watch = Watch()
        found = engine_of_both.run(requests, watch=watch)
        for one, other in zip(found, engine_of_both.run(requests), strict=True):
            assert one.tobytes() == other.tobytes()
        assert watch.tokens == engine_of_both.token_counts(requests)[1]


@pytest.mark.parametrize("wanted_parts", [0, 1, 2])
def test_a_shared_context_request_stops_between_its_parts_and_the_next_goes_on(
    watched: tuple[SplitEngine, Watched, Watched], wanted_parts: int
) -> None:
    sharing, _, candidates = watched
    large = shared_request([1, 2], [[place % VOCABULARY] * 9 for place in range(600)])
    small = shared_request([3], [[4], [5, 6]])
    (alone,) = sharing.run([small])
    candidates.feeds.clear()
    watch = Watch(Impatient({0: wanted_parts}))
    stopped, found = sharing.run([large, small], threads=1, watch=watch)
    assert len(stopped) == 0
    assert found.tobytes() == alone.tobytes()
    ran = max(0, wanted_parts - 1)  # it is asked once before the context
    assert len(candidates.feeds) == ran + 1
    assert watch.tokens < sharing.token_counts([large, small])[1]


def test_joint_rows_of_a_request_that_is_not_wanted_are_left_out_of_the_batches() -> None:
    recorder = Recorder()
    requests = [request_of([[1, 2]] * 5), request_of([[3, 4]] * 5), request_of([[5, 6]] * 5)]
    names = ["input_ids", "attention_mask"]
    expected = run_in_batches(Recorder(), requests, names, 4)
    watch = Watch(Impatient({1: 1}))  # batches: 0000 0111 1122 222
    first, stopped, last = run_in_batches(recorder, requests, names, 4, watch=watch)
    assert len(stopped) == 0
    assert (first.tobytes(), last.tobytes()) == (expected[0].tobytes(), expected[2].tobytes())
    assert watch.tokens == 2 * (4 + 4 + 2 + 3)


# Limits of rows

LIMITS = {"context_row_tokens": "3", "candidate_row_tokens": "2", "row_tokens": "2", "vocabulary_size": "50"}


def test_rows_within_the_limits_are_accepted() -> None:
    limits = architecture_named("shared-context").limits(["context_ids", "candidate_ids"], LIMITS)
    limits.check(shared_request([1, 2, 49], [[0, 49], [1]]))
    RowLimits().check(shared_request([1] * 900, [[10**6]]))
    architecture_named("joint").limits(["input_ids"], LIMITS).check(request_of([[0, 49], [1]]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (shared_request([1] * 4, [[1]]), "context_ids: rows of 4 tokens; the limit is 3"),
        (shared_request([1], [[1] * 3]), "candidate_ids: rows of 3 tokens; the limit is 2"),
        (shared_request([50], [[1]]), "context_ids: ids from 50 to 50; expected 0 to 49"),
        (shared_request([1], [[1], [2, 50]]), "candidate_ids: ids from -1 to 50; expected -1 to 49"),
    ],
)
def test_rows_beyond_the_limits_are_refused_by_name(request_: Request, message: str) -> None:
    limits = architecture_named("shared-context").limits(["context_ids", "candidate_ids"], LIMITS)
    with pytest.raises(RowsError) as caught:
        limits.check(request_)
    assert str(caught.value) == message


def test_tokens_are_counted_without_padding() -> None:
    shared = {"context_ids": np.arange(5), "candidate_ids": np.array([[1, 2, 3], [0, -1, -1]])}
    assert architecture_named("shared-context").needed_tokens(shared) == 5 + 3 + 1
    assert architecture_named("shared-context").computed_tokens(shared) == 5 + 6
    joint = {"input_ids": np.ones((2, 4)), "attention_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]])}
    assert architecture_named("joint").needed_tokens(joint) == 5
    assert architecture_named("joint").computed_tokens(joint) == 8


def test_tokens_are_counted_as_they_are_computed(sharing: SplitEngine) -> None:
    lengths = np.array([3, 9, 10, 10, 25, 7, 7, 12])
    computed = sum(tokens * len(rows) for tokens, rows in length_groups(lengths))
    request = shared_request(list(range(1, 40)), [[1] * length for length in lengths])
    assert sharing.token_counts([request]) == (39 + computed, 39 + lengths.sum())


def test_no_requests_share_nothing(sharing: SplitEngine) -> None:
    assert sharing.run([]) == []
    assert sharing.token_counts([]) == (0, 0)
    assert sharing.input_names == ["context_ids", "candidate_ids"]


def test_padding_is_no_token() -> None:
    ids = np.array([[4, 0, -1], [7, -1, -1], [1, 2, 3]], dtype=np.int32)
    assert candidate_lengths(ids).tolist() == [2, 1, 3]


def test_the_files_of_a_folder_say_which_engine_it_needs(model: Path, shared_folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_engine(model.parent), JointEngine)
    assert isinstance(open_engine(shared_folder), SplitEngine)
    assert model_files(model.parent) == [model]
    assert [path.name for path in model_files(shared_folder)] == ["context.onnx", "candidates.onnx"]
    assert model_files(tmp_path) == []
    with pytest.raises(Exception, match=r"model\.onnx"):
        open_engine(tmp_path)


def test_half_of_a_shared_context_ranker_is_an_error(shared_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "context.onnx").write_bytes((shared_folder / "context.onnx").read_bytes())
    with pytest.raises(Exception, match=r"candidates\.onnx"):
        open_engine(tmp_path)
