"""Opens the artifact of the stage ``blend``.

blend.json      what it is: ``BlendFile``
trees.txt       LightGBM's model, where the method is lambdamart
levels.json     what it costs to rank fewer candidates (``levels.py``)
manifest.json   of the artifact: its id, hashes of the files
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.features import feature_matrix, known_feature
from tritonrank_recommend.blend.models import Linear, LinearModel, Model, TreeModel
from tritonrank_recommend.catalogue.interface import Candidates
from tritonrank_recommend.stores.interface import FieldValue

BLEND_FILE = "blend.json"
TREES_FILE = "trees.txt"
MANIFEST_FILE = "manifest.json"
FORMAT = 1
LARGEST_FILE_BYTES = 64 * 1024 * 1024
AGAIN = "make it again: tritonrank build RECIPE"

Read = TypeVar("Read")
Method = Literal["ranker", "linear", "lambdamart"]


class BlendError(Exception):
    """The folder holds no sound blend; the message names file, fault and the next command."""


class BlendFile(msgspec.Struct, frozen=True, kw_only=True):
    """What blend.json holds.

    Attributes:
        method: ranker is the ranker's own order, as a weighted sum of one.
        features: names, in their order.
        linear: of the methods ranker and linear.
        format: of this file.
    """

    method: Method
    features: list[str]
    linear: Linear | None = None
    format: int = FORMAT


class _Manifest(msgspec.Struct):
    artifact: str
    files: dict[str, str]


class ServedBlend:
    """``interface.Blend`` over an artifact. Threads may share it."""

    def __init__(self, artifact: str, method: Method, names: Sequence[str], model: Model) -> None:
        self.artifact = artifact
        self.method = method
        self.names = tuple(names)
        self._model = model

    def features(
        self,
        candidates: Candidates,
        logits: NDArray[np.float32],
        fields: Sequence[Mapping[str, FieldValue] | None],
    ) -> NDArray[np.float32]:
        return feature_matrix(self.names, candidates, logits, fields)

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.score(features) if len(features) else np.zeros(0, dtype=np.float32)

    def parts(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.parts(features) if len(features) else np.zeros_like(features)


def open_blend(folder: Path) -> ServedBlend:
    """Read a blend; its files are held against the manifest's hashes first.

    Raises:
        BlendError: a file is missing, damaged or says something that this version does not know.
    """
    manifest = _decoded(folder / MANIFEST_FILE, _bounded(folder / MANIFEST_FILE), _Manifest)
    described = _decoded(folder / BLEND_FILE, _verified(folder, BLEND_FILE, manifest), BlendFile)
    if described.format != FORMAT:
        raise BlendError(f"{folder / BLEND_FILE}: format {described.format}, this version reads {FORMAT}; {AGAIN}")
    if unknown := [name for name in described.features if not known_feature(name)]:
        raise BlendError(f"{folder / BLEND_FILE}: features: {', '.join(unknown)}: not known here; {AGAIN}")
    return ServedBlend(manifest.artifact, described.method, described.features, _model(folder, manifest, described))


def open_verified(folder: Path, name: str, kind: type[Read]) -> Read:
    """Another JSON file of the artifact, held against the manifest's hash.

    Raises:
        BlendError: it is missing or damaged.
    """
    manifest = _decoded(folder / MANIFEST_FILE, _bounded(folder / MANIFEST_FILE), _Manifest)
    return _decoded(folder / name, _verified(folder, name, manifest), kind)


def _model(folder: Path, manifest: _Manifest, described: BlendFile) -> Model:
    if described.method == "lambdamart":
        _verified(folder, TREES_FILE, manifest)
        try:
            trees = TreeModel(folder / TREES_FILE)
        except (ImportError, OSError) as error:  # its wheel leaves OpenMP to the system
            raise BlendError(
                f"{folder / TREES_FILE}: LightGBM cannot be loaded ({error}): pip install 'tritonrank[recommend]'; on "
                "Debian also apt-get install libgomp1"
            ) from None
        if trees.names != feature_columns(described.features):
            raise BlendError(f"{folder / TREES_FILE}: learnt from other features than {BLEND_FILE} names; {AGAIN}")
        return trees
    if described.linear is None:
        raise BlendError(f"{folder / BLEND_FILE}: linear: missing for the method {described.method}; {AGAIN}")
    of = described.linear
    lists = {"means": of.means, "scales": of.scales, "weights": of.weights, "unknown": of.unknown}
    for name, numbers in lists.items():
        if len(numbers) != len(described.features) or not all(map(math.isfinite, numbers)):
            raise BlendError(
                f"{folder / BLEND_FILE}: linear.{name}: expected {len(described.features)} numbers; {AGAIN}"
            )
    if min(of.scales, default=1.0) <= 0:
        raise BlendError(f"{folder / BLEND_FILE}: linear.scales: expected numbers above 0; {AGAIN}")
    return LinearModel(of)


def feature_columns(names: Sequence[str]) -> list[str]:
    """The features' names as LightGBM keeps them: its text format takes no blanks, quotes or commas."""
    return [f"{number}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" for number, name in enumerate(names)]


def _verified(folder: Path, name: str, manifest: _Manifest) -> bytes:
    content = _bounded(folder / name)
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        raise BlendError(f"{folder / name}: not as it was made (its hash is not that of {MANIFEST_FILE}); {AGAIN}")
    return content


def _bounded(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise BlendError(f"{path}: larger than {LARGEST_FILE_BYTES // 2**20} MiB, so no blend's; {AGAIN}")
        return path.read_bytes()
    except OSError as error:
        raise BlendError(f"{path}: {error.strerror}: no blend is here; {AGAIN}") from None


def _decoded(path: Path, content: bytes, kind: type[Read]) -> Read:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise BlendError(f"{path}: {error}; {AGAIN}") from None
