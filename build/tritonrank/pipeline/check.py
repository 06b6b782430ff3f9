"""What a recipe's data are like, and what a build of it would do: all that can be known in seconds, without training.

The data go the way that ``prepare`` sends them (``data/prepare.py``), so that what is counted here is what would be
learnt from and judged; nothing is written. The two rankings that only count clicks are judged on the lists, because
they say how far apart two rankers lie on these users, and what a ranker has to beat.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from tritonrank_runtime.item_text import render_fields

from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Example
from tritonrank.data.prepare import Prepared, make_dataset
from tritonrank.data.splits import TEST, TRAIN, VALIDATION
from tritonrank.errors import TritonRankError
from tritonrank.judge.counted import neighbour_baseline, popularity_baseline
from tritonrank.judge.metrics import interval
from tritonrank.judge.power import (
    FORMULA,
    SAME_RANKER_DEVIATION,
    ndcg_of,
    smallest_budget,
    smallest_difference,
    users_to_see,
)
from tritonrank.pipeline.estimates import about_seconds
from tritonrank.rankers.text_budgets import TEXT_METRICS, measuring_tokenizer
from tritonrank.rankers.text_counts import TextLengths, budget_advice, text_warnings
from tritonrank.recipe import Recipe, TablesData

COUNTS = ("items", "users", "events", "positive_events", "training_events", "examples")
EXAMPLES_SHOWN = 3
CANDIDATES_SHOWN = 4
HISTORY_SHOWN = 4
LARGEST_BUDGET = 0.1
"""Of the advice: beyond it a gate proves nothing."""
JUDGED_AT_MOST = 1_000
"""Lists that the counted rankings are judged on: more say the same, and take longer."""
FEW_USERS = 100
"""Below so many judged users a gate's verdict is mostly chance."""
FEW_EXAMPLES = 400
"""Below so many training examples a ranker hardly learns: it sees fewer lists than a demo's."""


def check_recipe(recipe: Recipe, workspace: Workspace, path: str) -> dict[str, Any]:
    """Everything that is found, JSON-able.

    Args:
        recipe: what would be built.
        workspace: where; what was built there before corrects how long it takes.
        path: how the user calls it, for the commands that are named.

    Returns:
        recipe, ok. Where the build would stop: error. Otherwise counts, kinds, dropped, users, text, shown, judged,
        stages, suggestions and warnings; docs/first-hour.md says what is in them.
    """
    try:
        made = make_dataset(recipe)
    except TritonRankError as error:
        return {"recipe": recipe.name, "ok": False, "error": {"type": type(error).__name__, "message": str(error)}}
    metrics = made.metrics
    text = metrics[TEXT_METRICS]
    judged = _judged(recipe, made)
    suggestions = [_suggestion(f"text.{one.setting}", one.tokens, one.reason) for one in budget_advice(text)]
    suggestions += _gate_advice(recipe, judged)
    return {
        "recipe": recipe.name,
        "ok": True,
        "counts": {name: metrics[name] for name in COUNTS},
        "kinds": _kinds(recipe, made.events),
        "dropped": metrics["dropped"],
        "users": metrics["skipped_users"],
        "text": text,
        "shown": list(_shown(recipe, made, text["rules"])),
        "judged": judged,
        "stages": _stages(recipe, workspace, metrics["examples"]),
        "suggestions": suggestions,
        "warnings": _warnings(recipe, metrics, judged, path),
    }


def _suggestion(key: str, value: Any, reason: str) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {
        "key": key,
        "value": value,
        "set": f"{key}={value}",
        "yaml": f"{section}: {{{name}: {value}}}",
        "reason": reason,
    }


def _gate_advice(recipe: Recipe, judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A gate that these users can pass: what is told from chance depends on how many they are."""
    reached = max(found["mean"] for found in judged["baselines"].values())
    if reached <= 0 or recipe.quantize.method == "none":
        return []
    budget = min(round(smallest_budget(judged["users"], reached), 3), LARGEST_BUDGET)
    if budget <= recipe.gate.budget:
        return []
    reason = (
        f"{judged['users']} judged users do not tell a loss of {recipe.gate.budget:.1%} from chance: the gate would "
        "close on INT8 that ranks as well. More of them (examples.test_users) make the figures finer"
    )
    return [_suggestion("gate.budget", budget, reason)]


def _kinds(recipe: Recipe, events: pl.DataFrame) -> list[dict[str, Any]]:
    """Events and users by what they are worth, most valued last."""
    counted = events.group_by("gain").agg(pl.len(), pl.col("user_id").n_unique().alias("users"))
    return [
        {"gain": gain, "names": _names_of(recipe, gain), "events": count, "users": users}
        for gain, count, users in counted.sort("gain").iter_rows()
    ]


def _names_of(recipe: Recipe, gain: float) -> list[str]:
    """The event types that a recipe gives this gain."""
    weights = recipe.data.event_weights if isinstance(recipe.data, TablesData) else None
    if weights is None:
        return ["positive" if gain > 0 else "not positive"]
    return [name for name, weight in weights.items() if np.isclose(weight, gain)]


def _shown(recipe: Recipe, made: Prepared, rules: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A few judged lists as a ranker reads them: texts, and how many tokens of how many. Nobody is named."""
    examples = [Example(**row) for row in made.examples[TEST].head(EXAMPLES_SHOWN).iter_rows(named=True)]
    wanted = {item for example in examples for item in [*example.candidates, *example.history]}
    items = made.items.filter(pl.col("item_id").is_in(list(wanted)))
    lengths = TextLengths(measuring_tokenizer(recipe)).of_items(items)
    texts = {row["item_id"]: render_fields(rules["item_template"], row) for row in items.iter_rows(named=True)}

    def told(item: str) -> dict[str, Any]:
        return {"item_id": item, "text": texts[item], "tokens": lengths[item], "read": rules["candidate_tokens"]}

    for example in examples:
        by_label = sorted(zip(example.labels, example.candidates, strict=True), key=lambda one: -one[0])
        newest = min(rules["history_items"], HISTORY_SHOWN)
        yield {
            "query": example.query,
            "history": [told(item) for item in example.history[-newest:]] if newest else [],
            "history_length": len(example.history),
            "candidates": [told(item) | {"liked": label > 0} for label, item in by_label[:CANDIDATES_SHOWN]],
            "candidates_in_all": len(example.candidates),
        }


def _judged(recipe: Recipe, made: Prepared) -> dict[str, Any]:
    """How many users are judged, what counting alone reaches on them, and how small a difference they show."""
    users = made.examples[TEST].height
    examples = [Example(**row) for row in made.examples[TEST].head(JUDGED_AT_MOST).iter_rows(named=True)]
    learnt = made.events.filter(pl.col("split") == TRAIN)
    scorers = {"popularity": popularity_baseline(learnt), "item kNN": neighbour_baseline(learnt)}
    found = {name: ndcg_of(scorer, examples) for name, scorer in scorers.items()}
    apart = float(np.std(found["item kNN"] - found["popularity"], ddof=1)) if len(examples) > 1 else 0.0
    can_be = users + made.metrics["skipped_users"][TEST]["not drawn"]
    return {
        "users": users,
        "can_be": can_be,
        "validation_users": made.examples[VALIDATION].height,
        "candidates": recipe.examples.judged_negatives + 1,
        "baselines": {name: asdict(interval(values)) for name, values in found.items()},
        "formula": FORMULA,
        "between_rankers": {"deviation": apart, "smallest_difference": smallest_difference(apart, users)},
        "of_one_ranker": {
            "deviation": SAME_RANKER_DEVIATION,
            "smallest_difference": smallest_difference(SAME_RANKER_DEVIATION, users),
        },
    }


def _stages(recipe: Recipe, workspace: Workspace, examples: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each stage and its seconds on this machine, for the examples that there are; none where nobody measured."""
    there = {
        "training_examples": max(1, examples[TRAIN]),
        "validation_users": examples[VALIDATION],
        "test_users": examples[TEST],
    }
    actual = recipe.model_copy(update={"examples": recipe.examples.model_copy(update=there)})
    return [{"stage": verb, "seconds": round(seconds, 1)} for verb, seconds in about_seconds(actual, workspace).items()]


def _warnings(recipe: Recipe, metrics: Mapping[str, Any], judged: Mapping[str, Any], path: str) -> list[dict[str, str]]:
    """What is doubtful, each with what to do next."""
    warnings = [
        {"what": said.partition(": --set ")[0], "next": f"--set {said.partition(': --set ')[2]}"}
        if ": --set " in said
        else {"what": said, "next": ""}
        for said in text_warnings(metrics[TEXT_METRICS])
    ]
    if judged["users"] < FEW_USERS:
        enough = min(judged["can_be"], FEW_USERS)
        needed = users_to_see(0.05, judged["between_rankers"]["deviation"] or SAME_RANKER_DEVIATION)
        what = (
            f"{judged['users']} users are judged: a verdict on so few is mostly chance; a difference of 0.05 takes "
            f"about {needed:,}"
        )
        more = f"tritonrank check {path} --set examples.test_users={enough}"
        none = "collect more users with three positives, or count weaker events as positives too (data.label)"
        warnings.append({"what": what, "next": more if enough > judged["users"] else none})
    trained = metrics["examples"][TRAIN]
    if trained < FEW_EXAMPLES:
        is_limit = trained >= recipe.examples.training_examples
        more = f"tritonrank check {path} --set examples.training_examples={min(2_400, metrics['training_events'])}"
        none = "collect more positives; until then compare with item kNN, which needs no training"
        warnings.append({"what": f"{trained} examples to learn from are few", "next": more if is_limit else none})
    return warnings
