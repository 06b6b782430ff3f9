"""The stages in order: what is up to date is skipped, what is not is made again, and the summary tells the truth."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TESTS, Build
from onnx import numpy_helper
from tiny_models import save_ranker
from tritonrank import cli
from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.rungs import model_rungs
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.prepare import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.errors import ArtifactError, GateError, RecipeError
from tritonrank.judge.evaluate import ExampleScorer, judge_artifact
from tritonrank.judge.gate import paired_difference
from tritonrank.pipeline import stages as pipeline
from tritonrank.pipeline.stages import run_stages, stages
from tritonrank.recipe import PACKAGED_MINILM, Recipe
from tritonrank.report import summary
from tritonrank.report.summary import baseline_judgements
from tritonrank.report.summary_table import SUMMARY_FILE
from tritonrank.serve.assemble import GOLDEN_CANDIDATES, golden_cases
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.text import RequestTokenizer, TextRules

VERBS = ["prepare", "finetune", "export", "quantize", "assemble", "summarize"]


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
    assert makers.run(tiny_recipe, until=until) == VERBS[: VERBS.index(until) + 1]


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
    both = [*VERBS[:2], "prune", "distill", *VERBS[2:]]
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
    assert makers.run(smaller(tiny_recipe, "prune")) == [*VERBS[:2], "prune", *VERBS[2:]]
    assert read_manifest(makers.workspace.onnx).parents["checkpoint"] == read_manifest(makers.workspace.pruned).artifact
    assert makers.run(tiny_recipe) == VERBS[2:]  # without the section the teacher is served again


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
    assert makers.ran == ["prepare", "finetune"]
    assert not makers.workspace.int8.exists()


def test_an_unknown_verb_is_not_silently_everything(makers: Makers, tiny_recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="no stage quantise"):
        makers.run(tiny_recipe, until="quantise")
    with pytest.raises(RecipeError, match=r"no stage quantize; quantize\.method is none"):
        makers.run(changed(tiny_recipe, "quantize", method="none"), until="quantize")
    assert makers.ran == []


# What follows is about the real stages.


@pytest.fixture
def copied(workspace: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(workspace.root, tmp_path / "tiny")
    return Workspace(tmp_path / "tiny")


def ran_and_skipped(output: str) -> tuple[list[str], list[str]]:
    lines = [line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0] in VERBS]
    return [w[0] for w in lines if w[1] == "->"], [w[0] for w in lines if w[1:4] == ["up", "to", "date"]]


def test_a_finished_build_has_nothing_to_do(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(tiny_recipe, copied)
    assert ran_and_skipped(capsys.readouterr().out) == ([], VERBS)


def test_a_serving_setting_rebuilds_the_repository_alone(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(changed(tiny_recipe, "serve", queue_requests=5), copied)
    ran, skipped = ran_and_skipped(capsys.readouterr().out)
    assert (ran, skipped) == (["assemble"], [verb for verb in VERBS if verb != "assemble"])
    assert 'string_value: "5"' in (copied.repository / "tokenize" / "config.pbtxt").read_text()


def test_a_damaged_repository_is_rebuilt_as_it_was(
    tiny_recipe: Recipe, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(copied.repository)
    (copied.repository / "score" / "1" / "candidates.onnx").write_bytes(b"half")
    run_stages(tiny_recipe, copied)
    assert ran_and_skipped(capsys.readouterr().out)[0] == ["assemble"]
    assert read_manifest(copied.repository).files == before.files


def read_summary(workspace: Workspace) -> dict[str, dict[str, object]]:
    rows = json.loads((workspace.summary / SUMMARY_FILE).read_text())["rows"]
    return {row["name"]: row for row in rows}


def test_summary_has_every_baseline_and_every_rung(workspace: Workspace) -> None:
    rows = read_summary(workspace)
    baselines = ["random", "popularity", "item kNN", "zero-shot cosine", "untrained"]
    assert list(rows) == [*baselines, "fine-tuned", "ONNX FP32", "INT8"]
    # Two graphs around one file of weights, most of which are the word embeddings, in FP32.
    megabytes = {"fine-tuned": 8.2, "ONNX FP32": 8.3, "INT8": 8.1}
    for name, row in rows.items():
        for metric in ("ndcg@10", "mrr@10", "recall@10", "auc", "difference"):
            interval = row[metric]
            assert interval["low"] <= interval["mean"] <= interval["high"], (name, metric)
        assert ("milliseconds_per_100" in row) == (name not in baselines)
        if name not in baselines:
            assert row["milliseconds_per_100"] > 0
            assert row["megabytes"] == pytest.approx(megabytes[name], abs=0.3)


def test_summary_pairs_each_row_with_the_teacher_on_the_same_examples(
    workspace: Workspace, tiny_recipe: Recipe
) -> None:
    rows, dataset = read_summary(workspace), Dataset.read(workspace.dataset)
    judged = baseline_judgements(tiny_recipe, dataset, workspace)
    rungs = model_rungs(tiny_recipe, workspace)
    for name, folder in rungs.items():
        judged[name] = judge_artifact(name, folder, workspace.dataset, workspace.judgements)
    assert {tuple(j.example_ids) for j in judged.values()} == {tuple(e.example_id for e in dataset.test)}
    teacher = judged["fine-tuned"]
    for name, judgement in judged.items():
        differences = judgement.values() - teacher.values()
        assert rows[name]["difference"]["mean"] == pytest.approx(float(np.mean(differences)))
        paired = paired_difference(judgement, teacher)
        assert rows[name]["difference"] == pytest.approx(vars(paired))
    assert rows["fine-tuned"]["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_baselines_are_judged_anew_for_another_architecture(
    workspace: Workspace, tiny_recipe: Recipe, joint_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untrained ranker is one, and a recipe's artifacts folder may have held the other."""
    made: list[str] = []

    def untrained(recipe: Recipe, *_: object) -> dict[str, Callable[[], ExampleScorer]]:
        def make() -> ExampleScorer:
            made.append(recipe.model.architecture)
            return lambda example: np.arange(len(example.candidates), dtype=np.float32)

        return {"untrained": make}

    monkeypatch.setattr(summary, "all_baselines", untrained)
    folder = Workspace(tmp_path / "tiny")
    shutil.copytree(workspace.dataset, folder.dataset)
    for recipe in (tiny_recipe, joint_recipe, tiny_recipe, joint_recipe):
        baseline_judgements(recipe, Dataset.read(folder.dataset), folder)
    assert made == ["shared-context", "joint"]


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``tritonrank`` in this process and give its exit code."""
    monkeypatch.setattr("sys.argv", ["tritonrank", *map(str, arguments)])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    return int(raised.value.code or 0)


def test_build_ends_with_one_line_of_json(
    workspace: Workspace, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"model.base={tiny_recipe.model.base}"
    code = command_line(monkeypatch, "build", TESTS / "tiny.yaml", "--set", base, "--artifacts", workspace.root.parent)
    out = capsys.readouterr().out
    assert code == 0
    assert ran_and_skipped(out) == ([], VERBS)
    last = json.loads(out.splitlines()[-1])
    assert last["recipe"] == "tiny"
    assert last["ndcg@10"] == {name: row["ndcg@10"]["mean"] for name, row in read_summary(workspace).items()}
    table = out.splitlines()[:-1]  # for people, before the line for scripts
    for name, row in read_summary(workspace).items():
        (line,) = [line for line in table if line.strip().startswith(name)]
        assert f"[{row['ndcg@10']['low']:.3f} {row['ndcg@10']['high']:.3f}]" in line
        if name != "fine-tuned":
            assert f"[{row['difference']['low']:+.3f} {row['difference']['high']:+.3f}]" in line  # not cut off


@pytest.fixture
def reversed_graph(certain: Build, tmp_path: Path) -> Path:
    """The FP32 graph with its head negated: the best candidate comes last."""
    folder = tmp_path / "reversed"
    shutil.copytree(certain.workspace.onnx, folder)
    model = onnx.load(folder / "model.onnx")
    head = next(node for node in model.graph.node if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in head.input:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "model.onnx")
    return folder


def test_evaluate_passes_what_ranks_the_same(
    certain: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = certain.workspace.root.parent
    code = command_line(
        monkeypatch, "evaluate", certain.recipe_path, "--artifacts", root, "--artifact", certain.workspace.onnx
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "ndcg@10    1.000 [1.000, 1.000]   teacher: 1.000 [1.000, 1.000]" in out
    assert "gate passed on 40 requests, onnx against teacher" in out


def test_evaluate_fails_what_ranks_worse(
    certain: Build,
    reversed_graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    build = certain.copied(tmp_path)
    arguments = ["evaluate", build.recipe_path, "--artifacts", tmp_path, "--artifact", reversed_graph]
    assert command_line(monkeypatch, *arguments) == GateError.exit_code == 1
    captured = capsys.readouterr()
    assert "ndcg@10    0.0" in captured.out
    assert "GateError: gate closed: reversed against teacher" in captured.err


def test_the_budget_decides(
    certain: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """INT8 costs this build a few percent: within the recipe's 15%, far beyond 0.01%."""
    root, int8 = certain.workspace.root.parent, certain.workspace.int8
    arguments = ["evaluate", certain.recipe_path, "--artifacts", root, "--artifact", int8]
    assert command_line(monkeypatch, *arguments) == 0
    assert command_line(monkeypatch, *arguments, "--set", "gate.budget=0.0001") == 1
    assert "the budget is 0.01%" in capsys.readouterr().err.replace("\n", " ")


def test_evaluate_without_a_build_says_what_to_do(
    certain: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", certain.recipe_path, "--artifacts", tmp_path, "--artifact", certain.workspace.onnx]
    assert command_line(monkeypatch, *arguments) == RecipeError.exit_code == 2
    error = capsys.readouterr().err
    assert "ArtifactError" in error
    assert "tritonrank build" in error
    assert "Traceback" not in error


def test_one_golden_request_has_items_without_text_and_texts_that_are_json(workspace: Workspace) -> None:
    """So that a server proves that it takes both as the judge did; read as fields, such a text would be another one."""
    case = golden_cases(Dataset.read(workspace.dataset), workspace.int8)[-1]
    tokenizer = RequestTokenizer.from_folder(workspace.int8)
    blank = [place for place, item in enumerate(case["items"]) if not tokenizer.items([item])[0]]
    assert len(blank) == 2
    for place, score in enumerate(case["scores"]):
        assert (score == NO_TEXT_SCORE) == (place in blank)
        assert abs(score) < 1e3 or place in blank
    (as_json,) = [item for item in case["items"] if item.startswith("{")]
    assert tokenizer.render(as_json) not in ("", as_json)
    assert as_json in case["history"]
    assert "" in case["history"]


def test_golden_requests_hold_what_the_user_went_on_to_like(workspace: Workspace) -> None:
    dataset = Dataset.read(workspace.dataset)
    rules = TextRules.load(workspace.teacher)
    cases = golden_cases(dataset, workspace.int8)
    for case, example, whole in zip(
        cases, dataset.validation[:3], requests_of(dataset, dataset.validation[:3], rules), strict=False
    ):
        liked = {text for text, label in zip(whole.items, example.labels, strict=True) if label}
        assert len(case["items"]) == GOLDEN_CANDIDATES < len(whole.items)
        assert liked <= set(case["items"])
        assert set(case["items"]) <= set(whole.items)
