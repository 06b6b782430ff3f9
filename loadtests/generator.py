"""Runs a load against a server: Locust in a process of its own, the server watched meanwhile, one Run at the end.

Locust replaces parts of Python's standard library by gevent's when it is imported, and takes a core when it is busy;
neither should happen to the process that samples the server.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loadtests.machine import Machine, describe_machine
from loadtests.processes import LOOPBACK, Process, free_port
from loadtests.results import Run, read_run
from loadtests.server_metrics import ServerSampler, served_settings
from loadtests.settings import LoadSettings
from loadtests.target import LiveServer, Protocol

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
END_SECONDS = 60.0
"""Beyond the plan: Locust's start, the last answers, the last reports of workers."""
POLL_SECONDS = 0.2

console = Console(stderr=True)


class GeneratorError(RuntimeError):
    """Locust did not run to its end; the message has the last lines that it printed."""


def generate(
    server: LiveServer,
    protocol: Protocol,
    settings: LoadSettings,
    *,
    processes: int = 0,
    machine: Machine | None = None,
) -> Run:
    """Send a load and wait for its end.

    Args:
        server: what is loaded.
        protocol: the clients'.
        settings: the load.
        processes: of Locust beside the one that collects; 0: one that does both.
        machine: as it was before what the caller did to it; None: as it is now.

    Raises:
        GeneratorError: the load could not be made.
        RunFileError: Locust wrote no results.
    """
    before = machine or describe_machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        plan, results = Path(scratch) / "plan.json", Path(scratch) / "run.json"
        plan.write_text(settings.plan.model_dump_json(), encoding="utf-8")
        inner = replace(settings, run_file=results)
        url = settings.gateway or server.url(protocol)
        command = [*_locust(url, processes), *inner.arguments(plan)]
        with ServerSampler(server) as sampler:
            _run_locust(command, Path(scratch) / "locust.log", results, settings)
        run = read_run(results)
        # The run's second 0 is told by the wall clock, the sampler's by the monotonic one.
        origin = time.monotonic() - (time.time() - run.started.timestamp())
        target = run.target.model_copy(
            update={
                "artifacts": str(server.artifacts) if server.artifacts else None,
                "settings": served_settings(server.http_url),
            }
        )
        found = {"command": sys.argv, "machine": before, "target": target, "server": sampler.seconds(origin)}
        return run.model_copy(update=found | {"failures": [*run.failures, *sampler.faults]})


def _locust(url: str, processes: int) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--loglevel", "WARNING", "--host", url]
    if processes:
        # A port of its own: two loads on one machine would take each other's workers.
        port = str(free_port())
        command += ["--processes", str(processes), "--master-bind-host", LOOPBACK]
        command += ["--master-host", LOOPBACK, "--master-bind-port", port, "--master-port", port]
    return command


def _run_locust(command: Sequence[str], log: Path, results: Path, settings: LoadSettings) -> None:
    allowed = settings.plan.seconds + settings.deadline_seconds + END_SECONDS
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    process = Process(command, log)
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("starting", total=settings.plan.seconds)
            started = time.monotonic()
            while process.exit_code() is None:
                passed = time.monotonic() - started
                if passed > allowed:
                    raise GeneratorError(f"Locust has not ended after {passed:.0f} s\n{process.log_tail()}")
                progress.update(task, completed=passed, description=_phase_at(settings, passed))
                time.sleep(POLL_SECONDS)
    finally:
        process.stop()
    if not results.is_file():
        raise GeneratorError(f"Locust ended with exit code {process.exit_code()}\n{process.log_tail()}")


def _phase_at(settings: LoadSettings, seconds: float) -> str:
    return next((phase.name for phase, _, end in settings.plan.spans() if seconds < end), "last answers")
