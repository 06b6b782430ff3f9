"""What can be done when a gate closes: what passed and can be served, and what may open it, each with its command."""

import shlex
from pathlib import Path

from tritonrank.artifacts.rungs import FP16, INT8, INT8_TENSORRT, MIXED, PRUNED, STUDENT, UNCUT, teacher_name
from tritonrank.recipe import Recipe

PRECISIONS = {FP16: "fp16", INT8_TENSORRT: "int8", MIXED: "int8-fp16"}


def ways_out(recipe: Recipe, root: Path, child: str, parent: str) -> list[str]:
    """Sentences, the first of them about what can be served.

    Args:
        recipe: whose gate closed.
        root: folder of its artifacts.
        child: what tables call the rung that was judged.
        parent: what it was held against.
    """
    return [_what_passed(recipe, root, child), *_what_may_help(recipe, child, parent)]


def _what_passed(recipe: Recipe, root: Path, child: str) -> str:
    serve = f"tritonrank serve {shlex.quote(str(root))}"
    if child == INT8:  # all that comes before it is up to date, so that this takes seconds
        without = "tritonrank assemble RECIPE --set quantize.method=none"
        return f"The FP32 graph passed and can be served, nothing is built again: {without}, then: {serve}"
    if child in (PRUNED, STUDENT):
        sections = " ".join(f"--set {name}=null" for name in ("prune", "distill") if getattr(recipe, name))
        whole = f"tritonrank build RECIPE {sections}"
        return f"The {teacher_name(recipe)} ranker can be served as it is, uncut and not trained again: {whole}"
    others = [name for name in recipe.tensorrt.precisions if name != PRECISIONS.get(child)]
    setting = shlex.quote(f"tensorrt.precisions=[{', '.join(others)}]")
    return f"What was built before passed: tritonrank build RECIPE --set {setting}, then: {serve}"


def _what_may_help(recipe: Recipe, child: str, parent: str) -> list[str]:
    if parent.endswith(UNCUT):  # what this step started from reads as little
        return ["Or let it read whole texts, which the text budgets cut: --set text.candidate_tokens=auto"]
    if child == PRUNED:
        if recipe.prune and recipe.prune.gflop:  # half way between what was asked for and nothing
            return [f"Or cut less: --set prune.gflop={(1 + recipe.prune.gflop) / 2:.2f}"]
        return ["Or cut less: raise layers, heads or ffn_neurons of the section prune"]
    if child == STUDENT and recipe.distill:
        return [f"Or train the student longer: --set distill.epochs={2 * recipe.distill.epochs:g}"]
    if child == INT8:
        return [f"Or keep more layers out of INT8: --set quantize.noise={recipe.quantize.noise / 2:g}"]
    if child in (INT8_TENSORRT, MIXED):
        return [f"Or keep more layers out of INT8: --set tensorrt.noise={recipe.tensorrt.noise / 2:g}"]
    return []
