"""Where a server lives, whatever the user's folders are called, and what of the repository it sees."""

import os
import py_compile
import shutil
import stat
import tempfile
from importlib import util
from pathlib import Path

import pytest
from test_server import make_repository
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.serve import triton_wheel
from tritonrank.serve.run_folder import LONGEST_PARENT, link_repository, make_run_folder
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.serving import serving
from tritonrank.serve.triton_wheel import interpreter_environment
from tritonrank_client import RankClient

pytestmark = pytest.mark.slow  # a server of its own for each kind of folder

ODD_NAMES = {
    "blank": b"with space",
    "quotes": b'it\'s "here"',
    "accents": "été 電影".encode(),
    "signs": b"100%;a:b,c=d&e|f$HOME`id`",
    "line break": b"two\nlines",
    "no text": b"\xff\xfe",
    "long": b"/".join([b"n" * 200] * 3),
}


@pytest.fixture(params=ODD_NAMES.values(), ids=ODD_NAMES.keys())
def odd_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(request.param)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "odd_folder",
    [
        pytest.param(odd, id=name, marks=[] if name == "quotes" else [pytest.mark.slow])
        for name, odd in ODD_NAMES.items()
    ],
    indirect=True,
)
def test_a_repository_of_any_name_is_served(workspace: Workspace, odd_folder: Path) -> None:
    shutil.copytree(workspace.repository, odd_folder / "repository")
    with serving(odd_folder) as server, RankClient(server.http_url) as client:
        assert client.rank(query="desk", items=["lamp", "shelf"]).ranking


def test_the_run_folder_is_plain_whatever_tmpdir_is_called(odd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(odd_folder))
    folder = make_run_folder("tritonrank-test-", holds_programs=True)
    try:
        assert not folder.is_relative_to(odd_folder)
        assert str(folder).isascii()
        assert len(str(folder.parent)) <= LONGEST_PARENT
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        folder.rmdir()


def test_no_place_for_a_run_folder_is_told_with_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = tmp_path / "a file"
    taken.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    monkeypatch.setattr("tritonrank.serve.run_folder.OTHER_PLACES", (taken,))
    with pytest.raises(ServerError, match=r"absent: (.|\n)*a file: (.|\n)*TMPDIR="):
        make_run_folder("tritonrank-test-", holds_programs=True)


def test_a_server_sees_the_repository_without_byte_code(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name in ("score/1/model.py", "score/1/__pycache__/model.cpython-311.pyc", "engine/1/model.plan", "golden.json"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(name)
    (repository / "rank" / "1").mkdir(parents=True)
    link_repository(repository, tmp_path / "seen")
    found = {str(path.relative_to(tmp_path / "seen")) for path in (tmp_path / "seen").rglob("*")}
    assert found == {"score", "score/1", "score/1/model.py", "engine", "golden.json", "rank"}
    assert (tmp_path / "seen" / "engine").is_symlink(), "an engine that reads its weights itself sees plain files"
    assert (tmp_path / "seen" / "engine" / "1" / "model.plan").read_text() == "engine/1/model.plan"
    assert (tmp_path / "seen" / "rank" / "1").is_dir()


def test_byte_code_beside_the_sources_is_not_run(workspace: Workspace, tmp_path: Path) -> None:
    """Python would take it without a look at the source, as it says that it needs no check."""
    folder, ran = tmp_path / "repository", tmp_path / "ran"
    shutil.copytree(workspace.repository, folder)
    for source in (folder / "ranker" / "1").rglob("*.py"):
        evil = tmp_path / source.name
        evil.write_text(f"open({str(ran)!r}, 'a').write(__name__)\n")
        cached = Path(util.cache_from_source(str(source)))
        cached.parent.mkdir(exist_ok=True)
        py_compile.compile(
            str(evil), cfile=str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    with serving(folder):
        pass
    assert not ran.exists(), ran.read_text()


def test_modules_in_the_users_folder_are_not_taken_for_the_servers(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those where the command is typed nor those on PYTHONPATH."""
    ran, here, path = tmp_path / "ran", tmp_path / "here", tmp_path / "path"
    for folder in (here, path):
        folder.mkdir()
        for name in ("tritonrank_runtime", "text", "engine", "numpy", "sitecustomize", "usercustomize"):
            (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write(__file__)\nraise SystemExit(1)\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(path))
    monkeypatch.setenv("PYTHONSTARTUP", str(path / "text.py"))
    with LocalTriton(workspace.repository):
        pass
    assert not ran.exists(), ran.read_text()


def plant_link(repository: Path) -> str:
    weights = next((repository / "ranker" / "1").glob("*.bin"))
    elsewhere = repository.parent / weights.name
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    return f"ranker/1/{weights.name}: a link"


def plant_folder(repository: Path) -> str:
    (repository / "second").mkdir()
    return "second: a folder"


def plant_byte_code_folder(repository: Path) -> str:
    (repository / "__pycache__").mkdir()
    return "__pycache__: a folder"


def plant_pipe(repository: Path) -> str:
    os.mkfifo(repository / "rank" / "1" / "pipe")
    return "rank/1/pipe: no plain file"


@pytest.mark.parametrize("plant", [plant_link, plant_folder, plant_byte_code_folder, plant_pipe])
def test_what_hashes_do_not_show_is_refused_by_name(workspace: Workspace, tmp_path: Path, plant) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(workspace.repository, repository)
    (repository / "rank" / "1").mkdir(exist_ok=True)
    expected = plant(repository)
    with pytest.raises(ArtifactError, match=expected), serving(repository):
        pytest.fail("it was served")


def test_files_that_cannot_be_read_are_named(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(workspace.repository, repository)
    usual_open, refused = Path.open, next((repository / "ranker" / "1").glob("*.bin"))

    def open_as_another_user(path: Path, *arguments, **options):
        if path == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return usual_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_as_another_user)
    with pytest.raises(ArtifactError, match=rf"{refused.name}.*Permission denied"), serving(repository):
        pytest.fail("it was served")


def test_the_stub_is_our_own_to_make_executable(tmp_path: Path) -> None:
    """Triton does so when it starts, and only a file's owner may: the wheel may belong to root."""
    triton_wheel.make_backend_folder(triton_wheel.find_triton_wheel(), tmp_path / "backends")
    stub = tmp_path / "backends" / "python" / "triton_python_backend_stub"
    assert not stub.is_symlink()
    assert stub.stat().st_uid == os.geteuid()
    assert os.access(stub, os.X_OK)


def test_what_we_start_does_not_call_home(tmp_path: Path) -> None:
    environment = interpreter_environment({"PATH": "/usr/bin", "ORT_DISABLE_TELEMETRY": "0"}, tmp_path)
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert environment["TMPDIR"] == str(tmp_path)


def test_a_proxy_in_the_environment_is_not_used_for_loopback(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(workspace.repository):
        pass


def test_the_models_run_in_an_empty_working_folder(tmp_path: Path) -> None:
    with LocalTriton(make_repository(tmp_path, "echo")) as server:
        for part in server.parts:
            if part.name.startswith("the stub"):
                assert Path(f"/proc/{part.pid}/cwd").readlink() == server.run_folder
        assert not list(server.run_folder.glob("*.py"))
