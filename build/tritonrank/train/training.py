"""Train a ranker on lists: what fine-tuning and distillation have in common.

The Hugging Face Trainer does the work; what is ours is the loss over lists, NDCG@10 as the judge of which weights to
keep, the progress shown, and that an interrupted run goes on from its last evaluation.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.dataset import Dataset
from tritonrank.data.requests import requests_of
from tritonrank.judge.metrics import ndcg
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.recipe import FinetuneSettings
from tritonrank.system.machine import has_bf16_products
from tritonrank.system.progress import Step, step
from tritonrank.train.adapters import AdapterKept, adapted, merge, ranker_in
from tritonrank.train.batches import Collator
from tritonrank.train.losses import distillation_loss, list_loss
from tritonrank.train.watch import watch_callbacks

WARMUP_RATIO = 0.1
"""Share of the steps in which the learning rate rises; after it, it falls to 0, so that the last weights are mostly the
best and nothing is stopped early."""
WEIGHT_DECAY = 0.01
"""As BERT was trained; not applied to biases and LayerNorm."""
DISTILLATION = 0.5
"""Share of the loss that a teacher's scores have; the labels have the rest. Both recipes that distil chose it."""
GRADIENT_CLIP = 1.0
"""Largest global norm of the gradient, as BERT was trained."""
SMALLEST_IN_BF16 = 128
"""Hidden size below which converting to bf16 takes longer than its faster products save."""

console = Console()


def train_ranker(
    section: str,
    settings: FinetuneSettings,
    dataset: Dataset,
    model: PreTrainedModel,
    tokenizer: RequestTokenizer,
    teacher_scores: Mapping[str, Sequence[float]] | None,
    work: Path,
    key: str,
    seed: int,
    *,
    keeps_best: bool = True,
    kept_adapter: AdapterKept | None = None,
) -> dict[str, Any]:
    """Train in place, up to the best validation NDCG@10.

    Args:
        section: of the recipe; what the progress bar and errors call this training.
        settings: loss, steps and learning rate.
        dataset: its training examples are learnt from, its validation examples judge.
        model: starts from its weights and ends with the best ones.
        tokenizer: of this model.
        teacher_scores: by example id, one per candidate; only for distillation.
        work: folder of the run's checkpoints; a run that was interrupted goes on from them. The caller removes it.
        key: what the run depends on; checkpoints of another key are not used.
        seed: of the order of the examples and of dropout.
        keeps_best: False judges nothing on the way and ends with the last weights.
        kept_adapter: where the adapter is saved that was trained, if the settings ask for one.

    Returns:
        What goes into the manifest: seconds, steps, losses, validation NDCG@10.

    Raises:
        TrainingEndedError: whoever watches (``watch.py``) ended it.
        RecipeError: finetune.adapter_targets names layers that the model does not have.
    """
    precision = _precision(model)
    arguments = _arguments(settings, len(dataset.training), precision, work, seed, keeps_best=keeps_best)
    trained = adapted(model, settings)
    with step(section, total=arguments.max_steps) as bar:
        trainer = _RankingTrainer(
            settings=settings,
            judge=_Judge(dataset, tokenizer, precision),
            model=trained,
            args=arguments,
            train_dataset=dataset.training,
            eval_dataset=dataset.validation,
            data_collator=Collator(dataset, tokenizer, model, teacher_scores),
            callbacks=[_Progress(bar), *watch_callbacks()],
        )
        trainer.remove_callback(PrinterCallback)  # it prints raw dictionaries; our progress takes its place
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=_resumable(work, key))
    trainable = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    merge(trained, kept_adapter if is_main_process() else None)
    return {"training_seconds": round(time.monotonic() - started, 1)} | _summary(trainer, trainable)


def is_main_process() -> bool:
    """Whether this process writes what all have made; true when there is only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


class _RankingTrainer(Trainer):
    """The Trainer with a loss over lists and NDCG@10 on the validation users as its evaluation."""

    def __init__(self, *, settings: FinetuneSettings, judge: "_Judge", **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._judge = judge

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        labels, teacher_logits = inputs.pop("labels"), inputs.pop("teacher_logits", None)
        weights = inputs.pop("weights", None)
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        logits = logits.float().view(labels.shape)
        loss = list_loss(logits, labels, self._settings.loss, weights)
        if teacher_logits is not None:
            soft = distillation_loss(logits, teacher_logits)
            loss = torch.lerp(loss, soft, DISTILLATION)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_ndcg": self._judge.ndcg(ranker_in(self.accelerator.unwrap_model(self.model)))}
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
    """Tells the bar how far the training is, and logs of every evaluation."""

    def __init__(self, bar: Step) -> None:
        self._bar = bar

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.resume(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._bar.update(completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._bar.update(note=f"loss {logs['loss']:.3f}")
        if "eval_ndcg" in logs:
            console.print(
                f"  step {state.global_step}/{state.max_steps}: validation NDCG@10 {logs['eval_ndcg']:.4f}",
                highlight=False,
            )


def _arguments(
    settings: FinetuneSettings,
    examples: int,
    precision: torch.dtype | None,
    work: Path,
    seed: int,
    *,
    keeps_best: bool,
) -> TrainingArguments:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = max(1, round(examples * settings.epochs / (settings.examples_per_step * world)))
    every = max(1, steps // settings.evaluations)
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.examples_per_step,
        learning_rate=settings.learning_rate,
        warmup_ratio=WARMUP_RATIO,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=GRADIENT_CLIP,
        lr_scheduler_type="linear",
        bf16=precision is torch.bfloat16,
        use_cpu=on_cpu,
        ddp_backend=("gloo" if on_cpu else "nccl") if world > 1 else None,
        seed=seed,
        eval_strategy="steps" if keeps_best else "no",
        eval_steps=every,
        save_strategy="steps" if keeps_best else "no",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=keeps_best,
        metric_for_best_model="eval_ndcg",
        greater_is_better=True,
        logging_steps=max(1, min(20, every)),
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
    )


def _precision(model: PreTrainedModel) -> torch.dtype | None:
    """The dtype of mixed precision: bf16 where the hardware multiplies in it and the model gains by it, else None."""
    if model.config.hidden_size < SMALLEST_IN_BF16:
        return None
    if torch.cuda.is_available():
        native, why = torch.cuda.is_bf16_supported(including_emulation=False), "the GPU"
    else:
        native, why = has_bf16_products(), "the CPU"
    console.print(f"mixed precision: {'bf16' if native else 'off'}, because {why} "
                  f"{'multiplies' if native else 'does not multiply'} in bf16")  # fmt: skip
    return torch.bfloat16 if native else None


def _resumable(work: Path, key: str) -> str | None:
    """The last complete checkpoint of an interrupted run with the same key; other leftovers are removed."""
    marker = work / "key.json"
    same = marker.is_file() and marker.read_text(encoding="utf-8") == json.dumps(key)
    # The Trainer writes its state last: a checkpoint without it was being written when the run was killed.
    complete = [path.parent for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}") if same]
    last = max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    checkpoint = str(last) if last else None
    wait_for_all()  # every process has looked before the first one tidies up
    if is_main_process() and not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        marker.write_text(json.dumps(key), encoding="utf-8")
    if is_main_process() and checkpoint:
        console.print(f"resuming from {Path(checkpoint).name}")
    wait_for_all()
    return checkpoint


def _summary(trainer: Trainer, trainable: int) -> dict[str, Any]:
    history = trainer.state.log_history
    return {
        "steps": trainer.state.global_step,
        "trained_parameters": trainable,
        "best_validation_ndcg@10": trainer.state.best_metric,
        "validation_ndcg@10": [
            (entry["step"], round(entry["eval_ndcg"], 5)) for entry in history if "eval_ndcg" in entry
        ],
        "loss": [(entry["step"], round(entry["loss"], 5)) for entry in history if "loss" in entry],
        "processes": trainer.args.world_size,
        "mixed_precision": "bf16" if trainer.args.bf16 else "off",
    }
