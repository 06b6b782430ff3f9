"""What a build says before it begins: which stages, and how long they will take."""

import json
from pathlib import Path

import pytest
from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import estimates, outlook
from tritonrank.pipeline.estimates import SECONDS_FILE, about_seconds, remember
from tritonrank.pipeline.outlook import coming_stages, in_words, say_outlook
from tritonrank.pipeline.stages import stages
from tritonrank.recipe import Recipe, load_recipe

DEMO = Path(__file__).parents[1] / "build" / "recipes" / "demo.yaml"


def demo(*overrides: str) -> Recipe:
    return load_recipe(DEMO, list(overrides))


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "has_gpu", lambda: False)
    monkeypatch.setattr(estimates, "available_cores", lambda: 2)


def test_every_stage_of_the_demo_has_a_purpose_and_a_time(tmp_path: Path) -> None:
    verbs = [stage.verb for stage in stages(demo(), Workspace(tmp_path))]
    seconds = about_seconds(demo())
    assert verbs
    assert set(verbs) <= set(seconds)
    assert set(verbs) <= set(outlook.PURPOSES)
    assert sum(seconds[verb] for verb in verbs) < 240, "the demo is for a newcomer's patience"


def test_more_examples_take_longer_where_they_are_used() -> None:
    less, more = about_seconds(demo()), about_seconds(demo("examples.training_examples=1600"))
    assert {verb for verb in less if more[verb] > less[verb]} == {"finetune", "retriever"}
    more = about_seconds(demo("examples.test_users=200"))
    assert {verb for verb in less if more[verb] > less[verb]} == {"compare", "quantize", "engine", "blend"}


def test_a_larger_model_takes_longer_and_an_unknown_one_is_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = about_seconds(demo())
    for name, config in {
        "bert": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072},
        "distilbert": {"n_layers": 12, "dim": 768, "hidden_dim": 3072},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        large = about_seconds(demo(f"model.base={tmp_path / name}"))
        assert large["finetune"] == pytest.approx(8 * small["finetune"])  # twice the layers, four times the weights
    assert about_seconds(demo("model.base=somebody/large")) == {}
    monkeypatch.setattr(estimates, "has_gpu", lambda: True)
    assert about_seconds(demo()) == {}


def test_a_joint_ranker_reads_the_context_with_every_candidate() -> None:
    shared, joint = about_seconds(demo()), about_seconds(demo("model.architecture=joint"))
    assert 2 * shared["finetune"] < joint["finetune"] < 8 * shared["finetune"]
    assert shared["prepare"] == joint["prepare"]


def test_a_build_before_counts_more_than_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    table = about_seconds(demo(), workspace)
    remember(demo(), workspace, "finetune", 3 * table["finetune"])
    remember(demo(), workspace, "compile", 100.0)
    known = about_seconds(demo(), workspace)
    assert known["finetune"] == pytest.approx(3 * table["finetune"], rel=0.01)
    assert known["compile"] == 100.0, "what the table does not have was measured"
    assert known["quantize"] == table["quantize"]
    twice = about_seconds(demo("finetune.epochs=2"), workspace)
    assert twice["finetune"] > 1.5 * known["finetune"], "other settings scale what was measured"
    monkeypatch.setattr(estimates, "processor_name", lambda: "another machine")
    assert about_seconds(demo(), workspace) == table
    (tmp_path / SECONDS_FILE).write_text("[]", encoding="utf-8")
    assert about_seconds(demo(), workspace) == table


def test_what_has_no_estimate_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = demo("prune.layers=3")
    known = say_outlook(recipe, Workspace(tmp_path), stages(recipe, Workspace(tmp_path)))
    assert "what prune take" in capsys.readouterr().out.replace("takes", "take")
    assert "prune" not in known


def test_what_is_up_to_date_is_not_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stage(verb: str, made: list[str]) -> Stage:
        def make(draft: Draft) -> None:
            made.append(verb)

        return Stage(verb, tmp_path / verb, dict, {}, make, 1, ())

    from tritonrank.artifacts.stage import run_stage

    made: list[str] = []
    first, second = stage("prepare", made), stage("finetune", made)
    say_outlook(demo(), Workspace(tmp_path), coming_stages([first, second]))
    said = capsys.readouterr().out
    assert said.count("\n") == 3
    assert "2 stages" in said
    run_stage(first)
    say_outlook(demo(), Workspace(tmp_path), coming_stages([first, second]))
    said = capsys.readouterr().out
    assert "1 stage," in said
    assert "prepare" not in said
    run_stage(second)
    say_outlook(demo(), Workspace(tmp_path), coming_stages([first, second]))
    assert capsys.readouterr().out == ""
    assert made == ["prepare", "finetune"], "saying it makes nothing"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (42, "40 s"), (75, "1 min"), (100, "1.5 min"), (250, "4 min"), (1_000, "17 min"), (9_000, "2.5 h")],
)
def test_times_are_no_finer_than_they_are_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
