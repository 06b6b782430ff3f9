"""Fine-tune a pretrained encoder into a ranker: lists of candidates, one positive among sampled negatives.

``training.py`` does the work; this stage decides what is trained on what. The same code runs under ``torchrun`` (gloo
on CPUs, nccl on GPUs):

    torchrun --nproc-per-node 2 -m tritonrank finetune RECIPE

An interrupted run resumes from its last evaluation when it is started again with the same settings.
"""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel, set_seed

from tritonrank.artifacts import read_manifest, stage_key, write_artifact
from tritonrank.engine import padded_length
from tritonrank.errors import RecipeError
from tritonrank.evaluate import cached, content_hash, examples_hash, judge_scorer
from tritonrank.modeling import SharedContextRanker, from_encoder
from tritonrank.prepare import Dataset
from tritonrank.pretrained import (
    identity,
    load_encoder,
    load_ranker,
    load_shared_context_ranker,
    load_tokenizer,
    longest_input,
)
from tritonrank.recipe import Recipe
from tritonrank.scorers import open_scorer
from tritonrank.text import SHARED_CONTEXT, RequestTokenizer, TextRules
from tritonrank.text_budgets import text_rules, text_settings
from tritonrank.training import is_main_process, train_ranker, wait_for_all

console = Console()


def finetune_settings(recipe: Recipe) -> dict[str, Any]:
    """What the fine-tuned checkpoint depends on, beside the dataset."""
    return {
        "seed": recipe.seed,
        "text": text_settings(recipe),
        "model": recipe.model.model_dump(mode="json"),
        "model_identity": identity(recipe.model.checkpoint or recipe.model.base),
        "finetune": recipe.finetune.model_dump(mode="json"),
        "teacher_identity": identity(recipe.finetune.teacher) if recipe.finetune.teacher else None,
    }


def finetune(recipe: Recipe, dataset_folder: Path, folder: Path) -> None:
    """Train on the dataset's training examples and write the checkpoint with the best validation NDCG@10.

    With ``model.checkpoint`` in the recipe nothing is trained: that ranker is taken as it is.

    Args:
        recipe: what to do.
        dataset_folder: a prepared dataset.
        folder: where the checkpoint goes; written by rank 0 alone.

    Raises:
        ArtifactError: the base model cannot be loaded.
        RecipeError: the token budgets exceed what the model can take.
    """
    settings, parents = finetune_settings(recipe), {"dataset": read_manifest(dataset_folder)}
    set_seed(recipe.seed)
    rules = text_rules(recipe, dataset_folder)
    model, tokenizer = untrained_ranker(recipe, rules)
    if recipe.model.checkpoint:
        console.print("  model.checkpoint is taken as it is: nothing is trained", highlight=False)
        with write_artifact(folder, "finetune", settings, parents) as draft:
            save_checkpoint(recipe, model, draft.folder, rules)
            draft.metrics |= {"trained": False}
        return
    work = folder.with_name(f"{folder.name}.work")
    key = stage_key("finetune", settings, parents)
    dataset = Dataset.read(dataset_folder)
    teacher_scores = _teacher_scores(recipe, dataset, dataset_folder, folder.with_name("judgements"))
    metrics = train_ranker(
        "finetune", recipe.finetune, dataset, model, tokenizer, teacher_scores, work, key, recipe.seed
    )
    if is_main_process():
        with write_artifact(folder, "finetune", settings, parents) as draft:
            save_checkpoint(recipe, model, draft.folder, rules)
            draft.metrics |= {"trained": True} | metrics
        shutil.rmtree(work, ignore_errors=True)
    wait_for_all()


def untrained_ranker(recipe: Recipe, rules: TextRules | None = None) -> tuple[PreTrainedModel, RequestTokenizer]:
    """The model that training starts from (or the ready checkpoint), and the tokenizer by the recipe's rules.

    Args:
        recipe: its model section.
        rules: as ``text_rules`` gave them; needed where the data decide the budgets.
    """
    name = recipe.model.checkpoint or recipe.model.base
    tokenizer = RequestTokenizer(
        load_tokenizer(name).backend_tokenizer, rules or text_rules(recipe), cache_entries=100_000
    )
    if recipe.model.architecture == SHARED_CONTEXT:
        return _shared_context_ranker(recipe, tokenizer), tokenizer
    model = load_ranker(name, new_head=recipe.model.checkpoint is None)
    _check_length(name, padded_length(tokenizer.row_tokens), "rows", model)
    return model, tokenizer


def _shared_context_ranker(recipe: Recipe, tokenizer: RequestTokenizer) -> SharedContextRanker:
    context, candidate = tokenizer.context_row_tokens, tokenizer.candidate_row_tokens
    if recipe.model.checkpoint is None:
        name = recipe.model.base
        model = from_encoder(load_encoder(name), name, context_positions=context)
    else:
        name = recipe.model.checkpoint
        model = load_shared_context_ranker(name)
        if context > model.config.context_positions:
            raise RecipeError(
                f"text: query_tokens + history_tokens make contexts of up to {context} tokens; {name} was trained for "
                f"{model.config.context_positions}. Lower text.history_tokens"
            )
    _check_length(name, model.config.context_positions + candidate, "a context and a candidate", model)
    return model


def _check_length(name: str, tokens: int, what: str, model: PreTrainedModel) -> None:
    if tokens > longest_input(model):
        raise RecipeError(
            f"text: query_tokens + history_tokens + candidate_tokens make {what} of up to {tokens} tokens; "
            f"{name} takes {longest_input(model)}. Lower text.history_tokens"
        )


def save_checkpoint(recipe: Recipe, model: PreTrainedModel, folder: Path, rules: TextRules | None = None) -> None:
    """Weights, config, tokenizer and text rules: everything that later stages need."""
    model.save_pretrained(folder, safe_serialization=True)
    copy_tokenizer(recipe.model.checkpoint or recipe.model.base, folder)
    (rules or text_rules(recipe)).save(folder)


def copy_tokenizer(name: str, folder: Path) -> None:
    """The tokenizer of a checkpoint (folder, hub id or the packaged MiniLM) into a folder."""
    load_tokenizer(name).save_pretrained(folder)


def _teacher_scores(
    recipe: Recipe, dataset: Dataset, dataset_folder: Path, judgements: Path
) -> dict[str, list[float]] | None:
    """What the teacher gives each training candidate, computed once and kept; None without a teacher."""
    if recipe.finetune.teacher is None:
        return None
    folder = Path(recipe.finetune.teacher)
    if not folder.is_dir():
        raise RecipeError(f"finetune.teacher: {folder}: no such folder; build the teacher first, with its own recipe")
    key = f"training-{content_hash(folder)[:24]}-{examples_hash(dataset_folder, 'train')[:16]}"
    judgement = cached(
        "teacher",
        judgements / f"{key}.parquet",
        lambda: judge_scorer("teacher", open_scorer(folder), dataset, dataset.training, TextRules.load(folder)),
    )
    return dict(zip(judgement.example_ids, judgement.table["scores"].to_list(), strict=True))
