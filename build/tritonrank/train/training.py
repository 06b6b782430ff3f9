"""Train a ranker on lists: what fine-tuning and distillation have in common.

The Hugging Face Trainer does the work; what is ours is the loss over lists, NDCG@10 as the judge of which weights to
keep, the progress shown, and that an interrupted run goes on from its last evaluation. What a recipe may ask for
besides has a module each: ``adapters.py``, ``text_dropout.py``, ``adversary.py``, ``averaging.py``,
``recomputing.py``, ``sharding.py``.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.data.dataset import Dataset
from tritonrank.recipe import FinetuneSettings
from tritonrank.system.progress import Step, step
from tritonrank.train.adapters import AdapterKept, adapted, merge, ranker_in
from tritonrank.train.arguments import mixed_precision, training_arguments
from tritonrank.train.batches import Collator
from tritonrank.train.ranking_trainer import RankingTrainer
from tritonrank.train.recomputing import keep_layers, recompute_layers
from tritonrank.train.resuming import is_main_process, resumable
from tritonrank.train.sharding import gathered, is_sharded, put, shard, trained_weights
from tritonrank.train.text_dropout import TextDropout
from tritonrank.train.validation import Judge
from tritonrank.train.watch import watch_callbacks

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
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train in place, up to the best validation NDCG@10.

    Args:
        section: of the recipe; what the progress bar and errors call this training.
        settings: loss, steps, optimizer and what else a recipe may ask for.
        dataset: its training examples are learnt from, its validation examples judge.
        model: starts from its weights and ends with the best ones; of several processes in the first one.
        tokenizer: of this model.
        teacher_scores: by example id, one per candidate; only for distillation.
        work: folder of the run's checkpoints; a run that was interrupted goes on from them. The caller removes it.
        key: what the run depends on; checkpoints of another key are not used.
        seed: of the order of the examples and of dropout.
        keeps_best: False judges nothing on the way and ends with the last weights.
        kept_adapter: where the adapter is saved that was trained, if the settings ask for one.
        callbacks: of whoever logs the training (``tracking.py``).

    Returns:
        What goes into the manifest: seconds, steps, losses, validation NDCG@10.

    Raises:
        TrainingEndedError: whoever watches (``watch.py``) ended it.
        RecipeError: finetune.adapter_targets names layers that the model does not have, or a setting asks for what is
            not installed, or not there on this machine.
    """
    precision = mixed_precision(settings, model)
    arguments = training_arguments(settings, len(dataset.training), precision, work, seed, keeps_best=keeps_best)
    trained = adapted(model, settings)
    sharded = is_sharded(settings, trained)
    network = deepcopy(trained) if sharded else trained  # shards cannot become a whole model again
    if settings.gradient_checkpointing:
        recompute_layers(ranker_in(network))
    if sharded:
        shard(network, ranker_in(network), precision)
    drops = settings.token_dropout or settings.field_dropout
    dropout = TextDropout(settings.token_dropout, settings.field_dropout, seed) if drops else None
    with step(section, total=arguments.max_steps) as bar:
        trainer = RankingTrainer(
            settings=settings,
            judge=Judge(dataset, tokenizer, precision),
            precision=precision,
            is_sharded=sharded,
            dropout=dropout,
            model=network,
            args=arguments,
            train_dataset=dataset.training,
            eval_dataset=dataset.validation,
            data_collator=Collator(dataset, tokenizer, model, teacher_scores, dropout),
            callbacks=[_Progress(bar), *watch_callbacks(), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)  # it prints raw dictionaries; our progress takes its place
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=resumable(work, key))
    if trainer.averages and not keeps_best:
        trainer.averages.apply()
    if settings.gradient_checkpointing:
        keep_layers(ranker_in(network))
    if sharded:
        weights = gathered(trained_weights(network), keeps=is_main_process())
        if is_main_process():
            put(trained_weights(trained), weights)
    trainable = sum(weight.numel() for weight in trained_weights(trained).values())
    merge(trained, kept_adapter if is_main_process() else None)
    return {"training_seconds": round(time.monotonic() - started, 1)} | _summary(trainer, trainable, sharded=sharded)


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


def _summary(trainer: Trainer, trainable: int, *, sharded: bool) -> dict[str, Any]:
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
        "mixed_precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "off",
    } | ({"sharding": "fsdp"} if sharded else {})
