"""Texts of a request before they go on: counted, and cut where the server would refuse them.

The server cuts by tokens and says so; but an element of more bytes than `max_text_bytes` it refuses. A long document
never fails a call here, so such a one is cut before it is sent.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tritonrank_client import encode_item

from tritonrank_gateway.ranking import Item


def characters_of(items: Sequence[Item]) -> int:
    """Characters of all texts, those in fields too."""
    return sum(len(item) if isinstance(item, str) else _characters_in(item) for item in items)


def fit(items: Sequence[Item], most_bytes: int, keep_end: bool) -> tuple[Sequence[Item], list[int]]:
    """The items as the server takes them, and the positions of those that had to be cut.

    Args:
        items: texts or fields.
        most_bytes: of one element.
        keep_end: cut at the beginning.
    """
    short = most_bytes // 4  # characters that fit in any case
    long = [place for place, item in enumerate(items) if _length(item) > short]
    if not long:
        return items, []
    fitted, cut = list(items), []
    for place in long:
        item = items[place]
        kept = _fit_item(item, most_bytes, keep_end)
        if kept is not item:
            fitted[place] = kept
            cut.append(place)
    return fitted, cut


def fit_text(text: str, most_bytes: int, keep_end: bool = False) -> str:
    """The text itself if it fits, else as much of its beginning or end as does."""
    most, encoded = most_bytes, text.encode("utf-8", "surrogatepass")
    if text.lstrip()[:1] == "{":  # it travels inside an object, where a control character takes six bytes
        if len(encode_item(text)) <= most_bytes:
            return text
        most = most_bytes // 6 - 16
    if len(encoded) <= most:
        return text
    kept = encoded[-most:] if keep_end else encoded[:most]
    return kept.decode("utf-8", "ignore")


def _fit_item(item: Item, most_bytes: int, keep_end: bool) -> Item:
    return fit_text(item, most_bytes, keep_end) if isinstance(item, str) else _fit_fields(item, most_bytes, keep_end)


def _fit_fields(fields: Mapping[str, Any], most_bytes: int, keep_end: bool) -> Mapping[str, Any]:
    if len(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")) <= most_bytes:
        return fields
    share = most_bytes // (2 * len(fields)) - 64
    return {
        name: fit_text(value, max(1, share), keep_end) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _length(item: Item) -> int:
    return len(item) if isinstance(item, str) else _characters_in(item)


def _characters_in(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters_in(one) + len(name) for name, one in value.items())
    if isinstance(value, Sequence):
        return sum(map(_characters_in, value))
    return 8
