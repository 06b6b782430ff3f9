"""Where a disk refuses, the command line says which file and why, and what was built before stays whole."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TESTS
from tritonrank import cli
from tritonrank.artifacts import verify_artifact
from tritonrank.pipeline.estimates import SECONDS_FILE

NOBODY = 65_534
SMALL_FILE_BYTES = 16_384


def prepare_in(artifacts: Path, monkeypatch: pytest.MonkeyPatch, *others: str) -> int:
    """The exit code of ``tritonrank prepare``, in this process."""
    command = ["tritonrank", "prepare", str(TESTS / "tiny.yaml"), "--artifacts", str(artifacts), *others]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return int(raised.value.code or 0)


@contextmanager
def without_rights() -> Iterator[None]:
    """Be somebody who may write nothing here; who may not change the user is that already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return a_file(folder) / "artifacts"


def a_workspace_that_is_a_file(folder: Path) -> Path:
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "tiny").write_text("mine")
    return folder / "artifacts"


def a_name_too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


def a_link_in_a_circle(folder: Path) -> Path:
    (folder / "circle").symlink_to(folder / "circle")
    return folder / "circle" / "artifacts"


@pytest.mark.parametrize(
    "make", [a_file, below_a_file, a_workspace_that_is_a_file, a_name_too_long, a_link_in_a_circle]
)
def test_a_place_where_nothing_can_be_made_is_one_message(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = make(tmp_path)  # type: ignore[operator]
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert prepare_in(artifacts, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("StorageError: ")
    assert str(artifacts) in error
    assert "--artifacts" in error or "Choose another name" in error or "links" in error
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_place_without_rights_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_in(tmp_path / "first", monkeypatch) == 0  # imports what needs rights to be read
    capsys.readouterr()
    (tmp_path / "closed").mkdir(mode=0o555)
    with without_rights():
        assert prepare_in(tmp_path / "closed", monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("StorageError: ")
    assert str(tmp_path / "closed") in error
    assert "Permission denied" in error
    assert list((tmp_path / "closed").iterdir()) == []


def test_a_working_folder_that_is_gone_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert prepare_in(Path("artifacts"), monkeypatch) == 2
    assert capsys.readouterr().err.startswith("StorageError: artifacts")
    data = ["data={source: tables, items: items.csv, events: events.csv, text_fields: [title]}"]
    assert prepare_in(Path("artifacts"), monkeypatch, "--set", *data) == 2
    assert capsys.readouterr().err.startswith(("StorageError: ", "DataError: "))


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_older_artifact_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the end of the disk: the same writers meet the same kind of error."""
    assert prepare_in(tmp_path, monkeypatch, "--set", "seed=1") == 0
    before = verify_artifact(tmp_path / "tiny" / "dataset")
    command = [sys.executable, "-m", "tritonrank", "prepare", str(TESTS / "tiny.yaml"), "--artifacts", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE_BYTES, SMALL_FILE_BYTES)),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"StorageError: {tmp_path / 'tiny' / 'dataset'}")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert verify_artifact(tmp_path / "tiny" / "dataset") == before
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {"dataset", SECONDS_FILE}


def test_a_source_that_goes_away_meanwhile_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def remove(*_: object, **__: object) -> None:
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "data" / "items.csv").read_text()

    (tmp_path / "data").mkdir()
    monkeypatch.setattr("tritonrank.pipeline.stages.run_stages", remove)
    assert prepare_in(tmp_path / "artifacts", monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"StorageError: {tmp_path / 'data' / 'items.csv'}: ")
