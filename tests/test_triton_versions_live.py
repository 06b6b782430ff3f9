"""Versions come, are made live and go in a real Triton while callers ask it, and none of them notices."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import pytest
from test_server import wait_until as wait_until_explained
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import GOLDEN_FILE, artifact_name, golden_requests, serving
from tritonrank.serve.succession import Wanted
from tritonrank.serve.supervisor import SupervisedTriton
from tritonrank.serve.versions import rehearsal
from tritonrank.serve.versions.admin_client import AdminError, TritonAdmin
from tritonrank.serve.versions.door import Door
from tritonrank.serve.versions.shapes import KEY_VARIABLE
from tritonrank_client import RankClient, RankError, Retry

pytestmark = pytest.mark.slow

KEY = "a key of twenty-four letters"
PATIENCE_SECONDS = 60.0
SHARED_MEMORY = Path("/dev/shm")
WHOLE_LOG = 1_000_000


def wait_until(condition: Callable[[], bool]) -> None:
    wait_until_explained(condition, PATIENCE_SECONDS, lambda: "it did not come about in time")


@dataclass
class Followed:
    """Something is promoted when a test says so."""

    seconds: float = 0.1
    wanted: Wanted | None = None

    def now(self) -> Wanted | None:
        return self.wanted


def words_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):  # it ends while we look
        return process.cmdline()
    return []


@dataclass
class Running:
    server: SupervisedTriton
    admin: TritonAdmin
    first: str
    followed: Followed

    @property
    def triton(self) -> psutil.Process:
        return psutil.Process(self.server.pid)

    def stubs(self, model: str) -> list[psutil.Process]:
        return [one for one in self.triton.children() if any(f"/{model}/" in word for word in words_of(one))]

    def artifact(self, model: str) -> str:
        with RankClient(self.server.http_url, model=model, timeout=PATIENCE_SECONDS) as client:
            return client.rank(query="q", history=["a"], items=["b", "c"]).artifact

    def states(self) -> dict[str, str]:
        return {version.name: version.state for version in self.admin.list().versions}

    def log(self) -> str:
        return self.server.server.log_tail(WHOLE_LOG)

    def left(self) -> list[str]:
        """What a version could leave behind: models, processes, shared memory."""
        models = [path.name for path in (self.server.server.run_folder / "models").iterdir() if path.is_dir()]
        stubs = [word for one in self.triton.children() for word in words_of(one) if word.endswith("model.py")]
        prefix = self.server.server.run_folder.name
        regions = ["shared memory" for path in SHARED_MEMORY.glob(f"{prefix}*")]
        return sorted([*models, *stubs, *regions])


@pytest.fixture(scope="module")
def running(workspace: Workspace) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        admin, followed = Door(0), Followed()
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        with serving(workspace.repository, followed=followed, admin=admin, **ports) as server:
            yield Running(server, TritonAdmin(admin.url, KEY), artifact_name(workspace.repository), followed)


@pytest.fixture
def alone(running: Running) -> Iterator[Running]:
    """With the version that it started with, before and after."""
    yield running
    running.followed.wanted = None
    if running.admin.list().live != running.first:
        running.admin.live(running.first)
    for name in running.states():
        if name != running.first:
            running.admin.delete(name)
    assert running.states() == {running.first: "ready"}


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The repositories that were served by themselves first."""
    begun: list[Path] = []

    class Counted(LocalTriton):
        def start(self) -> Self:
            begun.append(self.repository)
            return super().start()

    monkeypatch.setattr(rehearsal, "LocalTriton", Counted)
    return begun


@dataclass
class Callers:
    """What callers of ``rank`` got."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def answered(self, artifact: str) -> Callable[[], bool]:
        before = self.answers[artifact]
        return lambda: self.answers[artifact] > before + 5


@contextmanager
def calling(running: Running, repository: Path) -> Iterator[Callers]:
    """Over both protocols, all the time."""
    callers, stop = Callers(), threading.Event()
    request, _ = golden_requests(repository)[0]

    def call(url: str) -> None:
        with RankClient(url, timeout=PATIENCE_SECONDS, retry=Retry(attempts=1)) as client:
            while not stop.is_set():
                try:
                    answer = client.rank(query=request.query, history=request.history, items=request.items[:8])
                    callers.answers[answer.artifact] += 1
                except RankError as error:
                    callers.failures.append(str(error))
                time.sleep(0.005)

    threads = [threading.Thread(target=call, args=(url,)) for url in (running.server.http_url, running.server.grpc_url)]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_version_comes_is_made_live_and_goes_while_callers_ask(
    alone: Running, workspace: Workspace, joint_workspace: Workspace
) -> None:
    other = artifact_name(joint_workspace.repository)
    before = alone.left()
    with calling(alone, workspace.repository) as callers:
        version = alone.admin.put("b", str(joint_workspace.root))
        assert version.is_ready
        assert (version.artifact, version.model) == (other, "rank-b")
        assert version.golden == str(joint_workspace.repository / GOLDEN_FILE)
        assert version.resident_bytes > 10_000_000
        assert alone.artifact("rank-b") == other
        assert alone.artifact("rank") == alone.artifact(f"rank-{alone.first}") == alone.first
        assert set(callers.answers) == {alone.first}, "nobody is given a version that is not live"

        assert alone.admin.live("b").before == alone.first
        wait_until(callers.answered(other))
        assert alone.artifact("rank") == other
        with pytest.raises(AdminError) as refused:
            alone.admin.delete("b")
        assert refused.value.code == "live"

        alone.admin.live(alone.first)
        wait_until(callers.answered(alone.first))
        alone.admin.delete("b")
    assert not callers.failures
    assert alone.left() == before
    assert alone.server.restarts == 0


def test_a_version_that_is_not_as_it_should_be_is_never_served(
    alone: Running, workspace: Workspace, tmp_path: Path
) -> None:
    before = alone.left()
    damaged = tmp_path / "damaged"
    shutil.copytree(workspace.repository, damaged)
    with (damaged / "ranker" / "1" / "artifact.json").open("a") as file:
        file.write(" ")
    with calling(alone, workspace.repository) as callers:
        for source, reason in (
            (damaged, r"artifact\.json"),
            (tmp_path / "nowhere", "no such file or folder"),
        ):
            with pytest.raises(AdminError, match=reason) as failed:
                alone.admin.put("bad", str(source))
            assert failed.value.code == "failed"
            assert alone.states()["bad"] == "failed"
            with pytest.raises(AdminError, match="not ready"):
                alone.admin.live("bad")
        assert alone.admin.put("bad", str(workspace.repository)).is_ready, "after a failure it is another try"
        alone.admin.delete("bad")
    assert not callers.failures
    assert alone.left() == before


def test_wrong_scores_and_code_that_fails_are_found_before_anybody_is_answered(
    alone: Running, workspace: Workspace, tmp_path: Path
) -> None:
    before = alone.left()
    with calling(alone, workspace.repository) as callers:
        for name, damage, reason in (
            ("wrong", wrong_scores, "golden request 0 differs"),
            ("raises", raises_at_start, "model ranker failed to load: .*planted fault"),
        ):
            source = tmp_path / name
            shutil.copytree(workspace.repository, source)
            damage(source)
            hash_again(source)
            with pytest.raises(AdminError, match=reason):
                alone.admin.put(name, str(source))
    assert not callers.failures
    assert set(callers.answers) == {alone.first}
    assert alone.left() == before
    for model in ("ranker-wrong", "ranker-raises"):
        assert model not in alone.log(), "a load that fails may end what loads, and with it the server"


def wrong_scores(repository: Path) -> None:
    golden = json.loads((repository / GOLDEN_FILE).read_text())
    golden["cases"][0]["scores"].reverse()
    (repository / GOLDEN_FILE).write_text(json.dumps(golden))


def raises_at_start(repository: Path) -> None:
    model = repository / "ranker" / "1" / "model.py"
    model.write_text(model.read_text() + "\n\ndef initialize(self, args):\n    raise ValueError('planted fault')\n\n\n")
    with model.open("a") as code:
        code.write("TritonPythonModel.initialize = initialize\n")


def hash_again(repository: Path) -> None:
    """Let the manifest say what the files are now."""
    manifest = json.loads((repository / "manifest.json").read_text())
    manifest["files"] = {
        name: hashlib.sha256((repository / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    (repository / "manifest.json").write_text(json.dumps(manifest))


def test_a_version_that_loses_its_process_comes_back_and_a_server_that_is_lost_brings_all_back(
    alone: Running, joint_workspace: Workspace, rehearsed: list[Path]
) -> None:
    other = artifact_name(joint_workspace.repository)
    alone.admin.put("b", str(joint_workspace.repository))
    assert "ranker-b" in alone.log()
    (stub,) = alone.stubs("ranker-b")
    stub.kill()
    wait_until(lambda: alone.stubs("ranker-b") not in ([], [stub]) and alone.states()["b"] == "ready")
    assert alone.artifact("rank-b") == other
    assert alone.server.restarts == 0, "what is live was not touched"

    alone.admin.live("b")
    os.kill(alone.server.pid, signal.SIGKILL)
    wait_until(lambda: alone.server.restarts == 1 and set(alone.states().values()) == {"ready"})
    assert alone.admin.list().live == "b"
    assert alone.artifact("rank") == other, "what was live is live"
    assert alone.artifact(f"rank-{alone.first}") == alone.first
    assert rehearsed == [joint_workspace.repository], "what was served once is not tried again"


def test_what_is_promoted_takes_over_without_a_gap(
    alone: Running, workspace: Workspace, joint_workspace: Workspace
) -> None:
    other = artifact_name(joint_workspace.repository)
    with calling(alone, workspace.repository) as callers:
        alone.followed.wanted = Wanted("the build of a test", joint_workspace.repository)
        wait_until(callers.answered(other))
        wait_until(lambda: alone.states() == {other: "ready"})
        alone.followed.wanted = Wanted("the build before", workspace.repository)
        wait_until(callers.answered(alone.first))
    assert not callers.failures
    wait_until(lambda: alone.states() == {alone.first: "ready"})


def test_versions_that_come_and_go_leave_nothing_behind(alone: Running, workspace: Workspace) -> None:
    """A hundred by hand: docs/rollout.md."""
    alone.admin.put("b", str(workspace.repository))
    alone.admin.delete("b")
    left, files, threads = alone.left(), alone.triton.num_fds(), alone.triton.num_threads()
    memory = alone.triton.memory_info().rss
    with calling(alone, workspace.repository) as callers:
        for _ in range(5):
            alone.admin.put("b", str(workspace.repository))
            alone.admin.delete("b")
    assert not callers.failures
    assert alone.left() == left
    assert alone.triton.num_threads() <= threads + 8
    assert alone.triton.num_fds() <= files + 16, "connections of the callers are among them"
    assert alone.triton.memory_info().rss < memory + 30_000_000
