"""Rows of token ids -> logits, in batches whose make-up cannot change a score.

Each row is padded to the next multiple of eight tokens of its own length and runs only with rows of that padded
length. So the arithmetic on a row is the same whoever shares its batch, which keeps INT8 scores reproducible (a last
digit that differs before a rounding can move a score by a whole step), and padding stays small.

``assemble`` copies this file beside the server's models: it imports only the standard library, numpy and onnxruntime.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

PADDED_MULTIPLE = 8

Rows = Mapping[str, NDArray[np.int32]]
"""Tensors of one request by input name, each (rows, tokens), padded on the right; attention_mask among them."""


class RowsError(ValueError):
    """Rows that no engine should get; the message begins with the tensor's name."""


class OnnxEngine:
    """A ranker in ONNX Runtime on the CPU.

    Args:
        model: path of model.onnx.
        threads: threads of one run; 0 = all cores this process may use.
        rows_per_batch: rows in one run at the most.
    """

    def __init__(self, model: Path, threads: int = 0, rows_per_batch: int = 64) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.input_names = [tensor.name for tensor in self._session.get_inputs()]
        self.rows_per_batch = rows_per_batch

    def run(self, requests: Sequence[Rows]) -> list[NDArray[np.float32]]:
        """Logits of each request, shape (rows,)."""
        return run_in_batches(self.run_padded, requests, self.input_names, self.rows_per_batch)

    def run_padded(self, tensors: dict[str, NDArray[np.int32]]) -> NDArray[np.float32]:
        """One run as it is: (rows, tokens) tensors by input name -> logits (rows, 1)."""
        (logits,) = self._session.run(["logits"], tensors)
        return np.asarray(logits, dtype=np.float32)


def run_in_batches(
    run_batch: Callable[[dict[str, NDArray[np.int32]]], NDArray[np.float32]],
    requests: Sequence[Rows],
    input_names: Sequence[str],
    rows_per_batch: int,
) -> list[NDArray[np.float32]]:
    """Regroup the rows of all requests by padded length, run them, and hand the logits back per request.

    Args:
        run_batch: (rows, tokens) tensors by input name -> logits (rows, 1).
        requests: the tensors of each request.
        input_names: the tensors that ``run_batch`` wants.
        rows_per_batch: rows of one run at the most.
    """
    logits = [np.empty(len(request["attention_mask"]), dtype=np.float32) for request in requests]
    for tokens, places in _batches(requests, rows_per_batch):
        tensors = {name: np.zeros((len(places), tokens), dtype=np.int32) for name in input_names}
        for name, tensor in tensors.items():
            for target, (request, row) in enumerate(places):
                source = requests[request][name][row, :tokens]
                tensor[target, : len(source)] = source
        for (request, row), logit in zip(places, run_batch(tensors)[:, 0], strict=True):
            logits[request][row] = logit
    return logits


def check_rows(request: Rows) -> None:
    """Refuse rows that ``tokenize`` would not make: anyone who reaches the server can send some to the scorer directly.

    The mask decides how far a row is padded, so one of large numbers would ask for gigabytes.

    Raises:
        RowsError: the shapes differ, or a mask is not ones (at least one) followed by zeros.
    """
    mask = request["attention_mask"]
    for name, tensor in request.items():
        if tensor.shape != mask.shape:
            raise RowsError(f"{name}: shape {list(tensor.shape)}; attention_mask has {list(mask.shape)}")
    lengths = _lengths(request)
    if not lengths.all() or not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, np.newaxis]):
        raise RowsError("attention_mask: expected ones for the tokens of a row, at least one, then zeros")


def token_counts(requests: Sequence[Rows]) -> tuple[int, int]:
    """Tokens that the batches compute, and tokens that the requests need: their ratio is the cost of padding."""
    lengths = [_lengths(request) for request in requests]
    return sum(int(_padded(rows).sum()) for rows in lengths), sum(int(rows.sum()) for rows in lengths)


def padded_length(tokens: int) -> int:
    """Tokens that a row of so many tokens takes in a batch."""
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


def _batches(requests: Sequence[Rows], rows_per_batch: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    rows_by_tokens: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, request in enumerate(requests):
        for row, tokens in enumerate(_padded(_lengths(request))):
            rows_by_tokens[int(tokens)].append((number, row))
    for tokens, places in rows_by_tokens.items():
        for start in range(0, len(places), rows_per_batch):
            yield tokens, places[start : start + rows_per_batch]


def _lengths(request: Rows) -> NDArray[np.int64]:
    return np.asarray(request["attention_mask"].sum(axis=1), dtype=np.int64)


def _padded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-np.maximum(lengths, 1) // PADDED_MULTIPLE) * PADDED_MULTIPLE
