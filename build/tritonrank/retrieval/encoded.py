"""All texts of a dataset as one encoder sees them: embedded once, for learning and for judging."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tritonrank.data.dataset import Dataset
from tritonrank.retrieval.embed import embed_items

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Texts:
    """Of a dataset.

    Attributes:
        items: in the order of ``Dataset.items``.
        queries: the different ones of all examples.
    """

    items: list[str]
    queries: list[str]

    @classmethod
    def of(cls, dataset: Dataset, items: list[str]) -> "Texts":
        examples = [*dataset.training, *dataset.validation, *dataset.test]
        return cls(items, sorted({example.query for example in examples} - {""}))

    def encoded(self, folder: Path, name: str) -> "Encoded":
        """By the encoder of a folder; ``name`` is what the progress bar says."""
        vectors = embed_items(folder, [*self.items, *self.queries], f"embedding items ({name})")
        of_queries = vectors[len(self.items) :]
        return Encoded(vectors[: len(self.items)], dict(zip(self.queries, of_queries, strict=True)))


@dataclass(frozen=True)
class Encoded:
    """Unit vectors.

    Attributes:
        items: [items, dimension].
        queries: by text.
    """

    items: Vectors
    queries: Mapping[str, Vectors]

    def of(self, queries: Sequence[str]) -> Vectors:
        """Of some queries, [queries, dimension]."""
        found = [self.queries[query] for query in queries]
        return np.stack(found) if found else np.zeros((0, self.items.shape[1]), dtype=np.float32)

    def projected(self, projection: Vectors) -> "Encoded":
        """What the same encoder gives with a projection behind it."""
        return Encoded(_unit(self.items @ projection), {q: _unit(v @ projection) for q, v in self.queries.items()})


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return unit
