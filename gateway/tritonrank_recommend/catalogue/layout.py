"""The folder of a catalogue: names of its files, what ``catalogue.json`` says, and whether all of it is there.

    catalogue.json       what follows, and the sizes of all files
    manifest.json        of the artifact: hashes of all files
    items.db             SQLite: place, id, fields (JSON), text by the ranker's template
    vectors.npy          [items, dimensions] float16, unit length
    vectors.usearch      index over them, where there are too many to look at each
    lexical/             BM25 in the files of bm25s: a score per token and item
    knn.*.npy, ease.*.npy, next.*.npy   neighbour lists: starts, places, weights
    popularity.npy ...   popularity, when items were first seen, and both orders
    columns/             fields as numbers and codes, for filters
    encoder/             model that embeds queries and new items

Files of numbers are memory-mapped, so that gateways on one machine share them. An item's *place* is its row in all of
them.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

FORMAT = 1
CATALOGUE = "catalogue.json"
MANIFEST = "manifest.json"
ITEMS = "items.db"
VECTORS = "vectors.npy"
INDEX = "vectors.usearch"
LEXICAL = "lexical"
ENCODER = "encoder"
COLUMNS = "columns"
POPULARITY, POPULAR_ORDER = "popularity.npy", "popular_order.npy"
FIRST_SEEN, NEW_ORDER = "first_seen.npy", "new_order.npy"
DATA_READ = "data_read"
"""Of the manifest's metrics, ISO 8601: when the data were read of which the catalogue was made."""
HASHED_BYTES = 4_000_000
"""Files up to this size are hashed when a catalogue is opened; of larger ones the size is compared."""
REBUILD = "build it again: tritonrank build RECIPE"

DEFAULT_WEIGHTS: dict[str, float] = {
    "two-tower": 1.0, "lexical": 1.0, "knn": 0.3, "ease": 1.0, "popular": 0.1, "new": 0.03, "next": 1.0
}  # fmt: skip
"""Of the sources in reciprocal rank fusion, chosen on the validation users of two MovieLens sets: what knows nothing of
the wish only fills up, and kNN knows little that EASE and what comes next do not."""


class CatalogueError(Exception):
    """A folder is no catalogue, or a damaged one; the message names the file and the next command."""


class ColumnFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A field of items that filters may name.

    Attributes:
        field: its name.
        kind: numbers, or texts of which an item has one or several.
        file: begins the names of its files.
        why_not: why nobody can filter by it; empty: they can.
    """

    field: str
    kind: Literal["number", "tag"]
    file: str
    why_not: str = ""


class LexicalFacts(msgspec.Struct, frozen=True):
    """How texts were cut into tokens, and BM25's constants."""

    stemmer: str
    """language of the stemmer; empty: none"""
    k1: float
    b: float
    average_tokens: float


class IndexFacts(msgspec.Struct, frozen=True):
    """Of ``vectors.usearch``."""

    dtype: str
    expansion: int
    """neighbours that a search keeps in hand"""
    recall: float
    """share of the exact best 200 among those that a search finds, by measurement"""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``catalogue.json``.

    Attributes:
        format: of the folder.
        items: how many.
        dimensions: of a vector.
        template: renders an item's fields to its text.
        fields: of items, those of the ranker and all others.
        index: None: every vector is looked at.
        lexical: None: there is no lexical index.
        columns: what filters may name.
        neighbour_history: newest items of a history that kNN looks at.
        next_history: the same of what comes next.
        recency: by source the power p of n^-p, the weight of the n-th newest item of a history; 0 where not named.
        weights: of the sources in the fusion.
        sources: that the recipe asks for.
        sizes: bytes by file.
    """

    format: int = FORMAT
    items: int
    dimensions: int
    template: str
    fields: list[str]
    index: IndexFacts | None
    lexical: LexicalFacts | None
    columns: list[ColumnFacts]
    neighbour_history: int
    next_history: int = 20
    recency: dict[str, float] = msgspec.field(default_factory=dict)
    weights: dict[str, float]
    sources: list[str]
    sizes: dict[str, int]


class Manifest(msgspec.Struct, frozen=True):
    """What is read of ``manifest.json``."""

    stage: str
    artifact: str
    files: dict[str, str]
    created: str


def read_facts(folder: Path) -> tuple[Facts, Manifest]:
    """What a folder says of itself.

    Raises:
        CatalogueError: it is no catalogue, one of a later version, or its ``items.db`` or ``catalogue.json`` is not
            what was built.
    """
    manifest = _read(folder / MANIFEST, Manifest)
    if manifest.stage != "catalogue":
        raise CatalogueError(f"{folder}: an artifact of the stage {manifest.stage}, not a catalogue")
    if fault := fault_of(folder, CATALOGUE, manifest, None):
        raise CatalogueError(fault)
    facts = _read(folder / CATALOGUE, Facts)
    if facts.format != FORMAT:
        raise CatalogueError(
            f"{folder}: a catalogue of format {facts.format}, this version reads {FORMAT}; {REBUILD} with this version"
        )
    if fault := fault_of(folder, ITEMS, manifest, facts):
        raise CatalogueError(fault)
    return facts, manifest


def fault_of(folder: Path, name: str, manifest: Manifest, facts: Facts | None) -> str | None:
    """Why a file is not the one that was built; None where it is."""
    path = folder / name
    expected = manifest.files.get(name)
    if expected is None:
        return f"{path}: the manifest does not name it; {REBUILD}"
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: {error.strerror}; {REBUILD}"
    if facts is not None and size != facts.sizes.get(name):
        return f"{path}: {size} bytes, built were {facts.sizes.get(name)}; {REBUILD}"
    if size <= HASHED_BYTES:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return f"{path}: changed since it was built (sha256 differs); {REBUILD}"
    return None


class Files:
    """The files of an opened folder, each checked before it is used."""

    def __init__(self, folder: Path, facts: Facts, manifest: Manifest) -> None:
        self.folder, self._facts, self._manifest = folder, facts, manifest

    def path(self, name: str) -> Path:
        """Where a file is; CatalogueError where it is not what was built."""
        if fault := fault_of(self.folder, name, self._manifest, self._facts):
            raise CatalogueError(fault)
        return self.folder / name

    def array(self, name: str) -> NDArray[Any]:
        """Numbers of a file, memory-mapped; CatalogueError where they cannot be read."""
        path = self.path(name)
        try:
            # Mapped all the same, but without the subclass memmap, whose every slice costs microseconds.
            array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise CatalogueError(f"{path}: cannot be read ({error}); {REBUILD}") from None
        return array

    def below(self, name: str) -> list[str]:
        """Names of all files below a folder."""
        return [file for file in self._manifest.files if file.startswith(f"{name}/")]


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise CatalogueError(f"{path}: missing, so there is no catalogue here; {REBUILD}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); {REBUILD}") from None
