"""Stage ``distill``: the pruned ranker learns the ranking of the teacher that it was cut from.

It starts from the weights that pruning left and sees lists of real candidates, hard negatives among them, with the
teacher's scores. The loss is the distance between both rankings' distributions over a list and that to
the labels, half each. Training is that of ``finetune``: the best validation NDCG@10 counts, and an interrupted run goes
on.
"""

from dataclasses import replace

from transformers import set_seed
from tritonrank_runtime.images import copy_images
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import Draft, sha256_file, stage_key, work_folder
from tritonrank.artifacts.rungs import PRUNED, STUDENT, Rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.negatives import POPULARITY_EXPONENT
from tritonrank.judge.evaluate import content_hash, examples_hash
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.pretrained import copy_tokenizer, load_any_ranker
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe
from tritonrank.shrink.candidate_lists import scored_lists
from tritonrank.train.resuming import is_main_process, wait_for_all
from tritonrank.train.tracking import tracked
from tritonrank.train.training import train_ranker

POOL_SETTINGS = {"examples", "pool"}
"""Settings that the teacher's scores depend on; the others may change without asking it again."""


def distill(recipe: Recipe, workspace: Workspace, draft: Draft, resume_key: str) -> None:
    """Train the student, and judge it.

    Args:
        recipe: its distill and gate sections.
        workspace: with the dataset, the fine-tuned ranker and what ``prune`` made of it.
        draft: gets the student.
        resume_key: a run that was interrupted goes on from where it was if it had the same key.

    Raises:
        GateError: the student ranks worse than the budget allows; what was trained is kept for another budget.
        RecipeError: the catalogue is too small for distill.pool, or mixed precision that this machine does not have.
    """
    assert recipe.distill is not None  # the pipeline has this stage only with the section
    training = recipe.distill.training(recipe.finetune)
    set_seed(recipe.seed)
    rules = TextRules.load(workspace.teacher)
    cache = workspace.judgements / f"lists-{_lists_key(recipe, workspace)[:24]}"
    lists = scored_lists(recipe, workspace.dataset, open_scorer(workspace.teacher), rules, cache)
    dataset = replace(Dataset.read(workspace.dataset), training=[example for example, _ in lists])
    scores = {example.example_id: scores for example, scores in lists}
    student, tokenizer = load_any_ranker(workspace.pruned), RequestTokenizer.from_folder(workspace.pruned, 100_000)
    work = work_folder(workspace.student)
    with tracked(recipe.tracking, recipe.name, "distill") as callbacks:
        metrics = train_ranker(
            "distill",
            training,
            dataset,
            student,
            tokenizer,
            scores,
            work,
            resume_key,
            recipe.seed,
            callbacks=callbacks,
        )
    if is_main_process():
        student.save_pretrained(draft.folder, safe_serialization=True)
        copy_tokenizer(str(workspace.pruned), draft.folder)
        copy_images(workspace.pruned, draft.folder)
        rules.save(draft.folder)
        score_meaning(workspace.pruned).save(draft.folder)
        draft.metrics |= metrics | {"examples": len(lists)}
        rungs = Rung(STUDENT, draft.folder), Rung(PRUNED, workspace.pruned)
        draft.metrics |= require_ranking(recipe, workspace, "distill", *rungs)
    wait_for_all()


def _lists_key(recipe: Recipe, workspace: Workspace) -> str:
    assert recipe.distill is not None
    settings = recipe.distill.model_dump(mode="json", include=POOL_SETTINGS)
    settings |= {"seed": recipe.seed, "popularity_exponent": POPULARITY_EXPONENT}
    settings |= {"teacher": content_hash(workspace.teacher), "training": examples_hash(workspace.dataset, "train")}
    settings["events"] = sha256_file(workspace.dataset / "events.parquet")  # popularity, and what a user has met
    return stage_key("lists", settings, {})
