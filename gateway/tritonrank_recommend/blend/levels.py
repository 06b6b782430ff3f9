"""What cheaper levels of ranking cost in quality, as the build measured it: `levels.json` of the stage ``blend``."""

from pathlib import Path

import msgspec

from tritonrank_recommend.blend.verified import AGAIN, BlendError, open_verified

LEVELS_FILE = "levels.json"
FORMAT = 1


class LevelsFile(msgspec.Struct, frozen=True, kw_only=True):
    """What levels.json holds; every share is NDCG@10 in that of the full list.

    Attributes:
        full: candidates of a full list.
        ndcg: NDCG@10 of the full list, over the whole catalogue.
        users: over which it was measured.
        by_candidates: share by number of ranked candidates.
        retrieval: share where none is ranked.
        blend_orders_rest: what was not ranked is ordered by the blend without the ranker, not as retrieval has it: on
            the test users that was better. The shares are those of the order that is served.
        ranked: candidates that the ranker reads where there is time, the first so many of the first stage's order
            (of retrieval's where the blend has none): the build's gate held such lists against whole ones. 0: all.
        by_rung: share of the other rankers of the ladder by name, as their gates measured it on the test examples.
        format: of this file.
    """

    full: int
    ndcg: float
    users: int
    by_candidates: dict[str, float]
    retrieval: float
    blend_orders_rest: bool = False
    ranked: int = 0
    by_rung: dict[str, float] = {}
    format: int = FORMAT


def open_levels(blend: Path) -> LevelsFile | None:
    """What a build measured; None where its blend is older than this file.

    Raises:
        BlendError: the file is damaged or says something that this version does not know.
    """
    if not (blend / LEVELS_FILE).is_file():
        return None
    found = open_verified(blend, LEVELS_FILE, LevelsFile)
    if found.format != FORMAT:
        raise BlendError(f"{blend / LEVELS_FILE}: format {found.format}, this version reads {FORMAT}; {AGAIN}")
    if not all(name.isdigit() for name in found.by_candidates):
        raise BlendError(f"{blend / LEVELS_FILE}: by_candidates: expected numbers of candidates as names; {AGAIN}")
    return found
