"""What a store knows of users and items as lines of JSON that do not depend on how it came to know it.

Two stores that hold the same give the same bytes, SQLite and Valkey too: users and items in the order of their ids (by
code points), keys in theirs, numbers as Python writes them. Pages, leases and what waits for the log are left out.
"""

import json
from collections.abc import AsyncIterator

from tritonrank_recommend.stores.interface import Seen, Store

TOGETHER = 500


async def dump(store: Store) -> AsyncIterator[bytes]:
    """Lines, each with its end: first users (profile and counters), then items (counters).

    Raises:
        StoreError: the store does not answer.
    """
    for user_id in sorted(await store.user_ids()):
        profile = await store.profile(user_id)
        yield _line(
            user=user_id,
            events=[[getattr(seen, name) for name in Seen.__struct_fields__] for seen in profile.events],
            searches=list(profile.searches),
            counters=profile.counters,
        )
    items = sorted(await store.counted_items())
    for start in range(0, len(items), TOGETHER):
        chosen = items[start : start + TOGETHER]
        for item_id, counters in zip(chosen, await store.item_counters(chosen), strict=True):
            yield _line(item=item_id, counters=counters)


def _line(**told: object) -> bytes:
    return json.dumps(_plain(told), sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _plain(value: object) -> object:
    """Whole numbers alike, whether a store gives them as 3 or as 3.0."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
