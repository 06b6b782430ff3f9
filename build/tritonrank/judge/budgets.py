"""What each step may cost: a budget against its parent, and one against the teacher for all steps together."""

from typing import Any

from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES
from tritonrank.recipe import Recipe


def gate_settings(recipe: Recipe, step: str) -> dict[str, Any]:
    """What a step's verdict depends on; another step's budget does not make this one again."""
    return {
        "step_budget": step_budget(recipe, step),
        "total_budget": total_budget(recipe, step),
        "bootstrap_samples": BOOTSTRAP_SAMPLES,
    }


def step_budget(recipe: Recipe, step: str) -> float:
    """What a step may cost against its parent."""
    own: float | None = getattr(recipe.gate, f"{step}_budget", None)
    return recipe.gate.budget if own is None else own


def total_budget(recipe: Recipe, step: str) -> float:
    """What everything up to this step may cost against the teacher; distillation has yet to repair what pruning did."""
    return step_budget(recipe, step) if step == "prune" and recipe.distill else recipe.gate.budget
