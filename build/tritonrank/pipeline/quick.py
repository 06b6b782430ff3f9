"""``build --quick``: a learning curve from a tenth of the training examples, before all of them are spent time on.

It prepares the same dataset as a whole build, which goes on from there, and writes one artifact beside the others,
``quick``, which nothing is built from (report/quick.py).
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tritonrank.artifacts import Draft
from tritonrank.artifacts.locks import only_writer
from tritonrank.artifacts.stage import Stage, bring_up_to_date
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import RecipeError
from tritonrank.pipeline import finetune
from tritonrank.pipeline.estimates import about_seconds, seconds_per_judged_list
from tritonrank.pipeline.outlook import in_words
from tritonrank.pipeline.stages import run_stages
from tritonrank.recipe import Recipe
from tritonrank.report.quick_table import read_quick, show_quick

REVISION = 2
MOST_SLOWER = 4.0
"""How far judging may correct the table for the stages after training, either way: beyond it the model is so small that
something else takes the time."""


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    def settings() -> dict[str, Any]:
        return finetune.stage(recipe, workspace).settings()

    def make(draft: Draft) -> None:
        from tritonrank.report.quick import quick

        quick(recipe, workspace, draft, about_seconds(recipe, workspace).get("finetune"))

    return Stage("quick", workspace.quick, settings, {"dataset": workspace.dataset}, make, REVISION, finetune.TOOLS)


def run_quick(recipe: Recipe, workspace: Workspace, command: Sequence[str]) -> None:
    """Prepare the data, train on parts of them, and show what the whole is likely to give.

    Args:
        recipe: what a whole build would do.
        workspace: where.
        command: the words of the command line that builds the whole.

    Raises:
        RecipeError: nothing is trained in this recipe, or there is too little to learn from.
    """
    if recipe.model.checkpoint:
        raise RecipeError(
            f"--quick: {recipe.name} takes the checkpoint {recipe.model.checkpoint} as it is, so that there is no "
            "training to forecast. Leave --quick out, or name the checkpoint as model.base to train it further"
        )
    run_stages(recipe, workspace, until="images" if recipe.images else "prepare")
    finetune.check_models(recipe, workspace)
    with only_writer(workspace.root):
        bring_up_to_date(stage(recipe, workspace))
    result = read_quick(workspace.quick)
    seconds = seconds_of_build(recipe, workspace, result)
    show_quick(result, _minutes(seconds), shlex.join(command))


def seconds_of_build(recipe: Recipe, workspace: Workspace, result: Mapping[str, Any]) -> dict[str, float]:
    """How long the stages of a whole build take, by verb, at the speed that the runs had just now.

    Args:
        recipe: what is built.
        workspace: where.
        result: of quick.json.

    Returns:
        Training as measured; what else is known as estimated, corrected by how fast judging was.
    """
    runs, full = result["runs"], result["training_examples"]
    sizes, trained = ([run[key] for run in runs] for key in ("examples", "training_seconds"))
    # What a run takes beside its examples (the first step, the data loader) is not multiplied by ten.
    slope = float(np.polyfit(sizes, trained, 1)[0])
    per_example = slope if slope > 0 else trained[-1] / sizes[-1]
    users = result["test_users"]
    per_list = float(np.median([run["judging_seconds"] for run in runs])) / users
    validated = recipe.finetune.evaluations * min(recipe.examples.validation_users, result["validation_users"])
    seconds = {"finetune": per_example * full + validated * per_list}
    expected = seconds_per_judged_list(recipe, workspace)
    slower = min(MOST_SLOWER, max(1 / MOST_SLOWER, per_list / expected)) if expected else 1.0
    known = about_seconds(recipe, workspace, slower=slower)
    seconds |= {verb: value for verb, value in known.items() if verb not in {"prepare", "finetune"}}
    return seconds


def _minutes(seconds: Mapping[str, float]) -> str:
    if len(seconds) == 1:
        return f"about {in_words(seconds['finetune'])} for training alone, and some more for what follows"
    return f"about {in_words(sum(seconds.values()))}, {in_words(seconds['finetune'])} of them training"
