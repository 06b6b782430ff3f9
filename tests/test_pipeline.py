"""The stages in order: what is up to date is skipped, what is not is made again, and the summary tells the truth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import save_ranker
from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.rungs import model_rungs
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.pipeline import stages as pipeline
from tritonrank.pipeline.stages import run_stages, stages
from tritonrank.recipe import PACKAGED_MINILM, Recipe
from tritonrank.report.answer import SUMMARY_FILE

VERBS = ["prepare", "finetune", "compare", "export", "quantize", "assemble", "summarize"]


class Makers:
    """Stand-ins for what the stages make: one small file each. All else is the stages' own."""

    def __init__(self, patched: pytest.MonkeyPatch, workspace: Workspace) -> None:
        self.workspace = workspace
        self.ran: list[str] = []
        declared = pipeline.stages
        patched.setattr(pipeline, "stages", lambda *given: [self._with_stand_in(stage) for stage in declared(*given)])

    def _with_stand_in(self, stage: Stage) -> Stage:
        def make(draft: Draft) -> None:
            self.ran.append(stage.verb)
            # As with real weights, what comes out depends on what went in.
            (draft.folder / "out.json").write_text(json.dumps([draft.key, stage.settings()]))
            if stage.verb == "summarize":
                told = {"recipe": "tiny", "served": "INT8", "verdict": {"success": True}, "examples": 0, "rows": []}
                (draft.folder / SUMMARY_FILE).write_text(json.dumps(told))

        return replace(stage, make=make)

    def run(self, recipe: Recipe, until: str | None = None, force: str | None = None) -> list[str]:
        """The verbs that really ran."""
        self.ran.clear()
        run_stages(recipe, self.workspace, until, force=force)
        return list(self.ran)


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Makers:
    return Makers(monkeypatch, Workspace(tmp_path / "tiny"))


def changed(recipe: Recipe, section: str, **values: object) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def test_all_stages_run_once_in_order(makers: Makers, tiny_recipe: Recipe) -> None:
    assert makers.run(tiny_recipe) == VERBS
    assert makers.run(tiny_recipe) == []


@pytest.mark.parametrize(
    ("section", "values", "first"),
    [
        ("data", {"users": 151}, "prepare"),
        ("examples", {"test_users": 60}, "prepare"),
        ("text", {"history_tokens": 60}, "prepare"),
        ("model", {"base": PACKAGED_MINILM}, "prepare"),
        ("finetune", {"learning_rate": 0.002}, "finetune"),
        ("quantize", {"exclude": ["layer.0"]}, "quantize"),
        ("gate", {"budget": 0.2}, "quantize"),
        ("serve", {"deadline_ms": 99}, "assemble"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_setting_reruns_its_stage_and_what_depends_on_it(
    section: str, values: dict[str, object], first: str, makers: Makers, tiny_recipe: Recipe
) -> None:
    makers.run(tiny_recipe)
    other = changed(tiny_recipe, section, **values)
    expected = VERBS[VERBS.index(first) :]
    if first == "assemble":
        expected = ["assemble"]  # the summary is about the model, which is the same
    assert makers.run(other) == expected
    assert makers.run(other) == []


def test_another_checkpoint_reruns_from_the_data_on(makers: Makers, tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Its tokenizer says which items have a text, and how much of it is read."""
    makers.run(tiny_recipe)
    other = changed(tiny_recipe, "model", checkpoint=str(save_ranker("bert", tmp_path / "other")), architecture="joint")
    assert makers.run(other) == VERBS
    assert makers.run(other) == []


def test_a_changed_seed_reruns_from_the_data_on(makers: Makers, tiny_recipe: Recipe) -> None:
    makers.run(tiny_recipe)
    assert makers.run(tiny_recipe.model_copy(update={"seed": 18})) == VERBS


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "no manifest", "half a manifest"])
def test_a_damaged_artifact_is_rebuilt(damage: str, makers: Makers, tiny_recipe: Recipe) -> None:
    makers.run(tiny_recipe)
    folder = makers.workspace.onnx
    before = read_manifest(folder)
    if damage == "changed":
        (folder / "out.json").write_text("bit rot")
    elif damage == "missing":
        (folder / "out.json").unlink()
    elif damage == "added":
        (folder / "extra.bin").write_text("left by somebody")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text[: len(text) // 2])
    assert makers.run(tiny_recipe) == ["export"]  # which gives the same as before, so that later stages still fit it
    assert read_manifest(folder).artifact == before.artifact
    assert makers.run(tiny_recipe) == []


@pytest.mark.parametrize("until", VERBS)
def test_until_is_the_last_stage(until: str, makers: Makers, tiny_recipe: Recipe) -> None:
    through = VERBS[: VERBS.index(until) + 1]
    # Judging takes minutes: a later stage alone does not ask for the comparison...
    assert makers.run(tiny_recipe, until=until) == [verb for verb in through if verb != "compare" or until == verb]


def test_a_comparison_that_may_end_the_build_is_not_left_out(makers: Makers, tiny_recipe: Recipe) -> None:
    stops = changed(tiny_recipe, "gate", training="stop")
    assert makers.run(stops, until="export") == VERBS[: VERBS.index("export") + 1]


def test_force_reruns_that_stage_alone_when_it_gives_the_same(makers: Makers, tiny_recipe: Recipe) -> None:
    makers.run(tiny_recipe)
    assert makers.run(tiny_recipe, until="export", force="export") == ["export"]
    assert makers.run(tiny_recipe) == []


def test_without_quantization_the_fp32_graph_is_served(makers: Makers, tiny_recipe: Recipe) -> None:
    plain = changed(tiny_recipe, "quantize", method="none")
    assert makers.run(plain) == [verb for verb in VERBS if verb != "quantize"]
    assert not makers.workspace.int8.exists()
    assert read_manifest(makers.workspace.repository).parents["model"] == read_manifest(makers.workspace.onnx).artifact


SMALLER = {"prune": {"layers": 1}, "distill": {"examples": 8}}


def smaller(recipe: Recipe, *sections: str) -> Recipe:
    return Recipe.model_validate(recipe.model_dump(mode="json") | {name: SMALLER[name] for name in sections})


def test_pruning_and_distillation_come_before_export(makers: Makers, tiny_recipe: Recipe) -> None:
    both = [*VERBS[:3], "prune", "distill", *VERBS[3:]]
    recipe = smaller(tiny_recipe, "prune", "distill")
    assert makers.run(recipe) == both
    assert makers.run(recipe) == []
    assert (
        read_manifest(makers.workspace.onnx).parents["checkpoint"] == read_manifest(makers.workspace.student).artifact
    )
    distilled_longer = changed(recipe, "distill", epochs=3.0)
    assert makers.run(distilled_longer) == both[both.index("distill") :]
    assert makers.run(changed(distilled_longer, "prune", heads=1)) == both[both.index("prune") :]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"prune_budget": 0.5}, "prune"),
        ({"distill_budget": 0.1}, "distill"),
        ({"quantize_budget": 0.1}, "quantize"),
    ],
)
def test_a_budget_is_that_of_its_step(
    changes: dict[str, float], first: str, makers: Makers, tiny_recipe: Recipe
) -> None:
    """A looser one for INT8 must not mean to train the student again."""
    recipe = smaller(tiny_recipe, "prune", "distill")
    both = makers.run(recipe)
    # Stand-ins hand their settings on; real artifacts that come out as before would let the later stages stand.
    assert makers.run(changed(recipe, "gate", **changes)) == both[both.index(first) :]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-fp16"])
def test_graphs_for_tensorrt_are_judged_on_the_dataset_that_is_there(precision: str, tiny_recipe: Recipe) -> None:
    workspace, recipe = Workspace(Path("tiny")), changed(tiny_recipe, "tensorrt", precisions=[precision])
    graph = next(
        stage for stage in stages(recipe, workspace) if stage.folder == workspace.tensorrt_graph(recipe, precision)
    )
    assert graph.parents["dataset"] == workspace.dataset


@pytest.mark.parametrize("serve", [{}, {"executor": "torch"}, {"device": "cuda"}])
def test_the_summary_depends_on_every_rung_that_it_tells_of(serve: dict[str, str], tiny_recipe: Recipe) -> None:
    workspace, recipe = Workspace(Path("tiny")), changed(smaller(tiny_recipe, "prune", "distill"), "serve", **serve)
    parents = stages(recipe, workspace)[-1].parents
    assert set(model_rungs(recipe, workspace).values()) | {workspace.dataset} == set(parents.values())


def test_pruning_alone_is_exported_as_it_is(makers: Makers, tiny_recipe: Recipe) -> None:
    assert makers.run(smaller(tiny_recipe, "prune")) == [*VERBS[:3], "prune", *VERBS[3:]]
    assert read_manifest(makers.workspace.onnx).parents["checkpoint"] == read_manifest(makers.workspace.pruned).artifact
    assert makers.run(tiny_recipe) == VERBS[3:]  # without the section the teacher is served again


@pytest.mark.parametrize("verb", ["prune", "distill"])
def test_a_stage_without_its_section_says_so(verb: str, makers: Makers, tiny_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=f"no stage {verb}; the recipe has no {verb} section"):
        makers.run(tiny_recipe, until=verb)


def test_a_failing_stage_stops_the_build(makers: Makers, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Draft) -> None:
        raise ArtifactError("the export went wrong")

    stages_before = pipeline.stages
    monkeypatch.setattr(
        pipeline,
        "stages",
        lambda *given: [
            replace(stage, make=fail) if stage.verb == "export" else stage for stage in stages_before(*given)
        ],
    )
    with pytest.raises(ArtifactError, match="went wrong"):
        makers.run(tiny_recipe)
    assert makers.ran == ["prepare", "finetune", "compare"]
    assert not makers.workspace.int8.exists()


def test_an_unknown_verb_is_not_silently_everything(makers: Makers, tiny_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="no stage quantise"):
        makers.run(tiny_recipe, until="quantise")
    with pytest.raises(RecipeError, match=r"no stage quantize; quantize\.method is none"):
        makers.run(changed(tiny_recipe, "quantize", method="none"), until="quantize")
    assert makers.ran == []
