"""Fine-tune a pretrained encoder into a ranker: lists of candidates, one positive among sampled negatives.

The Hugging Face Trainer does the work; what is ours is the loss over lists, NDCG@10 as the judge of when to stop,
and the progress shown. The same code runs under ``torchrun`` (gloo on CPUs, nccl on GPUs):

    torchrun --nproc-per-node 2 -m tritonrank finetune RECIPE

An interrupted run resumes from its last evaluation when it is started again with the same settings.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tritonrank.artifacts import read_manifest, sha256_file, stage_key, write_artifact
from tritonrank.batches import Collator
from tritonrank.cpu import has_bf16_products
from tritonrank.engine import padded_length
from tritonrank.errors import RecipeError
from tritonrank.evaluate import cached, content_hash, judge_scorer
from tritonrank.losses import distillation_loss, list_loss
from tritonrank.metrics import ndcg
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
from tritonrank.recipe import FinetuneSettings, Recipe
from tritonrank.scorers import open_scorer, requests_of, torch_scorer
from tritonrank.text import SHARED_CONTEXT, RequestTokenizer, TextRules

console = Console()


def finetune_settings(recipe: Recipe) -> dict[str, Any]:
    """What the fine-tuned checkpoint depends on, beside the dataset."""
    return {
        "seed": recipe.seed,
        "text": recipe.text.model_dump(mode="json"),
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
    model, tokenizer = untrained_ranker(recipe)
    if recipe.model.checkpoint:
        with write_artifact(folder, "finetune", settings, parents) as draft:
            save_checkpoint(recipe, model, draft.folder)
            draft.metrics |= {"trained": False}
        return
    work = folder.with_name(f"{folder.name}.work")
    key = stage_key("finetune", settings, parents)
    dataset = Dataset.read(dataset_folder)
    teacher_scores = _teacher_scores(recipe, dataset, dataset_folder, folder.with_name("judgements"))
    trainer = _trainer(recipe, dataset, model, tokenizer, teacher_scores, work)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_resumable(work, key, trainer.is_world_process_zero()))
    if trainer.is_world_process_zero():
        with write_artifact(folder, "finetune", settings, parents) as draft:
            save_checkpoint(recipe, model, draft.folder)
            training_seconds = round(time.monotonic() - started, 1)
            draft.metrics |= {"trained": True, "training_seconds": training_seconds} | _summary(trainer)
        shutil.rmtree(work, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()


def untrained_ranker(recipe: Recipe) -> tuple[PreTrainedModel, RequestTokenizer]:
    """The model that training starts from (or the ready checkpoint), and the tokenizer by the recipe's rules."""
    name = recipe.model.checkpoint or recipe.model.base
    tokenizer = RequestTokenizer(load_tokenizer(name).backend_tokenizer, text_rules(recipe), cache_entries=100_000)
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


def text_rules(recipe: Recipe) -> TextRules:
    return TextRules(**recipe.text.model_dump(), architecture=recipe.model.architecture)


def save_checkpoint(recipe: Recipe, model: PreTrainedModel, folder: Path) -> None:
    """Weights, config, tokenizer and text rules: everything that later stages need."""
    model.save_pretrained(folder, safe_serialization=True)
    load_tokenizer(recipe.model.checkpoint or recipe.model.base).save_pretrained(folder)
    text_rules(recipe).save(folder)


class _RankingTrainer(Trainer):
    """The Trainer with a loss over lists and NDCG@10 on the validation users as its evaluation."""

    def __init__(self, *, settings: FinetuneSettings, judge: "_Judge", **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._judge = judge

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        labels, teacher_logits = inputs.pop("labels"), inputs.pop("teacher_logits", None)
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        logits = logits.float().view(labels.shape)
        loss = list_loss(logits, labels, self._settings.loss)
        if teacher_logits is not None:
            soft = distillation_loss(logits, teacher_logits, self._settings.temperature)
            loss = torch.lerp(loss, soft, self._settings.distillation)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_ndcg": self._judge.ndcg(self.accelerator.unwrap_model(self.model))}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Judge:
    """NDCG@10 on the validation users; under DDP every process judges its share."""

    def __init__(self, dataset: Dataset, tokenizer: RequestTokenizer, precision: torch.dtype | None) -> None:
        self._examples = dataset.validation
        self._requests = requests_of(dataset, dataset.validation, tokenizer.rules)
        self._tokenizer = tokenizer
        self._precision = precision

    def ndcg(self, model: PreTrainedModel) -> float:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        was_training = model.training
        scorer = torch_scorer(model.eval(), self._tokenizer)
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=self._precision, enabled=self._precision is not None):
            values = [
                ndcg(scorer.score(request), example.labels)
                for request, example in list(zip(self._requests, self._examples, strict=True))[rank::world]
            ]
        model.train(was_training)
        totals = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=next(model.parameters()).device)
        if world > 1:
            dist.all_reduce(totals)
        return float(totals[0] / totals[1])


class _Progress(TrainerCallback):
    """A bar for people at a terminal, one line per evaluation for logs."""

    def __init__(self) -> None:
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[loss]}"), console=console)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.start()
            self._task = self._bar.add_task("finetune", total=state.max_steps, completed=state.global_step, loss="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._bar.update(self._task, loss=f"loss {logs['loss']:.3f}")
        if "eval_ndcg" in logs:
            self._bar.console.print(
                f"  step {state.global_step}/{state.max_steps}: validation NDCG@10 {logs['eval_ndcg']:.4f}",
                highlight=False,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.stop()


def _teacher_scores(
    recipe: Recipe, dataset: Dataset, dataset_folder: Path, judgements: Path
) -> dict[str, list[float]] | None:
    """What the teacher gives each training candidate, computed once and kept; None without a teacher."""
    if recipe.finetune.teacher is None:
        return None
    folder = Path(recipe.finetune.teacher)
    if not folder.is_dir():
        raise RecipeError(f"finetune.teacher: {folder}: no such folder; build the teacher first, with its own recipe")
    key = f"training-{content_hash(folder)[:24]}-{sha256_file(dataset_folder / 'train.parquet')[:16]}"
    judgement = cached(
        "teacher",
        judgements / f"{key}.parquet",
        lambda: judge_scorer("teacher", open_scorer(folder), dataset, dataset.training, TextRules.load(folder)),
    )
    return dict(zip(judgement.example_ids, judgement.table["scores"].to_list(), strict=True))


def _trainer(
    recipe: Recipe,
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: RequestTokenizer,
    teacher_scores: dict[str, list[float]] | None,
    work: Path,
) -> _RankingTrainer:
    settings = recipe.finetune
    precision = _precision(settings)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = max(1, round(len(dataset.training) * settings.epochs / (settings.examples_per_step * world)))
    every = max(1, steps // settings.evaluations)
    on_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.examples_per_step,
        learning_rate=settings.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        lr_scheduler_type="linear",
        bf16=precision is torch.bfloat16,
        fp16=precision is torch.float16,
        use_cpu=on_cpu,
        ddp_backend=("gloo" if on_cpu else "nccl") if world > 1 else None,
        seed=recipe.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_ndcg",
        greater_is_better=True,
        logging_steps=max(1, min(20, every)),
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
    )
    trainer = _RankingTrainer(
        settings=settings,
        judge=_Judge(dataset, tokenizer, precision),
        model=model,
        args=arguments,
        train_dataset=dataset.training,
        eval_dataset=dataset.validation,
        data_collator=Collator(dataset, tokenizer, model, teacher_scores),
        callbacks=[_Progress(), EarlyStoppingCallback(early_stopping_patience=settings.patience)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints raw dictionaries; our progress bar takes its place
    return trainer


def _precision(settings: FinetuneSettings) -> torch.dtype | None:
    """The dtype of mixed precision, or None; ``auto`` takes bf16 only where the hardware multiplies in it."""
    if settings.mixed_precision == "off":
        return None
    if settings.mixed_precision == "fp16":
        if not torch.cuda.is_available():
            raise RecipeError("finetune.mixed_precision: fp16 needs a GPU; use auto, bf16 or off")
        return torch.float16
    if settings.mixed_precision == "bf16":
        return torch.bfloat16
    if torch.cuda.is_available():
        native, why = torch.cuda.is_bf16_supported(including_emulation=False), "the GPU"
    else:
        native, why = has_bf16_products(), "the CPU"
    console.print(f"mixed precision: {'bf16' if native else 'off'}, because {why} "
                  f"{'multiplies' if native else 'does not multiply'} in bf16")  # fmt: skip
    return torch.bfloat16 if native else None


def _resumable(work: Path, key: str, is_main: bool) -> str | None:
    """The last complete checkpoint of an interrupted run with the same key; other leftovers are removed."""
    marker = work / "key.json"
    same = marker.is_file() and marker.read_text(encoding="utf-8") == json.dumps(key)
    # The Trainer writes its state last: a checkpoint without it was being written when the run was killed.
    complete = [path.parent for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}") if same]
    last = max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    checkpoint = str(last) if last else None
    if dist.is_initialized():
        dist.barrier()  # every process has looked before the first one tidies up
    if is_main and not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        marker.write_text(json.dumps(key), encoding="utf-8")
    if is_main and checkpoint:
        console.print(f"resuming from {Path(checkpoint).name}")
    if dist.is_initialized():
        dist.barrier()
    return checkpoint


def _summary(trainer: Trainer) -> dict[str, Any]:
    history = trainer.state.log_history
    return {
        "steps": trainer.state.global_step,
        "best_validation_ndcg@10": trainer.state.best_metric,
        "validation_ndcg@10": [
            (entry["step"], round(entry["eval_ndcg"], 5)) for entry in history if "eval_ndcg" in entry
        ],
        "loss": [(entry["step"], round(entry["loss"], 5)) for entry in history if "loss" in entry],
        "processes": trainer.args.world_size,
        "mixed_precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "off",
    }
