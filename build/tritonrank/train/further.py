"""Train a ranker further: from the weights of an accepted one, on lists that it has not learnt, in bounded time.

What was trained before keeps its head, its tokenizer and its budgets of tokens; nothing of it is made anew. Training is
that of ``finetune``: the best validation NDCG@10 counts, adapters are merged, and an interrupted run goes on.
"""

from pathlib import Path

from transformers import set_seed
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import Draft, work_folder
from tritonrank.data.dataset import Dataset
from tritonrank.rankers.pretrained import copy_tokenizer, load_any_ranker
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import FinetuneSettings, Recipe
from tritonrank.train.adapters import ADAPTER_FOLDER, AdapterKept
from tritonrank.train.resuming import is_main_process, wait_for_all
from tritonrank.train.time_limit import TimeLimit
from tritonrank.train.tracking import tracked
from tritonrank.train.training import train_ranker

CACHED_TEXTS = 100_000


def train_further(
    recipe: Recipe,
    settings: FinetuneSettings,
    start: Path,
    dataset_folder: Path,
    target: Path,
    draft: Draft,
    seconds: float,
) -> None:
    """Train, and write the checkpoint with the best validation NDCG@10; of several processes the first one writes.

    Args:
        recipe: its seed, model and tracking.
        settings: of this training.
        start: folder of the ranker to train further.
        dataset_folder: whose training lists are learnt, and whose validation lists judge.
        target: folder that the artifact is going to have, beside which an interrupted run keeps its checkpoints; the
            folder that it is in names the night, where the training is logged.
        draft: gets the checkpoint; its metrics also say ``ended_at``, the step at which the time was over.
        seconds: that the training may take, over all its attempts.

    Raises:
        ArtifactError: the folder holds no ranker.
        RecipeError: the settings ask for what is not installed, or for layers that the model does not have.
    """
    set_seed(recipe.seed)
    dataset, rules = Dataset.read(dataset_folder), TextRules.load(start)
    model, tokenizer = load_any_ranker(start), RequestTokenizer.from_folder(start, CACHED_TEXTS)
    limit = TimeLimit(seconds)
    base = recipe.model.model_copy(update={"base": str(start), "checkpoint": None, "revision": None})
    with tracked(recipe.tracking, recipe.name, f"learn {target.parent.name}") as callbacks:
        metrics = train_ranker(
            "learn",
            settings,
            dataset,
            model,
            tokenizer,
            None,
            work_folder(target),
            draft.key,
            recipe.seed,
            kept_adapter=AdapterKept(draft.folder / ADAPTER_FOLDER, base),
            callbacks=[limit, *callbacks],
        )
    if is_main_process():
        model.save_pretrained(draft.folder, safe_serialization=True)
        copy_tokenizer(str(start), draft.folder)
        rules.save(draft.folder)
        score_meaning(start).save(draft.folder)
        draft.metrics |= {"trained": True, "ended_at": limit.ended_at} | metrics
    wait_for_all()
