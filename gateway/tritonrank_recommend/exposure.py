"""How unequally items are shown, in one number; and the record of new items, which gateways share in the store."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
NEW_SECONDS = 30 * DAY
"""For so long an item is new."""
NEW_ITEMS = "exposure-new-items"
"""Key of the record in the store."""


class NewItem(msgspec.Struct, array_like=True):
    """A new item, in unix seconds.

    Attributes:
        came: when it could be found for the first time.
        shown: when it was shown for the first time; 0 it was not yet.
    """

    came: float
    shown: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, NewItem])


def write_new_items(new_items: dict[str, NewItem]) -> bytes:
    """The record, for the store."""
    return _encoder.encode(new_items)


def read_new_items(record: bytes) -> dict[str, NewItem]:
    """What ``write_new_items`` gave.

    Raises:
        msgspec.DecodeError: it did not.
    """
    return _decoder.decode(record)


def gini(counts: NDArray[Any], items: int) -> float:
    """The Gini coefficient of exposure: 0 every item is shown alike, towards 1 a few are shown alone.

    Half the mean difference of two items' counts over the mean count (Gini 1912). Where less was shown than there are
    items, as many count as could have been shown: else a large catalogue would be near 1 whatever is shown.

    Args:
        counts: [shown] how often each item was shown that was shown at all.
        items: that could be shown, those that never were among them.

    Returns:
        NaN where nothing was shown.
    """
    shown = np.sort(np.asarray(counts, dtype=np.float64))
    total = float(shown.sum())
    if not total:
        return float("nan")
    all_items = max(len(shown), min(items, round(total)))
    ranks = np.arange(all_items - len(shown) + 1, all_items + 1)
    return float(2 * (ranks @ shown) / (all_items * total) - (all_items + 1) / all_items)
