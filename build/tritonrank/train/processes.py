"""Let several processes of this machine train one ranker, started from here as torchrun starts them.

For whoever trains in the middle of something else: what comes before and after runs in this process alone, and errors,
exit codes and signals stay its own. The processes end with this one.
"""

import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tritonrank.errors import TritonRankError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Those for which the launcher leaves handlers behind."""
MEET_HERE = "localhost:0"
"""The processes find each other at a port that is free."""


def train_in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call a function in new processes, each of which is one rank of ``torch.distributed``, and wait for all.

    Args:
        count: processes, each with its share of this one's threads; on GPUs one for each.
        work: a module's function; the rank is in the environment, where the Trainer looks for it.
        arguments: of it; they travel by pickle.

    Raises:
        TritonRankError: one of them failed, which ends the others; the message is its.
    """
    threads = max(1, torch.get_num_threads() // count)
    try:
        with _own_signals(), tempfile.TemporaryDirectory(prefix="tritonrank-") as errors:
            launch = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint=MEET_HERE,
                max_restarts=0,
                start_method="spawn",
                logs_specs=DefaultLogsSpecs(log_dir=errors),
            )
            elastic_launch(launch, _rank)(threads, work, *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TritonRankError(f"process {rank} of the {count} that train together failed: {failure.message}") from None
    except SignalException as ended:
        os.kill(os.getpid(), ended.sigval)  # as if nobody had caught it


@record
def _rank(threads: int, work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(threads)
    work(*arguments)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Whoever handles signals now does so afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
