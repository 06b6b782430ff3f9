"""Candidates and what was said of them -> the whole list, in order. No waiting, no clock: it runs in a thread."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.blend.interface import Blend
from tritonrank_recommend.catalogue.interface import Candidates
from tritonrank_recommend.engine.arrange import Fields, Situation, arranged, boosted
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.explain import BlendParts
from tritonrank_recommend.engine.pages import MOST_PINNED, PINNED_BY_RULE, SOURCE_NAMES, Entry
from tritonrank_recommend.engine.retrieval import Found, only
from tritonrank_recommend.engine.rules import Pin, Rules

LOG = logging.getLogger("tritonrank_recommend")
SOURCE_NUMBER = {name: number for number, name in enumerate(SOURCE_NAMES)}
Order = Literal["blend", "ranker", "retrieval"]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a list is made of.

    Attributes:
        found: the candidates.
        logits: the ranker's, of all candidates or of the first ones; None where it was not heard.
        blend: None where there is none.
        order: which the request asks for.
    """

    found: Found
    logits: NDArray[np.float32] | None
    blend: Blend | None
    order: Order


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a list must keep to; candidates do, and pinned items have to as well.

    Attributes:
        filters: of the request.
        excluded: ids that must not come.
    """

    filters: Mapping[str, Any] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Listed:
    """A whole list.

    Attributes:
        entries: best first, at most MOST_PINNED.
        blend_artifact: of the blend whose order it is; "" for another order.
        problem: why the blend was not heard, though it was asked; "" otherwise.
        pinned: ids of the items that a rule has put where they stand.
    """

    entries: list[Entry]
    blend_artifact: str = ""
    problem: str = ""
    pinned: frozenset[str] = frozenset()


def listed(heard: Heard, rules: Rules, situation: Situation, bounds: Bounds) -> Listed:
    """The whole list of a request.

    Args:
        heard: what it is made of.
        rules: of the shop.
        situation: of the request.
        bounds: what it must keep to.
    """
    candidates = heard.found.candidates
    ids, fields = list(candidates.ids), list(candidates.fields)
    scores, artifact, problem = _scores(heard)
    raised = boosted(scores, fields, rules.boost, situation)
    order = np.argsort(-raised, kind="stable").tolist()
    ages = candidates.age_days.tolist()
    pinned: dict[int, int] = {}
    for pin, of in _pins(heard.found, rules, situation, bounds):
        if pin.item_id in ids:
            number = ids.index(pin.item_id)
        else:
            number = len(ids)
            ids.append(pin.item_id)
            fields.append(of)
            ages.append(math.nan)
        pinned[pin.position] = number
    places = arranged(order, fields, ages, rules, situation, pinned)[:MOST_PINNED]
    sources = _sources(candidates)
    entries = [
        Entry(
            ids[number],
            float(raised[number]) if number < len(scores) else 0.0,
            None if heard.logits is None or number >= len(heard.logits) else float(heard.logits[number]),
            sources[number] if number < len(scores) else [(SOURCE_NUMBER[PINNED_BY_RULE], 0)],
        )
        for number in places
    ]
    return Listed(entries, artifact, problem, frozenset(ids[number] for number in pinned.values()))


def blend_parts(heard: Heard, item_ids: Sequence[str]) -> BlendParts | None:
    """What the blend's features add to the scores of some items; None where it did not order them.

    Args:
        heard: what the list was made of.
        item_ids: of the shown items; what is not among the blended candidates has zeros.
    """
    if heard.blend is None or not _can_blend(heard) or heard.order != "blend":
        return None
    blended, logits = _blended(heard, heard.blend)
    ids = blended.ids
    number_of = {item_id: number for number, item_id in enumerate(ids)}
    try:
        features = heard.blend.features(blended, logits)
        parts = heard.blend.parts(features)
    except Exception:
        LOG.exception("the blend %s failed", heard.blend.artifact)
        return None
    nothing = np.zeros(parts.shape[1], parts.dtype)
    rows = [parts[number_of[one]] if one in number_of else nothing for one in item_ids]
    return BlendParts(heard.blend.names, np.array(rows, dtype=np.float32).reshape(len(rows), len(nothing)))


def _scores(heard: Heard) -> tuple[NDArray[np.float32], str, str]:
    """Scores, the artifact of the blend that gave them, and what was wrong with it."""
    fused = heard.found.candidates.fused
    plain = fused if heard.logits is None or heard.order == "retrieval" else with_rest(heard.logits, fused)
    if heard.blend is None or not _can_blend(heard) or heard.order != "blend":
        return plain, "", ""
    blended, logits = _blended(heard, heard.blend)
    try:
        features = heard.blend.features(blended, logits)
        scores = np.asarray(heard.blend.score(features), dtype=np.float32)
    # Whatever is wrong with it: the ranker's order is a good one, too.
    except Exception:
        LOG.exception("the blend %s failed", heard.blend.artifact)
        return plain, "", "failed"
    return with_rest(scores, fused), heard.blend.artifact, ""


def _can_blend(heard: Heard) -> bool:
    return heard.blend is not None and (heard.logits is not None or heard.blend.orders_unranked)


def _blended(heard: Heard, blend: Blend) -> tuple[Candidates, NDArray[np.float32]]:
    """The candidates that the blend orders, and the ranker's logits of these: NaN where it was not asked. A blend that
    cannot do without the ranker orders those alone that were ranked."""
    candidates, known = heard.found.candidates, heard.logits
    logits = np.zeros(0, np.float32) if known is None else known
    if not blend.orders_unranked:
        return only(candidates, np.arange(len(candidates.ids)) < len(logits)), logits
    rest = np.full(len(candidates.ids) - len(logits), np.nan, np.float32)
    return candidates, np.concatenate([logits, rest])


def with_rest(scores: NDArray[np.float32], fused: NDArray[np.float32]) -> NDArray[np.float32]:
    """[candidates] the scores of those that were ranked, and below the lowest of them the rest in retrieval's order.

    The rest lies as far apart as the scores do, so that a rule that lifts an item by a deviation means the same.

    Args:
        scores: [ranked] of the first candidates.
        fused: [candidates] of retrieval, falling.
    """
    rest = fused[len(scores) :]
    if not len(rest):
        return scores
    spread = float(scores.std()) or 1.0
    high, low = float(rest.max()), float(rest.min())
    fallen = (high - rest) / (high - low) if high > low else np.zeros_like(rest)
    behind = scores.min() - spread * (0.01 + fallen)
    return np.concatenate([scores, behind.astype(np.float32)])


def _pins(found: Found, rules: Rules, situation: Situation, bounds: Bounds) -> list[tuple[Pin, Fields]]:
    """Pins in force whose items may be shown, each with its item's fields; those for the query come last, and count."""
    query = situation.query.strip().casefold()
    asked = [
        pin
        for pin in rules.pin
        if pin.holds(situation.context or {}, situation.now)
        and (pin.query is None or pin.query.strip().casefold() == query)
        and pin.item_id not in bounds.excluded
        and pin.item_id not in rules.block.item_ids
    ]
    if not asked:
        return []
    asked.sort(key=lambda pin: pin.query is not None)
    of = found.catalogue.fields([pin.item_id for pin in asked])
    by_item: dict[str, tuple[Pin, Fields]] = {}
    for pin, fields in zip(asked, of, strict=True):
        if fields is not None and meets(fields, rules.filters) and meets(fields, bounds.filters):
            by_item[pin.item_id] = (pin, fields)
    return list(by_item.values())


def _sources(candidates: Candidates) -> list[list[tuple[int, int]]]:
    """Of each candidate the sources that brought it, by number, with its rank in each."""
    said: list[list[tuple[int, int]]] = [[] for _ in candidates.ids]
    for name, ranks in candidates.ranks.items():
        number = SOURCE_NUMBER[name]
        for place, rank in enumerate(ranks.tolist()):
            if rank >= 0:
                said[place].append((number, rank))
    return said
