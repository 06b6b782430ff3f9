"""Fixtures and small artifacts of the model store's tests: ``pytest_plugins = ["stored"]`` brings the fixtures."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, s3_server
from tritonrank.artifacts import write_artifact
from tritonrank.artifacts.store import pull, transfer
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.push import Pushed, describe, push_version
from tritonrank.artifacts.store.signing import Signer, Trust, make_keys, signer_of, trust_of
from tritonrank.artifacts.store.versions import Version

PART_BYTES = 20_000
BLOCK_BYTES = 4_096
WEIGHTS = bytes(range(256)) * 300
NOBODY = Trust()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def small_and_impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blocks of 4 kB, short pauses, and a cache of this test's own."""
    monkeypatch.setattr(pull, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(transfer, "PAUSES_SECONDS", (0.01, 0.05))
    monkeypatch.setenv("TRITONRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITONRANK_TRUSTED_KEYS", raising=False)
    monkeypatch.delenv("TRITONRANK_SIGNING_KEY", raising=False)


@pytest.fixture(
    params=["folder", pytest.param("s3", marks=pytest.mark.slow), pytest.param("memory", marks=pytest.mark.slow)]
)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty store, of each kind that writes in a way of its own."""
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/shop"
    for name, value in request.getfixturevalue("s3").environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store in S3, asked through the environment."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def make_artifact(folder: Path, weights: bytes = WEIGHTS) -> Path:
    """A small artifact: a file of several parts, the same once more, an empty file, an empty folder, some ranks."""
    with write_artifact(folder, "assemble", {}, {}) as draft:
        (draft.folder / "ranker" / "1").mkdir(parents=True)
        (draft.folder / "rank" / "1").mkdir(parents=True)
        (draft.folder / "ranker" / "1" / "weights.bin").write_bytes(weights)
        (draft.folder / "ranker" / "1" / "again.bin").write_bytes(weights)
        (draft.folder / "ranker" / "1" / "empty.txt").touch()
        for rank in range(2):
            (draft.folder / "ranker" / "1" / f"model.plan.rank{rank}").write_bytes(bytes([rank]) * 5_000)
    return folder


def push(url: str, folder: Path, signer: Signer | None = None, tags: tuple[str, ...] = ("latest",)) -> Pushed:
    version = describe(folder, "shop", part_bytes=PART_BYTES)
    return push_version(Index(open_objects(url, make=True)), folder, version, tags=tags, signer=signer)


def keys(folder: Path, name: str) -> tuple[Signer, Trust]:
    private, public, _ = make_keys(folder / name)
    signer = signer_of(str(private))
    assert signer is not None
    return signer, trust_of(str(public))


def distinct_bytes(version: Version) -> int:
    return sum(part.size for part in version.parts.values())
