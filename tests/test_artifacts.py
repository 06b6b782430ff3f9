"""An artifact is there whole, or not at all; damage is found before it is used."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from safetensors import SafetensorError
from tritonrank.artifacts import (
    FORMAT,
    MANIFEST,
    Manifest,
    OtherFormatError,
    is_aside,
    is_current,
    read_manifest,
    sha256_file,
    stage_key,
    verify_artifact,
    whole_file,
    write_artifact,
    write_whole,
)
from tritonrank.errors import ArtifactError, StorageError

SETTINGS = {"epochs": 1, "loss": "listwise"}


def build(folder: Path, content: str = "weights", parents: dict[str, Manifest] | None = None) -> Manifest:
    with write_artifact(folder, "finetune", SETTINGS, parents or {}) as draft:
        (draft.folder / "model").mkdir()
        (draft.folder / "model" / "model.bin").write_text(content)
        (draft.folder / "text.json").write_text("{}")
        draft.metrics["ndcg@10"] = 0.5
    return read_manifest(folder)


def build_until(folder: Path, error: type[BaseException]) -> None:
    with write_artifact(folder, "finetune", SETTINGS, {}) as draft:
        (draft.folder / "model.bin").write_text("half")
        raise error


def key_of(parents: dict[str, Manifest] | None = None) -> str:
    return stage_key("finetune", SETTINGS, parents or {})


def killed_while_building(folder: Path, fatal: str) -> None:
    """Run a build of ``folder`` in a process of its own that kills itself (SIGKILL) where ``fatal`` says."""
    code = f"""
        import os, signal
        from pathlib import Path
        from tritonrank.artifacts import write_artifact

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        folder = Path({str(folder)!r})
        with write_artifact(folder, "finetune", {SETTINGS!r}, {{}}) as draft:
            (draft.folder / "new.bin").write_text("half")
            {fatal}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_finished_artifact_is_whole_and_named_by_its_content(tmp_path: Path) -> None:
    manifest = build(tmp_path / "teacher")
    assert verify_artifact(tmp_path / "teacher") == manifest
    assert set(manifest.files) == {"model/model.bin", "text.json"}
    assert manifest.files["model/model.bin"] == sha256_file(tmp_path / "teacher" / "model" / "model.bin")
    assert manifest.metrics == {"ndcg@10": 0.5}
    assert manifest.settings == SETTINGS
    assert {"python", "numpy", "torch"} <= set(manifest.tools)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_equal_content_has_equal_names_and_other_content_another(tmp_path: Path) -> None:
    one, same, other = (build(tmp_path / name, text) for name, text in (("a", "x"), ("b", "x"), ("c", "y")))
    assert one.artifact == same.artifact != other.artifact
    assert one.key == other.key


def test_nothing_is_published_before_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    with write_artifact(folder, "finetune", SETTINGS, {}) as draft:
        (draft.folder / "model.bin").write_text("half")
        assert not folder.exists()
        with pytest.raises(ArtifactError, match="no artifact here"):
            read_manifest(draft.folder)
    assert folder.is_dir()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("older", [False, True])
def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path, error: type[BaseException], older: bool) -> None:
    folder = tmp_path / "teacher"
    before = build(folder) if older else None
    with pytest.raises(error):
        build_until(folder, error)
    assert [path.name for path in tmp_path.iterdir()] == (["teacher"] if older else [])
    if older:
        assert verify_artifact(folder) == before


def test_metrics_that_are_not_json_leave_what_was_there(tmp_path: Path) -> None:
    before = build(tmp_path / "teacher")
    with pytest.raises(TypeError), write_artifact(tmp_path / "teacher", "finetune", SETTINGS, {}) as draft:
        draft.metrics["model"] = object()
    assert verify_artifact(tmp_path / "teacher") == before


def test_a_newer_artifact_replaces_the_older_whole(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    build(folder)
    with write_artifact(folder, "finetune", {"epochs": 2}, {}) as draft:
        (draft.folder / "other.bin").write_text("new")
    assert set(verify_artifact(folder).files) == {"other.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    assert not is_current(folder, key_of())


def test_a_killed_process_leaves_the_old_artifact_current(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    before = build(folder)
    killed_while_building(folder, "die()")
    assert (tmp_path / "teacher.tmp" / "new.bin").is_file()  # it was indeed in the middle
    assert verify_artifact(folder) == before
    assert is_current(folder, key_of())


def test_a_killed_first_build_is_no_artifact(tmp_path: Path) -> None:
    killed_while_building(tmp_path / "teacher", "die()")
    assert not is_current(tmp_path / "teacher", key_of())
    assert not is_current(tmp_path / "teacher.tmp", key_of())


def test_what_a_killed_process_left_does_not_get_into_the_next_build(tmp_path: Path) -> None:
    killed_while_building(tmp_path / "teacher", "die()")
    assert set(build(tmp_path / "teacher").files) == {"model/model.bin", "text.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_killed_between_the_renames_both_are_whole(tmp_path: Path) -> None:
    """The one moment without an artifact under its name: the older stands aside, the newer is complete."""
    folder = tmp_path / "teacher"
    before = build(folder)
    killed_while_building(
        folder, "rename = Path.rename; Path.rename = lambda path, to: (path.suffix and die(), rename(path, to))"
    )
    assert not folder.exists()
    assert verify_artifact(tmp_path / "teacher.old") == before
    assert set(verify_artifact(tmp_path / "teacher.tmp").files) == {"new.bin"}
    assert build(folder).artifact == before.artifact
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_all_damage_is_found_together(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    build(folder)
    (folder / "model" / "model.bin").write_text("weightz")
    (folder / "text.json").unlink()
    (folder / "model" / "extra.bin").write_text("")
    with pytest.raises(ArtifactError) as caught:
        verify_artifact(folder)
    message = str(caught.value)
    assert "model/model.bin: changed since it was built" in message
    assert "text.json: missing" in message
    assert "model/extra.bin: not part of the artifact" in message
    assert "run tritonrank build again" in message
    assert not is_current(folder, key_of())


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    build(tmp_path / "teacher")
    (tmp_path / "teacher" / "text.json").unlink()
    (tmp_path / "teacher" / "text.json").mkdir()
    with pytest.raises(ArtifactError, match=r"text\.json: missing"):
        verify_artifact(tmp_path / "teacher")


def test_byte_code_of_a_server_is_no_damage(tmp_path: Path) -> None:
    build(tmp_path / "teacher")
    (tmp_path / "teacher" / "model" / "__pycache__").mkdir()
    (tmp_path / "teacher" / "model" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"code")
    verify_artifact(tmp_path / "teacher")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"stage": "finetune", "unknown": 1}', "\xff"])
def test_a_damaged_manifest_says_what_to_do(tmp_path: Path, text: str) -> None:
    build(tmp_path / "teacher")
    (tmp_path / "teacher" / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"damaged manifest.* run tritonrank build again") as caught:
        read_manifest(tmp_path / "teacher")
    assert "delete" not in str(caught.value).lower()
    assert not is_current(tmp_path / "teacher", key_of())


def test_a_folder_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    build(tmp_path / "teacher")
    (tmp_path / "teacher" / MANIFEST).unlink()
    for folder in (tmp_path / "teacher", tmp_path / "none"):
        with pytest.raises(ArtifactError, match=r"no artifact here .* tritonrank build RECIPE"):
            verify_artifact(folder)


def test_the_key_follows_stage_settings_and_parents(tmp_path: Path) -> None:
    parent, rebuilt, other = (build(tmp_path / name, text) for name, text in (("a", "x"), ("b", "x"), ("c", "y")))
    base = stage_key("export", {"opset": 18, "tolerance": 0.1}, {"checkpoint": parent})
    assert stage_key("export", {"tolerance": 0.1, "opset": 18}, {"checkpoint": rebuilt}) == base
    changed = [
        stage_key("exports", {"opset": 18, "tolerance": 0.1}, {"checkpoint": parent}),
        stage_key("export", {"opset": 17, "tolerance": 0.1}, {"checkpoint": parent}),
        stage_key("export", {"opset": 18}, {"checkpoint": parent}),
        stage_key("export", {"opset": 18, "tolerance": 0.1}, {"checkpoint": other}),
        stage_key("export", {"opset": 18, "tolerance": 0.1}, {"dataset": parent}),
        stage_key("export", {"opset": 18, "tolerance": 0.1}, {}),
        stage_key("export", {"opset": 18, "tolerance": 0.1}, {"checkpoint": parent}, revision=2),
        stage_key("export", {"opset": 18, "tolerance": 0.1}, {"checkpoint": parent}, tools=["onnx"]),
    ]
    assert len({base, *changed}) == 9


def test_the_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = f"from tritonrank.artifacts import stage_key; print(stage_key('finetune', {SETTINGS!r}, {{}}))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == key_of()


def test_an_artifact_is_current_for_its_own_key_and_while_undamaged(tmp_path: Path) -> None:
    parent = build(tmp_path / "dataset")
    build(tmp_path / "teacher", parents={"dataset": parent})
    assert is_current(tmp_path / "teacher", key_of({"dataset": parent}))
    assert not is_current(tmp_path / "teacher", key_of())
    assert not is_current(tmp_path / "none", key_of())
    recorded = json.loads((tmp_path / "teacher" / MANIFEST).read_text())
    assert recorded["parents"] == {"dataset": parent.artifact}
    (tmp_path / "teacher" / "model" / "model.bin").write_text("changed")
    assert not is_current(tmp_path / "teacher", key_of({"dataset": parent}))


DAMAGED_VALUES = {
    "files is a list": {"files": ["model/model.bin"]},
    "a hash is a number": {"files": {"model/model.bin": 3}},
    "a file outside": {"files": {"../../secret": "0" * 64}},
    "an absolute file": {"files": {"/dev/zero": "0" * 64}},
    "stage is a list": {"stage": []},
    "metrics is null": {"metrics": None},
    "unknown key": {"colour": "red"},
    "folders are a number": {"empty_folders": 3},
}


@pytest.mark.parametrize("changes", DAMAGED_VALUES.values(), ids=DAMAGED_VALUES)
def test_a_manifest_of_wrong_values_is_damaged(tmp_path: Path, changes: dict[str, object]) -> None:
    build(tmp_path / "teacher")
    path = tmp_path / "teacher" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ArtifactError, match="damaged manifest"):
        verify_artifact(tmp_path / "teacher")
    path.write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="damaged manifest"):
        read_manifest(tmp_path / "teacher")


def test_a_file_is_no_artifact_and_nobody_is_told_to_delete_it(tmp_path: Path) -> None:
    recipe = tmp_path / "shop.yaml"
    recipe.write_text("name: shop")
    for path in (recipe, recipe / "teacher"):
        with pytest.raises(ArtifactError, match=f"{path}: not a folder.*tritonrank build") as caught:
            read_manifest(path)
        assert "delete" not in str(caught.value).lower()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_manifest(tmp_path / ("x" * 300))


def test_the_manifest_of_another_program_is_not_ours_to_delete(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / MANIFEST).write_text('{"name": "web app", "icons": []}')
    with pytest.raises(ArtifactError, match="another program") as caught:
        read_manifest(tmp_path / "app")
    assert "delete" not in str(caught.value).lower()


def test_an_artifact_of_another_version_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    build(folder)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1, "unheard_of": []}))
    for read in (read_manifest, verify_artifact, lambda folder: is_current(folder, key_of())):
        with pytest.raises(OtherFormatError, match=f"{folder}: made by another version.*--artifacts"):
            read(folder)


def test_an_artifact_from_before_formats_were_named_is_read(tmp_path: Path) -> None:
    build(tmp_path / "teacher")
    path = tmp_path / "teacher" / MANIFEST
    recorded = json.loads(path.read_text())
    del recorded["format"], recorded["empty_folders"]
    path.write_text(json.dumps(recorded))
    (tmp_path / "teacher" / "empty").mkdir()  # such an artifact may have some of its own
    assert verify_artifact(tmp_path / "teacher").format == 1


def link_weights(folder: Path) -> str:
    path = folder / "model" / "model.bin"
    path.rename(folder.parent / "elsewhere.bin")
    path.symlink_to(folder.parent / "elsewhere.bin")
    return "model/model.bin: a link"


def link_folder(folder: Path) -> str:
    (folder / "model").rename(folder.parent / "elsewhere")
    (folder / "model").symlink_to(folder.parent / "elsewhere")
    return "model: a link"


def link_to_nothing(folder: Path) -> str:
    (folder / "model" / "broken").symlink_to("nowhere")
    return "model/broken: a link"


def add_empty_folder(folder: Path) -> str:
    (folder / "rank_old" / "1").mkdir(parents=True)
    return "rank_old/1: a folder that is not part of it"


def lose_empty_folder(folder: Path) -> str:
    (folder / "rank" / "1").rmdir()
    return "rank/1: missing"


def add_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe: no plain file"


def hide_beside_byte_code(folder: Path) -> str:
    (folder / "model" / "__pycache__").mkdir()
    (folder / "model" / "__pycache__" / "weights.bin").write_text("x")
    return "model/__pycache__/weights.bin: not part of the artifact"


def link_in_byte_code(folder: Path) -> str:
    (folder / "model" / "__pycache__").mkdir()
    (folder / "model" / "__pycache__" / "model.cpython-311.pyc").symlink_to("/etc/hostname")
    return "model/__pycache__/model.cpython-311.pyc: not part of the artifact"


@pytest.mark.parametrize(
    "change",
    [
        link_weights,
        link_folder,
        link_to_nothing,
        add_empty_folder,
        lose_empty_folder,
        add_pipe,
        hide_beside_byte_code,
        link_in_byte_code,
    ],
)
def test_only_plain_files_in_known_folders_are_whole(tmp_path: Path, change: Callable[[Path], str]) -> None:
    folder = tmp_path / "repository"
    with write_artifact(folder, "assemble", SETTINGS, {}) as draft:
        (draft.folder / "rank" / "1").mkdir(parents=True)
        (draft.folder / "model").mkdir()
        (draft.folder / "model" / "model.bin").write_text("weights")
    assert verify_artifact(folder).empty_folders == ["rank/1"]
    said = change(folder)
    with pytest.raises(ArtifactError) as caught:
        verify_artifact(folder)
    faults = [line.strip() for line in str(caught.value).splitlines()]
    assert any(fault.startswith(said) for fault in faults), faults


def test_an_artifact_may_be_reached_through_a_link(tmp_path: Path) -> None:
    manifest = build(tmp_path / "teacher")
    (tmp_path / "current").symlink_to(tmp_path / "teacher")
    assert verify_artifact(tmp_path / "current") == manifest


def test_what_is_no_artifact_is_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dataset"
    for number in (1, 2):
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / "thesis.txt").write_text(f"my only copy {number}")
        build(folder)
        kept = tmp_path / f"dataset.kept-{number}"
        assert (kept / "thesis.txt").read_text() == f"my only copy {number}"
        assert str(kept) in capsys.readouterr().out.replace("\n", "")
        assert is_aside(kept)
    verify_artifact(folder)


def test_the_older_artifact_comes_back_when_it_stood_aside(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    before = build(folder)
    killed_while_building(
        folder, "rename = Path.rename; Path.rename = lambda path, to: (path.suffix and die(), rename(path, to))"
    )
    assert not folder.exists()
    with pytest.raises(ValueError):  # noqa: PT011
        build_until(folder, ValueError)
    assert verify_artifact(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large", "/x/weights.bin"),
        PermissionError(errno.EACCES, "Permission denied", "/x/weights.bin"),
        OSError(errno.EROFS, "Read-only file system", "/x/weights.bin"),
        pl.exceptions.ComputeError("parquet: File out of specification: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ],
    ids=repr,
)
def test_a_disk_that_refuses_is_one_message_and_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "teacher"
    before = build(folder)

    def fail() -> None:
        with write_artifact(folder, "finetune", SETTINGS, {}) as draft:
            (draft.folder / "model.bin").write_text("half")
            raise error

    with pytest.raises(StorageError) as caught:
        fail()
    assert caught.value.exit_code == 2
    assert "/x/weights.bin: " in str(caught.value) or str(folder) in str(caught.value)
    assert caught.value.__cause__ is error
    assert verify_artifact(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        OSError("we could not connect to the hub"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        RuntimeError("shapes do not match [Errno 2]"),
        KeyError("os error"),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, write_artifact(tmp_path / "teacher", "finetune", SETTINGS, {}):
        raise error
    assert caught.value is error


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "judgements" / "a.parquet"
    with whole_file(path) as draft:
        draft.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"

    def fail() -> None:
        with whole_file(path) as draft:
            draft.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=str(path)):
        fail()
    assert path.read_text() == "first"
    with whole_file(path) as draft, ThreadPoolExecutor(1) as other:
        draft.write_text("mine")
        other.submit(write_whole, path, "of another thread").result()
        assert path.read_text() == "of another thread"
    assert path.read_text() == "mine"
    assert [one.name for one in path.parent.iterdir()] == ["a.parquet"]
