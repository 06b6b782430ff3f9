"""The graph over the vectors of items; how many of the exact nearest it finds is measured."""

import time
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401  # before usearch: the other way round ends in SIGSEGV (1.31.1, 2.26.6)
from numpy.typing import NDArray
from tritonrank_recommend.catalogue.layout import INDEX, IndexFacts
from tritonrank_recommend.catalogue.vectors import EXACT_ITEMS, exact, graph
from tritonrank_runtime.cores import available_cores
from usearch.index import Index

from tritonrank.artifacts import whole_file
from tritonrank.system.progress import step

DTYPE = "i8"
"""Of the graph's own copy of the vectors: half of float16's size and time; what it finds is scored again by float16."""
EXPANSION = 384
RECALL_DEPTH = 200
RECALL_QUERIES = 100
VECTORS_AT_ONCE = 4_096
SAVED_EVERY_SECONDS = 90.0


def write_index(
    vectors: NDArray[np.float16], folder: Path, exact_items: int | None = None, work: Path | None = None
) -> IndexFacts | None:
    """Write the graph; None where there are so few vectors that the reader looks at all of them.

    Args:
        vectors: [items, dimensions] of unit length.
        folder: gets the graph.
        exact_items: up to so many there is no graph; default: the reader's limit.
        work: a file in which the graph is kept while it grows, and from which an interrupted build goes on; its name
            belongs to these vectors alone.
    """
    if len(vectors) <= (EXACT_ITEMS if exact_items is None else exact_items):
        return None
    index = graph(vectors, dtype=DTYPE, expansion=EXPANSION)
    if work is not None and work.is_file():
        index.load(str(work))
    with step("graph of vectors", total=len(vectors)) as bar:
        bar.resume(len(index))
        saved = time.monotonic()
        for start in range(len(index), len(vectors), VECTORS_AT_ONCE):
            part = vectors[start : start + VECTORS_AT_ONCE]
            index.add(np.arange(start, start + len(part)), part.astype(np.float32), threads=available_cores())
            bar.advance(len(part))
            if work is not None and time.monotonic() - saved > SAVED_EVERY_SECONDS:
                _save(index, work)
                saved = time.monotonic()
    if work is not None:
        _save(index, work)
    index.save(str(folder / INDEX))
    return IndexFacts(dtype=DTYPE, expansion=EXPANSION, recall=round(_recall(index, vectors), 4))


def _save(index: Index, work: Path) -> None:
    with whole_file(work) as draft:
        index.save(str(draft))


def _recall(index: Index, vectors: NDArray[np.float16]) -> float:
    """Share of the exact best 200 that a search for 200 finds, for mixtures of two items, as users' vectors are."""
    random = np.random.default_rng(0)
    shares = []
    with step("recall of the graph", total=RECALL_QUERIES) as bar:
        for _ in range(RECALL_QUERIES):
            pair = vectors[np.sort(random.choice(len(vectors), 2))].astype(np.float32)
            wanted = pair.sum(axis=0)
            wanted /= np.linalg.norm(wanted)
            best, _ = exact(vectors, wanted, RECALL_DEPTH)
            found = index.search(wanted, min(RECALL_DEPTH, len(vectors)), threads=1).keys
            shares.append(len(np.intersect1d(best, found)) / len(best))
            bar.advance()
    return float(np.mean(shares))
