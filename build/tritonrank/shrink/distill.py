"""Stage ``distill``: the pruned ranker learns the ranking of the teacher that it was cut from.

It starts from the weights that pruning left and sees lists of real candidates, hard negatives among them, with the
teacher's scores. The loss is the distance between both rankings' distributions over a list
(``distill.distillation``), the rest is the labels'; on request the hidden states of the layers that stayed imitate
those of their originals. Training is that of ``finetune``: the best validation NDCG@10 counts, and an interrupted run
goes on.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, set_seed
from tritonrank_runtime.text import RequestTokenizer, TextRules

from tritonrank.artifacts import read_manifest, sha256_file, stage_key, write_artifact
from tritonrank.data.prepare import Dataset
from tritonrank.judge.evaluate import content_hash, examples_hash
from tritonrank.judge.gatekeeper import FINE_TUNED, Rung, gate_settings, require_ranking
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.anatomy import parts_of
from tritonrank.rankers.pretrained import copy_tokenizer, load_any_ranker
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.recipe import Recipe
from tritonrank.shrink.candidate_lists import scored_lists
from tritonrank.shrink.cut import Kept
from tritonrank.shrink.importance import token_mask
from tritonrank.train.training import is_main_process, train_ranker, wait_for_all

POOL_SETTINGS = {"examples", "pool", "hard_negatives", "random_negatives"}
"""Settings that the teacher's scores depend on; the others may change without asking it again."""


def distill_settings(recipe: Recipe) -> dict[str, Any]:
    """What the student depends on, beside the pruned ranker, the teacher and the dataset."""
    return {
        "seed": recipe.seed,
        "distill": recipe.distill.model_dump(mode="json") if recipe.distill else None,
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
    section, settings = recipe.distill, distill_settings(recipe)
    assert section is not None  # the pipeline has this stage only with the section
    parents = {name: read_manifest(f) for name, f in (("pruned", pruned_folder), ("dataset", dataset_folder))}
    parents["teacher"] = read_manifest(teacher_folder)
    set_seed(recipe.seed)
    rules = TextRules.load(teacher_folder)
    cache = judgements / f"lists-{_lists_key(recipe, dataset_folder, teacher_folder)[:24]}"
    lists = scored_lists(recipe, dataset_folder, open_scorer(teacher_folder), rules, cache)
    dataset = replace(Dataset.read(dataset_folder), training=[example for example, _ in lists])
    scores = {example.example_id: scores for example, scores in lists}
    student, tokenizer = load_any_ranker(pruned_folder), RequestTokenizer.from_folder(pruned_folder, 100_000)
    imitation = None
    if section.hidden_states > 0:
        teacher = load_any_ranker(teacher_folder)
        imitation = HiddenStateLoss(student, teacher, Kept.load(pruned_folder), section.hidden_states)
    # Without the gate: after it has closed, another budget does not mean training again.
    key = stage_key("distill", {name: value for name, value in settings.items() if name != "gate"}, parents)
    work = folder.with_name(f"{folder.name}.work")
    metrics = train_ranker("distill", section, dataset, student, tokenizer, scores, work, key, recipe.seed, imitation)
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


class HiddenStateLoss:
    """Mean squared distance between the hidden states of the kept layers and those of their originals.

    In units of the teacher's variance, averaged over layers and tokens, so that its weight means the same for all
    models (the hidden-state loss of TinyBERT, Jiao et al. 2020, arXiv 1909.10351, without a projection: the widths are
    equal).

    Args:
        student: its forward passes are watched.
        teacher: the model that the student was cut from.
        kept: which layers and tokens the student has of it.
        weight: of this loss.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, kept: Kept, weight: float) -> None:
        self._teacher, self._weight = teacher.eval().requires_grad_(False), weight
        self._teacher_ids = torch.tensor(kept.tokens)
        self._of_student: dict[int, Tensor] = {}
        self._of_teacher: dict[int, Tensor] = {}
        for number, layer in enumerate(kept.layers):
            _remember_output(parts_of(student)[f"layers.{number}.ffn_norm"], self._of_student, number)
            _remember_output(parts_of(teacher)[f"layers.{layer}.ffn_norm"], self._of_teacher, number)

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        """The weighted loss of the batch that the student has just seen."""
        ids = "token_ids" if "token_ids" in batch else "input_ids"
        with torch.no_grad():
            device = batch[ids].device
            self._teacher.to(device)
            self._teacher(**batch | {ids: self._teacher_ids.to(device)[batch[ids]]})
        losses = []
        for number, ours in self._of_student.items():
            theirs = self._of_teacher[number].float()
            if ours.shape != theirs.shape:  # a student's last layer may see the candidates' first tokens alone
                theirs = theirs.gather(1, batch["first_tokens"][:, :, None].expand(-1, -1, theirs.shape[2]))
            mask = token_mask(batch)
            mask = mask if mask.shape == ours.shape[:2] else torch.ones(ours.shape[:2], dtype=torch.bool, device=device)
            theirs, ours = theirs[mask], ours.float()[mask]
            losses.append(functional.mse_loss(ours, theirs) / theirs.var())
        return self._weight * torch.stack(losses).mean()


def _remember_output(module: nn.Module, outputs: dict[int, Tensor], number: int) -> None:
    def remember(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[number] = output

    module.register_forward_hook(remember)


def _lists_key(recipe: Recipe, dataset_folder: Path, teacher_folder: Path) -> str:
    assert recipe.distill is not None
    settings = recipe.distill.model_dump(mode="json", include=POOL_SETTINGS)
    settings |= {"seed": recipe.seed, "popularity_exponent": recipe.examples.popularity_exponent}
    settings |= {"teacher": content_hash(teacher_folder), "training": examples_hash(dataset_folder, "train")}
    settings["events"] = sha256_file(dataset_folder / "events.parquet")  # popularity, and what a user has met
    return stage_key("lists", settings, {})
