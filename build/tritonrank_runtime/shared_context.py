"""The shared-context ranker: the context's keys and values once, and every candidate attends to them and to itself.

The context is one row, ``[CLS] context [SEP]``, and each candidate another, ``[CLS] candidate``: the [SEP] at its end
would cost one token in twelve and say nothing.

``SharedContextEngine`` runs the context once, and then the candidates in groups of similar length. One request's
candidates fill a matrix product, so requests are not mixed. How a request is cut depends on the machine's cores, not on
how many of them are free at the moment. ``BatchedEngine`` runs the graph that is made for TensorRT, one padded request
at a time, so that what TensorRT will compile can be judged here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import VOCABULARY, Architecture, EngineOptions, Input, RowLimits
from tritonrank_runtime.candidate_rows import PARTING
from tritonrank_runtime.context_cache import ContextCache
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import (
    MODEL_FILE,
    Engine,
    Feed,
    Graph,
    Logits,
    RowsError,
    Tensors,
    Watch,
)
from tritonrank_runtime.length_groups import (
    PACKED_SHARES_PER_CORE,
    SHARES_PER_CORE,
    Group,
    candidate_blocks,
    candidate_lengths,
    candidate_run_sizes,
    cut_groups,
    length_groups,
    packed_runs,
)
from tritonrank_runtime.padding import PADDING, Buckets, side_by_side
from tritonrank_runtime.pair_layout import PairLayout
from tritonrank_runtime.threads import Threads

if TYPE_CHECKING:
    from tritonrank_runtime.packed.rows import PackedRows
    from tritonrank_runtime.text import TextRules

SHARED_CONTEXT = "shared-context"
CONTEXT_FILE = "context.onnx"
CANDIDATES_FILE = "candidates.onnx"
BLOCK_CANDIDATES = 256
"""More than the 200 or so that retrieval brings, which stay one block. Smaller blocks would fall into more runs."""


class SharedContext(Architecture):
    """One request: context_ids (tokens,), and candidate_ids (candidates, tokens), padded with -1."""

    name = SHARED_CONTEXT
    inputs = (
        Input("context_ids", 1, PADDING, longest="context_row_tokens", ids=VOCABULARY),
        Input("candidate_ids", 2, PADDING, least=PADDING, longest="candidate_row_tokens", ids=VOCABULARY),
    )
    graph_files = (CONTEXT_FILE, CANDIDATES_FILE)
    batch_is_request = True
    block_candidates = BLOCK_CANDIDATES
    has_score_batch = True

    def rows(
        self, layout: PairLayout, context: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.int32]]:
        """The context's row (prefix, context, suffix) and one per candidate (prefix, candidate); between two blocks
        one of padding alone."""
        prefix = layout.prefix
        partings = [place for place, ids in enumerate(candidates) if ids == PARTING]
        lengths = np.array([len(prefix) + len(ids) for ids in candidates], dtype=np.int64)
        candidate_ids = np.full((len(candidates), int(lengths.max(initial=len(prefix)))), PADDING, dtype=np.int32)
        candidate_ids[:, : len(prefix)] = prefix
        candidate_ids[partings] = PADDING
        # One assignment for all rows: a thousand small ones would take longer than the tokenizer.
        is_token = np.arange(candidate_ids.shape[1]) < lengths[:, np.newaxis]
        is_token[:, : len(prefix)] = False
        candidate_ids[is_token] = [token for ids in candidates for token in ids]
        context_ids = np.array([*prefix, *context, *layout.suffix], dtype=np.int32)
        return {"context_ids": context_ids, "candidate_ids": candidate_ids}

    def longest_rows(self, layout: PairLayout, rules: "TextRules") -> dict[str, int]:
        return {
            "context_ids": len(layout.prefix) + rules.context_tokens + len(layout.suffix),
            "candidate_ids": len(layout.prefix) + rules.candidate_tokens,
        }

    def padded(
        self, tensors: Tensors, buckets: Buckets, layout: PairLayout, rules: "TextRules"
    ) -> dict[str, NDArray[np.int32]]:
        """A context is padded to the longest there can be."""
        context_tokens = self.longest_rows(layout, rules)["context_ids"]
        shapes = {"context_ids": (context_tokens,), "candidate_ids": buckets.shape(*tensors["candidate_ids"].shape)}
        return {name: side_by_side([tensors[name]], PADDING, shape)[0] for name, shape in shapes.items()}

    def needed_tokens(self, tensors: Tensors) -> int:
        return int(tensors["context_ids"].size) + int((tensors["candidate_ids"] >= 0).sum())

    def computed_tokens(self, tensors: Tensors) -> int:
        return sum(tensors[one.name].size for one in self.inputs)

    def one_request(self, tensors: Tensors, most_candidates: int) -> Tensors:
        for name, tensor in tensors.items():
            if len(tensor) != 1:
                raise RowsError(f"{name}: {len(tensor)} requests in one; send them one by one")
        if (found := int((tensors["candidate_ids"][0, :, :1] != PADDING).sum())) > most_candidates:
            raise RowsError(f"candidate_ids: {found} candidates; the limit is {most_candidates}")
        return {name: tensor[0] for name, tensor in tensors.items()}

    def takes_graphs(self, inputs: Mapping[str, Sequence[str]]) -> bool:
        return CONTEXT_FILE in inputs or "context_ids" in inputs.get(MODEL_FILE, ())

    def engine(self, graphs: Mapping[str, Graph], options: EngineOptions) -> Engine:
        if CONTEXT_FILE in graphs:
            return SharedContextEngine(graphs[CONTEXT_FILE], graphs[CANDIDATES_FILE], options)
        return BatchedEngine(graphs[MODEL_FILE], options.threads, options.shares)

    def input_names(self, config: Any) -> list[str]:
        return [one.name for one in self.inputs]

    def torch_graphs(self, folder: Path, device: str) -> dict[str, Graph]:
        from tritonrank_runtime.torch_passes import CandidatePass, ContextPass, as_half, load_network

        network = load_network(folder).folded()
        network = network if device == "cpu" else as_half(network, device)
        return {CONTEXT_FILE: ContextPass(network, device), CANDIDATES_FILE: CandidatePass(network, device)}

    def packed(self, folder: Path) -> "tuple[Any, PackedRows]":
        from tritonrank_runtime.packed.rows import SharedContextRows
        from tritonrank_runtime.torch_passes import load_network, row_positions

        network = load_network(folder)
        vocabulary, longest = network.config.vocab_size, row_positions(network.config)
        limits = RowLimits(
            dict(zip(INPUT_NAMES, longest, strict=True)),
            {one.name: (one.least, vocabulary) for one in self.inputs},
        )
        return network, SharedContextRows(
            network.config.context_positions, INPUT_NAMES, limits, partial(check_rows, may_part=True)
        )


INPUT_NAMES = tuple(one.name for one in SharedContext.inputs)

_Part = tuple[NDArray[np.int64], NDArray[np.int32], Callable[[], Logits]]
"""Of one request: places of some candidates, their ids, and what gives their logits."""


class SharedContextEngine:
    """Keys and values of the context once, then the candidates in groups, side by side."""

    context_cache: ContextCache

    def __init__(self, context: Graph, candidates: Graph, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self.input_names = [*INPUT_NAMES]
        self.context_cache = ContextCache(options.context_cache_bytes)
        self._run_tokens, self._most_tokens = candidate_run_sizes(options.is_gpu)
        # By cores, not by threads: how a request is cut must not depend on who else is busy.
        per_core = PACKED_SHARES_PER_CORE if options.is_packed else SHARES_PER_CORE
        self._shares = options.shares or per_core * available_cores()
        self._is_packed = options.is_packed
        self._context = context
        self._candidates = candidates
        self._threads = Threads(options.threads or available_cores())

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return _run_one_by_one(self._parts, requests, lambda runs: self._threads.run(runs, threads), watch)

    def _parts(self, request: Tensors) -> Iterator[_Part]:
        for rows, feed in self._groups(request):
            yield rows, feed["candidate_ids"], partial(self._score_group, feed)

    def _score_group(self, feed: Feed) -> Logits:
        return np.asarray(self._candidates.run(["logits"], feed)[0])

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        return {
            CONTEXT_FILE: [{"context_ids": request["context_ids"]} for request in requests],
            CANDIDATES_FILE: [feed for request in requests for _, feed in self._groups(request)],
        }

    def _groups(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        """Places of the candidates and what the graph is fed with, the largest first, so that threads end together."""
        context = self.context_cache.get(request["context_ids"], self._run_context)
        candidate_ids = request["candidate_ids"]
        if self._is_packed:  # a row's score depends on nothing beside it, so blocks need not be kept apart
            groups = packed_runs(candidate_lengths(candidate_ids), self._shares)
        else:
            groups = [
                group
                for block in self._grouped_blocks(candidate_ids)
                for group in cut_groups(block, self._shares, self._most_tokens)
            ]
        feeds = []
        for tokens, rows in sorted(groups, key=lambda group: -group[0] * len(group[1])):
            group = np.ascontiguousarray(candidate_ids[rows, :tokens])
            feeds.append((rows, context | {"candidate_ids": group}))
        return feeds

    def _grouped_blocks(self, candidate_ids: NDArray[np.int32]) -> list[list[Group]]:
        """Of each block its groups; nothing outside a block decides how it is grouped."""
        lengths = candidate_lengths(candidate_ids)
        return [
            [(tokens, block[rows]) for tokens, rows in length_groups(lengths[block], self._run_tokens)]
            for block in candidate_blocks(lengths)
        ]

    def _run_context(self, context_ids: NDArray[np.int32]) -> Feed:
        names = ["context_keys", "context_values"]
        return dict(zip(names, self._context.run(names, {"context_ids": context_ids}), strict=True))

    def check(self, request: Tensors) -> None:
        check_rows(request, may_part=True)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            tokens_needed = int(candidate_lengths(request["candidate_ids"]).sum())
            blocks = [] if self._is_packed else self._grouped_blocks(request["candidate_ids"])
            padded = sum(tokens * len(rows) for one in blocks for tokens, rows in one)
            computed += request["context_ids"].size + (padded or tokens_needed)
            needed += request["context_ids"].size + tokens_needed
        return computed, needed


class BatchedEngine:
    """The ranker as one graph over padded requests: context_ids (requests, tokens), candidate_ids (requests,
    candidates, tokens) -> logits (requests, candidates).

    A request's candidates are shared out among the cores by length; each part has its own copy of the context.
    """

    context_cache = None

    def __init__(self, session: Graph, threads: int = 0, shares: int = 0) -> None:
        self.input_names = [*INPUT_NAMES]
        self._session = session
        self._shares = shares or available_cores()
        self._threads = Threads(threads or available_cores())

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return _run_one_by_one(self._runs, requests, lambda runs: self._threads.run(runs, threads), watch)

    def run_padded(self, tensors: Feed) -> Logits:
        """One run as it is: padded tensors by input name -> logits (requests, candidates)."""
        (logits,) = self._session.run(["logits"], tensors)
        return np.asarray(logits, dtype=np.float32)

    def _runs(self, request: Tensors) -> Iterator[_Part]:
        for rows, feed in self._parts(request):
            yield rows, feed["candidate_ids"], partial(self._score_part, feed)

    def _score_part(self, feed: Feed) -> Logits:
        return np.asarray(self.run_padded(feed)[0])

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        return {MODEL_FILE: [feed for request in requests for _, feed in self._parts(request)]}

    def _parts(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        context, candidate_ids = request["context_ids"][np.newaxis], request["candidate_ids"]
        lengths = candidate_lengths(candidate_ids)
        parts = [part for part in np.array_split(np.argsort(lengths, kind="stable"), self._shares) if len(part)]
        return [
            (rows, {"context_ids": context, "candidate_ids": candidate_ids[rows, : lengths[rows].max()][np.newaxis]})
            for rows in parts
        ]

    def check(self, request: Tensors) -> None:
        check_rows(request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            computed += sum(tensor.size for _, feed in self._parts(request) for tensor in feed.values())
            needed += request["context_ids"].size + int(candidate_lengths(request["candidate_ids"]).sum())
        return computed, needed


def _run_parts(
    parts: Iterable[_Part], candidates: int, run_all: Callable[..., None], is_wanted: Callable[[], bool], watch: Watch
) -> Logits:
    """Logits of one request from its parts, side by side; none when it is not wanted any more before the last."""
    logits = np.zeros(candidates, dtype=np.float32)  # partings have none
    left_out: list[NDArray[np.int64]] = []

    def run_part(rows: NDArray[np.int64], ids: NDArray[np.int32], run: Callable[[], Logits]) -> None:
        if left_out or not is_wanted():
            left_out.append(rows)
            return
        logits[rows] = run()
        watch.did(int((ids >= 0).sum()))

    run_all([partial(run_part, *part) for part in parts])
    return logits[:0] if left_out else logits


def _run_one_by_one(
    parts_of: Callable[[Tensors], Iterable[_Part]],
    requests: Sequence[Tensors],
    run_all: Callable[..., None],
    watch: Watch | None,
) -> list[Logits]:
    """One request after the other, as long as it is wanted."""
    watch = watch or Watch()
    found = []
    for number, request in enumerate(requests):
        is_wanted = partial(watch.is_wanted, number)
        if is_wanted():
            parts = [*parts_of(request)]  # which runs the context
            watch.did(request["context_ids"].size)
            found.append(_run_parts(parts, len(request["candidate_ids"]), run_all, is_wanted, watch))
        else:
            found.append(np.empty(0, dtype=np.float32))
    return found


def check_rows(request: Tensors, may_part: bool = False) -> None:
    """Refuse rows that ``tokenize`` would not make, as ``Engine.check`` does; those of several blocks where they may
    part."""
    context_ids, candidate_ids = request["context_ids"], request["candidate_ids"]
    if not context_ids.size or context_ids.min() < 0:
        raise RowsError("context_ids: expected at least one token id, none of them negative")
    is_token = candidate_ids >= 0
    lengths = is_token.sum(axis=1)
    is_row = np.arange(candidate_ids.shape[1]) < lengths[:, np.newaxis]
    is_padded = np.array_equal(is_token, is_row) and candidate_ids.min(initial=0) >= -1
    has_blocks = lengths.all() or (may_part and all(map(len, candidate_blocks(lengths))))
    if not lengths.size or not has_blocks or not is_padded:
        raise RowsError("candidate_ids: expected rows of token ids, at least one each, then padding of -1")
