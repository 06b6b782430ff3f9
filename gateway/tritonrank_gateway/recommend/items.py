"""PUT and DELETE /v1/items, POST /v1/items/bulk: items that change while serving.

A request is taken whole or not at all: every item is checked before the first one is written, and the faults are named
by place or line. A bulk of many items is written in batches, one after the other; when the store fails in between, the
answer says how many lines were taken, and the whole may be sent again, because a change that was made before is made
again without harm.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from msgspec import Meta
from tritonrank_recommend.stores.interface import ItemChange, StoreError

from tritonrank_gateway.call import Call
from tritonrank_gateway.endpoint import Route, add_route
from tritonrank_gateway.recommend.access import DIALECT, recommender_of, refused
from tritonrank_gateway.refusal import Refusal

router = APIRouter()
MOST_AT_ONCE = 1_000
"""Items of one request, and of one batch of a bulk."""
MOST_FAULTS_TOLD = 20
ItemId = Annotated[str, Meta(min_length=1, max_length=256)]
Value = str | float | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | bool | None | list[str]
"""A ``FieldValue`` that every store and table can keep."""
Fields = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=256)], Value], Meta(min_length=1, max_length=200)]


class ChangedItem(msgspec.Struct, forbid_unknown_fields=True):
    """An item with all its fields; what it had before is gone."""

    item_id: ItemId
    fields: Fields


class ItemLine(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a bulk: an item with all its fields, or ``"fields": null`` to remove it."""

    item_id: ItemId
    fields: Fields | None


class PutItems(msgspec.Struct, forbid_unknown_fields=True):
    """Items to add or to change."""

    items: Annotated[list[ChangedItem], Meta(min_length=1, max_length=MOST_AT_ONCE)]


class PutItem(msgspec.Struct, forbid_unknown_fields=True):
    """All fields of one item."""

    fields: Fields


class DeleteItems(msgspec.Struct, forbid_unknown_fields=True):
    """Items to remove; one that is not there is no fault."""

    item_ids: Annotated[list[ItemId], Meta(min_length=1, max_length=MOST_AT_ONCE)]


PUT_ITEMS, PUT_ITEM, DELETE_ITEMS, LINE = (
    msgspec.json.Decoder(PutItems),
    msgspec.json.Decoder(PutItem),
    msgspec.json.Decoder(DeleteItems),
    msgspec.json.Decoder(ItemLine),
)


async def put_items(call: Call) -> dict[str, Any]:
    body = call.decode(PUT_ITEMS)
    return await _change(call, [ItemChange(item.item_id, item.fields) for item in body.items])


async def put_item(call: Call) -> dict[str, Any]:
    body = call.decode(PUT_ITEM)
    return await _change(call, [ItemChange(_item_id(call), body.fields)])


async def delete_items(call: Call) -> dict[str, Any]:
    body = call.decode(DELETE_ITEMS)
    return await _change(call, [ItemChange(item_id, None) for item_id in body.item_ids])


async def delete_item(call: Call) -> dict[str, Any]:
    return await _change(call, [ItemChange(_item_id(call), None)])


async def bulk(call: Call) -> dict[str, Any]:
    recommender_of(call)
    changes, faults = [], []
    for number, line in _lines(call.body):
        try:
            item = LINE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            faults.append(f"line {number}: {error}")
            continue
        changes.append(ItemChange(item.item_id, item.fields))
    if faults:
        more = f"; and {len(faults) - MOST_FAULTS_TOLD} more" if len(faults) > MOST_FAULTS_TOLD else ""
        raise Refusal("invalid", f"nothing was taken: {'; '.join(faults[:MOST_FAULTS_TOLD])}{more}")
    if not changes:
        raise Refusal("empty", 'expected lines such as {"item_id": "p1", "fields": {"title": "oak desk"}}')
    return await _change(call, changes)


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _item_id(call: Call) -> str:
    item_id = str(call.http.path_params["item_id"])
    if len(item_id) > 256:
        raise Refusal("invalid", "item_id: more than 256 characters")
    return item_id


async def _change(call: Call, changes: Sequence[ItemChange]) -> dict[str, Any]:
    recommender = recommender_of(call)
    is_kept = True
    for start in range(0, len(changes), MOST_AT_ONCE):
        with refused():
            try:
                is_kept = await recommender.change_items(changes[start : start + MOST_AT_ONCE])
            except StoreError as error:
                if not start:
                    raise
                said = f"the store does not answer; the first {start} of {len(changes)} were taken, send all again"
                raise Refusal("unavailable", said) from error
    removed = sum(change.fields is None for change in changes)
    return {"changed": len(changes) - removed, "removed": removed, "kept": is_kept}


ITEM = {"item_id": "p1", "fields": {"title": "oak desk", "brand": "Oakline", "price": 120.0, "in_stock": True}}
for path, handler, body, example, said, method in (
    ("/v1/items", put_items, PutItems, {"items": [ITEM]}, "Add or change items", "PUT"),
    ("/v1/items", delete_items, DeleteItems, {"item_ids": ["p1"]}, "Remove items", "DELETE"),
    ("/v1/items/{item_id:path}", put_item, PutItem, {"fields": ITEM["fields"]}, "Add or change an item", "PUT"),
    ("/v1/items/{item_id:path}", delete_item, None, None, "Remove an item", "DELETE"),
):
    add_route(router, path, Route(DIALECT, handler, body, role="admin"), example, said, method=method)
BULK = Route(DIALECT, bulk, ItemLine, role="admin")
said = "Add, change and remove items: JSON lines"
add_route(router, "/v1/items/bulk", BULK, ITEM, said, media_type="application/x-ndjson")
