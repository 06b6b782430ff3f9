"""Step ``finetune``: the last accepted ranker is trained further, as long as the recipe allows.

With ``learn.processes`` the training alone runs in several processes, which end with it. The night stays one process:
one that holds the lock, reads the log, judges and publishes.
"""

from typing import Any

from tritonrank.artifacts.stage import Stage, bring_up_to_date, take_part
from tritonrank.learn.run import Run
from tritonrank.pipeline.finetune import show_training

REVISION = 1
TOOLS = ("torch", "transformers", "tokenizers", "numpy")
SECONDS_PER_MINUTE = 60


def finetune(run: Run) -> dict[str, Any]:
    """Train the last accepted ranker further, and tell how far it came."""
    stage, processes = further(run), run.recipe.learn.processes
    if processes > 1 and stage.why_anew():
        from tritonrank.train.processes import train_in_processes

        train_in_processes(processes, _train_with_others, run)
    metrics = bring_up_to_date(stage).metrics
    ended = f", ended there by learn.minutes ({run.recipe.learn.minutes:g})" if metrics["ended_at"] else ""
    together = f" in {processes} processes" if processes > 1 else ""
    best = metrics["best_validation_ndcg@10"]
    return {
        "steps": metrics["steps"],
        "ended_at": metrics["ended_at"],
        "validation_ndcg@10": best,
        "said": f"{metrics['steps']:,} steps{together}{ended}, validation NDCG@10 {best:.4f}",
    }


def further(run: Run) -> Stage:
    """The training as a stage, whose artifact stands where a build has its teacher."""
    recipe, home, start = run.recipe, run.home, run.live.teacher
    settings = recipe.learn.training(recipe.finetune)
    learn = recipe.learn.model_dump(mode="json", include={"minutes", "processes"})

    def make(draft: Any) -> None:
        from tritonrank.train.further import train_further

        seconds = recipe.learn.minutes * SECONDS_PER_MINUTE
        train_further(recipe, settings, start, home.dataset, home.teacher, draft, seconds)
        show_training(recipe, home, "finetune", draft.metrics, settings.chosen())

    return Stage(
        "finetune",
        home.teacher,
        lambda: {"seed": recipe.seed, "finetune": settings.chosen(), "learn": learn},
        {"dataset": home.dataset, "start": start},
        make,
        REVISION,
        TOOLS,
    )


def _train_with_others(run: Run) -> None:
    """What each of several processes does; the first one publishes."""
    take_part(further(run))
