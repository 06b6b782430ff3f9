"""Puts a finished load into the form of its file: the accounts, and all that is needed to do it again."""

import hashlib
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median_low
from urllib.parse import urlsplit

from loadtests.accounting import Accounts, Recorder
from loadtests.machine import Machine
from loadtests.results import Run, Shape, Spread, Target, WorkloadFile
from loadtests.settings import LoadSettings
from loadtests.workload import WorkloadRequest

PACKAGES = ("tritonrank", "locust", "gevent", "tritonclient", "grpcio", "numpy")
BLOCK_BYTES = 1 << 20


def finished_run(
    settings: LoadSettings,
    recorder: Recorder,
    due: Sequence[float],
    requests: Sequence[WorkloadRequest],
    *,
    url: str,
    machine: Machine,
    started: float,
    stopped_at: float | None = None,
    processes: int = 1,
    cpu_seconds: float | None = None,
) -> Run:
    """A run's results.

    Args:
        settings: what was wanted.
        recorder: what came back, from all processes.
        due: when each request of the plan was due; empty in a closed loop.
        requests: of the workload.
        url: of the server.
        machine: as it was before the load.
        started: seconds since the epoch, when the plan began.
        stopped_at: when it was broken off, in seconds since then.
        processes: that sent.
        cpu_seconds: what they took together.
    """
    accounts = Accounts(settings.plan, due, recorder.outcomes, settings.deadline_seconds, stopped_at)
    totals = accounts.totals()
    sent = max(len(due), recorder.answered)
    sizes = sorted(len(request.items) for request in requests)
    return Run(
        name=settings.name or settings.plan.shape,
        started=datetime.fromtimestamp(started, UTC),
        seconds=round(accounts.seconds, 3),
        machine=machine,
        versions=versions(),
        command=sys.argv,
        workload=WorkloadFile(
            path=str(settings.workload),
            sha256=sha256_file(settings.workload),
            requests=len(requests),
            sent=sent,
            sent_before=settings.sent_before,
            laps=round((settings.sent_before + sent) / len(requests), 3),
            candidates_p50=median_low(sizes),
            candidates_max=sizes[-1],
        ),
        shape=Shape.model_validate({"name": settings.plan.shape, "parameters": _parameters(settings)}),
        target=Target.model_validate({"url": url, "protocol": urlsplit(url).scheme[:4], "artifact": recorder.artifact}),
        deadline_ms=1_000 * settings.deadline_seconds,
        phases=accounts.phases(),
        totals=totals,
        per_second=accounts.per_second(),
        failures=recorder.failures(),
        steps={name: Spread.of(values) for name, values in sorted(recorder.steps.items())},
        client=accounts.health(settings.sender_count(), processes, cpu_seconds),
    )


def sha256_file(path: Path) -> str:
    """Of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _parameters(settings: LoadSettings) -> dict[str, float]:
    plan = settings.plan
    parameters = {"seconds": plan.seconds, "most_per_second": plan.most_per_second}
    if plan.clients is not None:
        parameters = {"seconds": plan.seconds, "clients": plan.clients}
    return parameters | ({"candidates": settings.candidates} if settings.candidates else {})


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
