"""What it costs to rank fewer candidates, or by a smaller ranker: NDCG@10 of each, in that of the full list.

A gateway under more work than it can do has the first candidates of retrieval ranked alone
(``tritonrank_gateway/adapt``). What becomes of the rest is decided here, on the test users: it follows in retrieval's
order, or the blend orders all, to which the ranker's score of the rest is not known. A blend of sums knows what to make
of that; the second is served where it was the better one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tritonrank_recommend.blend import LevelsFile
from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.blend.reader import ServedBlend
from tritonrank_recommend.catalogue.interface import Candidates, Catalogue, Source
from tritonrank_recommend.engine.retrieval import only, taken

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.rungs import gate_verdicts, model_rungs, served_rung
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.metrics import ranking
from tritonrank.recipe import Recipe
from tritonrank.retrieval.blend_lists import CANDIDATES, BlendList, Moment
from tritonrank.retrieval.ranker_scores import RankerScores
from tritonrank.retrieval.rankings import accuracy, places_of
from tritonrank.system.progress import track

DEPTHS = (25, 50, 100, 150)
"""Candidates that are ranked, where not all are."""
FULL, NONE = CANDIDATES, 0
METRIC = "ndcg@10"


def measure_levels(
    catalogue: Catalogue,
    ranker: RankerScores,
    blend: ServedBlend,
    tested: Sequence[Moment],
    sources: Sequence[Source],
    by_rung: dict[str, float],
    ranked: int = 0,
) -> LevelsFile:
    """NDCG@10 by number of ranked candidates.

    Args:
        catalogue: that is served.
        ranker: that is served; it has scored these lists already.
        blend: that is served.
        tested: the test users.
        sources: that are asked.
        by_rung: see ``rung_shares``.
        ranked: candidates that the ranker is to read where there is time; 0: all.
    """
    depths = (NONE, *sorted({*DEPTHS, ranked or FULL} - {FULL}), FULL)
    lists: dict[bool, dict[int, list[list[str]]]] = {way: {depth: [] for depth in depths} for way in (False, True)}
    for moment in track(tested, "ranking fewer candidates"):
        candidates = catalogue.retrieve(moment.wish(sources=sources))
        if (order := blend.first_order(candidates)) is not None:
            candidates = taken(candidates, order)
        logits = ranker.score(moment.example_id, moment.query, moment.history_ids, candidates.ids)
        for depth in depths:
            lists[False][depth].append(_with_rest(blend, candidates, logits, depth))
            lists[True][depth].append(_blended(blend, candidates, logits, depth))
    values = {
        way: {depth: accuracy(places_of(found, tested))[METRIC] for depth, found in of.items()}
        for way, of in lists.items()
    }
    means = {way: {depth: float(of_list.mean()) for depth, of_list in of.items()} for way, of in values.items()}
    # Trees that never saw a list without the ranker take what is not known for a small number.
    is_able = blend.method == "linear" or ranked > 0
    is_better = is_able and sum(means[True].values()) > sum(means[False].values())
    full = means[is_better][FULL]
    shares = {depth: round(mean / full, 5) if full > 0 else 1.0 for depth, mean in means[is_better].items()}
    return LevelsFile(
        full=FULL,
        ndcg=full,
        users=len(tested),
        by_candidates={str(depth): shares[depth] for depth in depths if depth},
        retrieval=shares[NONE],
        blend_orders_rest=is_better,
        ranked=ranked if ranked < FULL else 0,
        by_rung=by_rung,
    )


def rung_shares(recipe: Recipe, workspace: Workspace) -> dict[str, float]:
    """NDCG@10 of the ladder's rankers in that of the one that is served, as the gates measured them on the test
    examples; those whose gate did not compare are left out."""
    measured: dict[str, float] = {}
    for folder in model_rungs(recipe, workspace).values():
        for verdict in gate_verdicts(read_manifest(folder).metrics):
            measured[verdict["parent"]] = verdict["parent_ndcg"]
            measured[verdict["child"]] = verdict["child_ndcg"]
    own = served_rung(recipe, workspace)
    served = measured.pop(own, 0.0)
    return {name: round(value / served, 5) for name, value in measured.items()} if served > 0 else {}


def served_order(blend: Blend, one: BlendList) -> list[str]:
    """Ids as the gateway has them where the ranker reads the first ``blend.ranked`` candidates alone."""
    order = _blended if blend.orders_unranked else _with_rest
    assert one.candidates is not None, "a list that was made here"
    candidates, logits = one.candidates, one.logits
    if (places := blend.first_order(candidates)) is not None:
        candidates, logits = taken(candidates, places), logits[places]
    return order(blend, candidates, logits, blend.ranked or FULL)


def _with_rest(blend: Blend, candidates: Candidates, logits: NDArray[np.float32], depth: int) -> list[str]:
    """Ids: the first ``depth`` as the blend has them, and behind them the rest as retrieval has it."""
    ids, depth = candidates.ids, min(depth, len(candidates.ids))
    rest = depth + np.argsort(-candidates.fused[depth:], kind="stable")
    behind = [ids[place] for place in rest.tolist()]
    if not depth:
        return behind
    head = only(candidates, np.arange(len(ids)) < depth)
    scores = blend.score(blend.features(head, logits[:depth]))
    return [*(ids[place] for place in ranking(scores)), *behind]


def _blended(blend: Blend, candidates: Candidates, logits: NDArray[np.float32], depth: int) -> list[str]:
    """Ids as the blend has them, which knows the ranker's logits of the first ``depth`` alone."""
    known = np.where(np.arange(len(logits)) < depth, logits, np.nan).astype(np.float32)
    scores = blend.score(blend.features(candidates, known))
    return [candidates.ids[place] for place in ranking(scores)]
