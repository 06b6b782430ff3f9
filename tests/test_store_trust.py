"""What a model store refuses: damage, hostile descriptions, what strangers signed; and what several writers may do."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from stored import (
    NOBODY,
    PART_BYTES,
    WEIGHTS,
    keys,
    make_artifact,
    push,
)
from tritonrank.artifacts import verify_artifact
from tritonrank.artifacts.store import cache as caching
from tritonrank.artifacts.store import fetch, leases
from tritonrank.artifacts.store.cache import fetch_version
from tritonrank.artifacts.store.collect import collect, verify
from tritonrank.artifacts.store.faults import (
    ConflictError,
    DamagedStoreError,
    UntrustedError,
)
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.leases import COLLECT, PUSH, lease
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.push import describe
from tritonrank.artifacts.store.signing import make_keys, seal, signer_of, trust_of
from tritonrank.artifacts.store.urls import Source, is_store, parse_source
from tritonrank.artifacts.store.versions import KIND, read_version
from tritonrank.errors import StoreError

pytest_plugins = ["stored"]
pytestmark = pytest.mark.usefixtures("small_and_impatient")  # stores but folders have mark.slow

# Damage


@pytest.mark.parametrize("what", ["flipped", "short", "missing"])
def test_a_damaged_part_is_refused_by_name_and_can_be_mended(what: str, url: str, tmp_path: Path) -> None:
    pushed = push(url, make_artifact(tmp_path / "one"))
    objects = open_objects(url)
    part = next(file for file in pushed.version.files if file.path.endswith("weights.bin")).parts[1]
    data = bytearray(objects.read(part.name, 0, part.size))
    data[1_234] ^= 1
    objects.remove(part.name)
    if what != "missing":
        objects.write(part.name, bytes(data) if what == "flipped" else bytes(data[:700]))
    with pytest.raises(DamagedStoreError, match=r"(weights|again)\.bin: part 2 of 4 .*tritonrank store verify"):
        fetch(url)
    assert not list((tmp_path / "cache" / "versions").glob("*/"))
    found = verify(Index(objects), remove=True)
    assert len(found.faults) == 1
    assert part.name in found.faults[0]
    assert push(url, tmp_path / "one").bytes == part.size
    assert verify(Index(objects)).faults == []
    assert verify_artifact(fetch(url)).artifact == pushed.version.artifact


def test_a_damaged_cache_is_mended_from_the_store(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    push(url, make_artifact(tmp_path / "one"))
    file = fetch(url) / "ranker" / "1" / "weights.bin"
    file.write_bytes(WEIGHTS[:-1] + b"!")
    assert fetch(url) == file.parents[2]
    assert file.read_bytes() == WEIGHTS


def hostile(change: Callable[[dict[str, object]], None]) -> bytes:
    part = {"sha256": "a" * 64, "size": 5}
    said: dict[str, object] = {"format": 1, "model": "shop", "name": "x", "stage": "assemble", "artifact": "a"}
    said |= {"created": "", "folders": ["rank/1"]}
    said["files"] = [{"path": "a/b", "size": 5, "sha256": "b" * 64, "parts": [part]}]
    change(said)
    return json.dumps(said).encode()


def path_of(path: str) -> Callable[[dict[str, object]], None]:
    return lambda said: said["files"][0].update(path=path)  # type: ignore[index]


HOSTILE: dict[str, Callable[[dict[str, object]], None]] = {
    "up": path_of("../../etc/cron.d/x"),
    "up within": path_of("a/../../x"),
    "absolute": path_of("/etc/passwd"),
    "backslash": path_of("..\\x"),
    "zero byte": path_of("a\0b"),
    "line": path_of("a\nb"),
    "empty": path_of(""),
    "dot": path_of("./a"),
    "long": path_of("x" * 300),
    "file as folder": path_of("rank"),
    "folder up": lambda said: said.update(folders=["../x"]),
    "twice": lambda said: said.update(files=said["files"] * 2),  # type: ignore[operator]
    "negative": lambda said: said["files"][0].update(size=-5),  # type: ignore[index]
    "sizes differ": lambda said: said["files"][0].update(size=6),  # type: ignore[index]
    "part too large": lambda said: said["files"][0].update(  # type: ignore[index]
        size=1 << 40, parts=[{"sha256": "a" * 64, "size": 1 << 40}]
    ),
    "part elsewhere": lambda said: said["files"][0]["parts"][0].update(sha256="../../x"),  # type: ignore[index]
    "size as truth": lambda said: said["files"][0].update(size=True),  # type: ignore[index]
    "model up": lambda said: said.update(model="../shop"),
    "another format": lambda said: said.update(format=2),
    "no files": lambda said: said.pop("files"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_refused(name: str) -> None:
    read_version(hostile(lambda said: None), "here")
    with pytest.raises(DamagedStoreError, match="here: a description that is not to be believed"):
        read_version(hostile(HOSTILE[name]), "here")


def test_deep_and_large_objects_are_refused_before_they_are_read(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    push(url, make_artifact(tmp_path / "one"))
    objects = open_objects(url)
    objects.create("tags/deep/0000000001.json", b"[" * 60_000)
    with pytest.raises(DamagedStoreError):
        fetch(f"{url}@deep")
    objects.create("tags/large/0000000001.json", b" " * 70_000)
    with pytest.raises(DamagedStoreError, match="70,000 bytes"):
        fetch(f"{url}@large")


# Signatures


def test_unsigned_and_foreign_versions_are_refused_when_keys_are_trusted(url: str, tmp_path: Path) -> None:
    ours, trust = keys(tmp_path, "ours")
    theirs, _ = keys(tmp_path, "theirs")
    push(url, make_artifact(tmp_path / "one"))
    with pytest.raises(UntrustedError, match="not signed"):
        fetch_version(parse_source(url), trust=trust)
    push(url, tmp_path / "one", theirs)
    with pytest.raises(UntrustedError, match=f"signed by {theirs.key_id}, trusted are {ours.key_id}"):
        fetch_version(parse_source(url), trust=trust)
    # A tag that we signed does not vouch for a version that we did not.
    digest = Index(open_objects(url)).find(Source(url))[0]
    Index(open_objects(url)).set_tag("shop", "latest", digest, ours)
    with pytest.raises(UntrustedError, match="version"):
        fetch_version(parse_source(url), trust=trust)
    pushed = push(url, tmp_path / "one", ours)
    assert not pushed.bytes
    assert pushed.is_new
    assert fetch_version(parse_source(url), trust=trust).digest == digest
    assert fetch_version(parse_source(url), trust=NOBODY).digest == digest


def test_a_changed_description_and_another_kind_are_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    ours, trust = keys(tmp_path, "ours")
    pushed = push(url, make_artifact(tmp_path / "one"), ours)
    objects = open_objects(url)
    name = next(one.name for one in objects.below("versions"))
    whole = json.loads(objects.read(name, 0, 1 << 20))
    changed = seal(KIND, pushed.version.payload().replace(b"shop", b"shap"), None).to_bytes()
    objects.write(name, json.dumps(json.loads(changed) | {"signatures": whole["signatures"]}).encode())
    with pytest.raises(UntrustedError, match="does not fit what it signs"):
        fetch_version(parse_source(url), trust=trust)
    with pytest.raises(DamagedStoreError, match="another one than its digest names"):
        fetch_version(parse_source(url), trust=NOBODY)
    tag = next(one.name for one in objects.below("tags"))
    objects.write(name, objects.read(tag, 0, 1 << 16))
    with pytest.raises(DamagedStoreError):
        fetch_version(parse_source(url), trust=trust)


def test_an_old_move_that_is_put_back_is_refused(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    ours, trust = keys(tmp_path, "ours")
    push(url, make_artifact(tmp_path / "one"), ours)
    push(url, make_artifact(tmp_path / "two", b"better"), ours)
    fetch_version(parse_source(url), trust=trust)
    open_objects(url).remove("tags/latest/0000000002.json")
    with pytest.raises(StoreError, match="at move 2 before and is at 1 now"):
        fetch_version(parse_source(url), trust=trust)


def test_what_is_fetched_from_the_cache_has_to_be_signed_too(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    push(url, make_artifact(tmp_path / "one"))
    fetch(url)
    Path(url).rename(tmp_path / "away")
    assert fetch_version(parse_source(url)).away
    with pytest.raises(UntrustedError):
        fetch_version(parse_source(url), trust=keys(tmp_path, "ours")[1])


def test_keys_that_others_may_read_or_that_are_none_are_refused(tmp_path: Path) -> None:
    private, public, key_id = make_keys(tmp_path / "mine")
    assert private.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreError, match="is there already"):
        make_keys(tmp_path / "mine")
    text = signer_of(private.read_text())
    assert text is not None
    assert text.key_id == key_id
    private.chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        signer_of(str(private))
    for wrong in (private, tmp_path / "absent.pub", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(StoreError, match=str(wrong)):
            trust_of(f"{public}:{wrong}")


# Writers at a time


def test_writers_at_a_time_lose_nothing(url: str, tmp_path: Path) -> None:
    folders = [make_artifact(tmp_path / f"{n}", f"weights {n}".encode()) for n in range(6)]
    start = threading.Barrier(len(folders))

    def push_one(folder: Path) -> str:
        start.wait()
        return push(url, folder, tags=("latest", folder.name)).version.digest

    with ThreadPoolExecutor(len(folders)) as pool:
        digests = list(pool.map(push_one, folders))
    index = Index(open_objects(url))
    assert {one.digest for one in index.versions()} == set(digests)
    moves = list(index.moves("latest"))
    assert [move.number for move in moves] == list(range(len(folders), 0, -1))
    assert {move.version for move in moves} == set(digests)
    assert index.model() == "shop"


def test_garbage_goes_and_what_is_needed_stays(url: str, tmp_path: Path) -> None:
    pushed = [push(url, make_artifact(tmp_path / f"{n}", WEIGHTS + bytes([n]))) for n in range(4)]
    index = Index(open_objects(url))
    index.set_tag("shop", "kept", pushed[1].version.digest, None)
    index.objects.write("parts/ab/" + "ab" * 32, b"what a cut push left")
    assert collect(index, keep=1, grace_days=1).versions == []
    time.sleep(1.1 if url.startswith("s3") else 0.01)  # S3 tells whole seconds
    looked = collect(index, keep=0, grace_days=0, only_look=True)
    found = collect(index, keep=0, grace_days=0)
    assert looked == found
    assert set(found.versions) == {pushed[n].version.digest for n in (0, 2)}
    assert found.kept == 2
    assert found.parts == 1 + 2 * 2  # the stray one; of each version the manifest and the last part of the weights
    assert verify(index).faults == []
    assert {one.digest for one in index.versions()} == {pushed[n].version.digest for n in (1, 3)}
    fetch(f"{url}@kept")


def test_nobody_collects_while_somebody_pushes_nor_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_objects(str(tmp_path / "store"), make=True)
    push(objects.url, make_artifact(tmp_path / "one"))
    with lease(objects, PUSH), pytest.raises(ConflictError, match="another process writes there"):
        collect(Index(objects), keep=1, grace_days=0)
    with lease(objects, COLLECT), pytest.raises(ConflictError), lease(objects, PUSH):
        pass
    with lease(objects, PUSH), lease(objects, PUSH, 0.0):
        pass
    objects.write("leases/push-killed.json", b"{}")
    with pytest.raises(ConflictError):
        collect(Index(objects), keep=1, grace_days=0)
    monkeypatch.setattr(leases, "STALE", timedelta(seconds=-1))
    collect(Index(objects), keep=1, grace_days=0)


# Names


@pytest.mark.parametrize(
    ("named", "url", "wanted"),
    [
        ("s3://bucket/models/shop", "s3://bucket/models/shop", "latest"),
        ("s3://bucket/models/shop/@canary", "s3://bucket/models/shop", "canary"),
        ("s3://bucket/shop@3f9a12bc", "s3://bucket/shop", "3f9a12bc"),
        ("hdfs://user@host/models", "hdfs://user@host/models", "latest"),
        ("hdfs://user@host", "hdfs://user@host", "latest"),
        ("/mnt/models@2026-11-27", "/mnt/models", "2026-11-27"),
    ],
)
def test_names_of_versions(named: str, url: str, wanted: str) -> None:
    assert parse_source(named) == Source(url, wanted)


@pytest.mark.parametrize("named", ["s3://key:secret@bucket/models", "s3://bucket/models@", "s3://b/m?x=1", "", "/@x"])
def test_names_that_are_refused_tell_no_secret(named: str) -> None:
    with pytest.raises(StoreError) as raised:
        parse_source(named)
    assert "secret" not in str(raised.value).replace("secrets", "")


def test_a_folder_is_told_from_a_store(tmp_path: Path) -> None:
    assert not is_store(str(tmp_path))
    assert not is_store("artifacts/absent")
    assert is_store(f"{tmp_path}/absent@latest")
    push(str(tmp_path), make_artifact(tmp_path.with_name(f"{tmp_path.name}-one")))
    assert is_store(str(tmp_path))


def test_digests_are_those_of_the_description(tmp_path: Path) -> None:
    version = describe(make_artifact(tmp_path / "one"), "shop", part_bytes=PART_BYTES)
    assert version.digest == hashlib.sha256(version.payload()).hexdigest()
    assert read_version(version.payload(), "") == version
    assert caching.cache_folder() == tmp_path / "cache"
