"""A server that loses a part comes back by itself, and until then nothing says that it is ready.

The command is tried as users run it, on the tiny ranker; what is rare (silence, wrong scores, starts that fail) is in
``test_restarts.py``.
"""

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_server import wait_until
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.serving import check_golden_cases

# Servers of its own, ended and started again; how soon they are back is part of what is promised.
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.patient]

BACK_SECONDS = 5.0
TRUTH_SECONDS = 2.0
START_SECONDS = 60.0
HEALED_SECONDS = 1.5
QUIET_SECONDS = 4.0  # longer than it takes to notice that a golden request is not answered
PTRACE_ATTACH, PTRACE_DETACH = 16, 17


@dataclass
class ServeCommand:
    """``tritonrank serve`` as a process of its own."""

    program: "subprocess.Popen[str]"
    ready_file: Path
    temporary: Path
    repository: Path
    errors: Path
    urls: dict[str, str]

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ready_file.read_text(encoding="utf-8"))
        return found

    @property
    def keeper(self) -> psutil.Process:
        (keeper,) = psutil.Process(self.program.pid).children()
        return keeper

    @property
    def triton(self) -> psutil.Process:
        return psutil.Process(self.said["server_process"])

    def stubs(self, model: str) -> list[psutil.Process]:
        return [one for one in self.triton.children() if any(f"/{model}/" in word for word in one.cmdline())]

    def wait_until_ready(self, restarts: int, seconds: float) -> None:
        def is_ready() -> bool:
            assert self.program.poll() is None, self.errors.read_text()
            return self.ready_file.exists() and self.said["restarts"] == restarts

        wait_until(is_ready, seconds, lambda: f"not ready for the {restarts}. time: {self.errors.read_text()}")


@contextmanager
def serve_command(repository: Path, root: Path, *options: str) -> Iterator[ServeCommand]:
    ready_file, temporary, errors = root / "ready", root / "tmp", root / "errors"
    temporary.mkdir()
    ports = [argument for name in ("http", "grpc", "metrics") for argument in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "tritonrank", "serve", str(repository), *ports, "--ready-file", str(ready_file)]
    with errors.open("w") as standard_error:
        program = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=standard_error,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
    served = ServeCommand(program, ready_file, temporary, repository, errors, {})
    try:
        served.wait_until_ready(0, START_SECONDS)
        assert program.stdout is not None
        served.urls.update(program.stdout.readline().split() for _ in range(3))
        yield served
    finally:
        program.kill()
        program.communicate()
        wait_until(lambda: not list(temporary.iterdir()), 20, lambda: f"left: {list(temporary.iterdir())}")


@pytest.fixture(scope="module")
def command(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCommand]:
    root = tmp_path_factory.mktemp("supervised")
    shutil.copytree(workspace.repository, root / "repository")
    with serve_command(root / "repository", root, "--log-file", str(root / "server.log")) as served:
        yield served


@pytest.fixture
def urls(command: ServeCommand) -> dict[str, str]:
    return command.urls


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()


def end_by_request(url: str) -> None:
    """Divides by zero in there: an output that is no row of class scores."""
    texts = {"query": ["desk"], "history": ["lamp"], "items": ["shelf", "chair"]}
    inputs = [{"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data} for name, data in texts.items()]
    asked = {"inputs": inputs, "outputs": [{"name": "artifact", "parameters": {"classification": 1}}]}
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(f"{url}/v2/models/rank/infer", data=json.dumps(asked).encode(), timeout=10)


FAULTS: dict[str, Callable[[ServeCommand], None]] = {
    "the ranker": lambda served: kill(served.stubs("ranker")),
    "all stubs": lambda served: kill(served.triton.children()),
    "tritonserver": lambda served: kill([served.triton]),
    "tritonserver, asked to end": lambda served: served.triton.terminate(),
    "keeper": lambda served: kill([served.keeper]),
    "keeper and tritonserver": lambda served: kill([served.keeper, served.triton]),
    "a request that Triton 2.51 does not survive": lambda served: end_by_request(served.urls["HTTP"]),
    # The supervisor begins to remove it too, as soon as it notices.
    "run folder": lambda served: shutil.rmtree(run_folder(served), ignore_errors=True),
}


def run_folder(served: ServeCommand) -> Path:
    (folder,) = served.temporary.iterdir()
    return folder


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_is_lost_is_back_at_the_same_ports(
    command: ServeCommand, urls: dict[str, str], fault: Callable[[ServeCommand], None]
) -> None:
    restarts, folder = command.said["restarts"], run_folder(command)
    processes = [command.keeper, command.triton, *command.triton.children()]
    fault(command)
    wait_until(lambda: not command.ready_file.exists(), TRUTH_SECONDS, lambda: "still called ready")
    command.wait_until_ready(restarts + 1, BACK_SECONDS)
    check_golden_cases(command.repository, urls["gRPC"])
    check_golden_cases(command.repository, urls["HTTP"])
    assert not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not folder.exists()
    assert not list(Path("/dev/shm").glob(folder.name + "*"))
    assert f"(restart {restarts + 1})" in command.errors.read_text().splitlines()[-1]


@pytest.mark.parametrize("fault", ["tritonserver", "the ranker"])
def test_triton_itself_says_no_when_it_is_lost(command: ServeCommand, urls: dict[str, str], fault: str) -> None:
    """Not only the ready file: whoever asks Triton for its health is told, too."""
    restarts = command.said["restarts"]
    refused = threading.Event()

    def ask() -> None:
        while not refused.is_set() and command.program.poll() is None:
            try:
                urllib.request.urlopen(f"{urls['HTTP']}/v2/health/ready", timeout=1).close()
            except OSError:
                refused.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    FAULTS[fault](command)
    assert refused.wait(TRUTH_SECONDS), "health went on to say 200"
    command.wait_until_ready(restarts + 1, BACK_SECONDS)
    asking.join()


def test_the_metrics_page_and_the_ready_file_tell_the_restarts(command: ServeCommand, urls: dict[str, str]) -> None:
    restarts = command.said["restarts"]
    assert restarts > 0
    with urllib.request.urlopen(urls["metrics"]) as page:
        lines = [line for line in page.read().decode().splitlines() if line.startswith("tritonrank_server_restarts{")]
    assert [float(line.split()[-1]) for line in lines] == [restarts]
    assert time.strptime(command.said["since"], "%Y-%m-%dT%H:%M:%SZ")


def test_the_log_of_earlier_servers_is_kept(command: ServeCommand) -> None:
    log = (command.errors.parent / "server.log").read_text(errors="replace")
    assert log.count("successfully loaded 'rank'") == command.said["restarts"] + 1


@pytest.mark.parametrize("part", ["ranker", "tritonserver", "keeper"])
def test_a_part_that_is_stopped_goes_on(command: ServeCommand, urls: dict[str, str], part: str) -> None:
    said = command.said
    process = {"tritonserver": command.triton, "keeper": command.keeper}.get(part) or command.stubs(part)[0]
    process.suspend()
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED, HEALED_SECONDS, lambda: f"{part} was left stopped")
    check_golden_cases(command.repository, urls["gRPC"])
    time.sleep(1)  # Triton aborts a moment after a pause that was too long
    assert command.said == said


def test_a_part_that_does_not_stay_awake_is_replaced(command: ServeCommand) -> None:
    restarts = command.said["restarts"]
    victim = command.stubs("ranker")[0]
    ends = time.monotonic() + START_SECONDS
    with contextlib.suppress(psutil.NoSuchProcess):
        while time.monotonic() < ends:
            victim.suspend()
            time.sleep(0.02)
    command.wait_until_ready(restarts + 1, BACK_SECONDS)


def test_a_part_that_a_debugger_holds_is_left_alone(command: ServeCommand) -> None:
    said = command.said
    libc = ctypes.CDLL(None, use_errno=True)
    victim = command.stubs("ranker")[0].pid
    assert libc.ptrace(PTRACE_ATTACH, victim, None, None) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(victim, 0x40000000)  # __WALL
    try:
        time.sleep(QUIET_SECONDS)
        assert psutil.Process(victim).status() == psutil.STATUS_TRACING_STOP
        assert command.said == said
    finally:
        libc.ptrace(PTRACE_DETACH, victim, None, None)
    time.sleep(1)
    assert command.said["restarts"] == said["restarts"]


def test_nothing_is_called_ready_when_the_command_is_killed(workspace: Workspace, tmp_path: Path) -> None:
    with serve_command(workspace.repository, tmp_path) as served:
        served.program.kill()
        wait_until(lambda: not served.ready_file.exists(), TRUTH_SECONDS, lambda: "the ready file is still there")
