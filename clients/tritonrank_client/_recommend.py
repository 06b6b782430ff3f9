"""The calls around `recommend`, as they cross the wire: JSON bodies, the same for a gateway and for Triton's model.

Arguments are checked as far as sending them would lose something (an id that is none, a text that is no Unicode); what
a body may hold is the server's to say, and its refusals name the field.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import numpy as np

from ._errors import InvalidRequest, ServerFault
from ._recommend_results import Event, Explanation, Reason, RecommendedItem
from ._results import ItemId
from ._wire import Tensor, bytes_array

RECOMMEND_MODEL = "recommend"
"""Triton's model that takes the body of POST /v1/recommend in its input `request`, and gives `answer`."""
MOST_AT_ONCE = 1_000
"""Events or items of one request; more are sent in batches."""

Anything = TypeVar("Anything")


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a gateway.

    Attributes:
        method: of HTTP.
        path: below the gateway's base path.
        body: JSON, where there is one.
        model: Triton's model that answers the same body; empty where only a gateway does.
        tells_deadline: somebody chose how long the call may take, and a gateway is told. Else it keeps its own time: it
            gives up on a ranker long before ten seconds, and answers without.
    """

    method: str
    path: str
    body: bytes | None = None
    model: str = ""
    tells_deadline: bool = False

    @property
    def tensor(self) -> Tensor:
        """The body as a tensor, for Triton's model."""
        return Tensor("request", "BYTES", bytes_array([self.body or b""]))

    def only_a_gateway(self, url: str) -> InvalidRequest:
        """What to tell whoever asks something else."""
        return InvalidRequest(
            f"{url}: {self.method} {self.path.split('?')[0]} is a gateway's: give its URL (gateway+http://HOST:8080), "
            "or start one: python -m tritonrank_gateway --catalogue artifacts/RECIPE/catalogue"
        )


def recommend_question(
    *,
    user_id: ItemId,
    recent: Iterable[ItemId | Mapping[str, Any]],
    query: str,
    size: int,
    filters: Mapping[str, Any] | None,
    context: Mapping[str, str] | None,
    exclude: Iterable[ItemId],
    exclude_seen: bool,
    cursor: str,
    candidates: int,
    order: str,
    explain: bool,
) -> Question:
    body: dict[str, Any] = {
        "user_id": id_text("user_id", user_id),
        "recent": recent_items(recent),
        "query": query,
        "size": size,
        "filters": dict(filters or {}),
        "context": dict(context or {}),
        "exclude": id_texts("exclude", exclude),
        "exclude_seen": exclude_seen,
        "cursor": cursor,
        "candidates": candidates,
        "order": order,
        "explain": explain,
    }
    return Question("POST", "/v1/recommend", encoded(body), RECOMMEND_MODEL)


def explain_question(
    *,
    item_ids: Iterable[ItemId],
    user_id: ItemId,
    recent: Iterable[ItemId | Mapping[str, Any]],
    query: str,
    context: Mapping[str, str] | None,
    page: str,
    candidates: int,
) -> Question:
    body: dict[str, Any] = {
        "item_ids": id_texts("item_ids", item_ids),
        "user_id": id_text("user_id", user_id),
        "recent": recent_items(recent),
        "query": query,
        "context": dict(context or {}),
        "page": page,
        "candidates": candidates,
    }
    return Question("POST", "/v1/explain", encoded(body))


def similar_question(item_id: ItemId, size: int, filters: Mapping[str, Any] | None) -> Question:
    asked = {"size": str(size)}
    if filters:
        asked["filters"] = encoded(dict(filters)).decode()
    return Question("GET", f"/v1/similar/{_in_path('item_id', item_id)}?{urlencode(asked)}")


def event_questions(events: Iterable[Event | Mapping[str, Any]]) -> list[Question]:
    """A question per batch; made once, so that every attempt sends the same ids."""
    sent = [_event(f"events[{place}]", event) for place, event in enumerate(_sequence("events", events))]
    return [Question("POST", "/v1/events", encoded({"events": batch})) for batch in _batches(sent)]


def put_questions(items: Mapping[Any, Mapping[str, Any]]) -> list[Question]:
    if not isinstance(items, Mapping) or not all(isinstance(fields, Mapping) for fields in items.values()):
        raise InvalidRequest("items: expected a mapping from each item's id to its fields")
    sent = [{"item_id": id_text("items", item_id), "fields": dict(fields)} for item_id, fields in items.items()]
    return [Question("PUT", "/v1/items", encoded({"items": batch})) for batch in _batches(sent)]


def delete_questions(item_ids: Iterable[ItemId]) -> list[Question]:
    batches = _batches(id_texts("item_ids", item_ids))
    return [Question("DELETE", "/v1/items", encoded({"item_ids": batch})) for batch in batches]


def user_question(method: str, user_id: ItemId, with_log: bool = False) -> Question:
    asked = "?log=true" if with_log else ""
    return Question(method, f"/v1/users/{_in_path('user_id', user_id)}{asked}")


def read_object(body: bytes) -> dict[str, Any]:
    """An answer's JSON object.

    Raises:
        ServerFault: it is none.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _broken(str(error)) from error
    if not isinstance(answer, dict):
        raise _broken(f"expected an object, got {type(answer).__name__}")
    return answer


def read_field(answer: Mapping[str, Any], name: str, kind: type[Anything], default: Anything | None = None) -> Anything:
    """A field of an answer.

    Raises:
        ServerFault: it is missing, or of another kind.
    """
    value = answer.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind):
        raise _broken(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def read_items(answer: Mapping[str, Any]) -> tuple[RecommendedItem, ...]:
    """The items of a page or of a list of similar ones.

    Raises:
        ServerFault: they are not as they should be.
    """
    return tuple(_read_item(item) for item in read_field(answer, "items", list))


def read_explained(answer: Mapping[str, Any]) -> dict[str, Explanation]:
    """Explanations by item.

    Raises:
        ServerFault: they are not as they should be.
    """
    explained = read_field(answer, "items", list)
    if not all(isinstance(one, dict) for one in explained):
        raise _broken("items: expected objects")
    return {read_field(one, "item_id", str): _read_explanation(one.get("explanation")) for one in explained}


def _read_item(item: Any) -> RecommendedItem:
    if not isinstance(item, dict):
        raise _broken("items: expected objects")
    explanation = item.get("explanation")
    return RecommendedItem(
        read_field(item, "item_id", str),
        read_field(item, "position", int),
        read_field(item, "score", float),
        read_field(item, "fields", dict),
        read_field(item, "sources", dict, {}),
        None if item.get("logit") is None else read_field(item, "logit", float),
        None if explanation is None else _read_explanation(explanation),
    )


def _read_explanation(explanation: Any) -> Explanation:
    if not isinstance(explanation, dict):
        raise _broken("explanation: expected an object")
    return Explanation(
        tuple(map(_read_reason, read_field(explanation, "reasons", list))),
        read_field(explanation, "sentence", str),
        tuple(map(str, read_field(explanation, "left_out", list, []))),
    )


def _read_reason(reason: Any) -> Reason:
    if not isinstance(reason, dict):
        raise _broken("reasons: expected objects")
    return Reason(
        read_field(reason, "kind", str),
        read_field(reason, "name", str),
        read_field(reason, "effect", float),
        read_field(reason, "of", str, "logit"),
    )


def read_answer_tensor(result: Any) -> bytes:
    """The JSON in the output `answer` of Triton's model.

    Raises:
        ServerFault: there is none.
    """
    values = result.as_numpy("answer")
    if values is None or values.size != 1:
        raise _broken("answer: expected one text")
    value = np.asarray(values).ravel()[0]
    return value.encode() if isinstance(value, str) else bytes(value)


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON.

    Raises:
        InvalidRequest: something in it has no place in JSON.
    """
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        for name, value in body.items():  # which one it was
            try:
                json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain).encode("utf-8")
            except (TypeError, ValueError, RecursionError):
                raise InvalidRequest(f"{name}: cannot be written as JSON ({error})") from error
        raise


def id_text(field: str, value: ItemId) -> str:
    """An id as text; 7 and "7" are one.

    Raises:
        InvalidRequest: it is neither a text nor a whole number.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    raise InvalidRequest(f"{field}: expected a str or an int, got {type(value).__name__}")


def id_texts(field: str, values: Iterable[ItemId]) -> list[str]:
    """As `id_text`, of several."""
    return [id_text(f"{field}[{place}]", value) for place, value in enumerate(_sequence(field, values))]


def recent_items(recent: Iterable[ItemId | Mapping[str, Any]]) -> list[Any]:
    """Items of a session: ids, or mappings with `item_id`, `type` and `timestamp`."""
    return [
        dict(one) if isinstance(one, Mapping) else id_text(f"recent[{place}]", one)
        for place, one in enumerate(_sequence("recent", recent))
    ]


def _event(place: str, event: Event | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(event, Mapping):
        try:
            event = Event(**event)
        except TypeError as error:
            told = str(error).removeprefix("Event.__init__() ")
            raise InvalidRequest(f"{place}: {told}") from error
    sent: dict[str, Any] = {
        "event_id": event.event_id,
        "user_id": id_text(f"{place}.user_id", event.user_id),
        "type": event.type,
        "timestamp": event.timestamp,
    }
    if event.item_id != "":
        sent["item_id"] = id_text(f"{place}.item_id", event.item_id)
    for name in ("query", "page"):
        if value := getattr(event, name):
            sent[name] = value
    for name in ("value", "position"):
        if (value := getattr(event, name)) is not None:
            sent[name] = value
    return sent


def _batches(values: Sequence[Anything]) -> Iterator[Sequence[Anything]]:
    for start in range(0, len(values), MOST_AT_ONCE):
        yield values[start : start + MOST_AT_ONCE]


def _in_path(field: str, value: ItemId) -> str:
    text = id_text(field, value)
    if not text:
        raise InvalidRequest(f"{field}: expected an id, got an empty text")
    return quote(text, safe="")


def _sequence(field: str, values: Iterable[Anything]) -> list[Anything]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{field}: expected a list, got {type(values).__name__}")
    return list(values)


def _plain(value: Any) -> Any:
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _broken(what: str) -> ServerFault:
    return ServerFault(
        f"the answer breaks the contract of recommend: {what}. Check that server and client are of one release."
    )
