"""An artifact is there whole, or not at all; damage is found before it is used."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tritonrank.artifacts import (
    MANIFEST,
    Manifest,
    is_current,
    read_manifest,
    sha256_file,
    stage_key,
    verify_artifact,
    write_artifact,
)
from tritonrank.errors import ArtifactError

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
    with pytest.raises(ArtifactError, match=r"damaged manifest .* run tritonrank build again"):
        read_manifest(tmp_path / "teacher")
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
    ]
    assert len({base, *changed}) == 7


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
