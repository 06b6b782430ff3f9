"""Reasons as one sentence that a customer understands."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tritonrank_recommend.engine.wire import Reason
from tritonrank_recommend.stores.interface import FieldValue

SHARE = 0.25
"""A reason is told if it does so much of what the strongest one does."""
LEAST_TOLD = 0.02
"""Effects below it are not worth a word."""
MOST_TOLD = 2
"""Of a kind."""
NAMES = ("title", "name", "product", "headline", "label")
"""Fields that call an item by its name, the likeliest first."""
LONGEST_NAME = 80
DID = {
    "purchase": "bought “{}”",
    "cart": "put “{}” into your cart",
    "rating": "rated “{}” well",
    "click": "opened “{}”",
    "view": "looked at “{}”",
}
"""By the type of the event, with a place for the item's name."""
FEATURES = {
    "popularity": "many people like it now",
    "popular": "many people like it now",
    "knn": "people who like the same things like it",
    "ease": "people with your taste like it",
    "next": "people mostly go on to it from what you liked last",
    "two-tower": "it is close to what you like",
    "lexical": "its text has the words you searched for",
    "fused": "it was found in several ways",
    "age": "it is new",
    "new": "it is new",
}
"""By the blend's feature, without ``rank.`` or ``score.`` before it; the ranker's part is told by its own reasons."""
NOTHING = "No single thing raised it: it stands here by all together."


class Past(Protocol):
    """An item of the history."""

    @property
    def type(self) -> str: ...

    @property
    def item_id(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, FieldValue] | None: ...


def sentence(reasons: Sequence[Reason], history: Mapping[str, Past]) -> str:
    """What raised an item, as far as it matters.

    Args:
        reasons: of any order.
        history: by id what reasons of the kind ``history`` name.
    """
    told: list[str] = []
    of_ranker = [reason for reason in reasons if reason.of == "logit"]
    of_context = _strong(reason for reason in of_ranker if reason.kind != "field")
    past = [_did(history[one.name]) for one in of_context if one.kind == "history" and one.name in history]
    if past:
        told.append(f"because you {_and(past[:MOST_TOLD])}")
    if words := [f"“{one.name}”" for one in of_context if one.kind == "query"]:
        told.append(f"it fits {_and(words[:MOST_TOLD])}, which you searched for")
    # A field alone says little of a customer: without its title every item would be worse off.
    fields = [] if told else [one.name for one in _strong(one for one in of_ranker if one.kind == "field")]
    if fields:
        told.append(f"it stands here for its {_and([name.replace('_', ' ') for name in fields[:MOST_TOLD]])}")
    features = [_feature(one.name) for one in _strong(reason for reason in reasons if reason.of == "score")]
    told += list(dict.fromkeys(words for words in features if words))[:MOST_TOLD]
    if not told:
        return NOTHING
    said = "; ".join(told)
    return f"{said[0].upper()}{said[1:]}."


def name_of(item_id: str, fields: Mapping[str, FieldValue] | None) -> str:
    """What people call an item: its title-like field, else its first text, else its id."""
    texts = {name: value for name, value in (fields or {}).items() if isinstance(value, str) and value.strip()}
    found = next((texts[name] for name in NAMES if name in texts), next(iter(texts.values()), item_id))
    return found if len(found) <= LONGEST_NAME else found[: LONGEST_NAME - 1].rstrip() + "…"


def _strong(reasons: Iterable[Reason]) -> list[Reason]:
    """Those that raised the item most, the strongest first."""
    raised = sorted((reason for reason in reasons if reason.effect >= LEAST_TOLD), key=lambda reason: -reason.effect)
    return [reason for reason in raised if reason.effect >= SHARE * raised[0].effect]


def _did(past: Past) -> str:
    return DID.get(past.type, "chose “{}”").replace("{}", name_of(past.item_id, past.fields))


def _feature(name: str) -> str | None:
    return FEATURES.get(name.removeprefix("rank.").removeprefix("score."))


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
