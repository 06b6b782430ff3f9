"""What a build is about to do, and how long it will take: said before it begins.

The estimates count what costs: candidates that are trained on, candidates that are judged. They were measured with the
packaged MiniLM as a shared-context ranker on CPU cores, and are only made for that; another model or a GPU gets the
list of stages without times.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts.stage import Stage
from tritonrank.errors import TritonRankError
from tritonrank.recipe import ModelSettings, Recipe

PURPOSES = {
    "prepare": "read the data, write examples to train on and to judge by",
    "finetune": "train the base model",
    "compare": "hold it against what needs no training",
    "prune": "cut what matters least",
    "distill": "let the smaller ranker learn from the larger one",
    "export": "write the ranker as ONNX, prove that it computes the same",
    "quantize": "write it in INT8, judge whether it ranks as well",
    "shard": "cut it for several processes, prove that they score alike",
    "assemble": "write what Triton loads",
    "summarize": "judge the baselines, time the rankers, make the table",
}
"""What a stage is for, by its verb; the graphs for GPUs go without."""

TRAINED, JUDGED, JUDGED_ONNX, JUDGED_INT8 = 0.027, 0.0070, 0.0045, 0.0028
"""Seconds of one core per candidate, its share of the context included: a step of training, PyTorch, ONNX Runtime."""
EXPORT, QUANTIZE, CALIBRATE, ASSEMBLE, COSINE = 20.0, 12.0, 0.4, 5.0, 10.0
"""Seconds of one core: an export, a quantization, each of its calibration requests, a repository, texts embedded."""
TIMED_REQUESTS, TIMED_CANDIDATES, UNTRAINED_EXAMPLES = 10, 100, 50
"""What the summary times and judges beside the rungs."""
LEARNING_CORES = 16
"""More cores than this make no training of a small encoder faster."""


def about_seconds(recipe: Recipe) -> dict[str, float]:
    """How long each stage of a recipe takes on this machine, by verb; nothing where that is not known."""
    if recipe.model != ModelSettings() or _has_gpu():  # the defaults are what was measured
        return {}
    examples, training = recipe.examples, recipe.finetune
    judged = examples.test_users * (examples.judged_negatives + 1)
    validated = examples.validation_users * (examples.judged_negatives + 1)
    trained = examples.training_examples * training.epochs * (examples.training_negatives + 1)
    rungs = JUDGED + JUDGED_ONNX + JUDGED_INT8
    core_seconds = {
        "prepare": 4.0,
        "finetune": trained * TRAINED + training.evaluations * validated * JUDGED,
        "compare": COSINE + judged * JUDGED,
        "export": EXPORT,
        "quantize": QUANTIZE + recipe.quantize.calibration_examples * CALIBRATE + judged * (rungs - JUDGED),
        "assemble": ASSEMBLE,
        "summarize": UNTRAINED_EXAMPLES * (examples.judged_negatives + 1) * JUDGED
        + TIMED_REQUESTS * TIMED_CANDIDATES * rungs,
    }
    if recipe.distill:
        distill = recipe.distill
        learnt = distill.examples * distill.epochs * (distill.hard_negatives + distill.random_negatives + 1)
        core_seconds["distill"] = learnt * TRAINED + distill.examples * distill.pool * JUDGED
    cores = min(available_cores(), LEARNING_CORES)
    return {verb: seconds / cores for verb, seconds in core_seconds.items()}


def say_outlook(recipe: Recipe, chosen: Sequence[Stage]) -> None:
    """List the stages that will run, what each is for and how long it takes; nothing where all is up to date.

    Args:
        recipe: what is built.
        chosen: its stages in order.
    """
    coming = _not_current(chosen)
    if not coming:
        return
    seconds = about_seconds(recipe)
    total = sum(seconds.get(stage.verb, 0.0) for stage in coming)
    here = f", about {in_words(total)} on {_cores()}" if seconds else ""
    count = "1 stage" if len(coming) == 1 else f"{len(coming)} stages"
    console = Console()
    console.print(f"building [bold]{recipe.name}[/]: {count}{here}", highlight=False, soft_wrap=True)
    for stage in coming:
        time = f"{in_words(seconds[stage.verb]):>8}" if stage.verb in seconds else f"{'':>8}" if seconds else ""
        console.print(f"  {stage.verb:<10}{time}  {PURPOSES.get(stage.verb, '')}", highlight=False, soft_wrap=True)


def in_words(seconds: float) -> str:
    """A time as people say it, no finer than it is known."""
    if seconds < 60:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 5 else f"{round(2 * minutes) / 2:g} min"


def _not_current(chosen: Sequence[Stage]) -> list[Stage]:
    """From the first stage that has to run on all: what comes after it starts from what it makes."""
    for place, stage in enumerate(chosen):
        try:
            is_new = stage.why_anew() is not None
        except TritonRankError:  # a parent is missing, or the artifact is of a later version: the run itself says so
            is_new = True
        if is_new:
            return list(chosen[place:])
    return []


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()  # torch knows better, and takes seconds to ask


def _cores() -> str:
    cores = available_cores()
    return "one core" if cores == 1 else f"{cores} cores"
