"""Fine-tune a pretrained encoder into a ranker: lists of candidates, one positive among sampled negatives.

``training.py`` does the work; this stage decides what is trained on what. The same code runs under ``torchrun`` (gloo
on CPUs, nccl on GPUs):

    torchrun --nproc-per-node 2 -m tritonrank finetune RECIPE

An interrupted run resumes from its last evaluation when it is started again with the same settings.
"""

from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, set_seed
from tritonrank_runtime.engines import model_files
from tritonrank_runtime.image_tokens import image_tokens
from tritonrank_runtime.images import FOLDER, ImageTable, link_table
from tritonrank_runtime.shard_workers import is_sharded
from tritonrank_runtime.text import RULES_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import Draft, work_folder
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import ArtifactError, RecipeError
from tritonrank.judge.evaluate import Judgement, cached, content_hash, examples_hash, judge_scorer
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.checkpoint_check import check_checkpoint, mention_prompts
from tritonrank.rankers.checkpoint_source import folder_of
from tritonrank.rankers.checkpoint_tokenizer import check_vocabulary, make_ordinary, markers_of, request_tokenizer
from tritonrank.rankers.checkpoint_weights import Purpose
from tritonrank.rankers.pretrained import (
    load_tokenizer,
    longest_input,
)
from tritonrank.rankers.score_meaning import ScoreMeaning, score_meaning
from tritonrank.rankers.text_budgets import rules_to_try, text_rules
from tritonrank.recipe import Recipe
from tritonrank.train.adapters import ADAPTER_FOLDER, AdapterKept
from tritonrank.train.resuming import is_main_process, wait_for_all
from tritonrank.train.teacher import teacher_folder
from tritonrank.train.tracking import tracked
from tritonrank.train.training import train_ranker

console = Console()


def finetune(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Train on the dataset's training examples and write the checkpoint with the best validation NDCG@10.

    With ``model.checkpoint`` in the recipe nothing is trained: that ranker is taken as it is. Under torchrun every
    process trains, and the first one writes.

    Args:
        recipe: what to do.
        workspace: with a prepared dataset.
        draft: gets the checkpoint.

    Raises:
        ArtifactError: the base model cannot be used.
        RecipeError: the token budgets exceed what the model can take, or adapters were asked for layers that it lacks.
    """
    set_seed(recipe.seed)
    rules = text_rules(recipe, workspace.dataset)
    images = images_of(recipe, workspace)
    model, tokenizer = untrained_ranker(recipe, rules, images)
    if recipe.model.checkpoint:
        save_checkpoint(recipe, model, draft.folder, rules)
        if images:
            link_table(workspace.images, draft.folder / FOLDER)
        draft.metrics |= {"trained": False}
        console.print(
            f"  took the checkpoint as given, nothing is trained: {recipe.model.checkpoint}",
            markup=False,
            highlight=False,
        )
        return
    dataset, work = Dataset.read(workspace.dataset), work_folder(workspace.teacher)
    teacher_scores = _kept_teacher_scores(recipe, dataset, workspace)
    with tracked(recipe.tracking, recipe.name, "finetune") as callbacks:
        metrics = train_ranker(
            "finetune",
            recipe.finetune,
            dataset,
            model,
            tokenizer,
            teacher_scores,
            work,
            draft.key,
            recipe.seed,
            kept_adapter=AdapterKept(draft.folder / ADAPTER_FOLDER, recipe.model),
            callbacks=callbacks,
        )
    if is_main_process():
        save_checkpoint(recipe, model, draft.folder, rules)
        if images:
            link_table(workspace.images, draft.folder / FOLDER)
        draft.metrics |= {"trained": True} | metrics
    wait_for_all()


def images_of(recipe: Recipe, workspace: Workspace) -> ImageTable | None:
    """The images that a recipe's ranker reads; None where it reads texts alone."""
    return ImageTable.open(workspace.images) if recipe.images else None


def check_model(recipe: Recipe) -> None:
    """Load the model that the recipe names and let go of it again.

    Raises:
        ArtifactError, RecipeError: as ``untrained_ranker``.
    """
    untrained_ranker(recipe)
    if not architecture_named(recipe.model.architecture).has_prompt:  # which would use them
        mention_prompts(recipe.model.source, recipe.model.revision)


def check_teacher(folder: Path) -> None:
    """A checkpoint, graphs or shards, with the rules by which it reads requests."""
    if not (is_sharded(folder) or model_files(folder)):
        check_checkpoint(str(folder), Purpose.TEACHER)
    if not (folder / RULES_FILE).is_file():
        raise ArtifactError(
            f"finetune.teacher: {folder}: no {RULES_FILE}, which says how the teacher reads a request. Take a teacher "
            "that a recipe built, such as artifacts/OTHER/teacher; one with model.checkpoint makes it of any ranker"
        )


def untrained_ranker(
    recipe: Recipe, rules: TextRules | None = None, images: ImageTable | None = None
) -> tuple[PreTrainedModel, RequestTokenizer]:
    """The model that training starts from (or the ready checkpoint), and the tokenizer by the recipe's rules.

    Args:
        recipe: its model and text sections.
        rules: as ``text_rules`` gives them; by default those that are known before the data are.
        images: of the data, for a recipe that has some; without them the model is one of texts alone.
    """
    name, revision, architecture = recipe.model.source, recipe.model.revision, recipe.model.architecture
    purpose = Purpose.BASE if recipe.model.checkpoint is None else Purpose.CHECKPOINT
    check_checkpoint(name, purpose, architecture, revision)
    fast = load_tokenizer(name, revision)
    tokenizer = request_tokenizer(name, fast, rules or rules_to_try(recipe))
    tokenizer.images = images
    ranker = architecture_named(architecture)
    model = ranker.untrained(recipe.model, tokenizer)
    if (tokens := ranker.positions(model.config, tokenizer)) > longest_input(model):
        raise RecipeError(
            f"text: query_tokens + history_tokens + candidate_tokens make {ranker.longest_input} of up to {tokens} "
            f"tokens; {name} takes {longest_input(model)}. Lower text.history_tokens"
        )
    check_vocabulary(name, fast, model)
    if recipe.model.checkpoint:
        _exchange_images(name, model, images)
    return model, tokenizer


def _exchange_images(name: str, model: PreTrainedModel, images: ImageTable | None) -> None:
    """Give a ready ranker of images those of the data at hand.

    Raises:
        RecipeError: it reads none, or those of another encoder.
    """
    if images is None:
        return
    reads = image_tokens(model)
    if reads is None or len(reads.centre) != images.width or model.config.image_tokens != images.soft_tokens:
        found = "texts alone" if reads is None else f"vectors of {len(reads.centre)} as {model.config.image_tokens}"
        raise RecipeError(
            f"model.checkpoint: {name} reads {found}, the recipe's images are vectors of {images.width} as "
            f"{images.soft_tokens} soft tokens. Take images.encoder and images.soft_tokens of its recipe, or train "
            "from model.base"
        )
    reads.table = images


def save_checkpoint(recipe: Recipe, model: PreTrainedModel, folder: Path, rules: TextRules | None = None) -> None:
    """Weights, config, tokenizer and text rules: everything that later stages need."""
    name, rules = recipe.model.source, rules or text_rules(recipe)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = load_tokenizer(name, recipe.model.revision)
    tokenizer.save_pretrained(folder)
    make_ordinary(folder, markers_of(name, tokenizer, rules.item_template))
    rules.save(folder)
    meaning = score_meaning(folder_of(name, recipe.model.revision))
    (meaning if recipe.model.checkpoint else ScoreMeaning()).save(folder)  # what is trained here has a head of its own


def scores_of_teacher(recipe: Recipe, dataset: Dataset) -> Judgement:
    """What the recipe's teacher gives each training candidate."""
    folder = teacher_folder(str(recipe.finetune.teacher))
    return judge_scorer("teacher", open_scorer(folder), dataset, dataset.training, TextRules.load(folder))


def by_example(judgement: Judgement) -> dict[str, list[float]]:
    """Example id -> scores in the order of the candidates."""
    return dict(zip(judgement.example_ids, judgement.table["scores"].to_list(), strict=True))


def _kept_teacher_scores(recipe: Recipe, dataset: Dataset, workspace: Workspace) -> dict[str, list[float]] | None:
    """The teacher's scores, computed once and kept; None without a teacher."""
    if recipe.finetune.teacher is None:
        return None
    folder = teacher_folder(recipe.finetune.teacher)
    key = f"training-{content_hash(folder)[:24]}-{examples_hash(workspace.dataset, 'train')[:16]}"
    path = workspace.judgements / f"{key}.parquet"
    return by_example(cached("teacher", path, lambda: scores_of_teacher(recipe, dataset)))
