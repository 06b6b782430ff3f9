"""Rows of the log that no night learns, because the guards found something wrong with them.

Nights keep these in files, where a user's id would outlive the erasing of the user. So they hold its hash, as
tombstones do.
"""

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl
from tritonrank_recommend.log.layout import digest_of

from tritonrank.data.event_log import KNOWN_AT, LogRows
from tritonrank.errors import DataError
from tritonrank.learn.lists.windows import Span


@dataclass(frozen=True)
class LeftOut:
    """Events that a night does not count, as the guards found; no later night counts them either.

    Attributes:
        span: of the moments at which they came to be in the log (``data.event_log.KNOWN_AT``).
        reason: in words, for the ledger.
        users: whose (``digest_of`` their ids), their pages too: what they did not like on them says nothing; None:
            everybody's, as of a day that was refused.
        events: user, alike, and event id of single events, such as copies; where there are some, they alone are left
            out, and of pages those in ``pages``.
        pages: that lost a like with them: what was not liked on them says nothing any more.
    """

    span: Span
    reason: str
    users: tuple[str, ...] | None = None
    events: tuple[tuple[str, str], ...] = ()
    pages: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For a ledger."""
        return asdict(self)

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> "LeftOut":
        """What ``as_json`` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            span, users = Span(float(told["span"]["start"]), float(told["span"]["end"])), told["users"]
            events = tuple((str(user), str(event)) for user, event in told["events"])
            pages = tuple(map(str, told["pages"]))
            return cls(span, str(told["reason"]), None if users is None else tuple(map(str, users)), events, pages)
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"what a night left out: expected span, reason, users, events and pages, not {told!r} ({error})"
            ) from None


def without_left_out(rows: LogRows, left_out: Sequence[LeftOut]) -> LogRows:
    """The rows that count; what was shown to somebody whose events do not count, does not count either."""
    events, shown = rows.events, rows.shown
    named = {user for one in left_out for user in (*(one.users or ()), *(user for user, _ in one.events))}
    known = _known(named, events, shown)
    if single := [(known[user], event) for one in left_out for user, event in one.events if user in known]:
        copies = pl.DataFrame(single, schema={"user_id": pl.String, "event_id": pl.String}, orient="row")
        events = events.join(copies, on=["user_id", "event_id"], how="anti", maintain_order="left")
    if pages := [page for one in left_out for page in one.pages]:
        shown = shown.join(pl.DataFrame({"page": pages}), on="page", how="anti", maintain_order="left")
    for one in left_out:
        if one.users is None and not one.pages and not one.events:
            outside = ~pl.col(KNOWN_AT).is_between(one.span.start, one.span.end, closed="left")
            events, shown = events.filter(outside), shown.filter(outside)
    theirs = pl.DataFrame(
        [
            (known[user], one.span.start, one.span.end)
            for one in left_out
            if not one.events
            for user in one.users or ()
            if user in known
        ],
        schema={"user_id": pl.String, "start": pl.Float64, "end": pl.Float64},
        orient="row",
    )
    return replace(rows, events=_without(events, theirs), shown=_without(shown, theirs))


def _known(digests: Set[str], *tables: pl.DataFrame) -> dict[str, str]:
    """By their hashes, the ids of those users who are in the tables."""
    if not digests:
        return {}
    users = pl.concat([table["user_id"] for table in tables]).unique()
    return {digest: user for user in users if (digest := digest_of(user)) in digests}


def _without(rows: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Rows that are not of a user and within the span in which theirs are left out."""
    numbered = rows.with_row_index("number_of_row")
    within = pl.col(KNOWN_AT).is_between(pl.col("start"), pl.col("end"), closed="left")
    gone = numbered.join(theirs, on="user_id").filter(within)
    return numbered.join(gone, on="number_of_row", how="anti", maintain_order="left").drop("number_of_row")
