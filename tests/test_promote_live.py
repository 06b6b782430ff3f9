"""A running ``tritonrank serve`` follows promotions at the same ports, while clients go on to call it."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_server import wait_until
from test_supervisor import ServeCommand, serve_command
from tritonrank.artifacts import sha256_file
from tritonrank.artifacts.builds import RecordedBuild, recorded_builds, served_name
from tritonrank.artifacts.promotions import back, promote
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import check_golden_cases, golden_requests
from tritonrank_client import RankClient, RankError

pytestmark = [pytest.mark.slow, pytest.mark.long]  # servers of its own, started again and again

OUTAGE_SECONDS = 10.0
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class TwoBuilds:
    """A recipe's folder with its INT8 build, which is served, and the same ranker in FP32 beside it."""

    root: Path
    int8: RecordedBuild
    fp32: RecordedBuild


def two_builds(workspace: Workspace, tiny_recipe: Recipe, root: Path) -> TwoBuilds:
    """Two builds of a recipe in a new folder; the first is served."""
    shutil.copytree(workspace.root, root, symlinks=True)
    (int8,) = recorded_builds(root)
    promote(root, int8.name)
    quantize = tiny_recipe.quantize.model_copy(update={"method": "none"})
    run_stages(tiny_recipe.model_copy(update={"quantize": quantize}), Workspace(root))
    _, fp32 = recorded_builds(root)
    return TwoBuilds(root, int8, fp32)


@pytest.fixture(scope="module")
def built(workspace: Workspace, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TwoBuilds:
    return two_builds(workspace, tiny_recipe, tmp_path_factory.mktemp("promoted") / "tiny")


@pytest.fixture
def two(built: TwoBuilds) -> TwoBuilds:
    promote(built.root, built.int8.name)
    return built


@pytest.fixture
def command(two: TwoBuilds, tmp_path: Path) -> Iterator[ServeCommand]:
    with serve_command(two.root, tmp_path) as served:
        yield served


def artifact_of(build: RecordedBuild) -> str:
    said = json.loads((build.repository / "ranker" / "1" / "artifact.json").read_text())
    return str(said["artifact"])


@dataclass
class Calls:
    """What a client saw that keeps calling."""

    answered: list[tuple[float, str]] = field(default_factory=list)
    """when, and by which artifact"""
    failed: list[str] = field(default_factory=list)

    @property
    def longest_silence(self) -> float:
        times = [at for at, _ in self.answered]
        return max(later - earlier for earlier, later in pairwise(times))


@contextmanager
def load(url: str, build: RecordedBuild) -> Iterator[Calls]:
    """Call as fast as it goes, with the client's own retries."""
    calls, ends = Calls(), threading.Event()
    request, _ = golden_requests(build.repository)[0]

    def call() -> None:
        with RankClient(url, timeout=PATIENCE_SECONDS) as client:
            while not ends.is_set():
                try:
                    result = client.rank(query=request.query, history=request.history, items=request.items)
                    calls.answered.append((time.monotonic(), result.artifact))
                except RankError as error:
                    calls.failed.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield calls
    finally:
        ends.set()
        caller.join(PATIENCE_SECONDS)


def wait_for(calls: Calls, artifact: str, command: ServeCommand) -> None:
    wait_until(
        lambda: bool(calls.answered) and calls.answered[-1][1] == artifact,
        PATIENCE_SECONDS,
        lambda: f"{artifact} does not answer: {calls.answered[-1:]} {calls.failed[-1:]} {command.errors.read_text()}",
    )


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_promote_and_back_under_load(protocol: str, two: TwoBuilds, command: ServeCommand) -> None:
    int8, fp32 = artifact_of(two.int8), artifact_of(two.fp32)
    assert int8 != fp32
    with load(command.urls[protocol], two.int8) as calls:
        wait_for(calls, int8, command)
        promote(two.root, "newest")
        wait_for(calls, fp32, command)
        back(two.root)
        wait_for(calls, int8, command)
    changes = [one for one, other in pairwise(calls.answered) if one[1] != other[1]]
    print(f"{len(calls.answered)} answered, {len(calls.failed)} failed, silent for {calls.longest_silence:.1f} s")
    assert len(changes) == 2, "answers of two builds were mixed"
    assert not calls.failed
    assert calls.longest_silence < OUTAGE_SECONDS
    command.wait_until_ready(0, PATIENCE_SECONDS)
    check_golden_cases(two.int8.repository, command.urls["gRPC"])
    assert command.errors.read_text().count("is served at the same ports") == 2


def test_a_damaged_build_is_not_started_and_what_was_served_stays(two: TwoBuilds, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(two.root, root, symlinks=True)
    harmed = root / "builds" / two.fp32.name
    with serve_command(root, tmp_path) as served:
        said = served.said
        weights = next((harmed / "repository" / "ranker" / "1").glob("*.bin"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff\xff")
        point_by_hand(root, harmed.name)
        wait_until(lambda: weights.name in served.errors.read_text(), PATIENCE_SECONDS, lambda: "nothing was said")
        assert str(harmed) in served.errors.read_text()
        check_golden_cases(two.int8.repository, served.urls["gRPC"])
        assert served.said == said


def test_a_build_that_does_not_answer_as_it_should_gives_way_to_the_one_before(two: TwoBuilds, tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    shutil.copytree(two.root, root, symlinks=True)
    promote(root, two.int8.name)
    harmed = root / "builds" / two.fp32.name / "repository"
    spoil_golden_scores(harmed)
    with serve_command(root, tmp_path) as served:
        point_by_hand(root, two.fp32.name)
        served.wait_until_ready(1, PATIENCE_SECONDS)
        said = served.errors.read_text()
        assert f"build {two.fp32.name} did not start, what was served before is brought back" in said
        check_golden_cases(two.int8.repository, served.urls["gRPC"])
        assert served_name(root) == two.fp32.name  # nobody but the user moves the link
        promote(root, two.int8.name)
        time.sleep(2)
        assert served.said["restarts"] == 1


def test_a_build_that_was_asked_for_by_name_is_kept(two: TwoBuilds, tmp_path: Path) -> None:
    with serve_command(two.root, tmp_path, "--build", "newest") as served:
        said = served.said
        check_golden_cases(two.fp32.repository, served.urls["gRPC"])
        promote(two.root, two.fp32.name)
        back(two.root)
        time.sleep(2)
        assert served.said == said


def point_by_hand(root: Path, name: str) -> None:
    """What ``promote`` would not do, as it looks at the files first."""
    draft = root / "draft"
    draft.symlink_to(Path("builds", name))
    draft.replace(root / "served")


def spoil_golden_scores(repository: Path) -> None:
    """Other scores than the models', with hashes that fit: what only a start shows."""
    golden = repository / "golden.json"
    told: dict[str, Any] = json.loads(golden.read_text())
    told["cases"][0]["scores"][0] += 1
    manifest = json.loads((repository / "manifest.json").read_text())
    golden.unlink()
    golden.write_text(json.dumps(told))
    manifest["files"]["golden.json"] = sha256_file(golden)
    (repository / "manifest.json").unlink()
    (repository / "manifest.json").write_text(json.dumps(manifest))
