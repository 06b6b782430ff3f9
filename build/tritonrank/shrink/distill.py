"""Stage ``distill``: the pruned ranker learns the ranking of the teacher that it was cut from.

It starts from the weights that pruning left and sees lists of real candidates, hard negatives among them, with the
teacher's scores. The loss is the distance between both rankings' distributions over a list and that to
the labels, half each. Training is that of ``finetune``: the best validation NDCG@10 counts, and an interrupted run goes
on.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import set_seed
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import read_manifest, sha256_file, stage_key, write_artifact
from tritonrank.data.negatives import POPULARITY_EXPONENT
from tritonrank.data.prepare import Dataset
from tritonrank.judge.evaluate import content_hash, examples_hash
from tritonrank.judge.gatekeeper import FINE_TUNED, Rung, gate_settings, require_ranking
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.pretrained import copy_tokenizer, load_any_ranker
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe
from tritonrank.shrink.candidate_lists import scored_lists
from tritonrank.train.training import is_main_process, train_ranker, wait_for_all

POOL_SETTINGS = {"examples", "pool", "hard_negatives", "random_negatives"}
"""Settings that the teacher's scores depend on; the others may change without asking it again."""


def distill_settings(recipe: Recipe) -> dict[str, Any]:
    """What the student depends on, beside the pruned ranker, the teacher and the dataset."""
    return {
        "seed": recipe.seed,
        "distill": recipe.distill.model_dump(mode="json") if recipe.distill else None,
        "training": recipe.distill.training(recipe.finetune).model_dump(mode="json", exclude={"teacher"})
        if recipe.distill
        else None,
        "gate": gate_settings(recipe, "distill"),
    }


def distill(
    recipe: Recipe, dataset_folder: Path, teacher_folder: Path, pruned_folder: Path, folder: Path, judgements: Path
) -> None:
    """Train the student, judge it, and publish it if the gate passes.

    Args:
        recipe: its distill and gate sections.
        dataset_folder: training contexts, validation and test examples.
        teacher_folder: the fine-tuned ranker.
        pruned_folder: what ``prune`` made of it.
        folder: where the student goes.
        judgements: cache of judgements and of the teacher's scores.

    Raises:
        GateError: the student ranks worse than the budget allows; nothing was published.
        RecipeError: the catalogue is too small for distill.pool, or mixed precision that this machine does not have.
    """
    assert recipe.distill is not None  # the pipeline has this stage only with the section
    training, settings = recipe.distill.training(recipe.finetune), distill_settings(recipe)
    parents = {name: read_manifest(f) for name, f in (("pruned", pruned_folder), ("dataset", dataset_folder))}
    parents["teacher"] = read_manifest(teacher_folder)
    set_seed(recipe.seed)
    rules = TextRules.load(teacher_folder)
    cache = judgements / f"lists-{_lists_key(recipe, dataset_folder, teacher_folder)[:24]}"
    lists = scored_lists(recipe, dataset_folder, open_scorer(teacher_folder), rules, cache)
    dataset = replace(Dataset.read(dataset_folder), training=[example for example, _ in lists])
    scores = {example.example_id: scores for example, scores in lists}
    student, tokenizer = load_any_ranker(pruned_folder), RequestTokenizer.from_folder(pruned_folder, 100_000)
    # Without the gate: after it has closed, another budget does not mean training again.
    key = stage_key("distill", {name: value for name, value in settings.items() if name != "gate"}, parents)
    work = folder.with_name(f"{folder.name}.work")
    metrics = train_ranker("distill", training, dataset, student, tokenizer, scores, work, key, recipe.seed)
    if is_main_process():
        with write_artifact(folder, "distill", settings, parents) as draft:
            student.save_pretrained(draft.folder, safe_serialization=True)
            copy_tokenizer(str(pruned_folder), draft.folder)
            rules.save(draft.folder)
            score_meaning(pruned_folder).save(draft.folder)
            draft.metrics |= metrics | {"examples": len(lists)}
            rungs = Rung("student", draft.folder), Rung("pruned", pruned_folder), Rung(FINE_TUNED, teacher_folder)
            draft.metrics |= require_ranking(recipe, "distill", *rungs, dataset_folder, judgements)
        shutil.rmtree(work, ignore_errors=True)
    wait_for_all()


def _lists_key(recipe: Recipe, dataset_folder: Path, teacher_folder: Path) -> str:
    assert recipe.distill is not None
    settings = recipe.distill.model_dump(mode="json", include=POOL_SETTINGS)
    settings |= {"seed": recipe.seed, "popularity_exponent": POPULARITY_EXPONENT}
    settings |= {"teacher": content_hash(teacher_folder), "training": examples_hash(dataset_folder, "train")}
    settings["events"] = sha256_file(dataset_folder / "events.parquet")  # popularity, and what a user has met
    return stage_key("lists", settings, {})
