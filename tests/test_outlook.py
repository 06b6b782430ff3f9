"""What a build says before it begins: which stages, and how long they will take."""

from pathlib import Path

import pytest
from tritonrank.artifacts import Draft
from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline import outlook
from tritonrank.pipeline.outlook import about_seconds, in_words, say_outlook
from tritonrank.pipeline.stages import stages
from tritonrank.recipe import Recipe, load_recipe

DEMO = Path(__file__).parents[1] / "build" / "recipes" / "demo.yaml"


def demo(*overrides: str) -> Recipe:
    return load_recipe(DEMO, list(overrides))


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "_has_gpu", lambda: False)
    monkeypatch.setattr(outlook, "available_cores", lambda: 2)


def test_every_stage_of_the_demo_has_a_purpose_and_a_time(tmp_path: Path) -> None:
    verbs = [stage.verb for stage in stages(demo(), Workspace(tmp_path))]
    seconds = about_seconds(demo())
    assert verbs
    assert set(verbs) <= set(seconds)
    assert set(verbs) <= set(outlook.PURPOSES)
    assert sum(seconds[verb] for verb in verbs) < 240, "the demo is for a newcomer's patience"


def test_more_examples_take_longer_where_they_are_used() -> None:
    less, more = about_seconds(demo()), about_seconds(demo("examples.training_examples=1600"))
    assert {verb for verb in less if more[verb] > less[verb]} == {"finetune"}
    more = about_seconds(demo("examples.test_users=200"))
    assert {verb for verb in less if more[verb] > less[verb]} == {"compare", "quantize"}


def test_nothing_is_guessed_for_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert about_seconds(demo("model.base=somebody/large")) == {}
    assert about_seconds(demo("model.architecture=joint")) == {}
    monkeypatch.setattr(outlook, "_has_gpu", lambda: True)
    assert about_seconds(demo()) == {}


def test_what_is_up_to_date_is_not_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stage(verb: str, made: list[str]) -> Stage:
        def make(draft: Draft) -> None:
            made.append(verb)

        return Stage(verb, tmp_path / verb, dict, {}, make, 1, ())

    from tritonrank.artifacts.stage import run_stage

    made: list[str] = []
    first, second = stage("prepare", made), stage("finetune", made)
    say_outlook(demo(), [first, second])
    said = capsys.readouterr().out
    assert said.count("\n") == 3
    assert "2 stages" in said
    run_stage(first)
    say_outlook(demo(), [first, second])
    said = capsys.readouterr().out
    assert "1 stage," in said
    assert "prepare" not in said
    run_stage(second)
    say_outlook(demo(), [first, second])
    assert capsys.readouterr().out == ""
    assert made == ["prepare", "finetune"], "saying it makes nothing"


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "5 s"), (42, "40 s"), (75, "1 min"), (100, "1.5 min"), (250, "4 min"), (1_000, "17 min")]
)
def test_times_are_no_finer_than_they_are_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
