"""A stage runs when anything that its artifact depends on has changed, and says what."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tritonrank.artifacts import FORMAT, MANIFEST, Draft, OtherFormatError, manifest, read_manifest, verify_artifact
from tritonrank.artifacts.stage import Stage, bring_up_to_date, run_stage, take_part
from tritonrank.errors import ArtifactError, GateError


@dataclass
class Maker:
    """A stage of one small file, and how often it ran."""

    root: Path
    settings: dict[str, Any] = field(
        default_factory=lambda: {"quantize": {"noise": 0.03, "exclude": ["layer.0"]}, "seed": 17, "source": "a" * 64}
    )
    times: int = 0

    def stage(self, **changes: Any) -> Stage:
        made = Stage(
            "quantize",
            self.root / "int8",
            lambda: self.settings,
            {"dataset": self.root / "dataset"},
            self._make,
            revision=1,
            tools=("onnxruntime", "numpy"),
        )
        return replace(made, **changes)

    def _make(self, draft: Draft) -> None:
        self.times += 1
        (draft.folder / "model.safetensors").write_text("graph")
        draft.metrics["parents"] = sorted(draft.parents)

    def dataset(self, content: str) -> None:
        def make(draft: Draft) -> None:
            (draft.folder / "items.parquet").write_text(content)

        run_stage(Stage("prepare", self.root / "dataset", dict, {}, make, revision=1, tools=()))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    made = Maker(tmp_path)
    made.dataset("books")
    bring_up_to_date(made.stage())
    return made


def test_what_a_stage_made_is_published_with_all_that_it_depends_on(maker: Maker) -> None:
    made, stage = verify_artifact(maker.root / "int8"), maker.stage()
    assert (made.stage, made.revision, made.format, made.key) == ("quantize", 1, FORMAT, stage.key())
    assert made.settings == maker.settings
    assert made.parents == {"dataset": read_manifest(maker.root / "dataset").artifact}
    assert made.metrics == {"parents": ["dataset"]}
    assert made.tools["onnxruntime"] == manifest.tool_version("onnxruntime")


def test_the_second_time_nothing_is_done(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert bring_up_to_date(maker.stage()) == read_manifest(maker.root / "int8")
    assert maker.times == 1
    assert capsys.readouterr().out.split()[:4] == ["quantize", "up", "to", "date"]
    bring_up_to_date(maker.stage(), force=True)
    assert maker.times == 2


def other_noise(maker: Maker) -> dict[str, Any]:
    maker.settings["quantize"]["noise"] = 0.02
    return {}


def two_settings(maker: Maker) -> dict[str, Any]:
    maker.settings |= {"seed": 18, "source": "b" * 64}
    return {}


def further_setting(maker: Maker) -> dict[str, Any]:
    maker.settings["source"] = "b" * 64
    maker.settings["quantize"]["[bold]"] = [1, 2]
    return {}


def other_dataset(maker: Maker) -> dict[str, Any]:
    maker.dataset("lamps")
    return {}


def repaired(_: Maker) -> dict[str, Any]:
    return {"revision": 2}


def damaged(maker: Maker) -> dict[str, Any]:
    (maker.root / "int8" / "model.safetensors").write_text("bit rot")
    return {}


def half_a_manifest(maker: Maker) -> dict[str, Any]:
    (maker.root / "int8" / MANIFEST).write_text("{")
    return {}


def gone(maker: Maker) -> dict[str, Any]:
    (maker.root / "int8" / MANIFEST).unlink()
    return {}


def earlier_format(maker: Maker) -> dict[str, Any]:
    """As tritonrank 0.1.0 wrote it."""
    path = maker.root / "int8" / MANIFEST
    recorded = json.loads(path.read_text())
    del recorded["revision"]
    path.write_text(json.dumps(recorded | {"format": 1, "key": "0" * 64}))
    assert verify_artifact(maker.root / "int8").format == 1  # which can be served as before
    return {}


def other_verb(_: Maker) -> dict[str, Any]:
    return {"verb": "quantise"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_noise, "(setting quantize.noise was 0.03, is 0.02)"),
        (two_settings, "(setting seed was 17, is 18, and 1 more)"),
        (further_setting, "(setting quantize.[bold] was absent, is [1, 2], and 1 more)"),
        (other_dataset, "(parent dataset changed)"),
        (repaired, "(quantize's code has revision 2, the artifact revision 1)"),
        (damaged, "(damaged: model.safetensors: changed"),
        (half_a_manifest, "(damaged: "),
        (gone, "(new)"),
        (earlier_format, "(an earlier version of tritonrank made it: format 1"),
        (other_verb, "(quantize made it)"),
    ],
)
def test_a_stage_runs_again_and_says_why_in_one_line(
    change: Callable[[Maker], dict[str, Any]], reason: str, maker: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = maker.stage(**change(maker))
    capsys.readouterr()
    bring_up_to_date(stage)
    assert maker.times == 2
    first, *_ = [line for line in capsys.readouterr().out.splitlines() if "->" in line]
    assert first.split()[:3] == [stage.verb, "->", str(maker.root / "int8")]
    assert reason in first
    assert stage.why_anew() is None


def test_another_version_of_a_tool_that_changes_the_result_runs_the_stage_again(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, before = manifest.importlib.metadata.version, manifest.tool_version("onnxruntime")
    others = {"onnxruntime": "99.1", "torch": "99.2"}  # this stage does not depend on torch
    monkeypatch.setattr(manifest.importlib.metadata, "version", lambda name: others.get(name) or real(name))
    bring_up_to_date(maker.stage())
    assert maker.times == 2
    assert f"(made with onnxruntime {before}, here is 99.1)" in capsys.readouterr().out
    assert maker.stage().why_anew() is None
    others["torch"] = "99.3"
    assert maker.stage().why_anew() is None


def test_a_tool_that_is_not_there_has_a_version_too(maker: Maker) -> None:
    with_another = maker.stage(tools=("onnxruntime", "numpy", "no-such-tool"))
    bring_up_to_date(with_another)
    assert maker.times == 2
    assert with_another.why_anew() is None


def test_all_reasons_are_told(maker: Maker) -> None:
    other_noise(maker)
    other_dataset(maker)
    why = maker.stage(revision=3).why_anew()
    assert why is not None
    assert why.count(";") == 2


def test_nothing_is_published_by_a_stage_that_fails(maker: Maker) -> None:
    def close(draft: Draft) -> None:
        (draft.folder / "model.safetensors").write_text("worse")
        raise GateError("gate closed")

    before = verify_artifact(maker.root / "int8")
    with pytest.raises(GateError):
        run_stage(maker.stage(make=close))
    assert verify_artifact(maker.root / "int8") == before
    assert sorted(path.name for path in maker.root.iterdir()) == ["dataset", "int8"]


def test_without_its_parent_a_stage_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"dataset.*tritonrank build"):
        Maker(tmp_path).stage().why_anew()


def test_what_a_later_version_made_is_left_alone(maker: Maker) -> None:
    path = maker.root / "int8" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(OtherFormatError):
        bring_up_to_date(maker.stage())
    assert maker.times == 1


@pytest.mark.parametrize(("rank", "publishes"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_one_publishes(
    rank: str, publishes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    maker = Maker(tmp_path)
    maker.dataset("books")
    take_part(maker.stage())
    assert maker.times == 1
    assert (tmp_path / "int8").is_dir() is publishes
