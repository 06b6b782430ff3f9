"""The rows of the training log as a night needs them: what became of each page, and when that was settled."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tritonrank.data.event_log import LogRows
from tritonrank.learn.click_estimates import ShownItems
from tritonrank.learn.left_out import LeftOut


@dataclass(frozen=True)
class ShownPages:
    """Pages of the log for estimates by clicks.

    Attributes:
        items: a row per shown item, in the order of pages and positions: page, user_id, query, shown_at, item_id.
        shown: the same rows, as ``click_estimates`` takes them.
    """

    items: pl.DataFrame
    shown: ShownItems


def shown_pages(rows: LogRows, delay_hours: float, until: float, left_out: Sequence[LeftOut] = ()) -> ShownPages:
    """The pages that were settled by then and for which lots are known, each item with whether it was clicked.

    Args:
        rows: of the log.
        delay_hours: in which clicks count.
        until: unix seconds.
        left_out: whose clicks and pages do not count.

    Raises:
        DataError: nothing was shown, or no lots were drawn.
    """
    raise NotImplementedError
