"""Is a day like the nights that were accepted? How each measure is read, and what it refuses for.

A measure is beyond what is usual when a sound day would be so seldom (``false_alarms``, shared out equally among the
measures and their two sides) and it moved by as much as the settings ask for. Then the whole day is refused: which of
its rows are wrong, nobody knows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.stats import norm

from tritonrank.learn.guards.baseline import Baseline, Measure, Usual
from tritonrank.learn.guards.findings import WHOLE_DAY, Finding
from tritonrank.learn.guards.labels import LEAST_USERS
from tritonrank.recipe.guarding import GuardSettings


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
SIDES = sum(rule.falls + rule.rises for rule in RULES.values()) + 1
"""Among which false alarms are shared out; one is the judge's (``judging.py``)."""
LEAST_TELLING_SHARE = 0.5
"""Of those who liked something; with less the pages are missing, and not the people."""
ORDERS = ("order", "liking", "skips")
"""Chances that are a half where likes say nothing."""


def was_told(name: str, baseline: Baseline, settings: GuardSettings) -> bool:
    """Whether accepted nights had this measure."""
    return baseline.usual(name, 0.0, 0.01, settings.least_nights) is not None


def missing(
    likers: int, tellers: int, measures: Mapping[str, Measure], baseline: Baseline, settings: GuardSettings
) -> list[Finding]:
    """A day without likes, or without what accepted nights had: who cannot look refuses, or waits for more people.

    Args:
        likers: users who liked anything.
        tellers: users who liked something of a page that is known, and not all of it.
        measures: of the day.
        baseline: of accepted nights.
        settings: the recipe's ``learn.guards``.
    """
    if not likers:
        return [Finding("empty", WHOLE_DAY, "nothing was liked on this day: there is nothing to learn", {}, True)]
    found = []
    for name in ("pages", "order"):
        if name not in measures and was_told(name, baseline, settings):
            if name == "order" and tellers < LEAST_USERS and tellers >= LEAST_TELLING_SHARE * likers:
                found.append(_too_few(tellers))
                continue
            reason = (
                f"{RULES[name].what} cannot be told of this day, and could of accepted nights: the log lacks pages, "
                "or they are not those on which people acted"
            )
            found.append(Finding(RULES[name].check, WHOLE_DAY, reason, {}, True))
    return found


def _too_few(tellers: int) -> Finding:
    reason = (
        f"{tellers} users liked something of a page that they were shown; whether likes go where they went on accepted "
        f"nights can be told from {LEAST_USERS} on. The next night takes these hours as well, and tells it of both"
    )
    return Finding("too few", WHOLE_DAY, reason, {"users": float(tellers)}, waits=True)


def too_many_left_out(left_out: int, users: int, settings: GuardSettings) -> list[Finding]:
    """A day of which more users are bots than the guards can tell from others."""
    share = left_out / max(users, 1)
    if share <= settings.most_left_out:
        return []
    reason = (
        f"{left_out:,} of {users:,} users ({share:.1%}) would have to be left out as bots or accounts of farms, more "
        f"than learn.guards.most_left_out ({settings.most_left_out:.0%}): what tells them from others no longer holds"
    )
    return [Finding("left out", WHOLE_DAY, reason, {"share": share}, True)]


def unusual(measures: Mapping[str, Measure], baseline: Baseline, settings: GuardSettings) -> list[Finding]:
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
            found.append(Finding(rule.check, WHOLE_DAY, reason, {"value": today.value}, True))
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
    return Finding(rule.check, WHOLE_DAY, reason, figures | {"nights": float(usual.nights)}, True)


def as_allowed(found: Finding, settings: GuardSettings) -> Finding:
    """A finding that does not refuse where the recipe allows its check; else it says how to allow it."""
    if found.check in settings.allow:
        return Finding(found.check, found.where, f"{found.reason} (allowed)", found.figures)
    way_out = f"if that is as it should be, this once: --set 'learn.guards.allow=[\"{found.check}\"]'"
    return Finding(found.check, found.where, f"{found.reason}; {way_out}", found.figures, True)
