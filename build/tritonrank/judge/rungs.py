"""What tables, manifests and records call the steps of a build that are judged."""

FINE_TUNED = "fine-tuned"
CHECKPOINT = "checkpoint"
"""The teacher, where it was trained here and where the recipe names a ready one."""
PRUNED = "pruned"
STUDENT = "student"
ONNX_FP32 = "ONNX FP32"
INT8 = "INT8"
CHECKPOINT_RUNGS = {FINE_TUNED, CHECKPOINT, PRUNED, STUDENT}
"""Those that are a checkpoint, not a graph."""
UNCUT = ", uncut"
"""Ends what tables call a teacher that reads whole texts."""
UNCUT_WAY_OUT = "The text section's budgets cut what the checkpoint would read: --set text.candidate_tokens=auto"
