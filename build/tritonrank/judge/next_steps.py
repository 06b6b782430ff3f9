"""What may make a ranker better, computed from its recipe, its data and its training: each a line for ``--set``.

Nothing is advised that cannot be had: no more examples than the data hold, no more judged users than there are.
"""

import math
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from tritonrank.artifacts.rungs import UNCUT
from tritonrank.data.dataset import Dataset
from tritonrank.judge.metrics import Interval
from tritonrank.rankers.text_counts import text_warnings
from tritonrank.recipe import DistillSettings, FinetuneSettings, Recipe

MORE_EXAMPLES = 4
"""So many times the examples, where the data have them: a doubling hardly shows in NDCG."""
HIGHEST_LEARNING_RATE = 1e-3
"""Above it fine-tuning forgets what the encoder knew; usual are 2e-5 to 2e-4."""
FELL = 0.9
"""Share of the best validation NDCG@10 below which the last one says that training did harm in the end."""
LEAST_GAIN = 0.02
"""NDCG@10: smaller differences are hardly worth the judging that would decide them."""


def next_steps(
    recipe: Recipe, dataset: Dataset, counted: Mapping[str, Any], trained: Mapping[str, Any], lost_to: Collection[str]
) -> list[str]:
    """What to try when a ranker loses to a baseline, most promising first.

    Args:
        recipe: that made the ranker.
        dataset: that it learnt from.
        counted: metrics of the dataset's manifest.
        trained: metrics of the teacher's manifest.
        lost_to: who ranks better, by name.

    Returns:
        Sentences, each of which ends with ``--set`` and one setting or more.
    """
    if recipe.distill:
        steps = _more_distillation(recipe.distill, len(dataset.training))
    elif recipe.model.checkpoint:
        steps = [_train_it(recipe.model.checkpoint, recipe.model.architecture, recipe.model.revision)]
    else:
        steps = [*_better_training(recipe.finetune, trained), *_more_examples(recipe, dataset)]
        steps += _more_steps(recipe.finetune, trained)
    if any(name.endswith(UNCUT) for name in lost_to):
        return [f"let it read whole texts: {_set('text.candidate_tokens', 'auto')}", *steps]
    cut = text_warnings(counted["text"]) if "text" in counted else []
    return steps + [warning for warning in cut if "--set" in warning]


def more_judged_users(undecided: Interval, judged: int, counted: Mapping[str, Any]) -> str:
    """How many users would show whether a difference is one, and whether the data have so many.

    An interval shrinks with the square root of the users (Student 1908).

    Args:
        undecided: the paired difference; its interval includes 0.
        judged: users behind it.
        counted: metrics of the dataset's manifest.
    """
    half = (undecided.high - undecided.low) / 2
    return users_that_tell(judged * (half / max(abs(undecided.mean), LEAST_GAIN)) ** 2, judged, counted)


def users_that_tell(estimated: float, judged: int, counted: Mapping[str, Any]) -> str:
    """So many judged users, or as many as there are, as a setting.

    Args:
        estimated: how many would tell.
        judged: how many were judged.
        counted: metrics of the dataset's manifest.
    """
    wanted, there = _rounded(estimated), judged + counted.get("skipped_users", {}).get("test", {}).get("not drawn", 0)
    if there <= judged:
        return f"about {wanted:,} judged users would tell; the data have {there:,}, and all are judged"
    few = f", the data have {there:,}" if there < wanted else ""
    return f"about {wanted:,} judged users would tell{few}: {_set('examples.test_users', min(wanted, there))}"


def _train_it(checkpoint: str, architecture: str, revision: str | None) -> str:
    settings = {"model.checkpoint": "null", "model.base": checkpoint, "model.architecture": architecture}
    settings |= {"model.revision": revision} if revision else {}
    return "train this checkpoint on these data: " + " ".join(_set(key, value) for key, value in settings.items())


def _more_distillation(settings: DistillSettings, there: int) -> list[str]:
    longer = f"train the smaller ranker longer: {_set('distill.epochs', 2 * settings.epochs)}"
    wanted = min(there, MORE_EXAMPLES * settings.examples)
    if wanted <= settings.examples:
        return [longer]
    more = f"let it learn from more, {settings.examples:,} of {there:,} examples were used"
    return [f"{more}: {_set('distill.examples', wanted)}", longer]


def _better_training(settings: FinetuneSettings, trained: Mapping[str, Any]) -> list[str]:
    """Steps that were too large, or went too far."""
    usual = FinetuneSettings.model_fields["learning_rate"].default
    if settings.learning_rate > HIGHEST_LEARNING_RATE:
        why = f"smaller steps, {settings.learning_rate:g} is {settings.learning_rate / usual:,.0f} times what is usual"
        return [f"{why}: {_set('finetune.learning_rate', usual)}"]
    curve = trained.get("validation_ndcg@10") or []
    best = max((value for _, value in curve), default=0.0)
    if curve and curve[-1][1] < FELL * best:
        lower = settings.learning_rate / 2
        why = f"smaller steps, validation NDCG@10 fell from {best:.3f} to {curve[-1][1]:.3f} while it trained"
        return [f"{why}: {_set('finetune.learning_rate', lower)}"]
    return []


def _more_examples(recipe: Recipe, dataset: Dataset) -> list[str]:
    used, there = len(dataset.training), usable_positives(dataset.training_events)
    wanted = min(there, MORE_EXAMPLES * used)
    if wanted <= used:
        return []
    why = f"more examples, {used:,} of about {there:,} were used"
    return [f"{why}: {_set('examples.training_examples', wanted)}"]


def _more_steps(settings: FinetuneSettings, trained: Mapping[str, Any]) -> list[str]:
    curve = trained.get("validation_ndcg@10") or []
    best = max((value for _, value in curve), default=0.0)
    if not curve or curve[-1][1] < best:
        return []
    steps, longer = trained["steps"], _set("finetune.epochs", 2 * settings.epochs)
    return [f"more steps, validation NDCG@10 was still rising at the last of {steps:,}: {longer}"]


def usable_positives(training_events: pl.DataFrame) -> int:
    """Positives that can become training examples: those with a query, or with an earlier positive of the user."""
    positives = training_events.filter(pl.col("label") > 0)
    usable = (pl.col("query") != "") | ~pl.col("user_id").is_first_distinct()
    return positives.filter(usable).height


def _set(key: str, value: object) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"--set {shlex.quote(f'{key}={shown}')}"


def _rounded(count: float) -> int:
    """Upwards, to two digits: it is an estimate."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return math.ceil(count / unit) * unit
