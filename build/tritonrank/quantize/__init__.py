"""Fewer bits: INT8 for CPUs, INT8 and FP16 for TensorRT, and the rules that their graphs obey."""
