"""One judge for every step: a model folder is held against its parent and against the teacher before it may stand.

The parent shows what this step cost, the teacher what all steps together have cost. Each has a budget of its own in the
recipe: ``gate.prune_budget`` and its like, and ``gate.budget``.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tritonrank.evaluate import judge_artifact
from tritonrank.gate import show_verdict, verdict
from tritonrank.recipe import Recipe
from tritonrank.text import TextRules
from tritonrank.worst import with_worst_requests

FINE_TUNED = "fine-tuned"


class Rung(NamedTuple):
    """A model artifact and what tables call it."""

    name: str
    folder: Path


def require_ranking(
    recipe: Recipe, step: str, child: Rung, parent: Rung, teacher: Rung, dataset_folder: Path, judgements: Path
) -> dict[str, Any]:
    """Judge a step on the test examples.

    Args:
        recipe: its gate section.
        step: prune, distill or quantize.
        child: the artifact that the step made, still a draft.
        parent: what the step started from.
        teacher: the fine-tuned ranker; may be the parent.
        dataset_folder: the prepared dataset.
        judgements: cache of judgements.

    Returns:
        The verdicts for the manifest, by ``gate against <name>``.

    Raises:
        GateError: the ranking became worse than a budget allows.
    """
    budgets = {teacher: total_budget(recipe, step)}
    if parent.folder != teacher.folder:
        budgets = {parent: step_budget(recipe, step)} | budgets
    judged = judge_artifact(child.name, child.folder, dataset_folder, judgements)
    metrics = {}
    for other, budget in budgets.items():
        before = judge_artifact(other.name, other.folder, dataset_folder, judgements)
        found = verdict(judged, before, budget, recipe.gate.bootstrap_samples, recipe.seed)
        found = with_worst_requests(found, judged, before, dataset_folder, TextRules.load(child.folder))
        show_verdict(found)
        found.require()
        metrics[f"gate against {other.name}"] = found.as_metrics()
    return metrics


def gate_settings(recipe: Recipe, step: str) -> dict[str, Any]:
    """What a step's verdict depends on; another step's budget does not make this one again."""
    return {
        "step_budget": step_budget(recipe, step),
        "total_budget": total_budget(recipe, step),
        "bootstrap_samples": recipe.gate.bootstrap_samples,
    }


def step_budget(recipe: Recipe, step: str) -> float:
    """What a step may cost against its parent."""
    own: float | None = getattr(recipe.gate, f"{step}_budget")
    return recipe.gate.budget if own is None else own


def total_budget(recipe: Recipe, step: str) -> float:
    """What everything up to this step may cost against the teacher; distillation has yet to repair what pruning did."""
    return step_budget(recipe, step) if step == "prune" and recipe.distill else recipe.gate.budget
