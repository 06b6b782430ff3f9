"""Files of images: what the items' table says of them, and how one is opened without trusting it.

A file is known by its content: the first 16 digits of its sha256 are its name everywhere behind this
(``tritonrank_runtime/images.py``), so that equal pictures are one, whatever their files are called, and a picture that
was exchanged is another one.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from tritonrank_runtime.images import REFERENCE

from tritonrank.artifacts import sha256_file
from tritonrank.errors import DataError
from tritonrank.recipe import ImageSettings

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCES_FILE = "images.json"
"""Of a dataset: reference -> path of the file below ``images.folder``."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""That are read; Pillow knows formats that run programs of others, such as EPS."""
MOST_IMAGES = 1_000_000
"""Different ones. A vector takes 2 bytes per number, 2.5 kB with efficientnet-lite0, which every server maps."""
MOST_BYTES = 64_000_000
MOST_MEGAPIXELS = 40
"""Of one picture; its header says how many before anything is unpacked, and each takes 4 MB then."""
FEWEST_PIXELS = 8
"""Of a side; less is a tracking pixel and no picture."""
FAULTS_SHOWN = 5
REFERENCE_DIGITS = 16


def referenced(settings: ImageSettings | None, items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """Items whose field names an image by its reference in place of its path, and the paths by reference.

    Args:
        settings: None: there are no images, and nothing changes.
        items: item_id, and text fields.

    Raises:
        DataError: files are missing, too large or not below the folder, all of them; or there are too many.
    """
    if settings is None or settings.field not in items.columns:
        return items, {}
    known: dict[str, str] = {"": ""}
    sources: dict[str, str] = {}
    faults: list[str] = []
    for path in items[settings.field].str.strip_chars().unique().sort():
        if not path:
            continue
        if fault := _fault_of(settings, path):
            faults.append(f"{_first_item(items, settings.field, path)}: {path}: {fault}")
            continue
        known[path] = f"image:{sha256_file(settings.folder / path)[:REFERENCE_DIGITS]}"
        sources.setdefault(known[path], path)
    if faults:
        more = f"\n  ... and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise DataError(
            f"images.folder {settings.folder}: {len(faults)} image(s) cannot be used; leave the field "
            f"{settings.field!r} empty where an item has none:\n  " + "\n  ".join(faults[:FAULTS_SHOWN]) + more
        )
    if len(sources) > MOST_IMAGES:
        raise DataError(
            f"images: {len(sources):,} different ones; {MOST_IMAGES:,} are the most. Leave the field "
            f"{settings.field!r} of items empty that are rarely shown"
        )
    named = pl.col(settings.field).str.strip_chars().replace_strict(known, return_dtype=pl.String)
    return items.with_columns(named.alias(settings.field)), dict(sorted(sources.items()))


def image_files(settings: ImageSettings | None) -> dict[str, Any]:
    """What a key records of images: the settings, and which files there are, by size and time of change; nothing
    without images."""
    if settings is None:
        return {}
    digest = hashlib.sha256("\n".join(_tree(settings.folder)).encode()).hexdigest()
    return {"images": settings.model_dump(mode="json", exclude={"folder"}), "image_files": digest}


def read_image(path: Path) -> "Image":
    """A picture as RGB, upright, on white where it is transparent; of an animation the first frame.

    Raises:
        DataError: it is no picture, broken, too small, or larger than allowed, which its header says before anything
            is unpacked; names the file.
    """
    import warnings

    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(path, opened.size)
                upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path}: more than {MOST_MEGAPIXELS} megapixels; make it smaller") from None
    except Exception as error:  # noqa: BLE001 - what spoiled files raise in decoders is an open set
        raise DataError(
            f"{path}: no picture that can be read ({type(error).__name__}: {error}); {', '.join(FORMATS)} are. Mend "
            "it, or leave the item's field empty"
        ) from None
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright).convert("RGB")


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_MEGAPIXELS * 1_000_000:
        raise DataError(
            f"{path}: {width} x {height} pixels; {MOST_MEGAPIXELS} megapixels are the most. Make it smaller: an "
            "encoder sees a few hundred pixels a side"
        )
    if min(size) < FEWEST_PIXELS:
        raise DataError(f"{path}: {width} x {height} pixels; {FEWEST_PIXELS} a side are the least")


def _fault_of(settings: ImageSettings, path: str) -> str | None:
    """Why an image cannot be used, as far as that shows without opening it."""
    if "://" in path:
        return "a URL; download the images, and name their folder as images.folder"
    if REFERENCE.fullmatch(path):
        return "a reference of tritonrank, and no path"
    folder, file = settings.folder.resolve(), (settings.folder / path).resolve()
    if not file.is_relative_to(folder):
        return "not below images.folder"
    if not file.is_file():
        return "no such file"
    size = file.stat().st_size
    return f"{size:,} bytes; {MOST_BYTES:,} are the most" if size > MOST_BYTES else None


def _first_item(items: pl.DataFrame, field: str, path: str) -> str:
    return str(items.filter(pl.col(field).str.strip_chars() == path)["item_id"][0])


def _tree(folder: Path) -> Iterator[str]:
    """A line for each file below a folder, in order of names."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place) / name
            told = path.stat()
            yield f"{path.relative_to(folder).as_posix()} {told.st_size} {told.st_mtime_ns}"
