"""How models of several versions lie beside each other, and who may ask for what: without a server."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import text_format
from made_builds import make_build
from test_gpu_config import GPU_TARGETS, INPUTS, configs_of
from tritonclient.grpc import model_config_pb2 as pb
from tritonrank.artifacts.builds import find_build, served_build
from tritonrank.artifacts.workspace import Target
from tritonrank.errors import ArtifactError, ServerError
from tritonrank.serve.triton_config import as_text
from tritonrank.serve.versions import layout
from tritonrank.serve.versions.admin_app import LONGEST_BODY, admin_app
from tritonrank.serve.versions.admin_client import AdminError, TritonAdmin
from tritonrank.serve.versions.control import SOCKET, ModelControl
from tritonrank.serve.versions.door import Door, KeyNeeded, key_of_environment
from tritonrank.serve.versions.opening import open_source, remember
from tritonrank.serve.versions.shapes import KEY_VARIABLE, NAME, Live, Version, Versions
from tritonrank.serve.versions.shelf import RefusedError

KEY = "a key of twenty-four letters"


def write_model(repository: Path, name: str, config: str, **files: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    for file, text in files.items():
        (repository / name / "1" / file.replace("_dot_", ".")).write_text(text)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of steps: an ensemble, a model in Python with a queue, and one without code."""
    folder = tmp_path / "repository"
    steps = "".join(f'step {{ model_name: "{name}" model_version: -1 }}' for name in ("tokenize", "score"))
    write_model(folder, "rank", f'platform: "ensemble"\nensemble_scheduling {{ {steps} }}')
    queue = 'parameters { key: "queue" value { string_value: "rank" } }'
    write_model(folder, "tokenize", f'backend: "python"\n{queue}', model_dot_py="import helper", helper_dot_py="")
    (folder / "tokenize" / "1" / "__pycache__").mkdir()
    write_model(folder, "score", 'backend: "onnxruntime"', model_dot_onnx="graph", weights_dot_bin="weights")
    write_model(folder, "recommend", 'backend: "python"', model_dot_py="first")
    (folder / "manifest.json").write_text("{}")
    return folder


def read(model: Path) -> pb.ModelConfig:
    return text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())


def test_models_of_a_version_name_each_other(repository: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    names = layout.names_of(repository, "b")
    assert [*names.values()] == ["score-b", "tokenize-b", "rank-b"], "what an ensemble needs is there before it"
    layout.lay_out(repository, names, models, 3)
    rank, tokenize = read(models / "rank-b"), read(models / "tokenize-b")
    assert rank.name == "rank-b"
    assert [step.model_name for step in rank.ensemble_scheduling.step] == ["tokenize-b", "score-b"]
    assert tokenize.parameters["queue"].string_value == "rank-b", "queues of two versions do not mix"
    for name in names.values():
        assert [*read(models / name).version_policy.specific.versions] == [3]
        assert (models / name / "3").exists()
        assert not (models / name / "1").exists()
        assert (models / name / "manifest.json").is_file()
    assert (models / "score-b" / "3" / "weights.bin").read_text() == "weights"
    assert not (models / "score-b" / "3" / "weights.bin").is_symlink(), "engines see plain files beside their graph"
    layout.take_away(models, names.values())
    assert not [*models.iterdir()]
    assert (repository / "score" / "1" / "weights.bin").is_file(), "what the links led to stays"


def test_nobody_writes_byte_code_beside_a_model(repository: Path, tmp_path: Path) -> None:
    """Triton loads a model anew when a file beside it is new."""
    models = tmp_path / "models"
    models.mkdir()
    layout.lay_out(repository, {"tokenize": "tokenize-b"}, models, 1)
    before = sorted(path.name for path in (models / "tokenize-b").rglob("*"))
    code = f"import sys; sys.path.insert(0, {str(models / 'tokenize-b' / '1')!r}); import helper"

    subprocess.run([sys.executable, "-I", "-c", code], check=True)
    assert sorted(path.name for path in (models / "tokenize-b").rglob("*")) == before
    assert (models / "tokenize-b" / "1" / "__pycache__").is_file()


@pytest.mark.parametrize("target", GPU_TARGETS)
@pytest.mark.parametrize("architecture", INPUTS)
def test_repositories_for_tensorrt_are_renamed_too(tmp_path: Path, target: Target, architecture: str) -> None:
    configs, models = configs_of(target, architecture), tmp_path / "models"
    models.mkdir()
    for name, config in configs.items():
        (tmp_path / "made" / name / "1").mkdir(parents=True)
        (tmp_path / "made" / name / "1" / "model.plan").write_text("plan")
        (tmp_path / "made" / name / "config.pbtxt").write_text(as_text(config))
    names = layout.names_of(tmp_path / "made", "b")
    layout.lay_out(tmp_path / "made", names, models, 2)
    for name, config in configs.items():
        expected = pb.ModelConfig()
        expected.CopyFrom(config)
        expected.name = f"{name}-b"
        for step in expected.ensemble_scheduling.step:
            step.model_name += "-b"
        if "queue" in expected.parameters:
            expected.parameters["queue"].string_value = "rank-b"
        expected.version_policy.specific.versions[:] = [2]
        assert read(models / f"{name}-b") == expected, "and nothing else is changed"
        assert (models / f"{name}-b" / "2" / "model.plan").read_text() == "plan"


def test_a_name_points_to_another_version(repository: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "rank").symlink_to(repository / "rank")
    layout.point(layout.renamed(layout.read_config(repository / "rank"), layout.names_of(repository, "b")), models)
    assert read(models / "rank").name == "rank"
    assert [step.model_name for step in read(models / "rank").ensemble_scheduling.step] == ["tokenize-b", "score-b"]
    assert read(repository / "rank").ensemble_scheduling.step[0].model_name == "tokenize", "the artifact is untouched"


def test_what_recommends_keeps_its_files_until_the_next_one_is_there(repository: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    layout.lay_out_recommend(repository, models, 1)
    (repository / "recommend" / "1" / "model.py").write_text("second")
    layout.lay_out_recommend(repository, models, 2)
    assert [*read(models / "recommend").version_policy.specific.versions] == [2]
    assert (models / "recommend" / "1" / "model.py").exists()
    layout.forget_recommend(models, 2)
    assert sorted(path.name for path in (models / "recommend").iterdir()) == ["2", "config.pbtxt"]


def test_a_config_that_is_none_names_its_file(repository: Path) -> None:
    (repository / "score" / "config.pbtxt").write_text("name: [")
    with pytest.raises(ArtifactError, match=r"score/config.pbtxt.*tritonrank build"):
        layout.read_config(repository / "score")


@pytest.mark.parametrize("name", ["B", "a_b", "-a", "a-", "", "a" * 33, "a/b", "..", "ä"])
def test_names_that_are_none(name: str) -> None:
    assert not NAME.fullmatch(name)


def test_a_source_that_depends_on_where_the_server_was_started_is_refused() -> None:
    with pytest.raises(ArtifactError, match="begins with /"):
        open_source("artifacts/shop")


def test_a_restart_serves_the_build_that_was_made_live(tmp_path: Path) -> None:
    root = tmp_path / "shop"
    earlier, newer = make_build(root, "weights"), make_build(root, "other weights")
    repositories = {name: find_build(root, name).repository for name in (earlier, newer)}
    for name in (newer, earlier):
        assert remember(root, repositories[name]) == f"build {name}"
        served = served_build(root)
        assert served is not None
        assert served.name == name
    assert remember(root, tmp_path) is None
    assert remember(None, repositories[newer]) is None
    assert served_build(root) == served


class StandInShelf:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def told(self) -> Versions:
        return Versions("a", (Version("a", "ready", "/a"),), "127.0.0.1:8001")

    def put(self, name: str, source: str) -> Version:
        self.asked.append((name, source))
        return Version(name, "waiting", source)

    def delete(self, name: str) -> Version:
        raise RefusedError(409, "live", f"version {name} is live")

    def make_live(self, name: str) -> Live:
        if name == "broken":
            raise ServerError("the server could not")
        return Live(name, "a", "build 1")


def ask(shelf: StandInShelf, *calls: Callable[[httpx.AsyncClient], Any]) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        app: Any = KeyNeeded(admin_app(shelf), KEY)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client:
            return [await call(client) for call in calls]

    return asyncio.run(all_of_them())


def test_the_api_answers_as_its_shapes_say() -> None:
    shelf = StandInShelf()
    listed, put, live = ask(
        shelf,
        lambda client: client.get("/versions"),
        lambda client: client.put("/versions/b", json={"source": "/b"}),
        lambda client: client.put("/live", json={"name": "b"}),
    )
    assert listed.json()["live"] == "a"
    assert put.status_code == 202
    assert Version(**put.json()) == Version("b", "waiting", "/b")
    assert Live(**live.json()) == Live("b", "a", "build 1")
    assert shelf.asked == [("b", "/b")]


def test_faults_have_a_code_and_a_sentence() -> None:
    refused, failed = ask(
        StandInShelf(),
        lambda client: client.delete("/versions/a"),
        lambda client: client.put("/live", json={"name": "broken"}),
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "live")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "failed")


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", KEY])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/versions"), ("PUT", "/versions/b"), ("PUT", "/live"), ("GET", "/nothing")]
)
def test_nothing_is_told_to_who_has_no_key(method: str, path: str, key: str) -> None:
    shelf = StandInShelf()
    (answer,) = ask(
        shelf, lambda client: client.request(method, path, headers={"Authorization": key}, json={"source": "/b"})
    )
    assert answer.status_code == 401
    assert "versions" not in answer.json()
    assert not shelf.asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"source": 1}',
        b'{"source": ""}',
        b'{"other": "/b"}',
        b'{"source": "/b", "more": 1}',
        b"[" * 9999,
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    shelf = StandInShelf()
    (answer,) = ask(shelf, lambda client: client.put("/versions/b", content=body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "body")
    assert not shelf.asked


def test_a_body_is_bounded() -> None:
    (answer,) = ask(StandInShelf(), lambda client: client.put("/versions/b", content=b" " * (LONGEST_BODY + 1)))
    assert answer.status_code == 413


@pytest.mark.parametrize("key", ["", "short", "ä" * 20])
def test_a_key_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ServerError, match=rf"{KEY_VARIABLE}.*export {KEY_VARIABLE}="):
        key_of_environment()


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port}.*--admin-port"):
            Door(port, flag="--admin-port")


def test_client_and_server_speak_over_a_real_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    admin, shelf = Door(0), StandInShelf()
    with admin.answering(admin_app(shelf)):  # type: ignore[arg-type]
        asked = TritonAdmin(admin.url, KEY)
        assert asked.list() == shelf.told()
        assert asked.put("b", "/b", wait_seconds=0).state == "waiting"
        assert asked.live("b").before == "a"
        with pytest.raises(AdminError, match="is live") as refused:
            asked.delete("a")
        assert (refused.value.status, refused.value.code) == (409, "live")
        with pytest.raises(AdminError) as unknown:
            TritonAdmin(admin.url, "another").list()
        assert unknown.value.status == 401
    with pytest.raises(AdminError, match="no answer"):
        asked.list()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"error": "no such file"}\n', "no such file"),
        (b"", "ended meanwhile"),
        (b"nonsense\n", "does not answer"),
    ],
)
def test_a_steward_that_cannot_says_why(tmp_path: Path, line: bytes, expected: str) -> None:
    asked: list[Any] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(json.loads(connection.makefile("rb").readline()))
                connection.sendall(line)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServerError, match=expected):
            ModelControl(tmp_path, 5.0).load("ranker-b")
        thread.join()
    assert asked == [{"do": "load", "model": "ranker-b"}]


def test_a_server_without_a_steward_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="does not answer"):
        ModelControl(tmp_path, 5.0).unload("ranker-b")
