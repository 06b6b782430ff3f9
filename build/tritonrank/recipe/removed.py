"""Settings that recipes once had. Each is fixed or follows from another one now; a recipe that has it is told so."""

from collections.abc import Mapping

FIXED: Mapping[str, str] = {
    "examples.popularity_exponent": "0.75",
    "finetune.distillation": "0.5",
    "finetune.temperature": "1",
    "finetune.warmup_ratio": "0.1",
    "finetune.weight_decay": "0.01",
    "finetune.gradient_clip": "1",
    "prune.criterion": "taylor",
    "prune.calibration_examples": "64",
    "prune.vocabulary": "true",
    "prune.positions": "true",
    "prune.compare": "true",
    "distill.distillation": "0.5",
    "distill.temperature": "1",
    "distill.warmup_ratio": "0.1",
    "distill.weight_decay": "0.01",
    "distill.gradient_clip": "1",
    "gate.bootstrap_samples": "2000",
    "export.opset": "18",
    "export.tolerance": "1e-4",
    "quantize.calibration_candidates": "8",
    "quantize.calibration": "minmax",
    "quantize.smooth": "true",
    "quantize.rounding": "compensated",
    "tensorrt.workspace_mb": "4096",
    "tensorrt.optimization_level": "3",
    "tensorrt.rtx_targets": "[8.0, 8.9]",
    "serve.requests_per_execution": "1",
    "serve.max_history": "1000",
    "serve.max_text_bytes": "65536",
    "serve.queue_delay_us": "0",
    "serve.item_cache_entries": "100000",
}

FOLLOWS: Mapping[str, str] = {
    "export": "has no settings any more",
    "examples.split": "follows from examples.cutoff: a date splits there, no date splits per user",
    "finetune.patience": "is gone: training ends with its steps, and the best weights count",
    "distill.patience": "is gone: training ends with its steps, and the best weights count",
    "distill.loss": "is what finetune.loss is",
    "distill.examples_per_step": "is what finetune.examples_per_step is",
    "distill.evaluations": "is what finetune.evaluations is",
    "distill.hard_negatives": "is 6, or what a smaller distill.pool has",
    "distill.random_negatives": "is 5, or what a smaller distill.pool leaves",
    "distill.mixed_precision": "follows from the machine: bf16 where the GPU or CPU multiplies in it",
    "distill.hidden_states": "is gone: no recipe used it",
    "quantize.reduce_range": "follows from the CPU: 7 bits where it has no VNNI",
    "quantize.compare_dynamic": "is gone: scores of dynamic INT8 depend on the batch, so it is never served",
    "tensorrt.calibration": "is chosen by noise, of minmax, percentile, entropy and mse",
    "serve.preferred_batch": "is gone: what waits is batched",
    "serve.tokenizers": "follows from the cores: one per two of them beside a GPU, one beside a scorer on the CPU",
}


def what_became_of(key: str) -> str | None:
    """What to tell of a setting that is not there any more; None if it never was.

    Args:
        key: such as ``finetune.temperature``.
    """
    if key in FIXED:
        return f"is now fixed at {FIXED[key]}: delete the line"
    return f"{FOLLOWS[key]}: delete the line" if key in FOLLOWS else None
