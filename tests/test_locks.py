"""One process or thread writes below a folder of artifacts; the next one waits, says for whom, and then goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from tritonrank.artifacts import locks, verify_artifact
from tritonrank.artifacts.locks import LOCK_FILE, only_writer, release, take
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.estimates import SECONDS_FILE
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe, SampleData

DEADLINE_SECONDS = 60
HOLD = """
    import sys
    from pathlib import Path
    from tritonrank.artifacts.locks import only_writer

    with only_writer(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def holder(folder: Path, *, waits: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of a folder, or waits for it, until it reads a line or is killed."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert ("waiting until it ends" in line) if waits else (line == "held\n")
            yield process
        finally:
            process.kill()


def test_a_free_folder_is_taken_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "demo"
    with only_writer(folder):
        signature = json.loads((folder / LOCK_FILE).read_text())
        assert signature["pid"] == os.getpid()
        with only_writer(folder):  # a stage inside a build
            pass
        assert (folder / LOCK_FILE).is_file()
        (folder / "dataset").touch()
    assert [path.name for path in folder.iterdir()] == ["dataset"]


@pytest.mark.parametrize("ending", ["ends", "is killed"])
def test_the_second_waits_for_the_first_and_says_so(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entered = threading.Event()

    def write() -> None:
        with only_writer(tmp_path):
            entered.set()

    with holder(tmp_path) as first:
        assert take(tmp_path, wait=False) is False
        second = threading.Thread(target=write)
        second.start()
        assert not entered.wait(1)
        assert f"process {first.pid} " in capsys.readouterr().out.replace("\n", " ")
        if ending == "ends":
            assert first.stdin is not None
            first.stdin.write("\n")
            first.stdin.flush()
        else:
            first.kill()
        assert entered.wait(DEADLINE_SECONDS)
        second.join(DEADLINE_SECONDS)
    assert list(tmp_path.iterdir()) == []


def test_who_waits_can_be_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
    with holder(tmp_path), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as second:
        assert second.stdout is not None
        line = second.stdout.readline()
        second.send_signal(signal.SIGINT)
        assert b"waiting" in line
        _, said = second.communicate(timeout=DEADLINE_SECONDS)
        assert second.returncode == -signal.SIGINT
        assert b"KeyboardInterrupt" in said
        assert take(tmp_path, wait=False) is False  # the first one still has it


def test_a_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from tritonrank.artifacts.locks import take

        take(Path(sys.argv[1]), wait=True)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.wait(DEADLINE_SECONDS)
        try:
            os.kill(child, 0)
            assert take(tmp_path, wait=False) is True
            release(tmp_path)
        finally:
            os.kill(child, 9)


def test_no_two_are_inside_at_a_time(tmp_path: Path) -> None:
    """Each process adds to a number by reading, waiting and writing it: whatever comes between is lost."""
    code = """
        import sys, time
        from pathlib import Path
        from tritonrank.artifacts import locks

        locks.POLL_SECONDS = 0.001
        folder = Path(sys.argv[1])
        for _ in range(25):
            with locks.only_writer(folder / "demo"):
                file = folder / "number"
                number = int(file.read_text())
                time.sleep(0.001)
                file.write_text(str(number + 1))
    """
    (tmp_path / "number").write_text("0")
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
    for writer in writers:
        assert writer.wait(DEADLINE_SECONDS) == 0
    assert (tmp_path / "number").read_text() == "100"
    assert list((tmp_path / "demo").iterdir()) == []


def test_threads_of_one_process_are_inside_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each adds to a number by reading, waiting and writing it: whatever comes between is lost."""
    file = tmp_path / "number"
    file.write_text("0")

    def add() -> None:
        for _ in range(25):
            with only_writer(tmp_path / "demo"), only_writer(tmp_path / "demo"):
                number = int(file.read_text())
                time.sleep(0.001)
                file.write_text(str(number + 1))

    with ThreadPoolExecutor(4) as threads:
        for ended in [threads.submit(add) for _ in range(4)]:
            ended.result(DEADLINE_SECONDS)
    assert file.read_text() == "100"
    assert list((tmp_path / "demo").iterdir()) == []
    assert "another thread of this process writes here" in capsys.readouterr().out.replace("\n", " ")


def test_a_thread_does_not_take_what_another_has_and_may_give_it_back(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        assert other.submit(take, tmp_path, wait=False).result() is True
        assert take(tmp_path, wait=False) is False
        with holder(tmp_path, waits=True) as process:  # to look did not end the process's lock
            release(tmp_path)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_where_no_lock_can_be_made_there_is_none(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.os, "open", refuse)
    with only_writer(tmp_path):
        assert take(tmp_path, wait=False) is None
    monkeypatch.undo()
    assert take(tmp_path / LOCK_FILE / "below", wait=False) is True
    release(tmp_path / LOCK_FILE / "below")
    (tmp_path / "file").touch()
    assert take(tmp_path / "file", wait=True) is None


@pytest.mark.slow
def test_two_builds_of_one_recipe_at_once_both_end_well(tmp_path: Path) -> None:
    recipe = tmp_path / "shop.yaml"
    recipe.write_text("name: shop\ndata: {source: sample, items: 400, users: 600}\n")
    command = [sys.executable, "-m", "tritonrank", "prepare", str(recipe), "--artifacts", str(tmp_path / "artifacts")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    builds = [subprocess.Popen(command, **pipes) for _ in range(2)]
    outputs = [build.communicate(timeout=2 * DEADLINE_SECONDS) for build in builds]
    assert [build.returncode for build in builds] == [0, 0], outputs
    assert sum("done in" in out for out, _ in outputs) == 1
    assert sum("up to date" in out for out, _ in outputs) == 1
    assert not any(err for _, err in outputs), outputs
    verify_artifact(tmp_path / "artifacts" / "shop" / "dataset")
    assert {path.name for path in (tmp_path / "artifacts" / "shop").iterdir()} == {"dataset", SECONDS_FILE}


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_stays(tmp_path: Path, tiny_recipe: Recipe) -> None:
    workspace = Workspace(tmp_path / "tiny")
    recipe = tiny_recipe.model_copy(update={"data": SampleData(items=100, users=20_000)})
    code = """
        import sys
        from pathlib import Path
        from tritonrank.artifacts.workspace import Workspace
        from tritonrank.pipeline.stages import run_stages
        from tritonrank.recipe import Recipe

        run_stages(Recipe.model_validate_json(sys.argv[1]), Workspace(Path(sys.argv[2])), until="prepare")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), recipe.model_dump_json(), str(workspace.root)]
    draft = workspace.root / "dataset.tmp"
    with subprocess.Popen(command) as build:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not draft.is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        build.kill()
    assert draft.is_dir()
    assert (workspace.root / LOCK_FILE).is_file()
    run_stages(tiny_recipe, workspace, until="prepare")
    assert {path.name for path in workspace.root.iterdir()} == {"dataset", SECONDS_FILE}


def test_whoever_finds_all_up_to_date_waits_for_nobody(
    tmp_path: Path, tiny_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path / "tiny")
    run_stages(tiny_recipe, workspace, until="prepare")
    built = threading.Thread(target=run_stages, args=(tiny_recipe, workspace, "prepare"), kwargs={"force": "prepare"})
    with holder(workspace.root) as other:
        capsys.readouterr()
        run_stages(tiny_recipe, workspace, until="prepare")
        assert "up to date" in capsys.readouterr().out
        built.start()
        built.join(1)
        assert built.is_alive()
        other.kill()
        built.join(DEADLINE_SECONDS)
    assert not built.is_alive()
    assert "done in" in capsys.readouterr().out
