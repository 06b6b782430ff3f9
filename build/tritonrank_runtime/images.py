"""Images beside the texts of items: how a text names one, and where its vector lies.

A text names an image by a reference, ``image:`` and the first 16 digits of the sha256 of the file: the field of an item
that holds an image says that, the template renders it like any other field, and so it goes wherever texts go: through
catalogues, stores, histories, caches and requests. The tokenizer takes the reference out again and puts ids in its
place, at the beginning of the item, which stand for the soft tokens of that image: the ids from ``FIRST_IMAGE_ID`` on.
Whoever computes looks the vectors up that such ids mean (``ImageTable``), and the ranker projects them into its
embeddings (``network.py``).

The table lies beside every model that reads images, in its folder ``images``: ``vectors.npy``, FP16, which is mapped
into memory and not read, and ``table.json``. A reference that it does not know is no image, and no text either.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FIRST_IMAGE_ID = 1 << 24
"""Of the ids that stand for images; no vocabulary is as large."""
IMAGE_VECTORS = "image_vectors"
"""The input of a graph that holds the vectors of its images, FP32: (images, width). Its ids count these, not the
table's."""
WIDTH, SOFT_TOKENS = "image_width", "image_tokens"
"""Of the config of a model that reads images; other configs have neither."""
REFERENCE = re.compile(r"\bimage:[0-9a-f]{16}\b")
FOLDER, VECTORS_FILE, TABLE_FILE = "images", "vectors.npy", "table.json"


@dataclass(frozen=True)
class ImageRules:
    """What the rules of a ranker's texts say of images.

    Attributes:
        field: of items, which holds the reference.
        encoder: what made the vectors.
        soft_tokens: that an image is read as.
    """

    field: str
    encoder: str
    soft_tokens: int


class ImageTable:
    """The vectors of all images that a ranker knows.

    Args:
        vectors: (images, width), FP16, as a rule mapped from a file.
        numbers: reference -> row of the vectors.
        soft_tokens: that an image is read as.
        items: id of an item -> reference of its image.
    """

    def __init__(
        self,
        vectors: NDArray[np.float16],
        numbers: Mapping[str, int],
        soft_tokens: int,
        items: Mapping[str, str] | None = None,
    ) -> None:
        self.vectors, self.numbers, self.soft_tokens, self.items = vectors, numbers, soft_tokens, items or {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The table of a folder that holds both files.

        Raises:
            OSError: one is missing.
            ValueError: they do not belong together; names the folder.
        """
        vectors = np.load(folder / VECTORS_FILE, mmap_mode="r")
        told = json.loads((folder / TABLE_FILE).read_text(encoding="utf-8"))
        references = told["references"]
        if vectors.ndim != 2 or len(vectors) != len(references) or vectors.dtype != np.float16:
            raise ValueError(
                f"{folder}: {VECTORS_FILE} holds {vectors.dtype} {vectors.shape}; {TABLE_FILE} names {len(references)} "
                "images, with a row of float16 each. Build it again: tritonrank build RECIPE"
            )
        return cls(vectors, {name: row for row, name in enumerate(references)}, told["soft_tokens"], told["items"])

    @classmethod
    def beside(cls, model_folder: Path) -> Self | None:
        """The table of a model's folder; None of a model that reads texts alone."""
        folder = model_folder / FOLDER
        return cls.open(folder) if (folder / TABLE_FILE).is_file() else None

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # nobody changes it, and a copy of a mapped file would be in memory

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.vectors.shape[1])

    @property
    def known_ids(self) -> int:
        """How many ids there are up to the last one of an image."""
        return FIRST_IMAGE_ID + len(self.numbers) * self.soft_tokens

    def ids_of(self, reference: str) -> range:
        """The ids that stand for an image; none of one that is not known."""
        number = self.numbers.get(reference)
        first = FIRST_IMAGE_ID + (number or 0) * self.soft_tokens
        return range(first, first if number is None else first + self.soft_tokens)

    def local(self, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Ids as a graph takes them, and the vectors that they count: one row for each image that occurs.

        Args:
            ids: of tokens and of images, in any shape.

        Returns:
            the ids, in their shape and type, and (images, width); without any image one row of zeros, which nothing
            refers to.

        Raises:
            IndexError: there is no such image.
        """
        is_image = ids >= FIRST_IMAGE_ID
        if not is_image.any():
            return ids, np.zeros((1, self.width), dtype=np.float32)
        numbers, places = np.divmod(ids[is_image] - FIRST_IMAGE_ID, self.soft_tokens)
        distinct, rows = np.unique(numbers, return_inverse=True)
        renumbered = ids.copy()
        renumbered[is_image] = FIRST_IMAGE_ID + rows * self.soft_tokens + places
        return renumbered, self.vectors[distinct].astype(np.float32)


class AnyImage(ImageTable):
    """Where tokens are only counted: every reference is an image.

    Args:
        soft_tokens: that an image is read as.
    """

    def __init__(self, soft_tokens: int) -> None:
        super().__init__(np.zeros((1, 1), dtype=np.float16), {}, soft_tokens)

    def ids_of(self, reference: str) -> range:
        return range(FIRST_IMAGE_ID, FIRST_IMAGE_ID + self.soft_tokens)


def without_images(text: str) -> str:
    """A text without references; one that has none stays as it is."""
    return " ".join(REFERENCE.sub(" ", text).split()) if REFERENCE.search(text) else text


def with_image(text: str, reference: str | None) -> str:
    """A text that names an image: the one that it names already, else this one."""
    return text if reference is None or REFERENCE.search(text) else f"{reference} {text}".rstrip()


def write_table(
    folder: Path, vectors: NDArray[np.float16], references: list[str], soft_tokens: int, items: Mapping[str, str]
) -> None:
    """Write both files; as for ``ImageTable``."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / VECTORS_FILE, np.ascontiguousarray(vectors, dtype=np.float16))
    told = {"references": references, "soft_tokens": soft_tokens, "items": dict(items)}
    (folder / TABLE_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")


def copy_images(source: Path, target: Path) -> None:
    """The table of a model's folder into another one's; nothing of a model without. A file system that can links them:
    the vectors of a million items are 2.5 GB."""
    link_table(source / FOLDER, target / FOLDER)


def link_table(source: Path, target: Path) -> None:
    """As ``copy_images``, from one folder of a table to another."""
    if not (source / TABLE_FILE).is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in (VECTORS_FILE, TABLE_FILE):
        (target / name).unlink(missing_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / name, target / name)
