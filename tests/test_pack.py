"""Packs: whole, the same every time, small, and refused when anything about them is wrong."""

import gzip
import io
import json
import re
import shutil
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tritonrank.artifacts import sha256_file
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError
from tritonrank.gpu_check import pack as packing
from tritonrank.gpu_check.pack import make_pack
from tritonrank.gpu_check.packed import PACK_FILE, REQUESTS_FILE, open_pack
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.agreement import mean_overlap, relative_difference, top_overlap
from tritonrank.rankers.scorers import EngineScorer, Request
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.text import RequestTokenizer
from tritonrank_runtime.torch_engine import open_torch_engine
from tritonrank_runtime.torch_passes import WEIGHTS_FILE

SIZES = {5: 6, 20: 4, 1_000: 2}
SCORED = {5: 2, 20: 2, 1_000: 1}


@pytest.fixture(scope="module")
def pack(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "TIMED_REQUESTS", SIZES)
        patch.setattr(packing, "SCORED_REQUESTS", SCORED)
        return make_pack(workspace.root, tmp_path_factory.mktemp("pack"))


def test_the_name_is_the_recipes(pack: Path) -> None:
    assert pack.name == "tiny.pack.tar.gz"
    assert not pack.with_name(pack.name + ".tmp").exists()


def test_weights_are_there_once_in_half_precision(pack: Path, workspace: Workspace) -> None:
    with open_pack(pack) as opened:
        held = {path.name for path in opened.folder.iterdir()}
        assert held == {
            PACK_FILE,
            REQUESTS_FILE,
            WEIGHTS_FILE,
            "config.json",
            "tokenizer.json",
            "text.json",
            "scores.json",
        }
        weights, exact = load_file(opened.folder / WEIGHTS_FILE), load_file(workspace.teacher / WEIGHTS_FILE)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert all(torch.equal(weights[name], tensor.half()) for name, tensor in exact.items())
        assert opened.manifest["parameters"] == sum(tensor.numel() for tensor in exact.values())
        assert opened.manifest["artifact"] == json.loads((workspace.teacher / "manifest.json").read_text())["artifact"]


def test_scores_are_those_of_the_packed_weights_on_the_cpu(pack: Path, workspace: Workspace) -> None:
    exact = open_scorer(workspace.onnx)
    with open_pack(pack) as opened:
        packed = EngineScorer(RequestTokenizer.from_folder(opened.folder), open_torch_engine(opened.folder).run)
        differences = []
        for one in opened.scored:
            request = Request(one.query, one.history, one.items)
            np.testing.assert_allclose(packed.score(request), one.scores, atol=2e-6)
            differences.append(np.abs(exact.score(request) - np.array(one.scores)).max())
        assert opened.manifest["rounding"]["largest_difference"] == pytest.approx(max(differences), abs=1e-5)
        assert max(differences) > 1e-5  # or the weights were not rounded
        assert len(opened.scored) == 4 + 2 + 2  # the golden ones first


def test_requests_of_every_size_that_the_catalogue_has(pack: Path) -> None:
    with open_pack(pack) as opened:
        assert opened.sizes == [5, 20]
        assert [len(opened.timed(size)) for size in (5, 20)] == [6, 4]
        assert "unseen" in opened.manifest["left_out"]["1000"]  # 150 items


def test_requests_are_such_as_the_server_takes_with_any_text(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more candidates than serve.max_candidates; texts may hold what Unicode, but not JSON, calls a line's end."""
    monkeypatch.setattr(packing, "TIMED_REQUESTS", SIZES)
    monkeypatch.setattr(packing, "SCORED_REQUESTS", SCORED)
    root, query = tmp_path / "root", "one\u2028two\u2029three\x85four"
    root.mkdir()
    for path in workspace.root.iterdir():
        (root / path.name).symlink_to(path)
    (root / "repository").unlink()
    shutil.copytree(workspace.repository, root / "repository")
    for name, change in (
        ("manifest.json", lambda content: content["settings"]["serve"].update(max_candidates=10)),
        ("golden.json", lambda content: content["cases"][0].update(query=query)),
    ):
        content = json.loads((root / "repository" / name).read_text(encoding="utf-8"))
        change(content)
        (root / "repository" / name).write_text(json.dumps(content), encoding="utf-8")
    with open_pack(make_pack(root, tmp_path)) as opened:
        assert opened.sizes == [5]
        assert opened.manifest["left_out"] == dict.fromkeys(["20", "1000"], "serve.max_candidates is 10")
        assert opened.requests[0].query == query


def test_nothing_of_this_machine_is_in_it(pack: Path, workspace: Workspace) -> None:
    with tarfile.open(pack) as archive:
        members = archive.getmembers()
        assert members[0].name == PACK_FILE
        assert {(one.uid, one.gid, one.uname, one.mtime) for one in members} == {(0, 0, "", 0)}
    with open_pack(pack) as opened:
        texts = [path.read_text(encoding="utf-8") for path in opened.folder.glob("*.json")]
        assert not any(str(workspace.root.parent) in text or str(Path.home()) in text for text in texts)


def test_the_same_artifacts_give_the_same_bytes(
    pack: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "TIMED_REQUESTS", SIZES)
    monkeypatch.setattr(packing, "SCORED_REQUESTS", SCORED)
    assert make_pack(workspace.root, tmp_path / "again.tar.gz").read_bytes() == pack.read_bytes()


def test_an_unfinished_build_is_not_packed(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact here"):
        make_pack(tmp_path, tmp_path / "out.tar.gz")
    root = tmp_path / "foreign"
    for name in ("onnx", "repository", "dataset"):
        shutil.copytree(workspace.root / name, root / name)
    with pytest.raises(ArtifactError, match="none of student, pruned and teacher is the checkpoint"):
        make_pack(root, tmp_path / "out.tar.gz")
    assert not (tmp_path / "out.tar.gz").exists()


# What is refused

Members = list[tuple[tarfile.TarInfo, bytes]]


def read_members(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]


def write_members(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def added(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[Members], Members]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return lambda members: [*members, (member, b"" if link else b"x")]


def changed(members: Members) -> Members:
    return [(one, content[:-1] + b"?" if one.name == REQUESTS_FILE else content) for one, content in members]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (added("../escaped"), r"'\.\./escaped' is not a file that its pack\.json names"),
        (added("/tmp/absolute"), r"is not a file that its pack\.json names"),
        (added("more.json"), r"'more\.json' is not a file"),
        (added(WEIGHTS_FILE, tarfile.SYMTYPE, "/etc/passwd"), r"'model\.safetensors' is not a file"),
        (changed, r"requests\.jsonl: changed since it was packed"),
        (lambda members: members[:-1], r"missing"),
        (lambda members: members[::-1], r"pack\.json is not its first file"),
    ],
    ids=["outside", "absolute", "unnamed", "link", "changed", "missing", "order"],
)
def test_a_pack_that_is_not_as_it_was_made(
    change: Callable[[Members], Members], message: str, pack: Path, tmp_path: Path
) -> None:
    bad = write_members(tmp_path / "bad.tar.gz", change(read_members(pack)))
    with pytest.raises(ArtifactError, match=message), open_pack(bad):
        pass


def test_truncated_absent_or_foreign_files(pack: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.tar.gz"
    truncated.write_bytes(pack.read_bytes()[:-2_000])
    foreign = tmp_path / "foreign.tar.gz"
    foreign.write_bytes(gzip.compress(b"not a tar"))
    plain = tmp_path / "plain.tar.gz"
    plain.write_bytes(b"PK")
    for path, message in (
        (truncated, "damaged"),
        (foreign, "damaged"),
        (plain, "damaged"),
        (tmp_path / "none", "no such pack"),
    ):
        with pytest.raises(ArtifactError, match=rf"{message}.*tritonrank pack"), open_pack(path):
            pass


def test_another_format_is_named(pack: Path, tmp_path: Path) -> None:
    with open_pack(pack) as opened:
        shutil.copytree(opened.folder, tmp_path / "folder")
    manifest = json.loads((tmp_path / "folder" / PACK_FILE).read_text())
    (tmp_path / "folder" / PACK_FILE).write_text(json.dumps(manifest | {"format": 9}))
    with (
        pytest.raises(ArtifactError, match="a pack of format 9; this tritonrank reads 1"),
        open_pack(tmp_path / "folder"),
    ):
        pass


# How agreement is counted


def test_differences_are_relative_to_large_scores() -> None:
    small, large = np.array([0.1, 0.2], dtype=np.float32), np.array([10.0, -20.0], dtype=np.float32)
    assert relative_difference(small + np.float32(0.01), small) == pytest.approx(0.01, abs=1e-6)
    assert relative_difference(large + np.float32(0.2), large) == pytest.approx(0.01, abs=1e-6)
    assert relative_difference(np.array([np.nan, 0.2], dtype=np.float32), small) == float("inf")
    # What an item without text gets is no measure of how large scores are, and has to be the same on both sides.
    without_text = np.append(small, np.float32(NO_TEXT_SCORE))
    moved = np.append(small + np.float32(0.01), np.float32(NO_TEXT_SCORE))
    assert relative_difference(moved, without_text) == pytest.approx(0.01, abs=1e-6)
    assert relative_difference(np.append(small, np.float32(0)), without_text) > 1e30


def test_overlap_counts_the_ten_best() -> None:
    scores = np.arange(20, dtype=np.float32)
    swapped = scores.copy()
    swapped[[0, 19]] = swapped[[19, 0]]  # the best becomes the worst
    assert top_overlap(scores, scores) == 1
    assert top_overlap(swapped, scores) == pytest.approx(0.9)
    assert mean_overlap([scores[:5]], [scores[:5]]) is None
    assert mean_overlap([swapped, scores[:5]], [scores, scores[:5]]) == pytest.approx(0.9)


# What means harm


def write_stream(path: Path, *parts: bytes) -> Path:
    with gzip.open(path, "wb", 9) as file:
        for part in parts:
            file.write(part)
    return path


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, claimed: int | None = None) -> bytes:
    """A header and what follows it; ``claimed`` is the size in the header."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content) if claimed is None else claimed
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def manifest_of(opened: Path, **changes: object) -> bytes:
    return json.dumps(json.loads((opened / PACK_FILE).read_text(encoding="utf-8")) | changes).encode()


def a_file(size: int) -> dict[str, object]:
    return {"bytes": size, "sha256": "0" * 64}


LARGE = 60_000_000
HARMFUL: dict[str, Callable[[Path], list[bytes]]] = {
    "a manifest that claims a bomb": lambda opened: [
        member(PACK_FILE, manifest_of(opened, files={REQUESTS_FILE: a_file(10**13)})),
    ],
    "a bomb": lambda opened: [
        member(PACK_FILE, manifest_of(opened, files={REQUESTS_FILE: a_file(LARGE)})),
        member(REQUESTS_FILE, b"", claimed=LARGE),
        *[bytes(1_000_000)] * (LARGE // 1_000_000),
    ],
    "a header of a header's size": lambda opened: [
        member("././@PaxHeader", b"", tarfile.XHDTYPE, claimed=LARGE),
        *[b"9" * 1_000_000] * (LARGE // 1_000_000),
    ],
    "a long name": lambda opened: [
        member(PACK_FILE, manifest_of(opened)),
        member("././@LongLink", b"", tarfile.GNUTYPE_LONGNAME, claimed=LARGE),
        *[b"n" * 1_000_000] * (LARGE // 1_000_000),
    ],
    "a pax header that is none": lambda opened: [member("pax", b"99999999 path=" + b"x" * 498, tarfile.XHDTYPE)],
    "a sparse file": lambda opened: [
        member(PACK_FILE, manifest_of(opened)), member(REQUESTS_FILE, b"", tarfile.GNUTYPE_SPARSE)
    ],
    "a file twice": lambda opened: [
        member(PACK_FILE, manifest_of(opened, files={REQUESTS_FILE: a_file(1)})),
        member(REQUESTS_FILE, b"x"),
        member(REQUESTS_FILE, b"x"),
    ],
    "a device": lambda opened: [
        member(PACK_FILE, manifest_of(opened)), member(REQUESTS_FILE, b"", tarfile.CHRTYPE)
    ],
    "a folder for a manifest": lambda opened: [member(PACK_FILE, b"", tarfile.DIRTYPE)],
    "deep JSON": lambda opened: [member(PACK_FILE, b"[" * 200_000)],
    "a name outside": lambda opened: [
        member(PACK_FILE, manifest_of(opened, files={"../" + REQUESTS_FILE: a_file(1), REQUESTS_FILE: a_file(1)}))
    ],
    **{
        f"a manifest with {key} {value!r}": (
            lambda opened, key=key, value=value: [member(PACK_FILE, manifest_of(opened, **{key: value}))]
        )
        for key, value in (
            ("format", "1"), ("format", [9]), ("recipe", 5), ("artifact", None), ("architecture", []),
            ("parameters", 1.5), ("parameters", True), ("serve", []), ("fp32_kinds", "x"), ("files", []),
            ("files", {}), ("files", {REQUESTS_FILE: 5}), ("files", {REQUESTS_FILE: {"bytes": -1, "sha256": ""}}),
            ("files", {REQUESTS_FILE: {"bytes": "1", "sha256": ""}}), ("files", {REQUESTS_FILE: {"bytes": 1}}),
            ("files", {f"{n}": a_file(0) for n in range(999)} | {REQUESTS_FILE: a_file(0)}),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_pack_that_means_harm_is_refused_by_name(
    harm: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an ArtifactError that names the file, with little unpacked and nothing left behind."""
    with open_pack(pack) as opened:
        parts = HARMFUL[harm](opened.folder)
    hostile = write_stream(tmp_path / "hostile.pack.tar.gz", *parts, bytes(2 * tarfile.BLOCKSIZE))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=re.escape(str(hostile))) as raised, open_pack(hostile):
            pass
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert "tritonrank pack" in str(raised.value)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_bomb_is_refused_before_it_is_unpacked(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its manifest claims for an archive of this size: no second member is even looked at."""
    extracted: list[str] = []
    extract = tarfile.TarFile.extract

    def noted(archive: tarfile.TarFile, one: tarfile.TarInfo, *arguments: object, **options: object) -> None:
        extracted.append(one.name)
        extract(archive, one, *arguments, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", noted)
    with open_pack(pack) as opened:
        parts = HARMFUL["a bomb"](opened.folder)
    extracted.clear()
    with (
        pytest.raises(ArtifactError, match=f"claims {LARGE:,} bytes"),
        open_pack(write_stream(tmp_path / "b", *parts)),
    ):
        pass
    assert extracted == [PACK_FILE]


GOOD = {"query": "q", "history": [], "items": ["a", "b"], "scores": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"[]", "expected an object"),
        (json.dumps(GOOD | {"more": 1}).encode(), "expected an object"),
        (json.dumps({"query": "q"}).encode(), "expected an object"),
        (json.dumps(GOOD | {"query": 5}).encode(), "query: expected text"),
        (json.dumps(GOOD | {"items": []}).encode(), "items: expected"),
        (json.dumps(GOOD | {"items": ["a", None]}).encode(), "items: expected"),
        (json.dumps(GOOD | {"history": "x"}).encode(), "history: expected"),
        (json.dumps(GOOD | {"scores": [1.0, float("nan")]}).encode(), "scores: expected"),
        (json.dumps(GOOD | {"scores": [1.0]}).encode(), "scores: 1 of them for 2 items"),
        (json.dumps(GOOD | {"scores": None}).encode(), "no request has scores"),
    ],
)
def test_requests_that_are_none_are_named_by_line(line: bytes, said: str, pack: Path, tmp_path: Path) -> None:
    """Hashes hold: whoever wrote the requests wrote the manifest, too."""
    folder = tmp_path / "unpacked"
    with open_pack(pack) as opened:
        shutil.copytree(opened.folder, folder)
    lines = [line] if said.startswith("no request") else [json.dumps(GOOD).encode(), line]
    (folder / REQUESTS_FILE).write_bytes(b"\n".join(lines) + b"\n")
    files = json.loads((folder / PACK_FILE).read_text(encoding="utf-8"))["files"]
    files[REQUESTS_FILE]["sha256"] = sha256_file(folder / REQUESTS_FILE)
    (folder / PACK_FILE).write_bytes(manifest_of(folder, files=files))
    with pytest.raises(ArtifactError, match=said) as raised, open_pack(folder):
        pass
    place = "" if said.startswith("no request") else f"{REQUESTS_FILE}:2"
    assert f"{folder}: {place}" in str(raised.value)
    assert "tritonrank pack" in str(raised.value)
