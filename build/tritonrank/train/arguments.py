"""A recipe's training settings in the words of the Hugging Face Trainer."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, TrainingArguments

from tritonrank.errors import RecipeError
from tritonrank.recipe import FinetuneSettings
from tritonrank.system.machine import has_bf16_products

WARMUP_RATIO = 0.1
"""Share of the steps in which the learning rate rises; after it, it falls to 0 by default, so that the last weights are
mostly the best and nothing is stopped early."""
WEIGHT_DECAY = 0.01
"""As BERT was trained; not applied to biases and LayerNorm."""
GRADIENT_CLIP = 1.0
"""Largest global norm of the gradient, as BERT was trained."""
SMALLEST_IN_BF16 = 128
"""Hidden size below which converting to bf16 takes longer than its faster products save."""
MOMENTUM = 0.9
"""Of SGD."""
OPTIMIZERS = {"sgd": "sgd", "adafactor": "adafactor", "adamw-8bit": "adamw_bnb_8bit"}
"""As the Trainer calls them; AdamW is its own default."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
BITSANDBYTES = "bitsandbytes"

console = Console()


def training_arguments(
    settings: FinetuneSettings,
    examples: int,
    precision: torch.dtype | None,
    work: Path,
    seed: int,
    *,
    keeps_best: bool,
) -> TrainingArguments:
    """Of a training of ``examples`` whose checkpoints go into ``work``.

    Raises:
        RecipeError: an optimizer that is not installed.
    """
    check_optimizer(settings)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    steps = max(1, round(examples * settings.epochs / (settings.examples_per_step * world)))
    every = max(1, steps // settings.evaluations)
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=settings.examples_per_step // settings.accumulation,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        warmup_ratio=WARMUP_RATIO,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=GRADIENT_CLIP,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        bf16=precision is torch.bfloat16,
        fp16=precision is torch.float16,
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
        **({"optim": OPTIMIZERS[settings.optimizer]} if settings.optimizer in OPTIMIZERS else {}),
    )


def check_optimizer(settings: FinetuneSettings) -> None:
    """Refuse one that cannot be used here.

    Raises:
        RecipeError: it is not installed.
    """
    if settings.optimizer == "adamw-8bit" and importlib.util.find_spec(BITSANDBYTES) is None:
        raise RecipeError(
            f"finetune.optimizer: adamw-8bit is {BITSANDBYTES}' and that is not installed: pip install {BITSANDBYTES}. "
            "Or take adafactor, which keeps even less"
        )


def own_optimizer(settings: FinetuneSettings) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """An optimizer's class and arguments where the Trainer's own differ: its SGD has no momentum."""
    if settings.optimizer != "sgd":
        return None
    return torch.optim.SGD, {"lr": settings.learning_rate, "momentum": MOMENTUM}


def mixed_precision(settings: FinetuneSettings, model: PreTrainedModel) -> torch.dtype | None:
    """The dtype of mixed precision, None for none. Left to itself: bf16 where the hardware multiplies in it and the
    model gains by it.

    Raises:
        RecipeError: this machine does not have what was asked for.
    """
    on_gpu = torch.cuda.is_available()
    if settings.mixed_precision == "off":
        return None
    if settings.mixed_precision == "fp16":
        if not on_gpu:
            raise RecipeError("finetune.mixed_precision: fp16 needs a GPU; on CPUs take bf16 or off")
        return torch.float16
    if settings.mixed_precision == "auto" and model.config.hidden_size < SMALLEST_IN_BF16:
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else has_bf16_products()
    if settings.mixed_precision == "bf16":
        if on_gpu and not native:
            raise RecipeError("finetune.mixed_precision: this GPU does not multiply in bf16; take fp16 or off")
        return torch.bfloat16
    console.print(f"mixed precision: {'bf16' if native else 'off'}, because {'the GPU' if on_gpu else 'the CPU'} "
                  f"{'multiplies' if native else 'does not multiply'} in bf16")  # fmt: skip
    return torch.bfloat16 if native else None
