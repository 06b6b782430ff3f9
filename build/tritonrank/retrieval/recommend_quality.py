"""The whole, judged: what a user sees, held against what costs less.

full_catalogue   the ranked list out of all items that the user has not met (rankings.py)
sampled          the examples' protocol, one positive among 99 sampled items, for the same rankings
cold             the same users with their history withheld
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_recommend.blend import BlendError, open_blend
from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.interface import Catalogue, Source, Wish

from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.splits import TEST
from tritonrank.errors import ArtifactError, DataError
from tritonrank.judge.metrics import interval, ndcg, ranking
from tritonrank.recipe import Recipe
from tritonrank.retrieval.blend_lists import BlendList, Moment, make_lists, moments, withheld
from tritonrank.retrieval.counts import following_matrix, likes, sequences
from tritonrank.retrieval.levels import served_order
from tritonrank.retrieval.ranker_scores import RankerScores
from tritonrank.retrieval.rankings import (
    Known,
    accuracy,
    counted_rankings,
    counted_scorers,
    differences,
    judged,
    places_of,
    segments,
)
from tritonrank.system.progress import track

QUALITY_FILE = "quality.json"
BLEND, RANKED, FUSED, TOWERS = "blend", "ranker alone", "retrieval, fused", "two towers alone"
FIRST = "blend, the first {} ranked"
"""What is served where the recipe says blend.ranked."""
MOST_COLD = 300
"""Users whose history is withheld: their lists are all alike but for what they have met."""
MOST_SAMPLED_ITEMS = 50_000
"""Catalogues up to this size are judged by the sampled protocol too: everything else is excluded by name there."""


def judge_whole(recipe: Recipe, workspace: Workspace, peers: Mapping[str, Path]) -> dict[str, Any]:
    """Judge what a build serves, by all three protocols.

    Args:
        recipe: built as far as the blend.
        workspace: of it.
        peers: by name files of other systems' rankings.

    Raises:
        ArtifactError: the blend is not there, or not sound.
        DataError: as ``full_catalogue``.
    """
    dataset = Dataset.read(workspace.dataset)
    catalogue = open_catalogue(workspace.catalogue)
    try:
        blend = open_blend(workspace.blend)
    except BlendError as error:
        raise ArtifactError(str(error)) from None
    sources = recipe.retrieval.sources if recipe.retrieval else []
    ranker = RankerScores(workspace.served_model(recipe), workspace.dataset, dataset.items, workspace.judgements)
    tested = moments(workspace.dataset, TEST, most=len(dataset.test), seed=recipe.seed)
    lists = make_lists(catalogue, ranker, tested, sources, blend.names, "retrieving and ranking to judge")
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "blend": blend.method,
        "full_catalogue": {},
        "sampled": None,
        "cold": {},
    }
    found["full_catalogue"] = full_catalogue(dataset, catalogue, blend, lists, sources, peers)
    if len(dataset.items) <= MOST_SAMPLED_ITEMS:
        found["sampled"] = sampled(dataset, catalogue, blend, ranker, tested, sources)
    found["cold"] = cold(dataset, catalogue, blend, ranker, tested[:MOST_COLD], sources)
    return found


def peer_files(named: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE as name and file.

    Raises:
        DataError: it is not written so, or the file is not there.
    """
    files = {}
    for one in named:
        name, _, file = one.partition("=")
        if not name or not file:
            raise DataError(f"--peer {one}: expected NAME=FILE.parquet")
        if not Path(file).is_file():
            raise DataError(f"--peer {one}: there is no file {file}")
        files[name] = Path(file)
    return files


def full_catalogue(
    dataset: Dataset,
    catalogue: Catalogue,
    blend: Blend,
    lists: Sequence[BlendList],
    sources: Sequence[Source],
    peers: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Rankings of the whole catalogue on the test users.

    Args:
        dataset: training events and items.
        catalogue: that is served.
        blend: that is served.
        lists: retrieved and ranked, with the blend's features, one per test user.
        sources: that were asked.
        peers: by name Parquet files of another system's rankings (example_id, items).

    Raises:
        DataError: a peer's file lacks a test user.
    """
    found = [one.moment for one in lists]
    known = _known(dataset)
    rankings: dict[str, list[list[str]]] = counted_rankings(known, found)
    rankings |= {name: read_peer(path, found) for name, path in (peers or {}).items()}
    if "two-tower" in sources:
        alone: Sequence[Source] = ("two-tower",)
        rankings[TOWERS] = [catalogue.retrieve(moment.wish(sources=alone)).ids for moment in found]
    rankings[FUSED] = [one.ids for one in lists]
    rankings[RANKED] = [_by(one, one.logits) for one in lists]
    rankings[BLEND] = [_by(one, blend.score(one.features)) for one in lists]
    if blend.ranked:
        rankings[FIRST.format(blend.ranked)] = [served_order(blend, one) for one in lists]
    parts = segments(found, known)
    return {
        "users": len(found),
        "items": len(dataset.items),
        "candidates": max((len(one.ids) for one in lists), default=0),
        "found_by_retrieval": float(np.mean([one.positive is not None for one in lists])) if lists else 0.0,
        "rows": judged(rankings, found, known),
        "differences": differences(BLEND, rankings, found),
        "segments": {
            name: {"users": len(places)} | _segment(rankings, found, places) for name, places in parts.items()
        },
    }


def sampled(
    dataset: Dataset,
    catalogue: Catalogue,
    blend: Blend,
    ranker: RankerScores,
    moments: Sequence[Moment],
    sources: Sequence[Source],
) -> dict[str, Any]:
    """NDCG@10 of one positive among sampled items: as if the catalogue held nothing else."""
    examples = {example.example_id: example for example in dataset.test}
    known = _known(dataset)
    place = {item: number for number, item in enumerate(known.item_ids)}
    counted = counted_scorers(known)
    values: dict[str, list[float]] = {name: [] for name in (*counted, FUSED, RANKED, BLEND)}
    for moment in track(moments, "judging lists of sampled items"):
        example = examples[moment.example_id]
        chosen = [place[item] for item in example.candidates]
        logits = ranker.score(moment.example_id, moment.query, moment.history_ids, example.candidates)
        fused, blended = _sampled_scores(catalogue, blend, known, example, moment, sources, logits)
        own: dict[str, NDArray[Any]] = {name: score(moment)[chosen] for name, score in counted.items()}
        for name, scores in (own | {FUSED: fused, RANKED: logits, BLEND: blended}).items():
            values[name].append(ndcg(scores, example.labels))
    ranker.save()
    arrays = {name: np.array(found) for name, found in values.items()}
    return {
        "users": len(moments),
        "rows": [{"name": name, "ndcg@10": _interval(found)} for name, found in arrays.items()],
        "differences": [
            {"to": name, "ndcg@10": _interval(arrays[BLEND] - found)} for name, found in arrays.items() if name != BLEND
        ],
    }


def cold(
    dataset: Dataset,
    catalogue: Catalogue,
    blend: Blend,
    ranker: RankerScores,
    moments: Sequence[Moment],
    sources: Sequence[Source],
) -> dict[str, Any]:
    """The same users as if nothing were known of them: text of the query and popularity are all there is."""
    unknown = [withheld(moment) for moment in moments]
    lists = make_lists(catalogue, ranker, unknown, sources, blend.names, "judging users without a history")
    known = _known(dataset)
    rankings: dict[str, list[list[str]]] = {"popularity": counted_rankings(known, unknown)["popularity"]}
    rankings |= {FUSED: [one.ids for one in lists], RANKED: [_by(one, one.logits) for one in lists]}
    rankings[BLEND] = [_by(one, blend.score(one.features)) for one in lists]
    return {
        "users": len(unknown),
        "rows": judged(rankings, unknown, known),
        "differences": differences(BLEND, rankings, unknown),
    }


def read_peer(path: Path, moments: Sequence[Moment]) -> list[list[str]]:
    """Another system's rankings, in the order of the moments.

    Raises:
        DataError: the file has other columns, or a moment is missing.
    """
    table = pl.read_parquet(path, glob=False)
    if not {"example_id", "items"} <= set(table.columns):
        raise DataError(f"{path}: columns are {', '.join(table.columns)}; expected example_id, items (a list of ids)")
    by_moment = dict(table.select("example_id", "items").iter_rows())
    if missing := [moment.example_id for moment in moments if moment.example_id not in by_moment]:
        raise DataError(
            f"{path}: no ranking for {len(missing)} of {len(moments)} test users, the first is {missing[0]}; "
            "rank for every example_id of dataset/test.parquet"
        )
    return [[item for item in by_moment[moment.example_id] if item not in set(moment.met)] for moment in moments]


def _sampled_scores(
    catalogue: Catalogue,
    blend: Blend,
    known: Known,
    example: Example,
    moment: Moment,
    sources: Sequence[Source],
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What retrieval's order and the blend give the example's candidates; what no source brings comes last."""
    wanted = set(example.candidates)
    others = [item for item in known.item_ids if item not in wanted]
    wish = Wish(moment.query, moment.history, {}, others, len(wanted), sources, moment.timestamp)
    found = catalogue.retrieve(wish)
    place = {item: number for number, item in enumerate(example.candidates)}
    order = np.array([place[item] for item in found.ids], dtype=np.int64)
    fused, blended = np.full(len(place), -np.inf), np.full(len(place), -np.inf)
    fused[order] = found.fused
    blended[order] = blend.score(blend.features(found, logits[order]))
    return fused, blended


def _known(dataset: Dataset) -> Known:
    items = list(dataset.items)
    liked = likes(dataset.training_events, items)
    return Known(items, liked, following_matrix(sequences(dataset.training_events, items), liked))


def _by(one: BlendList, scores: NDArray[np.float32]) -> list[str]:
    return [one.ids[place] for place in ranking(scores)]


def _segment(
    rankings: Mapping[str, Sequence[Sequence[str]]], moments: Sequence[Moment], places: NDArray[np.int64]
) -> dict[str, Any]:
    chosen = {name: [lists[place] for place in places] for name, lists in rankings.items()}
    own = [moments[place] for place in places]
    return {
        name: {metric: _interval(values) for metric, values in accuracy(places_of(lists, own)).items()}
        for name, lists in chosen.items()
    }


def _interval(values: NDArray[np.float64]) -> list[float]:
    found = interval(values)
    return [round(found.mean, 5), round(found.low, 5), round(found.high, 5)]
