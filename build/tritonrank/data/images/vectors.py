"""Stage ``images``: every picture of the items becomes a vector, once for each content.

What an earlier build of the same encoder made stays in use: new pictures alone are encoded. The table that comes out
(``tritonrank_runtime/images.py``) then travels beside every model, as links where the file system has them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from tritonrank_runtime.images import ImageTable, write_table

from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.images.encoders import open_encoder
from tritonrank.data.images.files import SOURCES_FILE, read_image
from tritonrank.errors import ArtifactError, DataError
from tritonrank.recipe import Recipe
from tritonrank.system.progress import track

LARGEST_HALF = float(np.finfo(np.float16).max)

console = Console()


def encode_images(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Write the table of the dataset's images.

    Raises:
        DataError: one cannot be read, names the file; or no item has an image.
        RecipeError: the encoder is not there.
    """
    settings = recipe.images
    assert settings is not None  # the pipeline has this stage only with the section
    sources: dict[str, str] = json.loads((workspace.dataset / SOURCES_FILE).read_text(encoding="utf-8"))
    if not sources:
        raise DataError(
            f"images: no item has one: {settings.field!r} is empty in all of them. Remove the images section, or fill "
            "the field with paths below images.folder"
        )
    known = _known_vectors(workspace.images, settings.encoder)
    new = {name: path for name, path in sources.items() if name not in known}
    known |= _encoded(new, settings.folder, settings.encoder)
    vectors = np.stack([known[name] for name in sources])
    items = pl.read_parquet(workspace.dataset / "items.parquet", glob=False).filter(pl.col(settings.field) != "")
    by_item = dict(zip(items["item_id"], items[settings.field], strict=True))
    write_table(draft.folder, vectors, [*sources], settings.soft_tokens, by_item)
    draft.metrics |= {"images": len(sources), "encoded": len(new), "items_with_image": len(by_item)}
    draft.metrics |= {"width": vectors.shape[1], "encoder": settings.encoder}
    console.print(
        f"  {len(sources):,} images of {len(by_item):,} items, {len(new):,} of them new; {vectors.shape[1]:,} numbers "
        f"each, {vectors.nbytes / 1e6:,.1f} MB",
        highlight=False,
    )


def _known_vectors(folder: Path, encoder: str) -> dict[str, NDArray[np.float16]]:
    """By reference what an earlier build made with the same encoder; none where there is none."""
    try:
        if read_manifest(folder).metrics["encoder"] != encoder:
            return {}
        table = ImageTable.open(folder)
    except (ArtifactError, OSError, ValueError, KeyError):
        return {}
    return {name: np.array(table.vectors[row]) for name, row in table.numbers.items()}


def _encoded(sources: Mapping[str, str], folder: Path, name: str) -> dict[str, NDArray[np.float16]]:
    if not sources:
        return {}
    encoder = open_encoder(name)
    found = {}
    for reference, path in track([*sources.items()], "encoding images"):
        vector = encoder.encode(read_image(folder / path))
        if not np.isfinite(vector).all() or np.abs(vector).max() > LARGEST_HALF:
            raise DataError(f"{folder / path}: {name} makes numbers of it that FP16 cannot hold")
        found[reference] = vector.astype(np.float16)
    return found
