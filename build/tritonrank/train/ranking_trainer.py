"""The Hugging Face Trainer with a loss over lists, NDCG@10 as its evaluation, and what regularizes a training."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from tritonrank.recipe import FinetuneSettings
from tritonrank.train.adapters import ranker_in
from tritonrank.train.adversary import Adversary
from tritonrank.train.arguments import own_optimizer
from tritonrank.train.averaging import AveragedWeights
from tritonrank.train.losses import disagreement, distillation_loss, list_loss
from tritonrank.train.sharding import Sharded, gathered, put, trained_weights, whole_norm
from tritonrank.train.text_dropout import TextDropout
from tritonrank.train.validation import Judge

DISTILLATION = 0.5
"""Share of the loss that a teacher's scores have; the labels have the rest. Both recipes that distil chose it."""
TRAINED_FILE = "trained.safetensors"
"""In a checkpoint of a training whose processes share the model: the weights that are trained, whole."""
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class RankingTrainer(Trainer):
    """Trains a ranker on lists.

    Args:
        settings: loss, optimizer and regularisers.
        judge: says how well the ranker ranks.
        precision: of products; None: FP32.
        is_sharded: whether the processes share the model (``sharding.py``).
        dropout: of the texts, which wants to know the epoch.
        options: as the Trainer takes them.

    Attributes:
        averages: of the weights, where the settings ask for them.
    """

    def __init__(
        self,
        *,
        settings: FinetuneSettings,
        judge: Judge,
        precision: torch.dtype | None,
        is_sharded: bool,
        dropout: TextDropout | None,
        **options: Any,
    ) -> None:
        super().__init__(optimizer_cls_and_kwargs=own_optimizer(settings), **options)
        # Models whose forward takes anything would have their loss divided by a count of labels and not by the parts
        # of a step; ours is a mean over lists.
        self.model_accepts_loss_kwargs = False
        self._settings, self._judge = settings, judge
        self._precision, self._is_sharded = precision, is_sharded
        words = ranker_in(self.model).get_input_embeddings()
        self._adversary = Adversary(words, settings.adversarial) if settings.adversarial else None
        self.averages = AveragedWeights(self.model, settings.averaging) if settings.averaging else None
        self.add_callback(_Course(self.averages, dropout))
        if is_sharded:
            self.accelerator.clip_grad_norm_ = whole_norm(self.accelerator.clip_grad_norm_)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor
        if self._adversary is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            return loss
        again = dict(inputs)
        with self._adversary.watching():
            loss = super().training_step(model, inputs, num_items_in_batch)
        with self._adversary.moved():
            super().training_step(model, again, num_items_in_batch)  # its gradients are added
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        if self._settings.r_drop:  # one pass over everything twice: dropout differs between the two
            inputs = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
        labels, teacher_logits = inputs.pop("labels"), inputs.pop("teacher_logits", None)
        weights = inputs.pop("weights", None)
        outputs = model(**inputs)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
        logits = logits.float().view(labels.shape)
        loss = list_loss(logits, labels, self._settings.loss, weights)
        if teacher_logits is not None:
            soft = distillation_loss(logits, teacher_logits)
            loss = torch.lerp(loss, soft, DISTILLATION)
        if self._settings.r_drop:
            loss = loss + self._settings.r_drop * disagreement(*logits.chunk(2))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_ndcg": self._ndcg()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _ndcg(self) -> float:
        if self.averages:
            with self.averages.in_place():
                return self._ndcg_of_weights()
        return self._ndcg_of_weights()

    def _ndcg_of_weights(self) -> float:
        if self._is_sharded:
            judged = self._judge.ndcg_of_shards(self.model_wrapped, ranker_in(self.model))
            self.model.reshard()  # what is outside the layers stays whole after a pass that no backward pass follows
            return judged
        return self._judge.ndcg(ranker_in(self.accelerator.unwrap_model(self.model)))

    # ---- checkpoints; the Trainer's own ones know neither averages nor our shards

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self._is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.args.output_dir)
        weights = gathered(trained_weights(self.model), keeps=self.args.should_save)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / TRAINED_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.averages:
            self.averages.save(folder, writes=self.args.should_save)
        if not self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = get_optimizer_state_dict(self.model, self.optimizer.optimizer, options=WHOLE)
        if self.args.should_save:
            torch.save(state, folder / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._is_sharded:
            put(trained_weights(self.model), load_file(Path(resume_from_checkpoint) / TRAINED_FILE))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.averages:
            self.averages.load(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.args.world_size == 1:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        # The Trainer's own would load onto the device "cpu:0" of a process over gloo, which torch refuses.
        state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        if self._is_sharded:
            set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=WHOLE)
        else:
            self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if self._is_sharded:
            put(trained_weights(self.model), load_file(best / TRAINED_FILE))
        else:
            super()._load_best_model()
        if self.averages:
            self.averages.load(best)
            self.averages.apply()

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if self._is_sharded:
            return model if isinstance(model, Sharded) else Sharded(model, self._precision)
        return super()._wrap_model(model, training, dataloader)


class _Course(TrainerCallback):
    """Tells the averages and the dropout of texts how far the training is."""

    def __init__(self, averages: AveragedWeights | None, dropout: TextDropout | None) -> None:
        self._averages, self._dropout = averages, dropout

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._dropout:
            self._dropout.epoch = int(state.epoch or 0)  # of a training that goes on within an epoch: a fraction

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._averages:
            self._averages.update(state.global_step)
        # A checkpoint forgets the losses since the last log; what goes on from it would tell others than it did.
        if state.global_step % int(args.eval_steps or 1) == 0:
            control.should_log = True
