"""Stage ``mix``: what is not INT8 in TensorRT's INT8 graph becomes FP16 where that does not matter (quantize/halve.py).

Revision and tools are those of ``fp16``: it is the same code.
"""

from tritonrank.artifacts.stage import Stage
from tritonrank.artifacts.workspace import Workspace
from tritonrank.pipeline.fp16 import halving_stage
from tritonrank.recipe import Recipe


def stage(recipe: Recipe, workspace: Workspace) -> Stage:
    return halving_stage("mix", workspace.int8_fp16, workspace.int8_tensorrt, recipe, workspace)
