"""The joint ranker: context and one candidate in one row, scored pair by pair.

A row is the pair (context, candidate) in the layout of the checkpoint's own tokenizer, special tokens and segment ids
included. ``JointEngine`` pads each row to the next multiple of eight tokens of its own length and runs it only with
rows of that padded length, whichever request they come from. For graphs that leave padding out themselves
(``EngineOptions.is_packed``) rows of any lengths go together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import (
    ROWS_PER_BATCH,
    SEGMENTS,
    VOCABULARY,
    Architecture,
    EngineOptions,
    Input,
    RowLimits,
)
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import MODEL_FILE, Engine, Feed, Graph, Logits, RowsError, Tensors, Watch
from tritonrank_runtime.padding import Buckets, side_by_side
from tritonrank_runtime.pair_layout import PairLayout
from tritonrank_runtime.threads import Threads

if TYPE_CHECKING:
    from tritonrank_runtime.packed.rows import PackedRows
    from tritonrank_runtime.text import TextRules

JOINT = "joint"
PADDED_MULTIPLE = 8


class Joint(Architecture):
    """Rows of pairs: input_ids, attention_mask and, where the family has segments, token_type_ids, (rows, tokens)."""

    name = JOINT
    inputs = (
        Input("input_ids", longest="row_tokens", ids=VOCABULARY),  # the other tensors' rows are as long
        Input("attention_mask", example=1),
        Input("token_type_ids", ids=SEGMENTS),
    )
    graph_files = (MODEL_FILE,)
    batch_is_request = False

    def rows(
        self, layout: PairLayout, context: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.int32]]:
        """One row per candidate: prefix, context, middle, candidate, suffix; padded to the longest."""
        head = [*layout.prefix, *context, *layout.middle]
        head_types = [*layout.prefix_types, *([layout.context_type] * len(context)), *layout.middle_types]
        lengths = [len(head) + len(ids) + len(layout.suffix) for ids in candidates]
        shape = (len(candidates), max(lengths, default=len(head) + len(layout.suffix)))
        input_ids = np.full(shape, layout.padding, dtype=np.int32)
        token_type_ids = np.zeros(shape, dtype=np.int32)
        input_ids[:, : len(head)] = head
        token_type_ids[:, : len(head)] = head_types
        for row, ids in enumerate(candidates):
            input_ids[row, len(head) : lengths[row]] = [*ids, *layout.suffix]
            token_type_ids[row, len(head) : lengths[row]] = [
                *([layout.candidate_type] * len(ids)),
                *layout.suffix_types,
            ]
        attention_mask = (np.arange(shape[1])[None, :] < np.array(lengths, dtype=np.int64)[:, None]).astype(np.int32)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}

    def longest_rows(self, layout: PairLayout, rules: "TextRules") -> dict[str, int]:
        tokens = rules.context_tokens + rules.candidate_tokens + layout.special_tokens
        return {one.name: tokens for one in self.inputs}

    def padded(
        self, tensors: Tensors, buckets: Buckets, layout: PairLayout, rules: "TextRules"
    ) -> dict[str, NDArray[np.int32]]:
        shape = buckets.shape(*tensors["input_ids"].shape)
        fillings = {one.name: one.filling for one in self.inputs} | {"input_ids": layout.padding}
        rows = {name: side_by_side([tensor], fillings[name], shape)[0] for name, tensor in tensors.items()}
        # A row of nothing but padding keeps one token: attention over nothing is not a number.
        rows["attention_mask"][len(tensors["attention_mask"]) :, 0] = 1
        return rows

    def needed_tokens(self, tensors: Tensors) -> int:
        return int(tensors["attention_mask"].sum())

    def computed_tokens(self, tensors: Tensors) -> int:
        return int(tensors["input_ids"].size)

    def run_tokens(self, tokens: int) -> int:
        return int(_padded(np.array([tokens]))[0])

    def takes_graphs(self, inputs: Mapping[str, Sequence[str]]) -> bool:
        return list(inputs) == [MODEL_FILE] and "input_ids" in inputs[MODEL_FILE]

    def engine(self, graphs: Mapping[str, Graph], options: EngineOptions) -> Engine:
        return JointEngine(graphs[MODEL_FILE], options.threads, options.rows_per_batch, options.is_packed)

    def input_names(self, config: Any) -> list[str]:
        """DistilBERT has no segment ids, RoBERTa and XLM-R have only one kind."""
        has_segments = config.model_type != "distilbert" and getattr(config, "type_vocab_size", 0) > 1
        return [one.name for one in self.inputs if has_segments or one.name != "token_type_ids"]

    def torch_graphs(self, folder: Path, device: str) -> dict[str, Graph]:
        from tritonrank_runtime.torch_passes import JointPass, load_joint

        return {MODEL_FILE: JointPass(load_joint(folder), device, self.input_names)}

    def packed(self, folder: Path) -> "tuple[Any, PackedRows] | None":
        from tritonrank_runtime.packed.pairs import pair_network
        from tritonrank_runtime.packed.rows import PairRows
        from tritonrank_runtime.torch_passes import load_joint

        model = load_joint(folder)
        network = pair_network(model)
        if network is None:
            return None
        sizes = network.config
        ids = {"input_ids": sizes.vocab_size, "attention_mask": 2, "token_type_ids": sizes.type_vocab_size}
        names = self.input_names(model.config)
        limits = RowLimits(
            {"input_ids": sizes.max_position_embeddings - sizes.first_position},
            {name: (0, ids[name]) for name in names},
        )
        return network, PairRows(names, limits, check_pairs)


class JointEngine:
    """A joint ranker in batches of rows; the other arguments are those of ``EngineOptions``."""

    context_cache = None

    def __init__(
        self, session: Graph, threads: int = 0, rows_per_batch: int = ROWS_PER_BATCH, is_packed: bool = False
    ) -> None:
        self._session = session
        self._threads = Threads(threads or available_cores())
        self.input_names = [tensor.name for tensor in self._session.get_inputs()]
        self.rows_per_batch = rows_per_batch
        self._is_packed = is_packed

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return run_in_batches(
            self.run_padded,
            requests,
            self.input_names,
            self.rows_per_batch,
            lambda runs: self._threads.run(runs, threads),
            watch,
            is_packed=self._is_packed,
        )

    def run_padded(self, tensors: Feed) -> Logits:
        """One run as it is: (rows, tokens) tensors by input name -> logits (rows, 1)."""
        (logits,) = self._session.run(["logits"], tensors)
        return np.asarray(logits, dtype=np.float32)

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        return {MODEL_FILE: [{name: request[name] for name in self.input_names} for request in requests]}

    def check(self, request: Tensors) -> None:
        check_pairs(request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        lengths = [_lengths(request) for request in requests]
        needed = sum(int(rows.sum()) for rows in lengths)
        return needed if self._is_packed else sum(int(_padded(rows).sum()) for rows in lengths), needed


def check_pairs(request: Tensors) -> None:
    """Refuse rows that ``tokenize`` would not make.

    Raises:
        RowsError: names the tensor and what is wrong.
    """
    # The mask decides how far a row is padded, so one of large numbers would ask for gigabytes.
    mask = request["attention_mask"]
    for name, tensor in request.items():
        if tensor.shape != mask.shape:
            raise RowsError(f"{name}: shape {list(tensor.shape)}; attention_mask has {list(mask.shape)}")
    lengths = _lengths(request)
    if not lengths.all() or not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, np.newaxis]):
        raise RowsError("attention_mask: expected ones for the tokens of a row, at least one, then zeros")


def _one_after_the_other(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def run_in_batches(
    run_batch: Callable[[Feed], Logits],
    requests: Sequence[Tensors],
    input_names: Sequence[str],
    rows_per_batch: int,
    run_all: Callable[[Sequence[Callable[[], None]]], None] = _one_after_the_other,
    watch: Watch | None = None,
    *,
    is_packed: bool = False,
) -> list[Logits]:
    """Regroup the joint rows of all requests by padded length, run them, and hand the logits back per request.

    Args:
        run_batch: (rows, tokens) tensors by input name -> logits (rows, 1).
        requests: the tensors of each request.
        input_names: the tensors that ``run_batch`` wants.
        rows_per_batch: rows of one run at the most.
        run_all: makes the runs, in any order; by default one after the other.
        watch: looked at before each run; rows of requests that are not wanted any more are left out.
        is_packed: rows of any lengths may go together: ``run_batch`` leaves their padding out.
    """
    logits = [np.empty(len(request["attention_mask"]), dtype=np.float32) for request in requests]
    watch = watch or Watch()
    stopped: set[int] = set()

    def run_one(tokens: int, places: list[tuple[int, int]]) -> None:
        stopped.update(number for number in {number for number, _ in places} if not watch.is_wanted(number))
        if not (places := [place for place in places if place[0] not in stopped]):
            return
        tensors = {
            name: side_by_side([requests[request][name][row, :tokens] for request, row in places], 0, (tokens,))
            for name in input_names
        }
        for (request, row), logit in zip(places, run_batch(tensors)[:, 0], strict=True):
            logits[request][row] = logit
        watch.did(sum(int(requests[request]["attention_mask"][row].sum()) for request, row in places))

    run_all([partial(run_one, *batch) for batch in _batches(requests, rows_per_batch, is_packed)])
    return [one[:0] if number in stopped else one for number, one in enumerate(logits)]


def _batches(
    requests: Sequence[Tensors], rows_per_batch: int, is_packed: bool
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    rows_by_tokens: dict[int, list[tuple[int, int]]] = defaultdict(list)
    longest = max((int(_lengths(request).max(initial=1)) for request in requests), default=1)
    for number, request in enumerate(requests):
        lengths = _lengths(request)
        for row, tokens in enumerate(np.full(len(lengths), longest) if is_packed else _padded(lengths)):
            rows_by_tokens[int(tokens)].append((number, row))
    for tokens, places in rows_by_tokens.items():
        for start in range(0, len(places), rows_per_batch):
            yield tokens, places[start : start + rows_per_batch]


def _lengths(request: Tensors) -> NDArray[np.int64]:
    return np.asarray(request["attention_mask"].sum(axis=1), dtype=np.int64)


def _padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-np.maximum(lengths, 1) // PADDED_MULTIPLE) * PADDED_MULTIPLE
