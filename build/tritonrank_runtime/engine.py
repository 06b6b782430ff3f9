"""Token ids -> logits by ONNX Runtime: one engine per architecture, behind one interface.

Work is cut into runs of a few hundred tokens, and the runs go side by side, one thread each: a thread with a run of
its own need not wait for others after every operation, which threads inside a run must. Nothing else that is computed
at the same time can change a request's scores, which keeps INT8 scores reproducible (a last digit that differs before a
rounding can move a score by a whole step), and padding stays small:

- ``JointEngine`` pads each row to the next multiple of eight tokens of its own length and runs it only with rows of
  that padded length, whichever request they come from;
- ``SharedContextEngine`` runs the context once, and then the candidates in groups of similar length. One request's
  candidates fill a matrix product, so requests are not mixed. How a request is cut depends on the machine's cores, not
  on how many of them are free at the moment;
- ``BatchedEngine`` runs the shared-context graph that is made for TensorRT, one padded request at a time, so that what
  TensorRT will compile can be judged here.

Between two runs an engine looks whether anybody still wants them (``Watch``): a request that is late costs no more than
the run that it is in.

On a GPU (``device="cuda"``) nothing is cut for the sake of threads: a run costs more to start than its padding.
"""

import math
import os
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

JOINT_FILE = "model.onnx"
CONTEXT_FILE = "context.onnx"
CANDIDATES_FILE = "candidates.onnx"
WEIGHTS_FILE = "weights.bin"
"""What several graphs of a folder have in common."""

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    *(
        found
        for found in vars(onnxruntime_pybind11_state).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ),
)
"""What ONNX Runtime raises: a class for each of its status codes, without a common base; ValueError for feeds."""

CUDA_PROVIDER = "CUDAExecutionProvider"
SHARED_CONTEXT_INPUTS = ("context_ids", "candidate_ids")
PADDING = -1
"""Of ``candidate_ids``, as text.py has it."""
PADDED_MULTIPLE = 8
ROWS_PER_BATCH = 16
"""Rows in one run of a joint ranker: a thousand tokens or so fill a matrix product and stay in the cache."""
MOST_ROWS_ON_GPU = 256
"""As ``ROWS_PER_BATCH``, where nothing has to stay in a cache."""
RUN_TOKENS = 24
"""What starting a run of the candidate graph costs, in tokens: a run of two took as long as 18 in a large one."""
FEWEST_TOKENS = 96
"""A group is not cut into parts of fewer tokens than this: flat matrix products are slow (a token in a run of 48 costs
1.4 times one in a run of 1,200). A choice between the two that was not tuned."""
MOST_TOKENS = 1_024
"""Tokens in one run of the candidate graph: bounds its memory. Larger runs were not found to be much faster (7% from
1,200 to 2,000 tokens)."""
GPU_RUN_TOKENS = 16_384
"""What starting a run costs on a GPU, in tokens: hundreds of kernels, however few tokens they have. Not tuned."""
GPU_MOST_TOKENS = 65_536
"""As ``MOST_TOKENS``, for a GPU's memory."""
SHARES_PER_CORE = 2
"""Parts of a request per core, where they are large enough: with more than one, threads finish at nearly one time."""

Tensors = Mapping[str, NDArray[np.int32]]
"""One request by input name: joint (rows, tokens) each; shared-context context_ids (tokens,), candidate_ids
(candidates, tokens)."""
Logits = NDArray[np.float32]
Feed = dict[str, NDArray[Any]]
"""What one graph is fed with, by input name."""


class RowsError(ValueError):
    """Rows that no engine should get; the message begins with the tensor's name."""


class ExecutorError(RuntimeError):
    """What should compute is not on this machine; the message says what is missing and the command that brings it."""


class EngineLostError(RuntimeError):
    """What computes is gone for the moment, a process of it, say; the run is lost, and the next may go well."""


ROW_LIMITS = {"context_ids": "context_row_tokens", "candidate_ids": "candidate_row_tokens", "input_ids": "row_tokens"}
"""The scorer's parameter for the longest row of a tensor; a joint ranker's other tensors are as long as input_ids."""
ID_LIMITS = {
    "context_ids": "vocabulary_size",
    "candidate_ids": "vocabulary_size",
    "input_ids": "vocabulary_size",
    "token_type_ids": "segments",
}
"""The scorer's parameter for the number of different ids of a tensor."""


@dataclass(frozen=True)
class RowLimits:
    """What the rows of a request may be; ``tokenize`` makes no others."""

    tokens: Mapping[str, int] = field(default_factory=dict)
    """in a row at the most, by tensor"""
    values: Mapping[str, int] = field(default_factory=dict)
    """how many different ids there are, from 0 on, by tensor"""

    @classmethod
    def of(cls, input_names: Sequence[str], settings: Mapping[str, str]) -> "RowLimits":
        """The limits that the scorer's parameters name."""
        tokens, values = (
            {name: int(settings[limits[name]]) for name in input_names if limits.get(name) in settings}
            for limits in (ROW_LIMITS, ID_LIMITS)
        )
        return cls(tokens, values)

    def check(self, request: Tensors) -> None:
        """Refuse rows beyond the limits.

        Raises:
            RowsError: names the tensor, what was found, and the limit.
        """
        for name, limit in self.tokens.items():
            if (found := request[name].shape[-1]) > limit:
                raise RowsError(f"{name}: rows of {found} tokens; the limit is {limit}")
        for name, limit in self.values.items():
            ids = request[name]
            least = PADDING if name == SHARED_CONTEXT_INPUTS[1] else 0
            if ids.size and (ids.min() < least or ids.max() >= limit):
                raise RowsError(f"{name}: ids from {ids.min()} to {ids.max()}; expected {least} to {limit - 1}")


class Watch:
    """Looked at between the parts of a run: who still wants it, and how far it has come.

    Args:
        is_wanted: says for a request, by its place, whether the work for it goes on; called from several threads.
    """

    def __init__(self, is_wanted: Callable[[int], bool] = lambda _: True) -> None:
        self.is_wanted = is_wanted
        self._done: list[int] = []  # several threads add to it; adding to a list is atomic

    @property
    def tokens(self) -> int:
        """That were computed, without padding."""
        return sum(self._done)

    def did(self, tokens: int) -> None:
        """So many more were computed."""
        self._done.append(tokens)


class Graph(Protocol):
    """What an engine runs: an onnxruntime.InferenceSession, or something that looks like one."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]: ...

    def get_inputs(self) -> Sequence[Any]: ...


class Engine(Protocol):
    """A ranker that runs."""

    input_names: list[str]
    """The tensors that a request needs."""

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        """Logits of each request, one per candidate; none of a request that was not wanted any more.

        Args:
            requests: what to score.
            threads: how many to use now, at most those of the engine; 0 = all.
            watch: looked at between the parts of the work; default: everything is wanted.
        """
        ...

    def check(self, request: Tensors) -> None:
        """Refuse rows that ``tokenize`` would not make: anyone who reaches the server can send some to the scorer.

        Raises:
            RowsError: names the tensor and what is wrong.
        """
        ...

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        """Tokens to compute, kept contexts included, and tokens without padding: their ratio is what padding costs."""
        ...


def model_files(folder: Path) -> list[Path]:
    """The graphs that a folder holds, in the order in which they run."""
    return [path for name in (JOINT_FILE, CONTEXT_FILE, CANDIDATES_FILE) if (path := folder / name).is_file()]


def loaded_files(folder: Path) -> list[Path]:
    """All that is loaded to score: the graphs of a folder, and the weights that they refer to."""
    return model_files(folder) + [path for path in (folder / WEIGHTS_FILE,) if path.is_file()]


def open_engine(
    folder: Path,
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
    device: str = "cpu",
) -> Engine:
    """The engine for the graphs in a folder.

    Args:
        folder: holds model.onnx (joint or batched), or context.onnx and candidates.onnx.
        threads: runs side by side at the most; 0 = all cores this process may use.
        rows_per_batch: rows in one run of a joint ranker at the most.
        context_cache_bytes: keys and values of contexts that a shared-context ranker keeps at the most.
        device: cpu or cuda; cuda:1 is the second GPU.

    Raises:
        ExecutorError: ONNX Runtime has no kernels for the device.
    """
    paths = model_files(folder) or [folder / JOINT_FILE]
    graphs = {path.name: open_session(path, device) for path in paths}
    if device != "cpu":
        return engine_of(graphs, 1, MOST_ROWS_ON_GPU, context_cache_bytes, shares=1, is_gpu=True)
    return engine_of(graphs, threads, rows_per_batch, context_cache_bytes)


def open_executor(executor: str, folder: Path, device: str = "cpu", threads: int = 0, **options: int) -> Engine:
    """The engine that a recipe's ``serve.executor`` names; options are those of ``open_engine``.

    Raises:
        ExecutorError: what it needs is not installed, or there is no such device.
    """
    if executor == "onnxruntime":
        return open_engine(folder, threads, device=device, **options)
    try:
        from tritonrank_runtime.torch_engine import open_torch_engine
    except ImportError as error:
        raise ExecutorError(
            f"serve.executor is {executor}, but {error.name} is not installed in {sys.prefix}: "
            "pip install torch safetensors"
        ) from None
    return open_torch_engine(folder, device, threads, **options)


def engine_of(
    graphs: Mapping[str, Graph],
    threads: int = 0,
    rows_per_batch: int = ROWS_PER_BATCH,
    context_cache_bytes: int = 0,
    shares: int = 0,
    is_gpu: bool = False,
) -> Engine:
    """The engine around graphs that are open already.

    Args:
        graphs: by file name.
        threads: as for ``open_engine``; 1 for graphs that take one run at a time.
        rows_per_batch: as for ``open_engine``.
        context_cache_bytes: as for ``open_engine``.
        shares: parts that a shared-context request is cut into for the sake of threads; 0 = by the machine's cores.
        is_gpu: runs are costly to start, and may be large.
    """
    if CONTEXT_FILE in graphs:
        context, candidates = graphs[CONTEXT_FILE], graphs[CANDIDATES_FILE]
        return SharedContextEngine(context, candidates, threads, context_cache_bytes, shares, is_gpu)
    graph = graphs[JOINT_FILE]
    if SHARED_CONTEXT_INPUTS[0] in {tensor.name for tensor in graph.get_inputs()}:
        return BatchedEngine(graph, threads, shares)
    return JointEngine(graph, threads, rows_per_batch)


_Part = tuple[NDArray[np.int64], NDArray[np.int32], Callable[[], Logits]]
"""Of one request: places of some candidates, their ids, and what gives their logits."""


def _run_parts(
    parts: Iterable[_Part], candidates: int, run_all: Callable[..., None], is_wanted: Callable[[], bool], watch: Watch
) -> Logits:
    """Logits of one request from its parts, side by side; none when it is not wanted any more before the last."""
    logits = np.empty(candidates, dtype=np.float32)
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


class JointEngine:
    """A joint ranker, given its file or an open session; the other arguments are those of ``open_engine``."""

    def __init__(self, model: Path | Graph, threads: int = 0, rows_per_batch: int = ROWS_PER_BATCH) -> None:
        self._session = _opened(model)
        self._threads = _Threads(threads or available_cores())
        self.input_names = [tensor.name for tensor in self._session.get_inputs()]
        self.rows_per_batch = rows_per_batch

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return run_in_batches(
            self.run_padded,
            requests,
            self.input_names,
            self.rows_per_batch,
            lambda runs: self._threads.run(runs, threads),
            watch,
        )

    def run_padded(self, tensors: dict[str, NDArray[np.int32]]) -> Logits:
        """One run as it is: (rows, tokens) tensors by input name -> logits (rows, 1)."""
        (logits,) = self._session.run(["logits"], tensors)
        return np.asarray(logits, dtype=np.float32)

    def check(self, request: Tensors) -> None:
        # The mask decides how far a row is padded, so one of large numbers would ask for gigabytes.
        mask = request["attention_mask"]
        for name, tensor in request.items():
            if tensor.shape != mask.shape:
                raise RowsError(f"{name}: shape {list(tensor.shape)}; attention_mask has {list(mask.shape)}")
        lengths = _lengths(request)
        if not lengths.all() or not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, np.newaxis]):
            raise RowsError("attention_mask: expected ones for the tokens of a row, at least one, then zeros")

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        lengths = [_lengths(request) for request in requests]
        return sum(int(_padded(rows).sum()) for rows in lengths), sum(int(rows.sum()) for rows in lengths)


class SharedContextEngine:
    """A shared-context ranker: keys and values of the context once, then the candidates in groups, side by side."""

    def __init__(
        self,
        context: Path | Graph,
        candidates: Path | Graph,
        threads: int = 0,
        context_cache_bytes: int = 0,
        shares: int = 0,
        is_gpu: bool = False,
    ) -> None:
        self.input_names = list(SHARED_CONTEXT_INPUTS)
        self.context_cache = ContextCache(context_cache_bytes)
        self._run_tokens, self._most_tokens = candidate_run_sizes(is_gpu)
        # By cores, not by threads: how a request is cut must not depend on who else is busy.
        self._shares = shares or SHARES_PER_CORE * available_cores()
        self._context = _opened(context)
        self._candidates = _opened(candidates)
        self._threads = _Threads(threads or available_cores())

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        return _run_one_by_one(self._parts, requests, lambda runs: self._threads.run(runs, threads), watch)

    def _parts(self, request: Tensors) -> Iterator[_Part]:
        for rows, feed in self._groups(request):
            yield rows, feed["candidate_ids"], partial(self._score_group, feed)

    def _score_group(self, feed: Feed) -> Logits:
        return np.asarray(self._candidates.run(["logits"], feed)[0])

    def candidate_feeds(self, request: Tensors) -> list[Feed]:
        """What the candidate graph gets for a request, run by run: calibration sees what serving will."""
        return [feed for _, feed in self._groups(request)]

    def _groups(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        """Places of the candidates and what the graph is fed with, the largest first, so that threads end together."""
        context = self.context_cache.get(request["context_ids"], self._run_context)
        candidate_ids = request["candidate_ids"]
        groups = length_groups(candidate_lengths(candidate_ids), self._run_tokens)
        groups = cut_groups(groups, self._shares, self._most_tokens)
        feeds = []
        for tokens, rows in sorted(groups, key=lambda group: -group[0] * len(group[1])):
            group = np.ascontiguousarray(candidate_ids[rows, :tokens])
            feeds.append((rows, context | {"candidate_ids": group}))
        return feeds

    def _run_context(self, context_ids: NDArray[np.int32]) -> Feed:
        names = ["context_keys", "context_values"]
        return dict(zip(names, self._context.run(names, {"context_ids": context_ids}), strict=True))

    def check(self, request: Tensors) -> None:
        _check_shared_context(request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            lengths = candidate_lengths(request["candidate_ids"])
            groups = length_groups(lengths, self._run_tokens)
            computed += request["context_ids"].size + sum(tokens * len(rows) for tokens, rows in groups)
            needed += request["context_ids"].size + int(lengths.sum())
        return computed, needed


class BatchedEngine:
    """A shared-context ranker as one graph over padded requests: context_ids (requests, tokens), candidate_ids
    (requests, candidates, tokens) -> logits (requests, candidates).

    A request's candidates are shared out among the cores by length; each part has its own copy of the context.
    """

    def __init__(self, session: Graph, threads: int = 0, shares: int = 0) -> None:
        self.input_names = list(SHARED_CONTEXT_INPUTS)
        self._session = session
        self._shares = shares or available_cores()
        self._threads = _Threads(threads or available_cores())

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

    def feeds(self, request: Tensors) -> list[Feed]:
        """What the graph gets for a request, run by run."""
        return [feed for _, feed in self._parts(request)]

    def _parts(self, request: Tensors) -> list[tuple[NDArray[np.int64], Feed]]:
        context, candidate_ids = request["context_ids"][np.newaxis], request["candidate_ids"]
        lengths = candidate_lengths(candidate_ids)
        parts = [part for part in np.array_split(np.argsort(lengths, kind="stable"), self._shares) if len(part)]
        return [
            (rows, {"context_ids": context, "candidate_ids": candidate_ids[rows, : lengths[rows].max()][np.newaxis]})
            for rows in parts
        ]

    def check(self, request: Tensors) -> None:
        _check_shared_context(request)

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        computed = needed = 0
        for request in requests:
            computed += sum(tensor.size for feed in self.feeds(request) for tensor in feed.values())
            needed += request["context_ids"].size + int(candidate_lengths(request["candidate_ids"]).sum())
        return computed, needed


class ContextCache:
    """Keys and values of the contexts seen last, for users who return: at most so many bytes, the oldest dropped first.

    The key is the context's token ids themselves: a hash of them could give one user the context of another.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[bytes, Feed] = OrderedDict()
        self.hits = self.misses = self.bytes = 0

    def get(self, context_ids: NDArray[np.int32], compute: Callable[[NDArray[np.int32]], Feed]) -> Feed:
        """What is kept for these token ids, or what ``compute`` makes of them."""
        key = context_ids.tobytes()
        if (found := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            self.hits += 1
            return found
        self.misses += 1
        entry = compute(context_ids)
        size = _entry_bytes(key, entry)
        if size <= self._most_bytes:
            self._entries[key] = entry
            self.bytes += size
        while self.bytes > self._most_bytes:
            self.bytes -= _entry_bytes(*self._entries.popitem(last=False))
        return entry


def _check_shared_context(request: Tensors) -> None:
    context_ids, candidate_ids = request["context_ids"], request["candidate_ids"]
    if not context_ids.size or context_ids.min() < 0:
        raise RowsError("context_ids: expected at least one token id, none of them negative")
    is_token = candidate_ids >= 0
    lengths = is_token.sum(axis=1)
    is_row = np.arange(candidate_ids.shape[1]) < lengths[:, np.newaxis]
    is_padded = np.array_equal(is_token, is_row) and candidate_ids.min(initial=0) >= -1
    if not lengths.size or not lengths.all() or not is_padded:
        raise RowsError("candidate_ids: expected rows of token ids, at least one each, then padding of -1")


def _entry_bytes(key: bytes, entry: Feed) -> int:
    return len(key) + sum(tensor.nbytes for tensor in entry.values())


class _Threads:
    """Calls side by side: in the calling thread and in helpers that wait for work."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._helpers = ThreadPoolExecutor(max(1, most - 1))

    def run(self, calls: Sequence[Callable[[], None]], threads: int) -> None:
        """Make all calls, on so many threads at the most (0 = all); raises what a call raised."""
        remaining = iter(calls)  # taking the next one from a list is atomic

        def work() -> None:
            for call in remaining:
                call()

        helpers = min(threads or self._most, self._most, len(calls)) - 1
        futures = [self._helpers.submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            wait(futures)
        for future in futures:
            future.result()


def open_session(model: Path, device: str = "cpu") -> onnxruntime.InferenceSession:
    """A session that computes in the thread that calls it, or on a GPU.

    Raises:
        ExecutorError: ONNX Runtime has no kernels for the device, or cannot use it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if device != "cpu":
        return _gpu_session(model, options, device)
    # The fused operator is slower than the ones it replaces (6 to 10% of a request here).
    return onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )


def _gpu_session(model: Path, options: onnxruntime.SessionOptions, device: str) -> onnxruntime.InferenceSession:
    available = onnxruntime.get_available_providers()
    if CUDA_PROVIDER not in available:
        raise ExecutorError(
            f"ONNX Runtime {onnxruntime.__version__} has no {CUDA_PROVIDER} (it has {', '.join(available)}); the GPU "
            "build brings it: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    providers = [(CUDA_PROVIDER, {"device_id": number}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    if CUDA_PROVIDER not in session.get_providers():  # ONNX Runtime falls back to the CPU with a warning alone
        raise ExecutorError(
            f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU {device}: {CUDA_PROVIDER} did not start. Its "
            "CUDA and cuDNN libraries must be found: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def _opened(graph: Path | Graph) -> Graph:
    return open_session(graph) if isinstance(graph, Path) else graph


def candidate_lengths(candidate_ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """Tokens of each row, without the padding of -1."""
    return np.asarray((candidate_ids >= 0).sum(axis=1), dtype=np.int64)


Group = tuple[int, NDArray[np.int64]]
"""Candidates that run together: tokens to pad to, and their places in the request."""


def candidate_run_sizes(is_gpu: bool) -> tuple[int, int]:
    """What starting a run of candidates costs, and how many it may hold, both in tokens."""
    return (GPU_RUN_TOKENS, GPU_MOST_TOKENS) if is_gpu else (RUN_TOKENS, MOST_TOKENS)


def length_groups(lengths: NDArray[np.int64], run_tokens: int = RUN_TOKENS) -> list[Group]:
    """Candidates of similar length, at the least total cost.

    Sorted by length, rows are cut into groups so that padded tokens plus ``run_tokens`` per group are the fewest: on a
    CPU a hundred candidates fall into several groups with hardly any padding, three candidates into one.
    """
    order = np.argsort(lengths, kind="stable")
    distinct, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cheapest[n] = cost of the rows of the n shortest distinct lengths; start[n] = where its last group begins
    cheapest, start = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, dtype=np.int64)
    for end in range(1, len(distinct) + 1):
        costs = cheapest[:end] + (before[end] - before[:end]) * distinct[end - 1] + run_tokens
        start[end] = int(np.argmin(costs))
        cheapest[end] = costs[start[end]]
    groups = []
    end = len(distinct)
    while end:
        groups.append((int(distinct[end - 1]), order[before[start[end]] : before[end]]))
        end = int(start[end])
    return groups


def cut_groups(groups: Sequence[Group], shares: int, most_tokens: int = MOST_TOKENS) -> list[Group]:
    """Groups cut into parts of about an equal share of the tokens, none larger or smaller than a run should be."""
    total = sum(tokens * len(rows) for tokens, rows in groups)
    share = min(max(FEWEST_TOKENS, total / shares), most_tokens)
    parts = []
    for tokens, rows in groups:
        count = min(len(rows), math.ceil(tokens * len(rows) / share - 0.5) or 1)
        parts += [(tokens, part) for part in np.array_split(rows, count)]
    return parts


def _one_after_the_other(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


def run_in_batches(
    run_batch: Callable[[dict[str, NDArray[np.int32]]], Logits],
    requests: Sequence[Tensors],
    input_names: Sequence[str],
    rows_per_batch: int,
    run_all: Callable[[Sequence[Callable[[], None]]], None] = _one_after_the_other,
    watch: Watch | None = None,
) -> list[Logits]:
    """Regroup the joint rows of all requests by padded length, run them, and hand the logits back per request.

    Args:
        run_batch: (rows, tokens) tensors by input name -> logits (rows, 1).
        requests: the tensors of each request.
        input_names: the tensors that ``run_batch`` wants.
        rows_per_batch: rows of one run at the most.
        run_all: makes the runs, in any order; by default one after the other.
        watch: looked at before each run; rows of requests that are not wanted any more are left out.
    """
    logits = [np.empty(len(request["attention_mask"]), dtype=np.float32) for request in requests]
    watch = watch or Watch()
    stopped: set[int] = set()

    def run_one(tokens: int, places: list[tuple[int, int]]) -> None:
        stopped.update(number for number in {number for number, _ in places} if not watch.is_wanted(number))
        if not (places := [place for place in places if place[0] not in stopped]):
            return
        tensors = {name: np.zeros((len(places), tokens), dtype=np.int32) for name in input_names}
        for name, tensor in tensors.items():
            for target, (request, row) in enumerate(places):
                source = requests[request][name][row, :tokens]
                tensor[target, : len(source)] = source
        for (request, row), logit in zip(places, run_batch(tensors)[:, 0], strict=True):
            logits[request][row] = logit
        watch.did(sum(int(requests[request]["attention_mask"][row].sum()) for request, row in places))

    run_all([partial(run_one, tokens, places) for tokens, places in _batches(requests, rows_per_batch)])
    return [one[:0] if number in stopped else one for number, one in enumerate(logits)]


def padded_length(tokens: int) -> int:
    """Tokens that a joint row of so many tokens takes in a batch."""
    return int(_padded(np.array([tokens]))[0])


def available_cores() -> int:
    """Cores that this process may use: the affinity mask, cut down by a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def _batches(requests: Sequence[Tensors], rows_per_batch: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    rows_by_tokens: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, request in enumerate(requests):
        for row, tokens in enumerate(_padded(_lengths(request))):
            rows_by_tokens[int(tokens)].append((number, row))
    for tokens, places in rows_by_tokens.items():
        for start in range(0, len(places), rows_per_batch):
            yield tokens, places[start : start + rows_per_batch]


def _lengths(request: Tensors) -> NDArray[np.int64]:
    return np.asarray(request["attention_mask"].sum(axis=1), dtype=np.int64)


def _padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-np.maximum(lengths, 1) // PADDED_MULTIPLE) * PADDED_MULTIPLE
