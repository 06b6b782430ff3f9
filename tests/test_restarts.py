"""What the supervisor of a server does in rare cases, with a golden check that says what the test wants.

Nothing here holds it to seconds, as ``test_supervisor.py`` does, so other tests may run beside these.
"""

import json
import os
import shutil
import signal
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_server import make_repository, wait_until
from test_supervisor import START_SECONDS, run_folder, serve_command
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.serve import server_watch
from tritonrank.serve import supervisor as supervisor_module
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.server_watch import WrongScoreError
from tritonrank.serve.serving import CheckedRepository
from tritonrank.serve.supervisor import SupervisedTriton

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.9])
def test_sigterm_during_a_restart_ends_everything(workspace: Workspace, tmp_path: Path, seconds: float) -> None:
    with serve_command(workspace.repository, tmp_path) as served:
        folder = run_folder(served)
        served.triton.kill()
        time.sleep(seconds)
        served.program.terminate()
        assert served.program.wait(30) in (0, 128 + signal.SIGTERM)  # the latter before it waits for signals
        assert not served.ready_file.exists()
        assert not list(served.temporary.iterdir())
        assert not list(Path("/dev/shm").glob(folder.name + "*"))


def test_the_ready_file_of_another_run_stays(workspace: Workspace, tmp_path: Path) -> None:
    """The keeper of a killed run may tidy up when the next one is ready."""
    with serve_command(workspace.repository, tmp_path) as served:
        others = served.said | {"server_process": 1}
        served.ready_file.write_text(json.dumps(others))
        served.program.kill()
        wait_until(lambda: not list(served.temporary.iterdir()), 20, lambda: "the keeper lives on")
        assert served.said == others


def test_files_that_changed_are_checked_before_a_restart(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(workspace.repository, folder)
    checked = CheckedRepository(folder)
    checked.check()
    weights = next((folder / "ranker" / "1").glob("*.bin"))
    content, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ArtifactError, match="changed since it was built"):
        checked.make()
    weights.write_bytes(content)
    checked.make()


# With one toy model


class Golden:
    """Says what the test wants: for each proof and each question the next thing to raise, then none."""

    def __init__(self, proofs: tuple[Exception | None, ...] = (), answers: tuple[Exception, ...] = ()) -> None:
        self.proofs, self.answers = list(proofs), list(answers)
        self.asked = 0

    def prove(self, server: LocalTriton, cancelled: threading.Event) -> None:
        server.check()
        if self.proofs and (fault := self.proofs.pop(0)):
            raise fault

    def ask(self, server: LocalTriton, seconds: float) -> None:
        self.asked += 1
        if self.answers:
            fault = self.answers.pop(0)
            if isinstance(fault, TimeoutError):
                time.sleep(seconds)
            raise fault


class BusyGolden(Golden):
    """Never answers, while the machine works on it."""

    def ask(self, server: LocalTriton, seconds: float) -> None:
        self.asked += 1
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            pass
        raise TimeoutError("no answer")


class SilentGolden(Golden):
    """Never answers."""

    def ask(self, server: LocalTriton, seconds: float) -> None:
        self.asked += 1
        time.sleep(seconds)
        raise TimeoutError("no answer")


class FallingGolden(SilentGolden):
    """Answers until it is told that a rank falls; is silent once another one was started."""

    def __init__(self, falls: Path) -> None:
        super().__init__()
        self.falls, self.is_to_fall = falls, False

    def ask(self, server: LocalTriton, seconds: float) -> None:
        if not self.is_to_fall:
            return
        self.falls.touch()
        (stub,) = psutil.Process(server.pid).children()
        wait_until(lambda: bool(stub.children()), START_SECONDS, lambda: "no rank was started")
        super().ask(server, seconds)


class DeadlyGolden(Golden):
    """The server ends as often as there are proofs, before they are done."""

    def prove(self, server: LocalTriton, cancelled: threading.Event) -> None:
        if self.proofs and (fault := self.proofs.pop(0)):
            os.kill(server.pid, signal.SIGKILL)
            raise fault


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("echo"), "echo")


LOADING = """
import os, subprocess
initialize_alone = TritonPythonModel.initialize

def initialize(self, args):
    initialize_alone(self, args)
    work = "import os; os.nice(19); parent = os.getppid()\\nwhile os.getppid() == parent: pass"
    subprocess.Popen([os.environ["TRITONRANK_PREFIX"] + "/bin/python3", "-c", work])

TritonPythonModel.initialize = initialize
"""
"""As a scorer whose ranks load: they work, and it waits for them."""


STARTING_AGAIN = """
import os, subprocess, threading, time
initialize_alone = TritonPythonModel.initialize

def start_when_told():
    while not os.path.exists("FALLS"):
        time.sleep(0.05)
    work = "import os, time; parent = os.getppid()\\nwhile os.getppid() == parent: time.sleep(0.1)"
    subprocess.Popen([os.environ["TRITONRANK_PREFIX"] + "/bin/python3", "-c", work])

def initialize(self, args):
    initialize_alone(self, args)
    threading.Thread(target=start_when_told, daemon=True).start()

TritonPythonModel.initialize = initialize
"""
"""As a scorer whose ranks have fallen and are started again: they wait for a disk, and it for them."""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden requests and further starts come soon."""
    monkeypatch.setattr(server_watch, "GOLDEN_SECONDS", 0.3)
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE_SECONDS", 0.01)


def supervised(repository: Path, golden: Golden, **options: Any) -> SupervisedTriton:
    return SupervisedTriton(lambda **made: LocalTriton(repository, **made), golden, options=options)


LOST: dict[str, tuple[Exception, ...]] = {
    "another score": (WrongScoreError("a golden request differs"),),
    "two failures": (ServerError("the stub is not healthy"), ServerError("the stub is not healthy")),
    # Those in which the machine was busy do not count.
    "two silences": (TimeoutError("no answer"),) * 40,
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("answers", LOST.values(), ids=LOST.keys())
def test_answers_that_say_that_it_is_lost(
    echo: Path, answers: tuple[Exception, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    golden = Golden(answers=answers)
    with supervised(echo, golden) as server:
        first = server.pid
        wait_until(lambda: server.restarts == 1, START_SECONDS, lambda: "it was not brought back")
        golden.answers.clear()
        assert server.pid != first
        asked = golden.asked
        wait_until(lambda: golden.asked > asked + 1, START_SECONDS, lambda: "nobody asks any more")
        assert server.restarts == 1
        server.check()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "(restart 1)" in line]
    assert str(answers[0]) in line


@pytest.mark.usefixtures("soon")
def test_one_failure_is_no_loss(echo: Path) -> None:
    golden = Golden(answers=(ServerError("once"),))
    with supervised(echo, golden) as server:
        wait_until(lambda: golden.asked > 4, START_SECONDS, lambda: "nobody asks")
        assert server.restarts == 0


@pytest.mark.usefixtures("soon")
def test_a_busy_server_is_left_to_its_work_but_not_for_ever(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = BusyGolden()
    monkeypatch.setattr(server_watch, "GOLDEN_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(server_watch, "BUSY_SECONDS", 6.0)
    with supervised(echo, golden) as server:
        wait_until(lambda: golden.asked > 3, START_SECONDS, lambda: "nobody asks")
        assert server.restarts == 0
        wait_until(lambda: server.restarts == 1, START_SECONDS, lambda: "it was left to it for ever")


@pytest.mark.usefixtures("soon")
def test_a_server_waits_for_its_ranks_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = make_repository(tmp_path, "echo")
    with (repository / "echo" / "1" / "model.py").open("a") as model:
        model.write(LOADING)
    golden = SilentGolden()
    monkeypatch.setattr(server_watch, "GOLDEN_DEADLINE_SECONDS", 0.3)
    with supervised(repository, golden) as server:
        wait_until(lambda: golden.asked > 3 * server_watch.MOST_MISSES, START_SECONDS, lambda: "nobody asks")
        assert server.restarts == 0


@pytest.mark.usefixtures("soon")
def test_a_server_waits_for_ranks_that_wait_for_a_disk_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, falls = make_repository(tmp_path, "echo"), tmp_path / "falls"
    with (repository / "echo" / "1" / "model.py").open("a") as model:
        model.write(STARTING_AGAIN.replace("FALLS", str(falls)))
    golden = FallingGolden(falls)
    monkeypatch.setattr(server_watch, "GOLDEN_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(server_watch, "BUSY_SECONDS", 2.0)
    with supervised(repository, golden) as server:
        golden.is_to_fall = True
        began = time.monotonic()
        wait_until(
            lambda: golden.asked > 3 * server_watch.MOST_MISSES and time.monotonic() - began > 5,
            START_SECONDS,
            lambda: "nobody asks",
        )
        assert server.restarts == 0
        monkeypatch.setattr(server_watch, "LOAD_SECONDS", 1.0)
        wait_until(lambda: server.restarts >= 1, START_SECONDS, lambda: "it waits for ever")


@pytest.mark.usefixtures("soon")
def test_starts_that_fail_are_tried_again_and_counted_anew_after_each_success(echo: Path) -> None:
    failing = [ServerError("no memory")] * (supervisor_module.FAILED_STARTS - 1)
    with supervised(echo, Golden(proofs=(None, *failing, None, *failing, None))) as server:
        for restarts in (1, 2):
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda n=restarts: server.restarts == n, START_SECONDS, lambda: "it was given up")
        server.check()


@pytest.mark.usefixtures("soon")
def test_a_server_that_is_lost_as_soon_as_it_is_up_is_not_given_up(echo: Path) -> None:
    """A request that ends it, sent again and again, may come before the golden ones."""
    ends = supervisor_module.FAILED_STARTS + 1
    with supervised(echo, DeadlyGolden(proofs=(None, *[ServerError("no answer")] * ends))) as server:
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: server.restarts == ends + 1, START_SECONDS, lambda: f"{server.restarts} restarts")
        server.check()


@pytest.mark.usefixtures("soon")
def test_a_server_that_does_not_start_any_more_is_given_up_with_the_reason(echo: Path) -> None:
    failing = [ServerError("no memory for the models")] * supervisor_module.FAILED_STARTS
    with supervised(echo, Golden(proofs=(None, *failing))) as server:
        port = server.http_url
        os.kill(server.pid, signal.SIGKILL)

        def is_given_up() -> bool:
            try:
                server.check()
            except ServerError as error:
                return "no memory for the models" in str(error)
            return False

        wait_until(is_given_up, START_SECONDS, lambda: "nobody says that it is gone")
        with pytest.raises(OSError, match=r"refused|reset"):
            urllib.request.urlopen(f"{port}/v2/health/live", timeout=2)


def test_a_first_start_that_fails_is_told_at_once(echo: Path) -> None:
    golden = Golden(proofs=(ServerError("other scores"), None))
    with pytest.raises(ServerError, match="other scores"):
        supervised(echo, golden).start()
    assert golden.proofs == [None]


def test_restarts_leave_no_descriptor_open(echo: Path) -> None:
    with supervised(echo, Golden()) as server:
        before = psutil.Process().num_fds()
        for restarts in range(1, 4):
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda n=restarts: server.restarts == n, START_SECONDS, lambda: "it was not brought back")
        wait_until(lambda: psutil.Process().num_fds() <= before, 5, lambda: "descriptors stay open")
