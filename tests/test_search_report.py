"""What a search says of its trials: table, page and JSON. Trials are a formula here."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import optuna
import pytest
from search_bench import QuickBench, formula, quick_bench, search_with
from tritonrank.errors import RecipeError
from tritonrank.search import report
from tritonrank.search.choices import Sampler
from tritonrank.search.search import TEST, Budget, Search
from tritonrank.search.space import Point

PLANTED = "<img src=x onerror=alert(1)> & [bold]"
OVER = ("finetune.learning_rate=1e-5,8e-5,1e-3,1e-2", "finetune.epochs=1,2", "finetune.loss=listwise,pairwise")


def with_a_fault(point: Point) -> float:
    if point == {"finetune.learning_rate": 1e-2, "finetune.epochs": 2.0, "finetune.loss": "pairwise"}:
        raise RecipeError(PLANTED)
    return formula(point)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> QuickBench:
    return quick_bench(tmp_path_factory.mktemp("search"), *OVER, value=with_a_fault)


@pytest.fixture(scope="module")
def study(bench: QuickBench) -> optuna.Study:
    """Sixteen trials, one of which cannot be."""
    found = search_with(bench, str(bench.folder.parent / "study.journal"), Sampler.GRID, None)
    Search(bench, found, Budget(None, None)).judge_best_on_test_users()
    return found


@pytest.fixture(scope="module")
def found(bench: QuickBench, study: optuna.Study) -> report.Found:
    return report.gather(study, bench.space, bench.recipe, TEST)


def test_the_best_is_held_against_the_recipe_user_by_user(found: report.Found) -> None:
    best = found.best
    assert best is not None
    assert best.point["finetune.learning_rate"] == 1e-3
    assert best.against_recipe is not None
    # The same step for every user: a paired difference has no width, whatever the users differ by.
    assert best.against_recipe.low == pytest.approx(best.against_recipe.high, abs=1e-4)
    (recipe,) = [row for row in found.rows if row.is_recipe]
    assert recipe.point == {"finetune.learning_rate": 8e-5, "finetune.epochs": 1.0, "finetune.loss": "listwise"}
    assert found.test_gain is not None
    assert found.test_gain.mean == pytest.approx(best.against_recipe.mean, abs=1e-4)
    assert found.mood == "good"
    assert set(found.importance) == set(found.space.written)
    assert max(found.importance, key=lambda key: found.importance[key]) == "finetune.learning_rate"


def test_the_table_is_for_people_and_the_json_for_scripts(
    found: report.Found, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    report.show(found)
    said = capsys.readouterr().out
    assert "15 trials complete, 1 cannot be" in said
    assert PLANTED in said
    assert "1 more trials are on the page" in said
    assert "The test users, by whom nothing was chosen" in said
    told = json.loads(json.dumps(report.result(found)))
    assert (told["complete"], told["failed"]) == (15, 1)
    assert told["best"]["settings"]["finetune.learning_rate"] == 1e-3
    assert told["test"]["gain"]["low"] > 0


def test_the_page_needs_nothing_from_elsewhere_and_shows_faults_as_text(found: report.Found, tmp_path: Path) -> None:
    page = report.write(found, tmp_path).read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert "http" not in page
    assert "<script" not in page
    plots = page.split("<svg ")[1:]
    assert len(plots) == 6  # history, what matters, curves, three slices
    for plot in plots:
        ElementTree.fromstring("<svg " + plot.split("</svg>")[0] + "</svg>")
    everything = json.loads((tmp_path / report.RESULT_FILE).read_text(encoding="utf-8"))
    assert len(everything["trials"]) == 16
    assert everything["space"] == dict(pair.split("=", 1) for pair in OVER)


def test_doubt_is_said(tmp_path: Path) -> None:
    def luck(point: Point) -> float:
        return 0.5 if point["finetune.epochs"] == 2.0 else 0.4999

    bench = quick_bench(tmp_path, "finetune.epochs=1,2", value=luck)
    study = search_with(bench, str(tmp_path / "study.journal"), Sampler.GRID, None)
    study.set_user_attr(f"{TEST}1", [0.3, 0.5, 0.1, 0.9])
    study.set_user_attr(f"{TEST}0", [0.4, 0.3, 0.6, 0.5])
    found = report.gather(study, bench.space, bench.recipe, TEST)
    assert found.mood == ""
    assert "against" in " ".join(report.sentences(found))


def test_a_search_without_a_whole_trial_says_so(tmp_path: Path) -> None:
    def never(point: Point) -> float:
        raise RecipeError("no")

    bench = quick_bench(tmp_path, "finetune.epochs=1,2", value=never)
    study = search_with(bench, str(tmp_path / "study.journal"), Sampler.GRID, None)
    found = report.gather(study, bench.space, bench.recipe, TEST)
    assert (found.best, found.mood) == (None, "bad")
    assert "No trial came to its end" in report.sentences(found)[0]
    assert "No trial came to its end" in report.page(found)
    assert report.result(found)["best"] is None
