"""What serves imports nothing that builds: the verbs, their modules and a real server work without it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from blocked import BUILDERS, without
from tritonrank.artifacts.workspace import Workspace
from tritonrank_client import RankClient, Retry

BUILD = Path(__file__).parents[1] / "build" / "tritonrank"
BUILDING = {"serve.assemble", "serve.gpu_config", "serve.live", "serve.reference", "gpu_check.graphs", "gpu_check.pack"}
"""Modules of the two rooms that make repositories and packs."""
SERVING = [
    name
    for room in ("serve", "gpu_check", "cli")
    for path in sorted((BUILD / room).glob("*.py"))
    if (name := f"{room}.{path.stem}".removesuffix(".__init__")) not in BUILDING
]
READY_SECONDS = 120


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return without(tmp_path / "blocked", BUILDERS)


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """For the command line: typer needs pydantic itself, and so brings it."""
    return without(tmp_path / "blocked in a shell", BUILDERS - {"pydantic"})


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_the_blocker_blocks(environment: dict[str, str]) -> None:
    for name in ("pydantic", "torch.nn", "yaml"):
        assert f"No module named '{name.partition('.')[0]}" in run(environment, "-c", f"import {name}").stderr


def test_modules_that_serve_are_imported_without_what_builds(environment: dict[str, str]) -> None:
    assert len(SERVING) > 20
    code = "; ".join(f"import tritonrank.{name}" for name in SERVING)
    done = run(environment, "-c", code)
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.parametrize("command", [["--help"], ["serve", "--help"], ["gpu-check", "--help"], ["workload", "--help"]])
def test_the_command_line_explains_itself(command: list[str], shell: dict[str, str]) -> None:
    done = run(shell, "-m", "tritonrank", *command)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "Usage" in done.stdout


def test_a_verb_that_builds_says_what_to_install(shell: dict[str, str]) -> None:
    done = run(shell, "-m", "tritonrank", "build", "demo")
    assert done.returncode == 1
    assert re.search(r"tritonrank: (yaml|pydantic) is not installed\..*pip install 'tritonrank\[build", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_repository_is_served(workspace: Workspace, shell: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "served.txt"
    command = [sys.executable, "-u", "-m", "tritonrank", "serve", str(workspace.root)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=shell)
    try:
        url = wait_for_url(log, server)
        with RankClient(url, timeout=30, retry=Retry(attempts=5)) as client:
            assert len(client.rank(query="desk", items=["a desk", "a chair"]).ranking) == 2
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130, -signal.SIGINT), log.read_text()[-2_000:]


def wait_for_url(log: Path, server: "subprocess.Popen[bytes]") -> str:
    """The gRPC address, once ``tritonrank serve`` has checked its golden requests and says it."""
    for _ in range(READY_SECONDS * 10):
        if found := re.search(r"^gRPC\s+(\S+)", log.read_text(), flags=re.M):
            return found.group(1)
        try:
            server.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"not ready:\n{log.read_text()[-2_000:]}")
