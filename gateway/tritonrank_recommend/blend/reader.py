"""Opens the artifact of the stage ``blend``.

blend.json      what it is: ``BlendFile``
trees.txt       LightGBM's model, where the method is lambdamart
levels.json     what it costs to rank fewer candidates (``levels.py``)
manifest.json   of the artifact: its id, hashes of the files
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.features import feature_matrix, known_feature
from tritonrank_recommend.blend.first_stage import FirstStage, FirstStageFile
from tritonrank_recommend.blend.levels import open_levels
from tritonrank_recommend.blend.models import Linear, LinearModel, Model, TreeModel
from tritonrank_recommend.blend.verified import AGAIN, BlendError, Manifest, decoded, read_manifest, verified
from tritonrank_recommend.catalogue.interface import Candidates

BLEND_FILE = "blend.json"
TREES_FILE = "trees.txt"
FORMAT = 1

Method = Literal["ranker", "linear", "lambdamart"]


class BlendFile(msgspec.Struct, frozen=True, kw_only=True):
    """What blend.json holds.

    Attributes:
        method: ranker is the ranker's own order, as a weighted sum of one.
        features: names, in their order.
        linear: of the methods ranker and linear.
        first: orders the candidates of which the ranker reads the first alone; None: retrieval's order.
        format: of this file.
    """

    method: Method
    features: list[str]
    linear: Linear | None = None
    first: FirstStageFile | None = None
    format: int = FORMAT


class ServedBlend:
    """``interface.Blend`` over an artifact. Threads may share it."""

    def __init__(
        self,
        artifact: str,
        method: Method,
        names: Sequence[str],
        model: Model,
        *,
        orders_unranked: bool = False,
        ranked: int = 0,
        first: FirstStage | None = None,
    ) -> None:
        self.artifact = artifact
        self.method = method
        self.names = tuple(names)
        self.orders_unranked = orders_unranked
        self.ranked = ranked
        self._model, self._first = model, first

    def first_order(self, candidates: Candidates) -> NDArray[np.int64] | None:
        return self._first.order(candidates) if self._first is not None and candidates.ids else None

    def features(self, candidates: Candidates, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return feature_matrix(self.names, candidates, logits)

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.score(features) if len(features) else np.zeros(0, dtype=np.float32)

    def parts(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.parts(features) if len(features) else np.zeros_like(features)


def open_blend(folder: Path) -> ServedBlend:
    """Read a blend; its files are held against the manifest's hashes first.

    Raises:
        BlendError: a file is missing, damaged or says something that this version does not know.
    """
    manifest = read_manifest(folder)
    described = decoded(folder / BLEND_FILE, verified(folder, BLEND_FILE, manifest), BlendFile)
    if described.format != FORMAT:
        raise BlendError(f"{folder / BLEND_FILE}: format {described.format}, this version reads {FORMAT}; {AGAIN}")
    if unknown := [name for name in described.features if not known_feature(name)]:
        raise BlendError(f"{folder / BLEND_FILE}: features: {', '.join(unknown)}: not known here; {AGAIN}")
    if described.first is not None:
        _check_linear(folder, "first.linear", described.first.linear, described.first.features)
        if unknown := [name for name in described.first.features if not known_feature(name)]:
            raise BlendError(f"{folder / BLEND_FILE}: first.features: {', '.join(unknown)}: not known here; {AGAIN}")
    # Of older blends nobody knows whether they order better than retrieval where the ranker was not asked.
    levels = open_levels(folder)
    return ServedBlend(
        manifest.artifact,
        described.method,
        described.features,
        _model(folder, manifest, described),
        orders_unranked=levels is not None and levels.blend_orders_rest,
        ranked=0 if levels is None else levels.ranked,
        first=None if described.first is None else FirstStage(described.first),
    )


def _model(folder: Path, manifest: Manifest, described: BlendFile) -> Model:
    if described.method == "lambdamart":
        text = verified(folder, TREES_FILE, manifest)
        try:
            trees = TreeModel(text.decode())
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
    _check_linear(folder, "linear", described.linear, described.features)
    return LinearModel(described.linear)


def _check_linear(folder: Path, name: str, of: Linear, features: Sequence[str]) -> None:
    lists = {"means": of.means, "scales": of.scales, "weights": of.weights, "unknown": of.unknown}
    for part, numbers in lists.items():
        if len(numbers) != len(features) or not all(map(math.isfinite, numbers)):
            raise BlendError(f"{folder / BLEND_FILE}: {name}.{part}: expected {len(features)} numbers; {AGAIN}")
    if min(of.scales, default=1.0) <= 0:
        raise BlendError(f"{folder / BLEND_FILE}: {name}.scales: expected numbers above 0; {AGAIN}")


def feature_columns(names: Sequence[str]) -> list[str]:
    """The features' names as LightGBM keeps them: its text format takes no blanks, quotes or commas."""
    return [f"{number}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}" for number, name in enumerate(names)]
