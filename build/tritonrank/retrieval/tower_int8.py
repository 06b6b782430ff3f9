"""The towers' graph in INT8, as the ranker's: static u8s8 Q/DQ, calibrated on training texts without padding."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tritonrank_recommend.catalogue.encoder import MODEL_FILE

from tritonrank.quantize.int8 import GraphWriter, check_quantized, quantizable_nodes
from tritonrank.retrieval.text_tower import ENCODER_NODES
from tritonrank.system.quiet import quiet_libraries

CALIBRATION_TEXTS = 64


def quantize_tower(source: Path, folder: Path, ids: Sequence[Sequence[int]], exclude: list[str]) -> list[str]:
    """Write model.onnx with every linear layer of the encoder in INT8.

    No layer is tried alone and weights go to the nearest step, which the ranker's are not: cosines bear more than
    logits do, and the gate on Recall has the last word.

    Args:
        source: folder of the FP32 graph.
        folder: gets the INT8 graph.
        ids: token ids of training texts.
        exclude: regular expressions of nodes that stay in FP32 (quantize.exclude).

    Returns:
        Names of the quantized nodes.

    Raises:
        ArtifactError: the written graph does not hold the Q/DQ pairs that were asked for.
        RecipeError: quantize.exclude leaves no node.
    """
    rows = [np.array([text], dtype=np.int32) for text in ids]
    feeds = {source / MODEL_FILE: [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]}
    nodes = [node for node in quantizable_nodes(source, exclude) if node.startswith(ENCODER_NODES)]
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        GraphWriter(feeds, Path(scratch), rounds=False).write(folder, nodes)
    check_quantized(source / MODEL_FILE, folder / MODEL_FILE, nodes)
    return nodes


def calibration_texts(texts: Sequence[str], queries: Sequence[str], seed: int) -> list[str]:
    """Items and training queries, half of each where there are queries."""
    random = np.random.default_rng(seed)
    of_queries = min(len(queries), CALIBRATION_TEXTS // 2)
    of_items = min(len(texts), CALIBRATION_TEXTS - of_queries)
    return [texts[i] for i in random.choice(len(texts), of_items, replace=False)] + [
        queries[i] for i in random.choice(len(queries), of_queries, replace=False)
    ]
