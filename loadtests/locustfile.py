"""The load as Locust runs it.

    locust -f loadtests/locustfile.py --host grpc://127.0.0.1:8001 --workload workload.jsonl --rate 5 --seconds 60
    ... --headless --run-file run.json      without the web page, and everything kept in one file
    ... --processes 2, or --master and --worker        the workload is divided, nothing is sent twice
    ... --web-host ADDRESS, --master-bind-host ADDRESS  else the page and the master listen on loopback only
    ... --users N       so many requests in flight at the most; of the shape closed, so many clients

Locust's own user waits for its answer before it sends again, so a slow server slows its load down and hides what it
does to everybody else. Here a user is a sender of ``load.py``: many of them serve one schedule, whatever the server
does. Response times count from the moment a request was due. The rest is Locust as it is: one request event for each
request, with candidates and bytes in its context, statistics, CSV, web page, exit code.

gRPC blocks the whole process under gevent unless it is told about it first (``init_gevent``): without, eight requests
of 0.3 s took 2.4 s, with it 0.3 s. The HTTP client is made of gevent's sockets already.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import gevent.event
import grpc.experimental.gevent
from locust import LoadTestShape, User, constant, events, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtests.load import Done, Load
from loadtests.processes import LOOPBACK
from loadtests.results import RunFileError, write_run
from loadtests.runs import finished_run
from loadtests.settings import add_arguments, settings_of
from loadtests.shapes import PlanError
from loadtests.workload import WorkloadError

grpc.experimental.gevent.init_gevent()

BEGIN = "tritonrank_begin"
"""Message of the process that knows when everybody is ready to those that send."""
REPORT = "tritonrank"
"""Our part of what a worker reports to its master."""
BEGIN_SECONDS = 1.0
"""From that message to the first request: long enough for every worker to hear of it."""
FASTEST_SPAWN = 100.0
"""Senders per second and process; Locust advises against more."""
NOTHING_ANSWERED = 1
"""Exit code when no request was answered: Locust itself counts only failures, and a load of nothing has none."""
CANNOT_RUN = 2
"""Exit code when the load cannot be made; 1 is for requests that failed."""


@dataclass
class _Process:
    """What this process knows; Locust calls back by events that carry nothing of ours."""

    environment: Environment | None = None
    load: Load | None = None
    worker_cpu_seconds: dict[str, float] = field(default_factory=dict)

    def current(self) -> Load:
        assert self.load is not None, "Locust starts a test before its users"
        return self.load

    @property
    def runner(self) -> LocalRunner | MasterRunner | WorkerRunner:
        """Locust's part of this process."""
        assert self.environment is not None, "Locust's first event brings it"
        runner = self.environment.runner
        assert isinstance(runner, LocalRunner | MasterRunner | WorkerRunner), "there is no other kind"
        return runner

    @property
    def is_headless(self) -> bool:
        """Whether Locust ends with the test; else its web page may start another."""
        assert self.environment is not None, "Locust's first event brings it"
        return bool(getattr(self.environment.parsed_options, "headless", False))


_process = _Process()


class Sender(User):
    """Sends what is due next, again and again."""

    wait_time = constant(0)

    @task
    def send(self) -> None:
        """Everything that is left in the schedule; then wait for the end, as Locust would begin a task again."""
        load = _process.current()
        load.send_all(lambda done: _fire(self.environment, load.url, done))
        gevent.event.Event().wait()


class Schedule(LoadTestShape):
    """As many senders as the plan needs, and the end when all has come back."""

    # Locust's own --users is heard (settings.py); without this it would say that it is not.
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Locust asks every second."""
        assert self.runner is not None
        load = _process.load
        if load is not None and not load.is_stopped and load.is_over:
            return None
        options = self.runner.environment.parsed_options
        assert options is not None, "Locust's command line brings them"
        senders = settings_of(options).sender_count()
        fastest = FASTEST_SPAWN * max(1, getattr(_process.runner, "worker_count", 1))
        return senders, min(float(senders), options.spawn_rate or fastest, fastest)


@events.init_command_line_parser.add_listener
def _on_parser(parser: Any) -> None:
    add_arguments(parser)
    # Locust would listen on every address: a page without a password that starts loads.
    parser.set_defaults(web_host=LOOPBACK, master_bind_host=LOOPBACK)


@events.init.add_listener
def _on_init(environment: Environment, **_: Any) -> None:
    """Refuse what cannot work before anything is sent, and listen to the other processes."""
    _process.environment = environment
    # The page shows our own fields for this, senders and clients; Locust's would begin at one user.
    Schedule.use_common_options = False
    options = environment.parsed_options
    assert options is not None, "Locust's command line brings them"
    # Where none are told Locust takes one user, who could not be told from one that was.
    options.num_users, options.spawn_rate = options.num_users or 0, options.spawn_rate or 0.0
    if environment.host:  # else the web page asks for it
        _open_load(environment)
    if not isinstance(_process.runner, MasterRunner):
        _process.runner.register_message(BEGIN, _on_begin)


@events.test_start.add_listener
def _on_test_start(environment: Environment, **_: Any) -> None:
    """A new load for every test, with the options of the web page."""
    _process.load = _open_load(environment)
    _process.worker_cpu_seconds.clear()


@events.spawning_complete.add_listener
def _on_spawning_complete(**_: Any) -> None:
    """All senders wait: agree on a moment to begin."""
    load, runner = _process.current(), _process.runner
    if isinstance(runner, WorkerRunner) or load.has_begun:
        return
    started = time.time() + BEGIN_SECONDS
    workers = [runner.client_id] if isinstance(runner, LocalRunner) else sorted(runner.clients)
    if isinstance(runner, MasterRunner):
        load.begin(started, None, len(workers))
    runner.send_message(BEGIN, {"started": started, "workers": workers})


def _on_begin(msg: Any, **_: Any) -> None:
    workers: list[str] = msg.data["workers"]
    runner = _process.runner
    if not isinstance(runner, MasterRunner) and runner.client_id in workers:  # one that came later sends nothing
        _process.current().begin(msg.data["started"], workers.index(runner.client_id), len(workers))


@events.report_to_master.add_listener
def _on_report_to_master(data: dict[str, Any], **_: Any) -> None:
    if _process.load is not None:
        data[REPORT] = _process.load.recorder.take() | {"cpu_seconds": _process.load.cpu_seconds}


@events.worker_report.add_listener
def _on_worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
    if _process.load is not None and (report := data.get(REPORT)):
        _process.worker_cpu_seconds[client_id] = report.pop("cpu_seconds")
        _process.load.recorder.put(**report)


@events.test_stop.add_listener
def _on_test_stop(**_: Any) -> None:
    if _process.load is not None:
        _process.load.stop()
        if not _process.is_headless:
            _write_run_file()


@events.quitting.add_listener
def _on_quitting(environment: Environment, **_: Any) -> None:
    """Only now the last reports of the workers are in."""
    if not _process.is_headless or isinstance(_process.runner, WorkerRunner):
        return
    if not _write_run_file():
        environment.process_exit_code = CANNOT_RUN
    elif _process.load is None or not _process.load.recorder.has_right_answers:
        environment.process_exit_code = NOTHING_ANSWERED


def _write_run_file() -> bool:
    """False where it was wanted and could not be done."""
    load = _process.load
    if load is None or not load.has_begun or not load.settings.run_file or isinstance(_process.runner, WorkerRunner):
        return True
    run = finished_run(
        load.settings,
        load.recorder,
        load.due,
        load.requests,
        url=load.url,
        machine=load.machine,
        started=load.started_epoch,
        stopped_at=load.stopped_at,
        processes=max(1, len(_process.worker_cpu_seconds)),
        cpu_seconds=load.cpu_seconds + sum(_process.worker_cpu_seconds.values()),
    )
    try:
        write_run(run, load.settings.run_file)
    except RunFileError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _open_load(environment: Environment) -> Load:
    options = environment.parsed_options
    url = environment.host or ""
    try:
        if "://" not in url:
            raise PlanError(f"--host {url!r}: expected a URL such as grpc://127.0.0.1:8001")
        return Load(settings_of(options), url)
    except (PlanError, WorkloadError) as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_RUN)


def _fire(environment: Environment, url: str, done: Done) -> None:
    outcome = done.outcome
    environment.events.request.fire(
        request_type=url.partition(":")[0],
        name=done.name,
        response_time=0.0 if outcome.kind == "unanswered" else outcome.latency_ms,
        response_length=outcome.bytes,
        response=None,
        exception=done.error,
        context={
            "number": outcome.number,
            "candidates": outcome.candidates,
            "bytes": outcome.bytes,
            "service_ms": outcome.service_ms,
            "kind": outcome.kind,
        },
    )
