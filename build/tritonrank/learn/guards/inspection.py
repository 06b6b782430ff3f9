"""Looking through a day: what is left out, what is measured, and whether it is like the nights that were accepted.

    copies -> wrong clocks, unknown items -> bots -> farms -> measures against the baseline

What is left out is bounded that way and named, and the rest is learnt. A measure is beyond what is usual when a sound
day would be so seldom (``false_alarms``, shared out equally among the measures and their two sides) and it moved by as
much as the settings ask for. Then the whole day is refused: which of its rows are wrong, nobody knows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl
from scipy.stats import norm

from tritonrank.learn.guards.baseline import Baseline, Measure, Usual
from tritonrank.learn.guards.bots import find_bots
from tritonrank.learn.guards.copies import same_id, sent_again, within_moments
from tritonrank.learn.guards.day import ROW, Day
from tritonrank.learn.guards.farms import find_farms, users_of
from tritonrank.learn.guards.findings import Finding, Inspection
from tritonrank.learn.guards.labels import agreement, dislike_rate, item_sums, like_rate, shown_items
from tritonrank.recipe.guarding import GuardSettings

CLOCK_SECONDS = 300.0
"""By which the clocks of phones and gateways may differ: the gateway takes times so far ahead of its own."""
LATE_SECONDS = 3_600.0
"""After which an event that no page vouches for is counted as one with a wrong clock; it is learnt all the same."""
NAMED = 20
"""Users, and items, that get a finding each; the rest share one."""


@dataclass(frozen=True)
class Rule:
    """How a measure is read.

    Attributes:
        check: that it belongs to.
        what: it is of, in words.
        falls, rises: whether such a change refuses.
        enough: how much has to change at least: the usual value and the day's -> whether it did.
        shown_as: how a value is written.
    """

    check: str
    what: str
    falls: bool
    rises: bool
    enough: Callable[[GuardSettings, float, float], bool]
    shown_as: Callable[[float], str]


def _by_factor(settings: GuardSettings, usual: float, today: float) -> bool:
    return abs(today - usual) >= math.log(settings.least_change)


def _by_order(settings: GuardSettings, usual: float, today: float) -> bool:
    return usual - today >= settings.least_order_change


def _by_share(settings: GuardSettings, usual: float, today: float) -> bool:
    return today > settings.most_faulty


def _rate(logarithm: float) -> str:
    return f"{math.exp(logarithm):,.3g} an hour"


def _odds(logit: float) -> str:
    return f"{1 / (1 + math.exp(-logit)):.2%}"


def _chance(value: float) -> str:
    return f"{value:.3f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


RULES: Mapping[str, Rule] = {
    "volume": Rule("volume", "events", True, True, _by_factor, _rate),
    "pages": Rule("pages", "shown pages", True, True, _by_factor, _rate),
    "like rate": Rule("like rate", "the share of shown items that are liked", True, True, _by_factor, _odds),
    "dislike rate": Rule("skips", "the share of dislikes among likes and dislikes", True, True, _by_factor, _odds),
    "order": Rule(
        "order", "how often the liked one of two shown items stood above the other", True, False, _by_order, _chance
    ),
    "liking": Rule(
        "liking",
        "how often the liked one of two shown items had been liked more before",
        True,
        False,
        _by_order,
        _chance,
    ),
    "skips": Rule(
        "skips",
        "how often what a user likes had been disliked less before than what they dislike",
        True,
        False,
        _by_order,
        _chance,
    ),
    "unknown items": Rule(
        "unknown items", "the share of events on items that the item table lacks", False, True, _by_share, _share
    ),
    "clock": Rule("clock", "the share of events with a wrong clock", False, True, _by_share, _share),
}
SIDES = sum(rule.falls + rule.rises for rule in RULES.values())
ORDERS = ("order", "liking", "skips")
"""Chances that are a half where likes say nothing."""


class _Looking:
    """The rows that are still there, and what was found so far."""

    def __init__(self, day: Day) -> None:
        self.events = day.events.with_row_index(ROW)
        self.findings: list[Finding] = []
        self._likes = day.is_like()
        self.refused_pages: set[str] = set()
        self.lost_likes = 0

    def leave_out(
        self,
        rows: pl.Series,
        check: str,
        where: str,
        reason: str,
        figures: Mapping[str, float],
        *,
        copies: bool = False,
    ) -> None:
        """Take rows out. Pages lose their likes with them, unless they were copies: then they would teach dislike."""
        is_out = self.events[ROW].is_in(rows.implode())
        gone = self.events.filter(is_out)
        if gone.is_empty():
            return
        if not copies:
            likes = gone.filter(self._likes)
            self.lost_likes += likes.height
            self.refused_pages |= set(likes["page"].to_list()) - {""}
        self.events = self.events.filter(~is_out)
        self.findings.append(Finding(check, where, reason, dict(figures), left_out=gone.height))


def inspect(day: Day, baseline: Baseline, settings: GuardSettings) -> Inspection:
    """Look through a day of the log.

    Args:
        day: its rows, as the log has them.
        baseline: what accepted nights were like.
        settings: the recipe's ``learn.guards``.

    Returns:
        What was found, and the rows that may be learnt; where it ``refuses``, nothing of them.
    """
    looking = _Looking(day)
    measures: dict[str, Measure] = {}
    _leave_out_copies(looking, settings)
    measures |= _leave_out_faulty(looking, day)
    rows = shown_items(day, looking.events, day.shown)
    measures |= agreement(day, looking.events, rows, baseline.items)
    likes = looking.events.filter(day.is_like()).height
    measures |= _leave_out_users(looking, day, baseline, settings)
    users = users_of(looking.events, day.end)
    _leave_out_farms(looking, day, users, baseline, settings)
    events = looking.events
    shown = day.shown.filter(~pl.col("page").is_in(sorted(looking.refused_pages)))
    rows = shown_items(day, events, shown)
    measures |= {
        name: Measure(math.log(count / day.hours))
        for name, count in (("volume", events.height), ("pages", shown.height))
        if count
    }
    for name, measure in (("like rate", like_rate(rows)), ("dislike rate", dislike_rate(day, events))):
        if measure is not None:
            measures[name] = measure
    refusing = [
        *_nothing_there(day, events, measures, baseline, settings),
        *_too_much_left_out(looking, likes, settings),
        *_unusual(measures, baseline, settings),
    ]
    return Inspection(
        findings=[*(_as_allowed(one, settings) for one in refusing), *looking.findings],
        events=events.drop(ROW),
        shown=shown,
        baseline=baseline.after(measures, item_sums(day, events, rows), users, day.end),
        checked=[name for name in RULES if name in measures],
    )


def _leave_out_copies(looking: _Looking, settings: GuardSettings) -> None:
    before = looking.events.height
    rows = same_id(looking.events)
    share = len(rows) / max(before, 1)
    reason = f"{len(rows):,} of {before:,} events ({share:.1%}) have the id of an earlier one of their user"
    looking.leave_out(rows, "copies", "the whole day", reason, {"share": share}, copies=True)
    rows = within_moments(looking.events, settings.copy_seconds)
    share = len(rows) / max(before, 1)
    reason = (
        f"{len(rows):,} of {before:,} events ({share:.1%}) came at most {settings.copy_seconds:g} s after the same one "
        "of their user, under another id; the first of each is kept"
    )
    looking.leave_out(rows, "copies", "the whole day", reason, {"share": share}, copies=True)
    rows, lags = sent_again(looking.events, settings.copy_seconds, settings.false_alarms)
    share = len(rows) / max(before, 1)
    told = ", ".join(f"{lag:,.0f}" for lag in lags[:3])
    reason = (
        f"{len(rows):,} of {before:,} events ({share:.1%}) are those of others once more, all of them {told} s later. "
        "A batch was sent again under new ids; the first of each is kept"
    )
    looking.leave_out(rows, "sent again", "the whole day", reason, {"share": share, "lags": len(lags)}, copies=True)


def _leave_out_faulty(looking: _Looking, day: Day) -> dict[str, Measure]:
    """Events on unknown items and from before their page was shown; the shares of both."""
    count = max(looking.events.height, 1)
    on_items = looking.events.filter(pl.col("item_id") != "")
    known = pl.Series("item_id", list(day.items), dtype=pl.String)
    unknown = on_items.join(known.to_frame(), on="item_id", how="anti")
    shares = {"unknown items": unknown.height / count}
    reason = (
        f"{unknown.height:,} of {count:,} events ({shares['unknown items']:.1%}) are on "
        f"{unknown['item_id'].n_unique():,} items that the item table lacks"
    )
    looking.leave_out(unknown[ROW], "unknown items", "the whole day", reason, {"share": shares["unknown items"]})
    shown_at = day.shown.select("page", "shown_at").unique("page", keep="first")
    paged = looking.events.filter(pl.col("page") != "").join(shown_at, on="page", how="left")
    early = paged.filter(pl.col("timestamp") < pl.col("shown_at") - CLOCK_SECONDS)
    unvouched = looking.events.join(shown_at, on="page", how="anti")
    late = unvouched.filter(pl.col("received_at") - pl.col("timestamp") > LATE_SECONDS)
    shares["clock"] = (early.height + late.height) / count
    reason = (
        f"{early.height:,} of {count:,} events ({early.height / count:.1%}) happened more than {CLOCK_SECONDS:.0f} s "
        "before their page was shown: a clock is wrong"
    )
    looking.leave_out(early[ROW], "clock", "the whole day", reason, {"share": early.height / count})
    return {name: Measure(share) for name, share in shares.items()}


def _leave_out_users(looking: _Looking, day: Day, baseline: Baseline, settings: GuardSettings) -> dict[str, Measure]:
    """Bots, and what is beyond the bound of other users."""
    events = looking.events
    found = find_bots(day, events, baseline, settings.user_factor, settings.least_nights)
    digests = users_of(events.filter(pl.col("user_id").is_in(found.left_out["user_id"].implode())), day.end)
    named = found.left_out.join(digests, on="user_id", maintain_order="left")
    for user_id, count, sign, digest in named.head(NAMED).select("user_id", "events", "sign", "user").rows():
        share = count / max(events.height, 1)
        reason = f"user {digest} is a bot: {sign}; its {count:,} events ({share:.1%} of the day) are left out"
        rows = events.filter(pl.col("user_id") == user_id)[ROW]
        looking.leave_out(rows, "bot user", f"user {digest}", reason, {"events": count, "share": share})
    rest = found.left_out.tail(max(found.left_out.height - NAMED, 0))
    rows = events.join(rest, on="user_id", how="semi")[ROW]
    reason = f"{rest.height:,} more users are bots; their {len(rows):,} events are left out"
    looking.leave_out(rows, "bot user", f"{rest.height:,} users", reason, {"users": rest.height})
    reason = (
        f"{found.capped.height:,} users did more than {found.cap:,} things, {settings.user_factor:g} times as many as "
        "a busy user; the first of each count"
    )
    figures = {"users": found.capped.height, "cap": found.cap}
    looking.leave_out(found.rows, "busy user", f"{found.capped.height:,} users", reason, figures)
    return found.busy


def _leave_out_farms(
    looking: _Looking, day: Day, users: pl.DataFrame, baseline: Baseline, settings: GuardSettings
) -> None:
    events = looking.events
    farms, rows = find_farms(day, events, users, baseline, settings.item_factor, settings.false_alarms)
    for item, likers, new, rise in farms.rows():
        reason = (
            f"item {item} is promoted: {rise:,.0f} times its usual share of likes, and {new:,} of its {likers:,} "
            "likers are new and like next to nothing else; what they did with it is left out"
        )
        own = events.filter((pl.col("item_id") == item) & pl.col(ROW).is_in(rows.implode()))[ROW]
        figures = {"likers": float(likers), "new": float(new), "rise": float(rise)}
        looking.leave_out(own, "click farm", f"item {item}", reason, figures)


def _nothing_there(
    day: Day, events: pl.DataFrame, measures: Mapping[str, Measure], baseline: Baseline, settings: GuardSettings
) -> list[Finding]:
    """A day without likes, or without what accepted nights had."""
    if not events.filter(day.is_like()).height:
        return [Finding("empty", "the whole day", "nothing was liked on this day: there is nothing to learn", {}, True)]
    missing = []
    for name in ("pages", "order"):
        if name not in measures and baseline.usual(name, 0.0, 0.01, settings.least_nights) is not None:
            reason = (
                f"{RULES[name].what} cannot be told of this day, and could of accepted nights: the log lacks pages, "
                "or they are not those on which people acted"
            )
            missing.append(Finding(RULES[name].check, "the whole day", reason, {}, True))
    return missing


def _too_much_left_out(looking: _Looking, likes: int, settings: GuardSettings) -> list[Finding]:
    share = looking.lost_likes / max(likes, 1)
    if share <= settings.most_left_out:
        return []
    reason = (
        f"{share:.1%} of the likes had to be left out, more than learn.guards.most_left_out "
        f"({settings.most_left_out:.0%}): the rest is hardly better known"
    )
    return [Finding("left out", "the whole day", reason, {"share": share}, True)]


def _unusual(measures: Mapping[str, Measure], baseline: Baseline, settings: GuardSettings) -> list[Finding]:
    """Measures that a sound day has seldom."""
    error = settings.false_alarms / SIDES
    found = []
    for name, rule in RULES.items():
        if name not in measures:
            continue
        today = measures[name]
        usual = baseline.usual(name, today.error, error, settings.least_nights)
        if (
            usual is not None
            and _is_beyond(today.value, usual, rule)
            and rule.enough(settings, usual.mean, today.value)
        ):
            found.append(_against_usual(name, rule, today, usual, error))
        elif name in ORDERS and _is_turned(today, error):
            reason = f"{rule.what} is {today.value:.3f}, certainly below 0.5: likes and dislikes have changed places"
            found.append(Finding(rule.check, "the whole day", reason, {"value": today.value}, True))
    return found


def _is_beyond(today: float, usual: Usual, rule: Rule) -> bool:
    return (rule.falls and today < usual.low) or (rule.rises and today > usual.high)


def _is_turned(today: Measure, error: float) -> bool:
    """Whether likes certainly went to what had stood, or been liked, less: no accepted night is needed to say so."""
    return today.value + float(norm.isf(error)) * today.error < 0.5


def _against_usual(name: str, rule: Rule, today: Measure, usual: Usual, error: float) -> Finding:
    limit = usual.low if today.value < usual.mean else usual.high
    reason = (
        f"{rule.what}: {rule.shown_as(today.value)}, on {usual.nights} accepted nights "
        f"{rule.shown_as(usual.mean)} on average; beyond {rule.shown_as(limit)} is one sound day in {1 / error:,.0f}"
    )
    figures = {"value": today.value, "usual": usual.mean, "low": usual.low, "high": usual.high}
    return Finding(rule.check, "the whole day", reason, figures | {"nights": float(usual.nights)}, True)


def _as_allowed(found: Finding, settings: GuardSettings) -> Finding:
    """A finding that does not refuse where the recipe allows its check; else it says how to allow it."""
    if found.check in settings.allow:
        return Finding(found.check, found.where, f"{found.reason} (allowed)", found.figures)
    way_out = f"if that is as it should be, this once: --set 'learn.guards.allow=[\"{found.check}\"]'"
    return Finding(found.check, found.where, f"{found.reason}; {way_out}", found.figures, True)
