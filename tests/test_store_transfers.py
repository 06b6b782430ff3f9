"""What is pushed comes back whole, once, proved, whatever is cut or flipped, and while the store is away."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_builds import make_build
from s3_server import CuttingProxy, S3Server, with_environment
from stored import NOBODY, WEIGHTS, distinct_bytes, keys, make_artifact, push
from tritonrank.artifacts import verify_artifact
from tritonrank.artifacts.builds import RecordedBuild, find_build
from tritonrank.artifacts.store import cache, fetch, pull
from tritonrank.artifacts.store.cache import fetch_version, prune_cache
from tritonrank.artifacts.store.faults import (
    MissingObjectError,
    UnreachableStoreError,
)
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.into_folder import pull_into
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.push import artifact_of, describe, push_version
from tritonrank.artifacts.store.urls import parse_source
from tritonrank.artifacts.store.versions import File
from tritonrank.errors import ArtifactError, StoreError
from tritonrank.serve.store_source import served_source
from tritonrank.serve.succession import Following, StoreTag
from tritonrank.tensorrt.plans import PLAN_FILE
from tritonrank_runtime.shard_runner import shard_file

pytest_plugins = ["stored"]
pytestmark = pytest.mark.usefixtures("small_and_impatient")

# What comes back


def test_what_is_pushed_comes_back_and_only_what_is_new_travels(url: str, tmp_path: Path) -> None:
    first = push(url, make_artifact(tmp_path / "one"))
    assert first.bytes == distinct_bytes(first.version)
    assert push(url, tmp_path / "one").bytes == 0
    second = push(url, make_artifact(tmp_path / "two", WEIGHTS + b"more"))
    assert 0 < second.bytes < first.bytes / 2
    assert [move.number for move in second.moves] == [2]

    folder = fetch(f"{url}@{first.version.digest[:12]}")
    assert verify_artifact(folder).artifact == first.version.artifact
    assert (folder / "rank" / "1").is_dir()
    newer = fetch_version(parse_source(url))
    assert newer.digest == second.version.digest
    assert newer.pulled is not None
    assert newer.pulled.copied_bytes > newer.pulled.bytes  # from the version that is here already
    assert fetch_version(parse_source(url)).pulled is None
    assert [one.name for one in Index(open_objects(url)).objects.below("leases")] == []


def test_a_plain_path_is_taken_as_it_is_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert fetch(str(tmp_path)) == tmp_path
    monkeypatch.delitem(sys.modules, "tritonrank.artifacts.store.obstore_objects", raising=False)
    with pytest.raises(StoreError, match=r"obstore.*pip install 'tritonrank\[store\]'"):
        fetch("s3://bucket/models")


def test_of_a_recipe_the_served_build_is_pushed_or_the_one_that_is_named(tmp_path: Path) -> None:
    root = tmp_path / "artifacts" / "shop"
    first, second = (make_build(root, weights, catalogue="items") for weights in ("a", "bb"))
    assert artifact_of(root) == (find_build(root, first).folder.resolve(), "shop")
    assert artifact_of(root, "newest")[0].name == second
    url = str(tmp_path / "store")
    folder, model = artifact_of(root)
    version = describe(folder, model)
    push_version(Index(open_objects(url, make=True)), folder, version)
    fetched = fetch(f"{url}@latest")
    RecordedBuild(fetched).verify()
    assert (fetched / "catalogue").is_dir()
    (folder / "repository" / "ranker" / "1" / "weights.bin").write_text("changed")
    with pytest.raises(ArtifactError, match=r"weights\.bin: changed"):
        describe(folder, model)


def test_ranks_fetch_only_their_shards(url: str, tmp_path: Path) -> None:
    pushed = push(url, make_artifact(tmp_path / "one"))
    found = fetch_version(parse_source(url), ranks={1})
    names = {path.name for path in found.folder.rglob("*.plan.*")}
    assert names == {"model.plan.rank1"}
    assert found.pulled is not None
    assert found.pulled.bytes == distinct_bytes(pushed.version) - 5_000
    assert {path.name for path in fetch(url).rglob("*.plan.*")} == {"model.plan.rank0", "model.plan.rank1"}


@pytest.mark.parametrize(
    ("path", "rank"),
    [
        (f"ranker/1/{shard_file(3, 'context.onnx')}", 3),
        (f"ranker/1/{PLAN_FILE}.rank12", 12),
        (f"ranker/1/{PLAN_FILE}", None),
        ("rank/config.pbtxt", None),
    ],
)
def test_files_of_a_rank_are_known_by_their_names(path: str, rank: int | None) -> None:
    assert File(path, 0, "", ()).rank == rank


def test_one_url_holds_one_model(url: str, tmp_path: Path) -> None:
    push(url, make_artifact(tmp_path / "one"))
    other = describe(tmp_path / "one", "search")
    with pytest.raises(StoreError, match="holds the model shop"):
        push_version(Index(open_objects(url)), tmp_path / "one", other)


def test_a_pulled_folder_is_replaced_and_somebodys_own_is_not(tmp_path: Path) -> None:
    url, target = str(tmp_path / "store"), tmp_path / "served"
    first = push(url, make_artifact(tmp_path / "one"))
    assert pull_into(url, target, trust=NOBODY).digest == first.version.digest
    assert pull_into(url, target, trust=NOBODY).pulled is None
    second = push(url, make_artifact(tmp_path / "two", WEIGHTS[::-1]))
    assert pull_into(url, target, trust=NOBODY).digest == second.version.digest
    assert verify_artifact(target).artifact == second.version.artifact
    (target / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt: is there, and no pull put it there"):
        pull_into(f"{url}@{first.version.digest}", target, trust=NOBODY)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"thesis\.txt"):
        pull_into(url, tmp_path / "mine", trust=NOBODY)


# Cuts


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.31, 0.5, 0.77, 0.97])
def test_a_pull_that_was_cut_at_any_byte_goes_on_there(
    share: float, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(bucket, make_artifact(tmp_path / "one"))
    whole = distinct_bytes(pushed.version)
    with CuttingProxy(s3.port, stays_away=True) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        proxy.cut_after = int(share * whole)
        with pytest.raises(UnreachableStoreError):
            fetch(bucket)
        assert proxy.cuts == 1
        assert not list((tmp_path / "cache" / "versions").glob("*/"))
        proxy.heal()
        kept = sum(file.stat().st_size for file in (tmp_path / "cache" / "drafts").rglob("parts/*"))
        found = fetch_version(parse_source(bucket))
    assert verify_artifact(found.folder).artifact == pushed.version.artifact
    assert found.pulled is not None
    assert found.pulled.kept_bytes >= kept
    assert found.pulled.bytes == whole - found.pulled.kept_bytes
    if share > 0.5:
        assert found.pulled.kept_bytes > whole / 4


@pytest.mark.slow
def test_cuts_within_a_pull_are_bridged(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(bucket, make_artifact(tmp_path / "one"))
    with CuttingProxy(s3.port, cut_after=30_000) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        found = fetch_version(parse_source(bucket))
    assert proxy.cuts == 1
    assert verify_artifact(found.folder).artifact == pushed.version.artifact


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
def test_a_push_that_was_cut_goes_on_and_publishes_nothing_before_it_is_whole(
    share: float, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_artifact(tmp_path / "one")
    whole = distinct_bytes(describe(folder, "shop"))
    with CuttingProxy(s3.port, stays_away=True, cut_after=int(share * whole)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(UnreachableStoreError):
            push(bucket, folder)
        proxy.heal()
        assert Index(open_objects(bucket)).versions() == []
        with pytest.raises(MissingObjectError):
            fetch(bucket)
        there = sum(one.size for one in open_objects(bucket).below("parts"))
        pushed = push(bucket, folder)
        assert pushed.bytes == distinct_bytes(pushed.version) - there
        assert verify_artifact(fetch(bucket)).artifact == pushed.version.artifact


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_killed_process_is_gone_on_with(
    verb: str, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "BLOCK_BYTES", 8 << 20)
    folder = make_artifact(tmp_path / "one", os.urandom(48 << 20))
    arguments = [str(folder), bucket] if verb == "push" else [bucket, str(tmp_path / "served")]
    if verb == "pull":
        push_version(Index(open_objects(bucket)), folder, describe(folder, "shop", part_bytes=8 << 20))
    with CuttingProxy(s3.port, slow_seconds=0.01) as proxy:
        environment = with_environment(s3.environment(proxy.port))
        command = [sys.executable, "-m", "tritonrank", verb, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while proxy.passed < 12 << 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "served").exists()
        proxy.slow_seconds, before = 0.0, proxy.passed
        # The lease of the killed push is no hindrance to another push.
        assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == 0
        if verb == "pull":
            assert proxy.passed - before < 48 << 20
    assert verify_artifact(fetch(bucket)).stage == "assemble"


# The store is away


@pytest.mark.slow
def test_what_was_fetched_last_serves_while_the_store_is_away(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(bucket, make_artifact(tmp_path / "one"), tags=("latest", "canary"))
    folder = fetch(f"{bucket}@canary")
    target = tmp_path / "served"
    pull_into(bucket, target, trust=NOBODY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert fetch(f"{bucket}@canary") == folder
    assert fetch_version(parse_source(f"{bucket}@canary")).digest == pushed.version.digest
    with pytest.raises(UnreachableStoreError, match="does not answer"):
        fetch(f"{bucket}@stable")
    with pytest.raises(UnreachableStoreError):
        pull_into(bucket, target, trust=NOBODY)
    assert pull_into(bucket, target, trust=NOBODY, or_keep=True).away
    (target / "ranker" / "1" / "weights.bin").write_bytes(WEIGHTS[::-1])
    with pytest.raises(UnreachableStoreError):
        pull_into(bucket, target, trust=NOBODY, or_keep=True)


def test_plain_http_to_another_machine_has_to_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    with pytest.raises(StoreError, match="AWS_ALLOW_HTTP"):
        open_objects("s3://bucket/models")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    open_objects("s3://bucket/models")


def test_old_versions_are_pruned_and_held_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_held", {})
    monkeypatch.setattr(cache, "MOST_HELD", 2)
    url = str(tmp_path / "store")
    pushed = [push(url, make_artifact(tmp_path / f"{n}", bytes([n]) * 9)).version.digest for n in range(4)]
    folders = [fetch(f"{url}@{digest}") for digest in pushed]
    assert prune_cache(0) == (pushed[:2], 2)  # the two that were fetched last are held by this process
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    assert fetch(f"{url}@{pushed[0]}") == folders[0]


# A tag that is followed


class Checked:
    """A repository that nobody starts a server for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.make = self.prove = self.ask = lambda *_, **__: None

    def check(self) -> None:
        verify_artifact(self.folder)


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_tag_is_followed_and_what_cannot_be_trusted_or_reached_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "store")
    ours, _ = keys(tmp_path, "ours")
    monkeypatch.setenv("TRITONRANK_TRUSTED_KEYS", str(tmp_path / "ours.pub"))
    push(url, make_artifact(tmp_path / "one"), ours)
    named = served_source(url)
    assert served_source(f"{url}@{Index(open_objects(url)).find(parse_source(url))[0]}").followed is None
    tag = StoreTag(parse_source(url), seconds=0.02)
    with Following(tag, named.folder, Checked) as following:
        push(url, make_artifact(tmp_path / "two", b"unsigned"))
        wait_for(lambda: "is not signed" in capsys.readouterr().err)
        assert following.successor() is None
        third = push(url, make_artifact(tmp_path / "three", b"signed"), ours)
        wait_for(following.successor)
        successor = following.successor()
        assert successor is not None
        assert third.version.digest[:12] in successor.name
        following.took_over(successor)
        Path(url).rename(tmp_path / "away")
        wait_for(lambda: "no such folder" in capsys.readouterr().err)
        assert following.successor() is None
