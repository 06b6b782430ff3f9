"""Vectors of a catalogue's items: of their texts, and for items that users met what each has beyond its text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tritonrank.errors import ArtifactError
from tritonrank.retrieval.embed import embed_items

RESIDUALS_FILE, RESIDUAL_ITEMS_FILE = "residuals.npy", "residual_items.json"


@dataclass(frozen=True)
class Residuals:
    """What items have beyond their texts; empty for towers that only read.

    Attributes:
        items: ids.
        vectors: [items, dimension] float16: half the bytes, and rounding moves a cosine by less than INT8 does.
    """

    items: list[str]
    vectors: NDArray[np.float16]

    @classmethod
    def none(cls, dimension: int) -> "Residuals":
        return cls([], np.zeros((0, dimension), dtype=np.float16))

    def save(self, folder: Path) -> None:
        """Write the files; none where there is nothing to say."""
        if not self.items:
            return
        np.save(folder / RESIDUALS_FILE, self.vectors, allow_pickle=False)
        (folder / RESIDUAL_ITEMS_FILE).write_text(json.dumps(self.items, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Residuals":
        """Those of a retriever; empty where it has no such files.

        Raises:
            ArtifactError: the files cannot be read or do not fit each other.
        """
        if not (folder / RESIDUALS_FILE).exists():
            return cls.none(0)
        try:
            items = json.loads((folder / RESIDUAL_ITEMS_FILE).read_text(encoding="utf-8"))
            vectors = np.load(folder / RESIDUALS_FILE, allow_pickle=False)
            if vectors.ndim != 2 or len(vectors) != len(items):
                raise ValueError(f"{len(items)} items, vectors of shape {vectors.shape}")
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder / RESIDUALS_FILE}: damaged ({error}). Delete {folder} and run tritonrank build again"
            ) from None
        return cls(items, vectors)

    def added(self, items: Sequence[str], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors of items.

        Args:
            items: ids.
            texts: unit vectors of their texts, [items, dimension]; kept as they are for items without a residual.
        """
        row = {item: number for number, item in enumerate(self.items)}
        places = [place for place, item in enumerate(items) if item in row]
        vectors = texts.copy()
        if places:
            whole = texts[places] + self.vectors[[row[items[place]] for place in places]].astype(np.float32)
            vectors[places] = whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
        return vectors


def item_vectors(
    folder: Path, items: Sequence[str], texts: Sequence[str], title: str = "embedding items"
) -> NDArray[np.float32]:
    """Unit vectors of items, as a catalogue keeps them.

    Args:
        folder: the artifact of stage ``retriever``.
        items: ids.
        texts: of the items.
        title: what the progress bar says.

    Returns:
        [items, dimension].
    """
    return Residuals.load(folder).added(items, embed_items(folder, texts, title))
