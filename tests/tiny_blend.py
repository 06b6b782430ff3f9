"""A blend that is made in a moment."""

from pathlib import Path

import msgspec
from tritonrank.artifacts import write_artifact
from tritonrank.retrieval.blend_learning import ranker_alone
from tritonrank_recommend.blend.levels import LEVELS_FILE, LevelsFile
from tritonrank_recommend.blend.reader import BLEND_FILE, BlendFile


def tiny_blend(folder: Path, *, weight: float = 1.0, quality: float = 0.9) -> Path:
    """The ranker's own order as a blend, with what fewer candidates cost.

    Args:
        folder: to be made.
        weight: of the ranker's score; below 0 its order is turned round.
        quality: of lists of which 25 candidates are ranked.
    """
    cost = LevelsFile(full=200, ndcg=0.2, users=50, by_candidates={"25": quality, "200": 1.0}, retrieval=0.7)
    linear = msgspec.structs.replace(ranker_alone(["ranker"]), weights=[weight])
    blend = BlendFile(method="ranker", features=["ranker"], linear=linear)
    with write_artifact(folder, "blend", {"weight": weight, "quality": quality}, {}) as draft:
        (draft.folder / BLEND_FILE).write_bytes(msgspec.json.encode(blend))
        (draft.folder / LEVELS_FILE).write_bytes(msgspec.json.encode(cost))
    return folder
