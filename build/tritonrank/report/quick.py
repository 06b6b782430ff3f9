"""Train on small parts of the data and forecast what all of it will give: what ``tritonrank build --quick`` makes.

Each part is trained by itself, from the untrained model and with the learning rate's whole rise and fall: one run that
is judged on the way would tell of steps, not of data. The parts are drawn by lot and nested, each twice as large as the
one before. All runs make as many passes over their part as the recipe makes over everything, so that steps grow with
examples. The test users judge them, some of them where there are many, as they judge the baselines.

No weights are kept: what is served is trained on everything.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from transformers import set_seed

from tritonrank.artifacts import Draft, work_folder
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.negatives import stable_hash
from tritonrank.errors import RecipeError
from tritonrank.judge.evaluate import Judgement, judge_scorer
from tritonrank.judge.learning_curve import Forecast, LearningCurve
from tritonrank.judge.metrics import interval
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.rankers.text_budgets import text_rules
from tritonrank.recipe import Recipe
from tritonrank.report.baselines import FREE_BASELINES, baseline_judgements
from tritonrank.report.quick_table import QUICK_FILE
from tritonrank.system import progress
from tritonrank.train.finetune import by_example, images_of, scores_of_teacher, untrained_ranker
from tritonrank.train.training import train_ranker

RUNS = 4
"""One more than a curve needs: the spread around the curve shows how much to believe it."""
SHARE = 0.1
"""Of the training examples that the largest run takes; the smaller ones take nearly as much together."""
FEWEST_IN_LARGEST = 320
"""A tenth of little teaches nothing: below this many examples the largest run takes more, up to MOST_SHARE."""
MOST_SHARE = 0.25
FEWEST_TRAINING_EXAMPLES = 200
"""With fewer the smallest run would be of one step or none."""
FEWEST_STEPS = 40
"""Of the largest run: the demo's, of 25 steps, was at 0.15 NDCG@10 and its forecast at 0.18, and 100 steps gave 0.52. A
curve of powers begins only after the rise."""
MOST_JUDGED = 300
"""Test users that judge; with more, judging would take longer than training."""
FURTHER = 2
"""The forecast also looks at this many times the examples of the recipe."""

console = Console()


def quick(recipe: Recipe, workspace: Workspace, draft: Draft, expected_seconds: float | None = None) -> None:
    """Train, judge and forecast; write quick.json.

    Args:
        recipe: what a whole build would do.
        workspace: with a prepared dataset.
        draft: gets the file.
        expected_seconds: of training on everything, if that is known.

    Raises:
        RecipeError: there is too little to learn from for parts of it to say anything.
    """
    dataset = Dataset.read(workspace.dataset)
    sizes = sizes_of_runs(len(dataset.training))
    _say_if_too_short(recipe, sizes[-1])
    lot = sorted(dataset.training, key=lambda example: stable_hash(recipe.seed, f"quick:{example.example_id}"))
    test = dataset.test[:MOST_JUDGED]
    wanted = ("random", *FREE_BASELINES)
    judged_baselines = {
        name: judgement.first(len(test))
        for name, judgement in baseline_judgements(recipe, dataset, workspace, wanted).items()
    }
    teacher = None
    if recipe.finetune.teacher:
        teacher = by_example(scores_of_teacher(recipe, replace(dataset, training=lot[: max(sizes)])))
    runs, judgements = [], []
    titles = {size: f"run on {size:,} examples" for size in sizes}
    share = (expected_seconds or 0.0) / len(dataset.training)
    with progress.whole(list(titles.values()), {titles[size]: size * share for size in sizes} if share else {}):
        for size in sizes:
            with progress.stage(titles[size]):
                part = replace(dataset, training=lot[:size])
                run, judgement = _run(recipe, workspace, draft.key, part, test, teacher)
            console.print(f"  {titles[size]}: NDCG@10 {judgement.interval()}", highlight=False)
            runs.append(run)
            judgements.append(judgement)
    free = {name: judgement.values() for name, judgement in judged_baselines.items() if name in FREE_BASELINES}
    curve = LearningCurve(sizes, [judgement.values() for judgement in judgements], seed=recipe.seed)
    full = len(dataset.training)
    learnable = int((dataset.training_events["label"] > 0).sum())
    result = {
        "recipe": recipe.name,
        "training_examples": full,
        "positives_to_learn_from": learnable,
        "test_users": len(test),
        "validation_users": len(dataset.validation),
        "runs": runs,
        "baselines": {name: vars(judgement.interval()) for name, judgement in judged_baselines.items()},
        "has_learnt": bool(
            interval(judgements[-1].values() - judged_baselines["random"].values()).low > 0
            and runs[-1]["steps"] >= FEWEST_STEPS
        ),
        "forecasts": [_as_json(curve.forecast(examples, free)) for examples in (full, FURTHER * full)],
    }
    (draft.folder / QUICK_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def sizes_of_runs(training_examples: int) -> list[int]:
    """How many examples each run is trained on, smallest first.

    Raises:
        RecipeError: there are too few.
    """
    if training_examples < FEWEST_TRAINING_EXAMPLES:
        raise RecipeError(
            f"--quick: {training_examples} training examples are too few to be tried in part; "
            f"{FEWEST_TRAINING_EXAMPLES} or more are needed. A build of so few takes minutes: leave --quick out"
        )
    largest = max(SHARE * training_examples, min(FEWEST_IN_LARGEST, MOST_SHARE * training_examples))
    return [round(largest / 2**halvings) for halvings in reversed(range(RUNS))]


def _say_if_too_short(recipe: Recipe, largest: int) -> None:
    """Before anybody waits: that nothing will be forecast."""
    steps = int(largest * recipe.finetune.epochs / recipe.finetune.examples_per_step)
    if steps < FEWEST_STEPS:
        console.print(
            f"  the largest run has about {steps} steps, and from fewer than {FEWEST_STEPS} nothing is forecast: these "
            "runs only tell how fast this machine trains. So small a build is better made whole: leave --quick out",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _run(
    recipe: Recipe,
    workspace: Workspace,
    key: str,
    dataset: Dataset,
    test: Sequence[Example],
    teacher: dict[str, list[float]] | None,
) -> tuple[dict[str, Any], Judgement]:
    """Train on the dataset's training examples, judge on ``test``, and tell how long both took."""
    size = len(dataset.training)
    set_seed(recipe.seed)
    rules = text_rules(recipe, workspace.dataset)
    model, tokenizer = untrained_ranker(recipe, rules, images_of(recipe, workspace))
    work = work_folder(workspace.quick) / str(size)
    trained = train_ranker(
        "training",
        recipe.finetune,
        dataset,
        model,
        tokenizer,
        teacher,
        work,
        f"{key}-{size}",
        recipe.seed,
        keeps_best=False,
    )
    started = time.monotonic()
    judgement = judge_scorer(
        f"the run on {size:,} examples", torch_scorer(model.eval(), tokenizer), dataset, test, rules
    )
    return {
        "examples": size,
        "steps": trained["steps"],
        "training_seconds": trained["training_seconds"],
        "judging_seconds": round(time.monotonic() - started, 2),
        "ndcg@10": vars(judgement.interval()),
    }, judgement


def _as_json(forecast: Forecast) -> dict[str, Any]:
    return {
        "examples": forecast.examples,
        "ndcg@10": vars(forecast.interval),
        "against": {
            name: {"better": round(chance.better, 3), "difference": vars(chance.difference)}
            for name, chance in forecast.against.items()
        },
    }
