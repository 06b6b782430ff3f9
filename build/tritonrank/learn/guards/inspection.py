"""Looking through a day: what is left out, what is measured, and whether it is like the nights that were accepted.

    copies -> unknown items, clocks -> agreement of likes -> bots -> farms -> rates -> against the baseline

What is left out is bounded that way and named, and the rest is learnt, unless the day as a whole is refused
(``comparing.py``).
"""

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path

import polars as pl
from tritonrank_recommend.log.layout import digest_of

from tritonrank.data.event_log import KNOWN_AT, LogRows
from tritonrank.learn.guards.baseline import Baseline, Measure
from tritonrank.learn.guards.bots import find_bots
from tritonrank.learn.guards.comparing import RULES, as_allowed, missing, too_many_left_out, unusual, was_told
from tritonrank.learn.guards.copies import same_id, sent_again, within_moments
from tritonrank.learn.guards.day import ROW, Day
from tritonrank.learn.guards.farms import find_farms, users_of
from tritonrank.learn.guards.findings import WHOLE_DAY, Finding, Inspection, NightInspection
from tritonrank.learn.guards.labels import (
    LEAST_USERS,
    agreement,
    dislike_rate,
    item_sums,
    like_rate,
    shown_items,
    tellers,
)
from tritonrank.learn.lists.left_out import LeftOut, without_left_out
from tritonrank.learn.lists.windows import Span
from tritonrank.recipe.guarding import GuardSettings

CLOCK_SECONDS = 300.0
"""By which the clocks of phones and gateways may differ: the gateway takes times so far ahead of its own."""
LATE_SECONDS = 3_600.0
"""After which an event that no page vouches for is counted as one with a wrong clock; it is learnt all the same."""
NAMED = 20
"""Bots that get a finding each; the rest share one."""
HOURS_PER_DAY = 24.0


class _Looking:
    """The rows that are still there, and what was found so far."""

    def __init__(self, day: Day) -> None:
        self.events = day.events.with_row_index(ROW)
        self.span = Span(day.start, day.end)
        self.findings: list[Finding] = []
        self.left_out: list[LeftOut] = []
        self.lost_users = 0

    def leave_out_copies(self, rows: pl.Series, check: str, reason: str) -> None:
        """Take single events out; ``reason`` goes on behind how many they are."""
        count, gone = self.events.height, self.events.filter(pl.col(ROW).is_in(rows.implode()))
        if gone.is_empty():
            return
        told = f"{gone.height:,} of {count:,} events ({gone.height / count:.1%}) {reason}"
        copies = gone.filter(pl.col("event_id") != "").select("user_id", "event_id").rows()
        self._found(check, WHOLE_DAY, told, {"share": gone.height / count}, gone)
        named = tuple((digest_of(user), event) for user, event in copies)
        self.left_out.append(LeftOut(self.span, told, events=named))

    def leave_out_users(
        self,
        users: pl.Series,
        check: str,
        where: str,
        reason: str,
        figures: Mapping[str, float],
        since: float = -math.inf,
    ) -> None:
        """Take all out that users do, from a moment on."""
        start = max(self.span.start, since)
        gone = self.events.filter(pl.col("user_id").is_in(users.implode()) & (pl.col(KNOWN_AT) >= start))
        self.lost_users += len(users) if since == -math.inf else 0
        self._found(check, where, reason, figures, gone)
        self.left_out.append(LeftOut(Span(start, self.span.end), reason, users=tuple(map(digest_of, users))))

    def drop(self, rows: pl.Series, check: str, reason: str, share: float) -> None:
        """Pass over events that are learnt in no case."""
        gone = self.events.filter(pl.col(ROW).is_in(rows.implode()))
        if gone.height:
            self._found(check, WHOLE_DAY, reason, {"share": share}, gone)

    def _found(self, check: str, where: str, reason: str, figures: Mapping[str, float], gone: pl.DataFrame) -> None:
        self.events = self.events.filter(~pl.col(ROW).is_in(gone[ROW].implode()))
        self.findings.append(Finding(check, where, reason, dict(figures), left_out=gone.height))


def inspect_night(
    rows: LogRows,
    span: Span,
    items: Collection[str],
    gains: Mapping[str, float],
    baseline: Baseline,
    settings: GuardSettings,
) -> NightInspection:
    """Look through hours of the log that nobody looked through before, a day at a time.

    Args:
        rows: of the log, those hours at least.
        span: the hours. Each hour is looked through once, by the first night that reads it, whether for learning or
            for judging; a backlog falls into days of about 24 hours, so that a bad one does not hide among others, or
            longer ones where so few users like something on a day that nothing can be told of it.
        items: ids that the item table has.
        gains: what each type of event is worth in training.
        baseline: of the last accepted night.
        settings: the recipe's ``learn.guards``.

    Returns:
        What was found. One refused day refuses the night; days behind it are compared with those before it. Where even
        all together are too few users, it ``waits_for`` more.
    """
    count = max(1, round(span.hours / HOURS_PER_DAY))
    parts = _parts(rows, span, count, items, gains)
    # Of a quiet shop a day alone may tell nothing.
    while (
        len(parts) > 1
        and was_told("order", baseline, settings)
        and any(_users_telling(day) < LEAST_USERS for day in parts)
    ):
        parts = _parts(rows, span, len(parts) - 1, items, gains)
    days: list[Inspection] = []
    for day in parts:
        days.append(inspect(day, days[-1].baseline if days else baseline, settings))
    return NightInspection(days)


def _parts(rows: LogRows, span: Span, count: int, items: Collection[str], gains: Mapping[str, float]) -> list[Day]:
    """Equally long parts of a span, as days."""
    borders = [span.start + number * (span.end - span.start) / count for number in range(count)] + [span.end]
    days = []
    for start, end in pairwise(borders):
        within = pl.col(KNOWN_AT).is_between(start, end, closed="left")
        days.append(Day(rows.events.filter(within), rows.shown.filter(within), start, end, items, gains))
    return days


def _users_telling(day: Day) -> int:
    return tellers(shown_items(day, day.events, day.shown))


def inspect(day: Day, baseline: Baseline, settings: GuardSettings) -> Inspection:
    """Look through a day of the log.

    Args:
        day: its rows, as the log has them.
        baseline: what accepted nights were like.
        settings: the recipe's ``learn.guards``.

    Returns:
        What was found, and which rows no night may learn: all of them where it ``refuses``.
    """
    looking = _Looking(day)
    measures: dict[str, Measure] = {}
    _leave_out_copies(looking, settings)
    measures |= _pass_over_faulty(looking, day)
    # Before bots go, so that of a day whose likes are turned that is said, and not that its users are strange.
    rows = shown_items(day, looking.events, day.shown)
    measures |= agreement(day, looking.events, rows, baseline.items)
    users = users_of(looking.events, day.end)
    measures |= _leave_out_users(looking, day, users, baseline, settings)
    _leave_out_farms(looking, day, users, baseline, settings)
    events = looking.events
    kept = without_left_out(LogRows(day.events, day.shown, Path()), looking.left_out)
    rows = shown_items(day, events, kept.shown)
    for name, count in (("volume", events.height), ("pages", kept.shown.height)):
        if count:
            measures[name] = Measure(math.log(count / day.hours))
    rates = {"like rate": like_rate(rows), "dislike rate": dislike_rate(day, events)}
    measures |= {name: rate for name, rate in rates.items() if rate is not None}
    refusing = [
        *missing(events.filter(day.is_like())["user_id"].n_unique(), tellers(rows), measures, baseline, settings),
        *too_many_left_out(looking.lost_users, users.height, settings),
        *unusual(measures, baseline, settings),
    ]
    findings = [*(one if one.waits else as_allowed(one, settings) for one in refusing), *looking.findings]
    reasons = "; ".join(one.reason for one in findings if one.refuses)
    return Inspection(
        span=looking.span,
        findings=findings,
        left_out=[LeftOut(looking.span, reasons)] if reasons else looking.left_out,
        baseline=baseline if reasons else baseline.after(measures, item_sums(day, events, rows), users, day.end),
        checked=[name for name in RULES if name in measures],
        measured={name: one.value for name, one in measures.items()},
        events=day.events.height,
    )


def _leave_out_copies(looking: _Looking, settings: GuardSettings) -> None:
    # Whoever reads the log knows these by their id: nothing more has to be left out.
    rows = same_id(looking.events)
    share = len(rows) / max(looking.events.height, 1)
    reason = f"{len(rows):,} events ({share:.1%}) have the id of an earlier one of their user"
    looking.drop(rows, "copies", reason, share)
    looking.leave_out_copies(
        within_moments(looking.events, settings.copy_seconds),
        "copies",
        f"came at most {settings.copy_seconds:g} s after the same one of their user, under another id; the first of "
        "each is kept",
    )
    again, lags = sent_again(looking.events, settings.copy_seconds, settings.false_alarms)
    told = ", ".join(f"{lag:,.0f}" for lag in lags[:3])
    looking.leave_out_copies(
        again,
        "sent again",
        f"are those of others once more, all of them {told} s later: a batch was sent again under new ids; the first "
        "of each is kept",
    )


def _pass_over_faulty(looking: _Looking, day: Day) -> dict[str, Measure]:
    """Events on unknown items, and with a wrong clock; the shares of both."""
    count = max(looking.events.height, 1)
    on_items = looking.events.filter(pl.col("item_id") != "")
    known = pl.Series("item_id", list(day.items), dtype=pl.String)
    unknown = on_items.join(known.to_frame(), on="item_id", how="anti")
    shares = {"unknown items": unknown.height / count}
    reason = (
        f"{unknown.height:,} of {count:,} events ({shares['unknown items']:.1%}) are on "
        f"{unknown['item_id'].n_unique():,} items that the item table lacks"
    )
    looking.drop(unknown[ROW], "unknown items", reason, shares["unknown items"])
    shown_at = day.shown.group_by("page").agg(pl.col("shown_at").min())
    early = looking.events.join(shown_at.filter(pl.col("page") != ""), on="page").filter(
        pl.col("timestamp") < pl.col("shown_at") - CLOCK_SECONDS
    )
    unvouched = looking.events.join(shown_at, on="page", how="anti")
    late = unvouched.filter(pl.col("received_at") - pl.col("timestamp") > LATE_SECONDS)
    shares["clock"] = (early.height + late.height) / count
    return {name: Measure(share) for name, share in shares.items()}


def _leave_out_users(
    looking: _Looking, day: Day, users: pl.DataFrame, baseline: Baseline, settings: GuardSettings
) -> dict[str, Measure]:
    """Bots, and what is beyond the bound of other users."""
    events = looking.events
    found = find_bots(day, events, baseline, settings.user_factor, settings.least_nights)
    named = found.left_out.join(users, on="user_id", maintain_order="left")
    for user_id, count, sign, digest in named.head(NAMED).select("user_id", "events", "sign", "user").rows():
        share = count / events.height
        reason = f"user {digest} is a bot: {sign}; its {count:,} events ({share:.1%} of the day) are left out"
        figures = {"events": float(count), "share": share}
        looking.leave_out_users(pl.Series([user_id]), "bot user", f"user {digest}", reason, figures)
    if (rest := named.slice(NAMED)).height:
        reason = f"{rest.height:,} more users are bots; their {rest['events'].sum():,} events are left out"
        figures = {"users": float(rest.height)}
        looking.leave_out_users(rest["user_id"], "bot user", f"{rest.height:,} users", reason, figures)
    known = found.capped.join(users, on="user_id", maintain_order="left")
    for user_id, since, digest in known.select("user_id", "since", "user").rows():
        reason = (
            f"user {digest} did more than {found.cap:,} things, {settings.user_factor:g} times as many as a busy user; "
            "the first of them count"
        )
        figures = {"cap": float(found.cap)}
        looking.leave_out_users(pl.Series([user_id]), "busy user", f"user {digest}", reason, figures, since)
    return found.busy


def _leave_out_farms(
    looking: _Looking, day: Day, users: pl.DataFrame, baseline: Baseline, settings: GuardSettings
) -> None:
    farms, made = find_farms(day, looking.events, users, baseline, settings.item_factor, settings.false_alarms)
    for item, likers, new, rise in farms.rows():
        reason = (
            f"item {item} is promoted: {rise:,.0f} times its usual share of likes, and {new:,} of its {likers:,} "
            "likers are new; those of them that like next to nothing else are left out"
        )
        figures = {"likers": float(likers), "new": float(new), "rise": float(rise)}
        accounts = made.filter(pl.col("item_id") == item)["user_id"]
        looking.leave_out_users(accounts, "click farm", f"item {item}", reason, figures)
