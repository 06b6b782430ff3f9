"""What a build is about to do, and how long it will take: said before it begins."""

from collections.abc import Sequence

from rich.console import Console
from tritonrank_runtime.cores import available_cores

from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.errors import TritonRankError
from tritonrank.pipeline.estimates import about_seconds
from tritonrank.recipe import Recipe
from tritonrank.system.progress import in_words

__all__ = ["PURPOSES", "about_seconds", "coming_stages", "in_words", "say_outlook"]

PURPOSES = {
    "prepare": "read the data, write examples to train on and to judge by",
    "finetune": "train the base model",
    "compare": "hold it against what needs no training",
    "prune": "cut what matters least",
    "distill": "let the smaller ranker learn from the larger one",
    "export": "write the ranker as ONNX, prove that it computes the same",
    "quantize": "write it in INT8, judge whether it ranks as well",
    "retriever": "learn to find items by history and query, judge it on the whole catalogue",
    "catalogue": "write the items as retrieval sees them: vectors, words, neighbours, popularity",
    "shard": "cut it for several processes, prove that they score alike",
    "blend": "learn the order of retrieved items, judge the whole",
    "engine": "measure what computes it fastest here, judge that",
    "assemble": "write what Triton loads",
    "summarize": "judge the baselines, time the rankers, make the table",
}
"""What a stage is for, by its verb; the graphs for GPUs go without."""


def say_outlook(recipe: Recipe, workspace: Workspace, coming: Sequence[Stage]) -> dict[str, float]:
    """List the stages that will run, what each is for and how long it takes; nothing where all is up to date.

    Args:
        recipe: what is built.
        workspace: where.
        coming: its stages that will run, in order.

    Returns:
        Seconds by verb, of those stages of which they are known.
    """
    if not coming:
        return {}
    known = about_seconds(recipe, workspace)
    seconds = {stage.verb: known[stage.verb] for stage in coming if stage.verb in known}
    unknown = [stage.verb for stage in coming if stage.verb not in seconds]
    here = f", about {in_words(sum(seconds.values()))} on {_cores()}" if seconds else ""
    here += (
        f" and what {' and '.join(unknown)} {'takes' if len(unknown) == 1 else 'take'}" if seconds and unknown else ""
    )
    count = "1 stage" if len(coming) == 1 else f"{len(coming)} stages"
    console = Console()
    console.print(f"building [bold]{recipe.name}[/]: {count}{here}", highlight=False, soft_wrap=True)
    for stage in coming:
        time = f"{in_words(seconds[stage.verb]):>8}" if stage.verb in seconds else f"{'':>8}" if seconds else ""
        console.print(f"  {stage.verb:<10}{time}  {PURPOSES.get(stage.verb, '')}", highlight=False, soft_wrap=True)
    return seconds


def coming_stages(chosen: Sequence[Stage], force: str | None = None) -> list[Stage]:
    """From the first stage that has to run on all: what comes after it starts from what it makes.

    Args:
        chosen: the stages in order.
        force: the verb of one that runs even if it is up to date.
    """
    for place, stage in enumerate(chosen):
        try:
            is_new = stage.verb == force or stage.why_anew() is not None
        except TritonRankError:  # a parent is missing, or the artifact is of a later version: the run itself says so
            is_new = True
        if is_new:
            return list(chosen[place:])
    return []


def _cores() -> str:
    cores = available_cores()
    return "one core" if cores == 1 else f"{cores} cores"
