"""Opens the packed engine of a checkpoint: network, launcher with its graphs, pool of contexts."""

import os
from collections.abc import Sequence
from logging import getLogger
from typing import Any

import numpy as np
import torch

from tritonrank_runtime.engine import ExecutorError
from tritonrank_runtime.packed.engine import PackedEngine
from tritonrank_runtime.packed.launcher import Launcher, bucket_rows
from tritonrank_runtime.packed.rows import PackedRows

PRECISION_VARIABLE = "TRITONRANK_GPU_PRECISION"
COMPILE_VARIABLE = "TRITONRANK_GPU_COMPILE"
ATTENTION_VARIABLE = "TRITONRANK_GPU_ATTENTION"
PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
REHEARSED_ROWS = 1_024
"""Of the largest bucket on a CPU, where a launch gains nothing by its size."""
FUSED_TOLERANCE = 2e-2
"""How far fused kernels may be from those that are not, of the largest logit: both round to FP16, in other places."""

log = getLogger(__name__)


def open_packed_engine(
    network: Any,
    rows: PackedRows,
    device: str,
    *,
    context_cache_bytes: int = 0,
    attention: str = "",
    precision: str = "",
    is_compiled: bool | None = None,
    buckets: Sequence[int] = (),
) -> PackedEngine:
    """The engine, warm: every graph is captured, and on a card fused kernels have been held against plain ones.

    Args:
        network: as ``rows.network_type`` takes it.
        rows: of its architecture.
        device: cuda, cuda:1, ...; or cpu for a rehearsal.
        context_cache_bytes: keys and values of contexts that are kept on the device at the most.
        attention: one of ``operations.OPERATIONS``; default: what TRITONRANK_GPU_ATTENTION says, else triton, and sdpa
            on a CPU.
        precision: of ``PRECISIONS``; default: what TRITONRANK_GPU_PRECISION says, else float16, and float32 on a CPU.
        is_compiled: whether torch.compile fuses; default: on a card, where there is anything to fuse, unless
            TRITONRANK_GPU_COMPILE is 0.
        buckets: rows of each; default: ``bucket_rows``.

    Raises:
        ExecutorError: that attention or precision there is not.
    """
    is_cpu, network_type = device == "cpu", rows.network_type
    precision = precision or ("float32" if is_cpu else os.environ.get(PRECISION_VARIABLE, "float16"))
    if precision not in PRECISIONS:
        raise ExecutorError(f"{PRECISION_VARIABLE}: {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if is_compiled is None:
        is_compiled = not is_cpu and network_type.gains_by_compiling and os.environ.get(COMPILE_VARIABLE, "1") != "0"
    dtype = PRECISIONS[precision]
    most_bytes = 0 if rows.pairs else context_cache_bytes
    packed = network_type(
        network,
        dtype,
        device,
        attention=attention or os.environ.get(ATTENTION_VARIABLE) or ("sdpa" if is_cpu else "triton"),
        pool_rows=most_bytes // network_type.kept_row_bytes(network.config, dtype),
    )
    buckets = buckets or bucket_rows(*((REHEARSED_ROWS,) if is_cpu else ()))

    def opened(is_compiled: bool) -> PackedEngine:
        launcher = Launcher(packed, buckets, pairs=rows.pairs, is_compiled=is_compiled)
        launcher.capture()
        return PackedEngine(launcher, rows)

    engine = opened(is_compiled)
    if engine.launcher.is_compiled and (difference := _fused_difference(engine, rows)) > FUSED_TOLERANCE:
        log.warning("kernels that torch.compile fused differ by %.2g, so the network runs as it is", difference)
        return opened(is_compiled=False)
    return engine


def _fused_difference(engine: PackedEngine, rows: PackedRows) -> float:
    """The largest of a request's logits, relative to the largest of them, between the two ways."""
    request = rows.example()
    (part,) = rows.parts(0, request, engine.launcher.largest.rows)
    packed = [rows.pack(part, engine.context_cache)]
    engine.context_cache.failed()  # nothing of an example is kept
    (fused,), (plain,) = engine.launcher.launch(packed).logits(), engine.launcher.launch_alone(packed).logits()
    difference = np.abs(fused - plain).max() / max(1.0, np.abs(plain).max())
    return float(np.nan_to_num(difference, nan=np.inf))
