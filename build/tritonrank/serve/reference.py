"""What requests and scores look like now, for whoever watches the server later: ``reference.json`` of a repository.

The gateway measures drift against it (``tritonrank_gateway/quality/``, which says what the file means). It describes
requests of the held-out splits, which the model has not learnt from, scored by what serves. Where the recipe has a
catalogue it describes the same users with what the catalogue finds for them, too: candidates that were searched out
have other scores than those of the splits. No text is in it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_runtime.candidate_rows import NO_TEXT_SCORE
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import RequestTokenizer

from tritonrank.artifacts import MANIFEST
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.impressions import Propensities, shown_and_clicked
from tritonrank.data.requests import requests_of
from tritonrank.data.splits import VALIDATION
from tritonrank.judge.evaluate import judgement_file
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request
from tritonrank.recipe import Recipe
from tritonrank.serve.serving import REFERENCE_FILE

MOST_RANKINGS = 200
"""Of each kind: with more a build takes longer, and drift is not told from chance much better."""
SCORED_ANEW = 30
"""Lists out of the catalogue, where no blend has had them scored already."""
MOST_BINS, RANKINGS_PER_BIN = 10, 20
"""Between the least and the largest value. With more bins of few rankings each, two samples of the same thing differ by
as much as two things do."""
UNKNOWN_SHARES = (0.0, 0.01, 0.05, 0.2)
"""Ends of bins for the share of unknown tokens: mostly there are none, and quantiles would all be 0."""
DIGITS = 6


@dataclass
class Collected:
    """Rankings of one kind.

    Attributes:
        values: of each ranking, by feature; see ``Feature`` of the gateway.
        candidates: of each ranking.
    """

    values: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    candidates: list[int] = field(default_factory=list)

    def add(self, request: Request, scores: NDArray[np.float32], tokenizer: RequestTokenizer) -> None:
        """Take one ranking."""
        context, items = tokenizer.context(request.query, request.history), tokenizer.items(request.items)
        lengths = [len(ids) for ids in items]
        self.candidates.append(len(items))
        unknown = sum(tokenizer.unknown_tokens(context, items))
        scored = np.sort(scores[scores != NO_TEXT_SCORE].astype(np.float64))[::-1]
        self._keep("context_tokens", [len(context)])
        self._keep("item_tokens", lengths)
        self._keep("unknown_tokens", [unknown / max(1, len(context) + sum(lengths))])
        self._keep("score", scored)
        self._keep("top_score", scored[:1])

    def spreads(self) -> dict[str, Any]:
        """By feature: ends of bins, the share of each bin, and the rankings behind them."""
        return {feature: _spread(feature, values) for feature, values in self.values.items()}

    def _keep(self, feature: str, values: Sequence[float] | NDArray[np.float64]) -> None:
        if len(values):
            self.values.setdefault(feature, []).append(np.asarray(values, dtype=np.float64))


def write_reference(
    recipe: Recipe, workspace: Workspace, artifact: str, model_folder: Path, repository: Path
) -> dict[str, int]:
    """Write the file; how many rankings of each kind are in it.

    Args:
        recipe: says whether there may be a catalogue.
        workspace: with the dataset and, if there is one, the catalogue.
        artifact: as answers name it.
        model_folder: what scores.
        repository: where the file goes.
    """
    dataset = Dataset.read(workspace.dataset)
    tokenizer = RequestTokenizer.from_folder(model_folder, 100_000)
    found = {"rank": _held_out(dataset, workspace, model_folder, tokenizer)}
    if recipe.retrieval is not None and (workspace.catalogue / MANIFEST).is_file():  # other targets may be without
        found["recommend"] = _retrieved(recipe, workspace, dataset, tokenizer)
    found = {kind: collected for kind, collected in found.items() if collected.candidates}
    reference = {
        "artifact": artifact,
        "spreads": {kind: collected.spreads() for kind, collected in found.items()},
        "candidates": {kind: [min(one.candidates), max(one.candidates)] for kind, one in found.items()},
        "propensities": _propensities(recipe, workspace),
    }
    (repository / REFERENCE_FILE).write_text(json.dumps(reference, indent=1) + "\n", encoding="utf-8")
    return {kind: len(collected.candidates) for kind, collected in found.items()}


def _held_out(dataset: Dataset, workspace: Workspace, model_folder: Path, tokenizer: RequestTokenizer) -> Collected:
    """Requests as they are: of the validation split and, where those are few, of the test split, whose scores the judge
    has mostly kept."""
    scorer, collected = open_scorer(model_folder), Collected()
    judged = judgement_file(model_folder, workspace.dataset, workspace.judgements)
    known: dict[str, list[float]] = {}
    if judged.is_file():
        known = dict(pl.read_parquet(judged, columns=["example_id", "scores"], glob=False).iter_rows())
    examples = [*dataset.validation, *dataset.test][:MOST_RANKINGS]
    for example, request in zip(examples, requests_of(dataset, examples, tokenizer.rules), strict=True):
        kept = known.get(example.example_id)
        scores = scorer.score(request) if kept is None else np.array(kept, dtype=np.float32)
        collected.add(request, scores, tokenizer)
    return collected


def _retrieved(recipe: Recipe, workspace: Workspace, dataset: Dataset, tokenizer: RequestTokenizer) -> Collected:
    """The same users with the candidates that the catalogue finds, whose scores the blend has mostly had computed."""
    from tritonrank_recommend.catalogue import open_catalogue

    from tritonrank.retrieval.blend_lists import moments
    from tritonrank.retrieval.ranker_scores import NEWEST_HISTORY, RankerScores

    assert recipe.retrieval is not None
    ranker = RankerScores(workspace.served_model(recipe), workspace.dataset, dataset.items, workspace.judgements)
    catalogue, collected = open_catalogue(workspace.catalogue), Collected()
    most = min(recipe.blend.lists, SCORED_ANEW if recipe.blend.method == "none" else MOST_RANKINGS)
    for moment in moments(workspace.dataset, VALIDATION, most=most, seed=recipe.seed):
        found = catalogue.retrieve(moment.wish(sources=recipe.retrieval.sources)).ids
        if found:
            scores = ranker.score(moment.example_id, moment.query, moment.history_ids, found)
            told, items = (
                [render_fields(tokenizer.rules.item_template, dataset.items[one]) for one in ids]
                for ids in (moment.history_ids[-NEWEST_HISTORY:], found)
            )
            collected.add(Request(moment.query, told, items), scores, tokenizer)
    ranker.save()
    return collected


def _propensities(recipe: Recipe, workspace: Workspace) -> list[float] | None:
    """How likely people look at a position, from the first one on; None where the recipe does not ask the data."""
    if not recipe.data.weighs_positions:
        return None
    events = pl.read_parquet(workspace.dataset / "events.parquet", glob=False)
    return as_list(Propensities(shown_and_clicked(events)).by_position)


def as_list(by_position: Mapping[int, float]) -> list[float] | None:
    """By place from the first position on, which tables call 0 or 1; None where the first ones were never seen."""
    if not by_position or (first := min(by_position)) not in (0, 1):
        return None
    places: Iterable[int] = range(first, max(by_position) + 1)
    return [round(min(1.0, by_position.get(place, 0.0)), DIGITS) for place in places]


def _spread(feature: str, values: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    edges = UNKNOWN_SHARES if feature == "unknown_tokens" else _edges(np.concatenate(values), len(values))
    bins = len(edges) + 1
    # Each ranking counts the same, however many candidates it has.
    shares = np.mean([np.bincount(np.searchsorted(edges, one), minlength=bins) / len(one) for one in values], axis=0)
    return {"edges": list(edges), "shares": shares.round(DIGITS).tolist(), "rankings": len(values)}


def _edges(values: NDArray[np.float64], rankings: int) -> list[float]:
    """Quantiles of the values, tenths where there are enough rankings; what is below and above all of them is apart."""
    bins = max(2, min(MOST_BINS, rankings // RANKINGS_PER_BIN))
    ends = np.quantile(values, np.arange(1, bins + 1) / bins, method="inverted_cdf")
    return [float(edge) for edge in np.unique([np.nextafter(values.min(), -np.inf), *ends])]
