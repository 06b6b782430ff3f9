"""Serve a pack's ranker through Triton with the executor torch, for gpu-check: texts in, ranking out, over gRPC.

PyTorch is the executor that every machine with a GPU and this package has; plans are served from a repository that
``tritonrank assemble --target tensorrt`` writes. Contexts are not kept between requests, so that each is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tritonrank_client import RankClient
from tritonrank_runtime.cores import available_cores

from tritonrank.gpu_check.executors import EXACT_TOLERANCE, HALF_TOLERANCE
from tritonrank.gpu_check.packed import Pack, PackedRequest
from tritonrank.rankers.agreement import Scores
from tritonrank.rankers.server_scorer import Request, ServerScorer
from tritonrank.rankers.serving import Serving
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank.serve.server import LocalTriton

REQUEST_SECONDS = 60.0
START_SECONDS = 280.0
"""Each scorer loads PyTorch, and on a GPU its kernels, for the first time."""

# No request may be refused: how long the first takes on a cold GPU says nothing.
FOR_A_CHECK = Serving(
    max_candidates=1_000,
    deadline_ms=60_000,
    queue_share=0.0,
    queue_requests=64,
    rows_per_batch=16,
    context_cache_mb=0,
    instances="auto",
    threads="auto",
    executor="torch",
    device="cuda",
)
PACKED = ("max_candidates", "queue_requests", "instances")
"""What counts of the recipe that was packed."""


def serving_of(pack: Pack, device: str) -> Serving:
    """How a pack is served here; what an older pack does not say is as in ``FOR_A_CHECK``."""
    known = {name: value for name, value in pack.manifest["serve"].items() if name in PACKED}
    return replace(FOR_A_CHECK, **known, device=device)


@contextmanager
def served(pack: Pack, device: str) -> Iterator[tuple[str, str, float, Callable[[PackedRequest], Scores], str]]:
    """A live server: its name, precision and tolerance, the call that asks it, and the address of its gRPC port.

    Args:
        pack: an open pack.
        device: cuda or cpu.

    Raises:
        ServerError: no server is found, or it does not start.
    """
    precision, tolerance = ("FP32", EXACT_TOLERANCE) if device == "cpu" else ("FP16", HALF_TOLERANCE)
    with TemporaryDirectory(prefix="tritonrank-gpu-check-") as scratch:
        repository = Path(scratch) / "repository"
        write_models(serving_of(pack, device), pack.folder, repository, available_cores())
        identity = {"artifact": pack.manifest["artifact"][:16], "recipe": pack.manifest["recipe"], "stage": "pack"}
        write_golden_cases(identity, [], repository)
        with (
            LocalTriton(repository, ready_timeout_seconds=START_SECONDS) as server,
            RankClient(server.grpc_url, timeout=REQUEST_SECONDS) as client,
        ):
            scorer = ServerScorer(client)

            def run(request: PackedRequest) -> Scores:
                return np.asarray(scorer.score(Request(request.query, request.history, request.items)))

            yield f"Triton, PyTorch {precision}", precision, tolerance, run, server.grpc_url
