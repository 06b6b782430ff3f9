"""Makes the blend: retrieve and rank for users of the validation split, learn an order, and prove it on the test users.

The gate is that of every stage: on the test users' lists out of the whole catalogue the blend may not rank worse than
the ranker's own order. Where it does, nothing is published, and the ranker's order serves.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from tritonrank_recommend.blend import LEVELS_FILE
from tritonrank_recommend.blend.features import COLD, FIELD, RANKER, Z
from tritonrank_recommend.blend.reader import BLEND_FILE, TREES_FILE, BlendFile, ServedBlend
from tritonrank_recommend.catalogue import open_catalogue

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import gate_metric
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.splits import TEST, VALIDATION
from tritonrank.errors import GateError, RecipeError
from tritonrank.judge.budgets import total_budget
from tritonrank.judge.evaluate import Judgement
from tritonrank.judge.gate import Drop, show_verdict, verdict
from tritonrank.judge.metrics import METRICS, all_metrics
from tritonrank.judge.worst import forget_closed_gate, require_passed
from tritonrank.recipe import Recipe
from tritonrank.retrieval.blend_learning import Learnt
from tritonrank.retrieval.blend_lists import BlendList, make_lists, moments, with_cold
from tritonrank.retrieval.levels import measure_levels, rung_shares
from tritonrank.retrieval.ranker_scores import RankerScores
from tritonrank.retrieval.recommend_quality import BLEND, QUALITY_FILE, RANKED, full_catalogue
from tritonrank.retrieval.two_stages import Lessons, Stages, fall, learn_stages

console = Console()


def make_blend(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Learn, write, judge.

    Args:
        recipe: its blend, retrieval and gate sections.
        workspace: with dataset, served model and catalogue.
        draft: gets blend.json, for LambdaMART trees.txt, quality.json and levels.json.

    Raises:
        GateError: on the test users the blend ranks worse than the ranker's own order, or lists of which the ranker
            reads ``blend.ranked`` candidates rank worse than those that it reads whole.
        RecipeError: a field of blend.fields is none of the items'.
    """
    dataset = Dataset.read(workspace.dataset)
    _check_fields(recipe, dataset)
    catalogue = open_catalogue(workspace.catalogue)
    ranker = RankerScores(workspace.served_model(recipe), workspace.dataset, dataset.items, workspace.judgements)
    sources = recipe.retrieval.sources if recipe.retrieval else []
    names = feature_names(sources, recipe.blend.fields)
    found = with_cold(moments(workspace.dataset, VALIDATION, most=recipe.blend.lists, seed=recipe.seed))
    lists = make_lists(catalogue, ranker, found, sources, names, "retrieving and ranking to learn from")
    names, lists = _that_tell(names, lists)
    rising, falling = _signs(names, recipe.blend.monotone)
    method = "auto" if recipe.blend.method == "none" else recipe.blend.method
    lessons = Lessons(lists, names, rising, falling, recipe.seed)
    stages = learn_stages(lessons, method, recipe.blend.ranked)
    learnt = stages.blend
    _write(draft, stages)
    _say(learnt, len(lists))

    blend = replace(stages, ranked=0).served(draft.key)  # as it is where the ranker reads all
    tested = moments(workspace.dataset, TEST, most=len(dataset.test), seed=recipe.seed)
    judged = make_lists(catalogue, ranker, tested, sources, names, "retrieving and ranking to judge")
    quality = full_catalogue(dataset, catalogue, blend, judged, sources)
    (draft.folder / QUALITY_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(quality)))
    draft.metrics |= {
        "method": learnt.method,
        "features": len(names),
        "lists": len(lists),
        "lists_with_positive": learnt.lists,
        "cross_validated_ndcg@10": dict(learnt.cross_validated or {}),
        "penalty": learnt.penalty,
        "test_ndcg@10": {row["name"]: row["ndcg@10"][0] for row in quality["rows"]},
    }
    draft.metrics |= _require_order(recipe, workspace, blend, judged)
    shares = rung_shares(recipe, workspace)
    levels = measure_levels(catalogue, ranker, blend, tested, sources, shares, recipe.blend.ranked)
    if levels.ranked:
        budget = total_budget(recipe, "blend")
        drop = fall(lessons, stages, judged, budget, orders_unranked=levels.blend_orders_rest)
        _require_first(levels.ranked, drop, draft)
    (draft.folder / LEVELS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(levels)))
    draft.metrics["levels"] = msgspec.to_builtins(levels)


def feature_names(sources: Sequence[str], fields: Sequence[str]) -> list[str]:
    """What a blend may look at; what never changes in the lists that it learns from is left out of it."""
    scores = [f"score.{source}" for source in sources]
    return [
        RANKER,
        RANKER + Z,
        "fused",
        *(f"rank.{source}" for source in sources),
        *scores,
        *(score + Z for score in scores),
        "popularity",
        "popularity" + Z,
        "fused" + Z + COLD,
        "popularity" + Z + COLD,
        "age",
        *(f"{FIELD}{name}" for name in fields),
    ]


def _check_fields(recipe: Recipe, dataset: Dataset) -> None:
    available = next(iter(dataset.items.values()))
    if unknown := [name for name in recipe.blend.fields if name not in available]:
        raise RecipeError(
            f"{recipe.name}: blend.fields: items have no {', '.join(unknown)}; they have {', '.join(available)}"
        )


def _that_tell(names: Sequence[str], lists: Sequence[BlendList]) -> tuple[list[str], list[BlendList]]:
    """Without features that are the same everywhere, or never known. The ranker's score always stays."""
    if not lists:
        return list(names), []
    rows = np.concatenate([one.features for one in lists])
    known = ~np.isnan(rows)
    low = np.where(known, rows, np.inf).min(axis=0)
    high = np.where(known, rows, -np.inf).max(axis=0)
    kept = [number for number, name in enumerate(names) if name == RANKER or high[number] > low[number]]
    return [names[number] for number in kept], [replace(one, features=one.features[:, kept]) for one in lists]


def _signs(names: Sequence[str], monotone: Sequence[str]) -> tuple[list[str], list[str]]:
    """The features that may only raise the score, and those that may only lower it, in each of their forms."""
    rising = {name for name in monotone if not name.startswith("-")}
    falling = {name[1:] for name in monotone if name.startswith("-")}
    plain = {name: name.removesuffix(COLD).removesuffix(Z) for name in names}
    return [name for name in names if plain[name] in rising], [name for name in names if plain[name] in falling]


def _write(draft: Draft, stages: Stages) -> None:
    learnt = stages.blend
    described = BlendFile(
        method=learnt.method, features=list(stages.names), linear=learnt.linear, first=stages.first_file
    )
    (draft.folder / BLEND_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(described)))
    if learnt.trees:
        (draft.folder / TREES_FILE).write_text(learnt.trees, encoding="utf-8")


def _say(learnt: Learnt, lists: int) -> None:
    found = ", ".join(f"{name} {value:.3f}" for name, value in (learnt.cross_validated or {}).items())
    why = f"; NDCG@10 where retrieval found it, cross-validated: {found}" if found else ": too few to learn from"
    console.print(
        f"  {learnt.method}, of {learnt.lists} lists that hold what the user went on to like (of {lists}){why}",
        highlight=False,
        soft_wrap=True,
    )


def _require_order(
    recipe: Recipe, workspace: Workspace, blend: ServedBlend, lists: Sequence[BlendList]
) -> dict[str, object]:
    own = _judgement(BLEND, lists, [blend.score(one.features) for one in lists])
    other = _judgement(RANKED, lists, [one.logits for one in lists])
    found = verdict(own, other, total_budget(recipe, "blend"), seed=recipe.seed)
    show_verdict(found)
    record = workspace.root / "closed-gate-blend.txt"
    advice = (
        "The blend was not published. The ranker's own order passed and can be served, nothing is built again: "
        "tritonrank build RECIPE --set blend.method=none"
    )
    require_passed(found, record, advice)
    forget_closed_gate(record)
    return {gate_metric(other.name): found.as_metrics()}


def _require_first(ranked: int, drop: Drop, draft: Draft) -> None:
    """Lists of which the ranker reads the first so many may not be worse than those that it reads whole."""
    mark = "[green]passed[/]" if drop.passed else "[red]closed[/]"
    console.print(f"  gate {mark}, first {ranked} candidates ranked against all: {drop.reason}", highlight=False)
    draft.metrics["gate against whole lists"] = asdict(drop)
    if not drop.passed:
        raise GateError(
            f"gate closed: the first {ranked} candidates ranked against all: {drop.reason}.\nThe blend was not "
            "published. Let the ranker read more of them (levels.json of an earlier build says what each number "
            "costs), or all: tritonrank build RECIPE --set blend.ranked=0"
        )


def _judgement(name: str, lists: Sequence[BlendList], scores: Sequence[NDArray[np.float32]]) -> Judgement:
    """Over the retrieved candidates, and the positive in the last place where retrieval missed it."""
    rows = []
    for one, own in zip(lists, scores, strict=True):
        missed = one.positive is None
        values = [*own.tolist(), *([float(own.min(initial=0.0)) - 1.0] if missed else [])]
        labels = [0.0] * len(values)
        labels[-1 if one.positive is None else one.positive] = 1.0
        rows.append(
            {"example_id": one.moment.example_id, "scores": values, "labels": labels} | all_metrics(values, labels)
        )
    schema = {"scores": pl.List(pl.Float32), "labels": pl.List(pl.Float32)} | dict.fromkeys(METRICS, pl.Float64)
    return Judgement(name, pl.DataFrame(rows, schema_overrides=schema))
