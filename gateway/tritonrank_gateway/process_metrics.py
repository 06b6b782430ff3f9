"""How the gateway's process does: memory, files, processor time, and how late its event loop is.

One loop answers all callers, so whatever holds it makes everybody wait, and no other figure shows that: a step's time
contains it, and nobody knows whose it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from prometheus_client import Histogram, ProcessCollector

from tritonrank_gateway.metrics import NAME, Metrics

EVERY_SECONDS = 0.25
LATE_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


@asynccontextmanager
async def process_metrics(metrics: Metrics) -> AsyncIterator[None]:
    """Measure between the ends of this context."""
    ProcessCollector(registry=metrics.registry)
    late = Histogram(
        f"{NAME}loop_late_seconds", "How much later than wished the event loop woke a task, four times a second",
        buckets=LATE_SECONDS, registry=metrics.registry,
    )  # fmt: skip
    watcher = asyncio.create_task(_watch(late))
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _watch(late: Histogram) -> None:
    while True:
        wished = time.monotonic() + EVERY_SECONDS
        await asyncio.sleep(EVERY_SECONDS)
        late.observe(max(0.0, time.monotonic() - wished))
