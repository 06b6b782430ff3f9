"""`tritonrank_client.open` of a folder: what the server answers, in the process that asks."""

import asyncio
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonrank_client
from conftest import Served, set_parameters
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.requests import Request
from tritonrank_client import (
    NO_TEXT_SCORE,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RankClient,
    RankError,
    Retry,
    ServerFault,
)

AWKWARD = [
    "oak desk",
    "",
    {"title": "Brass lamp", "genres": ["light", "metal"]},
    '{"title": "a text that looks like fields"}',
    " \t",
    {"unknown": "field"},
    "oak desk",
    "x" * 5_000,
    "漢字 and Ümläute",
]


@pytest.fixture(scope="module")
def local(workspace: Workspace) -> RankClient:
    return tritonrank_client.open(workspace.root)


def test_a_folder_answers_as_the_server_does(served: Served, held_out: list[Request], local: RankClient) -> None:
    with RankClient(served.urls["grpc"]) as remote:
        for request in held_out[:20]:
            asked = {"query": request.query, "history": request.history, "items": request.items}
            there, here = remote.rank(**asked), local.rank(**asked)
            assert here.indices == there.indices
            assert here.artifact == there.artifact
            np.testing.assert_allclose(here.scores, there.scores, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3},
        {"item_ids": [1, 2, 3, "1", "e", "f", 1, 8, 9]},
        {"want": ["item_tokens", "truncated", "context_tokens"]},
        {"want": ["item_tokens", "truncated"], "max_item_tokens": 3},
        {"want": ["item_tokens", "truncated"], "max_item_tokens": 3, "truncate_left": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["rank", "rank_joint"])
def test_awkward_requests_too(served: Served, model: str, options: dict[str, object]) -> None:
    asked = dict(query="a desk", history=["lamp", {"title": "chair"}, ""], items=AWKWARD, **options)
    folder = served.workspace if model == "rank" else served.joint_workspace
    with RankClient(served.urls["grpc"], model=model) as remote, tritonrank_client.open(folder.repository) as here:
        expected, found = remote.rank(**asked), here.rank(**asked)  # type: ignore[arg-type]
    assert found.indices == expected.indices
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    for detail in ("item_tokens", "truncated", "context_tokens"):
        assert getattr(found, detail) == getattr(expected, detail)
    assert [place.has_text for place in found.ranking] == [place.has_text for place in expected.ranking]


def test_nothing_but_items_without_text(local: RankClient) -> None:
    result = local.rank(query="desk", items=["", " "])
    assert result.scores == (NO_TEXT_SCORE, NO_TEXT_SCORE)
    assert result.indices == (0, 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"items": ["a"] * 2_000},
        {"items": ["a", "b" * 100_000]},
        {"items": [{"title": {"nested": 1}}]},
        {"items": ["a"], "history": ["h"] * 2_000},
    ],
    ids=["candidates", "bytes", "fields", "history"],
)
def test_what_the_server_refuses_is_refused(served: Served, local: RankClient, asked: dict[str, object]) -> None:
    with RankClient(served.urls["grpc"]) as remote:
        with pytest.raises(InvalidRequest) as there:
            remote.rank(**asked)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest) as here:
            local.rank(**asked)  # type: ignore[arg-type]
    reason = str(here.value).partition(": ")[2].partition(". Mend")[0]
    assert reason
    assert reason in str(there.value)


def test_what_it_says_of_itself(served: Served, local: RankClient) -> None:
    with RankClient(served.urls["grpc"]) as remote:
        there, here = remote.model_info(), local.model_info()
    assert local.health()
    assert (here.name, here.versions, here.platform) == (there.name, there.versions, there.platform)
    assert set(here.inputs) == set(there.inputs)
    assert set(here.outputs) == set(there.outputs)
    assert here.config["parameters"] == there.config["parameters"]


def test_the_folder_of_one_stage(workspace: Workspace, local: RankClient) -> None:
    """Before it is assembled: by the installed runtime, with the same texts and graph."""
    with tritonrank_client.open(workspace.int8) as stage:
        found = stage.rank(query="desk", items=["oak desk", "lamp"])
    expected = local.rank(query="desk", items=["oak desk", "lamp"])
    assert (found.scores, found.artifact) == (expected.scores, expected.artifact)


def test_threads_get_their_own_answers(local: RankClient, held_out: list[Request]) -> None:
    requests = held_out[:12] * 3
    alone = [local.rank(query=one.query, history=one.history, items=one.items).scores for one in requests]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(
            lambda one: local.rank(query=one.query, history=one.history, items=one.items, timeout=60).scores, requests
        )
        assert list(together) == alone


def test_the_asyncio_client_too(workspace: Workspace, local: RankClient) -> None:
    items = ["oak desk", "brass lamp", "chair"]

    async def ask() -> list[tuple[float, ...]]:
        async with await tritonrank_client.open_async(workspace.root) as client:
            assert await client.health()
            results = await asyncio.gather(*(client.rank(query=str(n), items=items) for n in range(8)))
            return [result.scores for result in results]

    assert asyncio.run(ask()) == [local.rank(query=str(n), items=items).scores for n in range(8)]


def changed_copy(workspace: Workspace, folder: Path, **parameters: str) -> Path:
    """A repository with other limits, which its manifest knows."""
    shutil.copytree(workspace.repository, folder)
    set_parameters(folder / "ranker", **parameters)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("ranker/config.pbtxt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_time_that_runs_out(workspace: Workspace, tmp_path: Path, local: RankClient) -> None:
    items = [f"desk number {n} with a long name of its own" for n in range(1_000)]
    with pytest.raises(DeadlineExceeded):
        local.rank(items=items, timeout=0.001)
    short = changed_copy(workspace, tmp_path / "short", deadline_us="1000")
    with tritonrank_client.open(short) as client, pytest.raises(DeadlineExceeded, match="deadline_ms"):
        client.rank(items=items, timeout=30)
    assert local.rank(items=["desk"]).attempts == 1


def test_no_more_wait_than_the_queue_holds(workspace: Workspace, tmp_path: Path) -> None:
    items = [f"desk number {n} with a long name of its own" for n in range(1_000)]
    folder = changed_copy(workspace, tmp_path / "narrow", queue_requests="1", deadline_us="60000000")
    failures: list[RankError] = []
    with tritonrank_client.open(folder, retry=Retry(attempts=1), timeout=60, threads=1) as client:

        def ask(number: int) -> None:
            try:
                client.rank(items=[f"{number} {item}" for item in items])
            except RankError as error:
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures
    assert {type(failure) for failure in failures} == {Overloaded}


def test_a_forked_child_opens_it_again(local: RankClient) -> None:
    expected = local.rank(query="desk", items=["oak desk", "lamp"]).scores
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # nothing of pytest's may run here
        try:
            found = local.rank(query="desk", items=["oak desk", "lamp"], timeout=60).scores
            os.write(writer, b"same" if found == expected else repr(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1_000) == b"same"
    os.waitpid(child, 0)


def test_two_releases_in_one_process(workspace: Workspace, tmp_path: Path, local: RankClient) -> None:
    """Each artifact ranks by its own copy, and what the process imports is what it was."""
    other = changed_copy(workspace, tmp_path / "other", queue_requests="8")
    name = "ranker/1/tritonrank_runtime/selection.py"
    source = (other / name).read_text()
    (other / name).write_text(source.replace("np.argsort(-scores", "np.argsort(scores"))
    assert (other / name).read_text() != source
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"].pop(name)
    (other / "manifest.json").write_text(json.dumps(manifest))
    before = {name: module for name, module in sys.modules.items() if name.startswith("tritonrank_runtime")}
    items = ["oak desk", "brass lamp", "garden chair"]
    asked = {"query": "desk", "items": items}
    with tritonrank_client.open(workspace.int8) as installed, tritonrank_client.open(other) as reversed_order:
        with pytest.raises(ServerFault, match="highest first"):
            reversed_order.rank(**asked)  # type: ignore[arg-type]
        assert installed.rank(**asked).indices == local.rank(**asked).indices  # type: ignore[arg-type]
    assert local.rank(**asked).scores == tuple(sorted(local.rank(**asked).scores, reverse=True))  # type: ignore[arg-type]
    after = {name: module for name, module in sys.modules.items() if name.startswith("tritonrank_runtime")}
    assert all(after[name] is module for name, module in before.items())


def test_nothing_but_the_runtime_can_be_imported_from_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    folder = changed_copy(workspace, tmp_path / "strange", queue_requests="8")
    trap = "raise SystemExit('ran what the hash check does not know')\n"
    for name in ("onnxruntime", "tokenizers", "json"):
        (folder / "ranker" / "1" / f"{name}.py").write_text(trap)
    runtime = folder / "ranker" / "1" / "tritonrank_runtime"
    source = runtime / "selection.py"
    compiled = Path(importlib.util.cache_from_source(str(source)))
    compiled.parent.mkdir()
    (tmp_path / "trap.py").write_text(trap)
    py_compile.compile(
        str(tmp_path / "trap.py"), str(compiled), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    code = "import sys, tritonrank_client; print(tritonrank_client.open(sys.argv[1]).rank(items=['desk']).indices)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout == "(0,)\n", done.stderr


def test_its_own_runtime_and_nothing_of_ours(workspace: Workspace) -> None:
    """In a process of its own: the copy beside the model is what ranks, it leaves no trace, and torch is not loaded."""
    code = (
        "import sys, tritonrank_client\n"
        "client = tritonrank_client.open(sys.argv[1])\n"
        "print(client.rank(items=['desk', 'lamp']).indices)\n"
        "found = [n for n in sys.modules if n.split('.')[0] in ('tritonrank', 'tritonrank_runtime', 'torch')]\n"
        "assert not found, found\n"
        "import tritonrank_runtime\n"
    )
    clients = str(Path(tritonrank_client.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": clients}
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)], capture_output=True, text=True, env=environment, check=False
    )
    assert "(" in done.stdout, done.stderr
    assert not list(workspace.repository.rglob("__pycache__"))


def test_the_command_line_ranks_with_a_folder(workspace: Workspace, local: RankClient) -> None:
    command = [sys.executable, "-m", "tritonrank_client.cli", "rank", "--url", workspace.root.as_uri()]
    command += ["--items", "-", "--query", "desk", "--json"]
    done = subprocess.run(command, input="oak desk\nlamp\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [place["score"] for place in json.loads(done.stdout)["ranking"]]
    assert found == pytest.approx(local.rank(query="desk", items=["oak desk", "lamp"]).scores, abs=1e-5)


def test_a_package_that_is_missing_is_named(workspace: Workspace) -> None:
    code = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "import tritonrank_client\n"
        "try:\n"
        "    tritonrank_client.open(sys.argv[1])\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)], capture_output=True, text=True, check=False
    )
    assert "onnxruntime" in done.stdout, done.stderr
    assert "pip install" in done.stdout


@pytest.mark.parametrize("case", ["nothing", "empty", "dataset", "changed", "older"])
def test_folders_that_cannot_rank(workspace: Workspace, tmp_path: Path, case: str) -> None:
    folder, expected = tmp_path / case, "tritonrank build"
    if case == "empty":
        folder.mkdir()
    elif case == "nothing":
        expected = "no such folder"
    elif case == "dataset":
        folder, expected = workspace.dataset, "graph"
    else:
        shutil.copytree(workspace.repository, folder)
        if case == "changed":
            rules = folder / "ranker" / "1" / "text.json"
            rules.write_text(rules.read_text() + " ")
            expected = "text.json"
        else:
            manifest = json.loads((folder / "manifest.json").read_text())
            entry = "ranker/1/tritonrank_runtime/in_process.py"
            (folder / entry).unlink()
            manifest["files"].pop(entry)
            (folder / "manifest.json").write_text(json.dumps(manifest))
            expected = "assemble"
    with pytest.raises(ValueError, match=expected):
        tritonrank_client.open(folder)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"headers": {"a": "b"}}, "headers"), ({"model_version": "1"}, "model_version"), ({"threads": -1}, "threads")],
)
def test_arguments_that_say_nothing_to_a_folder(workspace: Workspace, options: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        tritonrank_client.open(workspace.root, **options)  # type: ignore[arg-type]


def test_closed_is_closed(workspace: Workspace) -> None:
    client = tritonrank_client.open(workspace.root)
    client.close()
    with pytest.raises(RuntimeError):
        client.rank(items=["desk"])


def test_an_abandoned_task_stops_the_work(workspace: Workspace, tmp_path: Path) -> None:
    folder = changed_copy(workspace, tmp_path / "patient", deadline_us="60000000")
    items = [f"desk number {n} with a long name of its own, and then some" for n in range(1_000)]

    async def ask() -> float:
        async with await tritonrank_client.open_async(folder, timeout=60, threads=1) as client:
            await client.rank(items=items[:10])
            started = time.monotonic()
            calls = [asyncio.create_task(client.rank(query=str(n), items=items)) for n in range(8)]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            await client.rank(items=items[:10])
            return time.monotonic() - started

    alone = asyncio.run(ask())
    assert alone < 5  # eight of them would take longer


def test_a_recipes_folder_ranks_with_the_build_that_is_served(served: Served, tmp_path: Path) -> None:
    """As `tritonrank serve` chooses, and the folder's own repository where nothing is promoted."""
    root = tmp_path / "recipe"
    shutil.copytree(served.joint_workspace.repository, root / "repository")
    shutil.copytree(served.workspace.repository, root / "builds" / "older" / "repository")
    with tritonrank_client.open(root) as newest:
        joint = newest.rank(items=["desk"]).artifact
    (root / "served").symlink_to(Path("builds") / "older")
    with tritonrank_client.open(root) as promoted, RankClient(served.urls["grpc"]) as server:
        found = promoted.rank(items=["desk"]).artifact
        assert found == server.rank(items=["desk"]).artifact
        assert found != joint
