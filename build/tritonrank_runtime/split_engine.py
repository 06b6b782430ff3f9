"""The engines of rankers that read what a request's candidates share once: the shared-context ranker's context, the
decoder's prefix.

``SplitEngine`` runs the shared row once, and then the candidates' rows in groups of similar length, which attend to its
keys and values. One request's candidates fill a matrix product, so requests are not mixed. How a request is cut depends
on the machine's cores, not on how many of them are free at the moment. ``BatchedEngine`` runs the graph that is made
for TensorRT, one padded request at a time, so that what TensorRT will compile can be judged here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import EngineOptions
from tritonrank_runtime.context_cache import ContextCache
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.engine import (
    MODEL_FILE,
    ExecutorError,
    Feed,
    Graph,
    Logits,
    RowsError,
    Tensors,
    Watch,
)
from tritonrank_runtime.images import IMAGE_VECTORS, ImageTable
from tritonrank_runtime.kept_states import EXACT_BITS, KeptStates
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
from tritonrank_runtime.threads import Threads

_Part = tuple[NDArray[np.int64], NDArray[np.int32], Callable[[], Logits]]
"""Of one request: places of some candidates, their ids, and what gives their logits."""


@dataclass(frozen=True)
class SplitNames:
    """What the tensors and the two graphs of one architecture are called.

    Args:
        shared: token ids that all candidates share, (tokens,).
        rows: token ids of each candidate, (candidates, tokens), padded with -1.
        keys, values: of the shared row, from the first graph to the second: (layers, heads, tokens, head size).
        shared_file, rows_file: the graphs.
    """

    shared: str
    rows: str
    keys: str
    values: str
    shared_file: str
    rows_file: str

    @property
    def states(self) -> tuple[str, str]:
        """What goes from the first graph to the second."""
        return self.keys, self.values

    @property
    def inputs(self) -> tuple[str, str]:
        """What a request consists of."""
        return self.shared, self.rows


class SplitEngine:
    """Keys and values of the shared row once, then the candidates in groups, side by side."""

    context_cache: ContextCache

    def __init__(self, names: SplitNames, shared: Graph, rows: Graph, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self.input_names = [*names.inputs]
        self._names = names
        self.context_cache = ContextCache(options.context_cache_bytes, _kept_states(names, options))
        self._run_tokens, self._most_tokens = candidate_run_sizes(options.is_gpu)
        # By cores, not by threads: how a request is cut must not depend on who else is busy.
        per_core = PACKED_SHARES_PER_CORE if options.is_packed else SHARES_PER_CORE
        self._shares = options.shares or per_core * available_cores()
        self._is_packed = options.is_packed
        self._shared = shared
        self._rows = rows
        self._images = _images_of(shared, options)
        self._threads = Threads(options.threads or available_cores())

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return _run_one_by_one(self._names, self._parts, requests, lambda runs: self._threads.run(runs, threads), watch)

    def _parts(self, request: Tensors) -> Iterator[_Part]:
        for rows, feed in self._groups(request):
            yield rows, feed[self._names.rows], partial(self._score_group, feed)

    def _score_group(self, feed: Feed) -> Logits:
        return np.asarray(self._rows.run(["logits"], feed)[0])

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        return {
            self._names.shared_file: [
                self._feed(self._names.shared, request[self._names.shared]) for request in requests
            ],
            self._names.rows_file: [feed for request in requests for _, feed in self._groups(request)],
        }

    def _groups(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        """Places of the candidates and what the graph is fed with, the largest first, so that threads end together."""
        states = self.context_cache.get(request[self._names.shared], self._run_shared)
        candidate_ids = request[self._names.rows]
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
            feeds.append((rows, states | self._feed(self._names.rows, group)))
        return feeds

    def _feed(self, name: str, ids: NDArray[np.int32]) -> Feed:
        """A tensor of ids, with the vectors of its images where the graphs take any."""
        if self._images is None:
            return {name: ids}
        try:
            renumbered, vectors = self._images.local(ids)
        except IndexError:
            raise RowsError(f"{name}: ids up to {ids.max()}, beyond the {len(self._images.numbers)} images") from None
        return {name: renumbered, IMAGE_VECTORS: vectors}

    def _grouped_blocks(self, candidate_ids: NDArray[np.int32]) -> list[list[Group]]:
        """Of each block its groups; nothing outside a block decides how it is grouped."""
        lengths = candidate_lengths(candidate_ids)
        return [
            [(tokens, block[rows]) for tokens, rows in length_groups(lengths[block], self._run_tokens)]
            for block in candidate_blocks(lengths)
        ]

    def _run_shared(self, shared_ids: NDArray[np.int32]) -> Feed:
        states = self._names.states
        return dict(zip(states, self._shared.run(states, self._feed(self._names.shared, shared_ids)), strict=True))

    def check(self, request: Tensors) -> None:
        check_rows(self._names, request, may_part=True)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            shared, rows_ids = (request[name] for name in self._names.inputs)
            tokens_needed = int(candidate_lengths(rows_ids).sum())
            blocks = [] if self._is_packed else self._grouped_blocks(rows_ids)
            padded = sum(tokens * len(rows) for one in blocks for tokens, rows in one)
            computed += shared.size + (padded or tokens_needed)
            needed += shared.size + tokens_needed
        return computed, needed


def _images_of(graph: Graph, options: EngineOptions) -> ImageTable | None:
    """The images of graphs that take vectors.

    Raises:
        ExecutorError: there are none.
    """
    if IMAGE_VECTORS not in [tensor.name for tensor in graph.get_inputs()]:
        return None
    if options.images is None:
        raise ExecutorError(
            f"the graphs take {IMAGE_VECTORS}, and the folder images is missing beside them: tritonrank build RECIPE"
        )
    return options.images


def _kept_states(names: SplitNames, options: EngineOptions) -> KeptStates | None:
    return None if options.context_cache_bits == EXACT_BITS else KeptStates(names.keys, options.context_cache_bits)


class BatchedEngine:
    """The ranker as one graph over padded requests: the shared row (requests, tokens), those of the candidates
    (requests, candidates, tokens) -> logits (requests, candidates).

    A request's candidates are shared out among the cores by length; each part has its own copy of the shared row.
    """

    context_cache = None

    def __init__(self, names: SplitNames, session: Graph, threads: int = 0, shares: int = 0) -> None:
        self.input_names = [*names.inputs]
        self._names = names
        self._session = session
        self._shares = shares or available_cores()
        self._threads = Threads(threads or available_cores())

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return _run_one_by_one(self._names, self._runs, requests, lambda runs: self._threads.run(runs, threads), watch)

    def run_padded(self, tensors: Feed) -> Logits:
        """One run as it is: padded tensors by input name -> logits (requests, candidates)."""
        (logits,) = self._session.run(["logits"], tensors)
        return np.asarray(logits, dtype=np.float32)

    def _runs(self, request: Tensors) -> Iterator[_Part]:
        for rows, feed in self._parts(request):
            yield rows, feed[self._names.rows], partial(self._score_part, feed)

    def _score_part(self, feed: Feed) -> Logits:
        return np.asarray(self.run_padded(feed)[0])

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        return {MODEL_FILE: [feed for request in requests for _, feed in self._parts(request)]}

    def _parts(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        shared, rows_ids = (request[name] for name in self._names.inputs)
        lengths = candidate_lengths(rows_ids)
        parts = [part for part in np.array_split(np.argsort(lengths, kind="stable"), self._shares) if len(part)]
        return [
            (
                rows,
                {
                    self._names.shared: shared[np.newaxis],
                    self._names.rows: rows_ids[rows, : lengths[rows].max()][np.newaxis],
                },
            )
            for rows in parts
        ]

    def check(self, request: Tensors) -> None:
        check_rows(self._names, request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            computed += sum(tensor.size for _, feed in self._parts(request) for tensor in feed.values())
            shared, rows_ids = (request[name] for name in self._names.inputs)
            needed += shared.size + int(candidate_lengths(rows_ids).sum())
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
    names: SplitNames,
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
            parts = [*parts_of(request)]  # which runs the shared row
            watch.did(request[names.shared].size)
            found.append(_run_parts(parts, len(request[names.rows]), run_all, is_wanted, watch))
        else:
            found.append(np.empty(0, dtype=np.float32))
    return found


def check_rows(names: SplitNames, request: Tensors, may_part: bool = False) -> None:
    """Refuse rows that ``tokenize`` would not make, as ``Engine.check`` does; those of several blocks where they may
    part."""
    shared, rows = (request[name] for name in names.inputs)
    if not shared.size or shared.min() < 0:
        raise RowsError(f"{names.shared}: expected at least one token id, none of them negative")
    is_token = rows >= 0
    lengths = is_token.sum(axis=1)
    is_row = np.arange(rows.shape[1]) < lengths[:, np.newaxis]
    is_padded = np.array_equal(is_token, is_row) and rows.min(initial=0) >= -1
    has_blocks = lengths.all() or (may_part and all(map(len, candidate_blocks(lengths))))
    if not lengths.size or not has_blocks or not is_padded:
        raise RowsError(f"{names.rows}: expected rows of token ids, at least one each, then padding of -1")
