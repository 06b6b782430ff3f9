"""Which column of two unknown tables is what: ids, texts, time, query, event type, price.

Names say something, values say more: the id of the items is the column of the events whose values the items table
has. Each guess comes with its reason, and with what else it could have been where that is close. Nothing is decided
here that a person cannot change in the recipe.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from tritonrank.data.column_looks import WHOLE_FRACTION, Looks, looks_of, overlap, overlap_without_zeros
from tritonrank.data.guess_events import Label, guess_label
from tritonrank.data.meanings import likely_columns, words_of
from tritonrank.errors import DataError

NAMEABLE = ("item_id", "user_id", "timestamp", "query", "label", "text")
"""What a person may name with --column."""
GENERAL_ID_WORDS = (["id"], ["code"], ["nr"], ["no"], ["number"], ["key"], ["uuid"])
LINKED = 0.05
"""Share of the events' ids that the items table has to have, for two columns to be taken for the same id. Both tables
are looked at in part, so that more cannot be asked for."""
HARDLY_ANY = 0.1
"""Share of the events that may be older than their items; more, and the date says something else."""
AVAILABLE = re.compile(r"online|since|creat|avail|releas|launch|listed|publish|added|first|from|start|neu|seit|ab_")
"""Names of dates that may say from when an item existed; an update or an end says nothing of it."""
MANY_WORDS = 0.5
"""Share of the cells with words, for a column to be taken for text."""
MOST_ATTRIBUTES = 4
"""Text fields beside title and description that the template names: each costs tokens."""
LONG_CHARACTERS = 80
"""In the median; longer texts come last in the template, where they are cut first."""


@dataclass(frozen=True)
class Guessed:
    """A column and what it is taken for."""

    meaning: str
    table: str
    """items or events"""
    column: str
    reason: str
    examples: tuple[str, ...] = ()
    unsure: str = ""
    """what a person should look at; empty: nothing"""


@dataclass(frozen=True)
class Guess:
    """Of both tables."""

    item_ids: tuple[str, str]
    """the column of the items, the column of the events"""
    user_id: str
    timestamp: str
    query: str | None
    label: Label | None
    available_from: str | None
    """of the items"""
    impressions: tuple[str, str] | None
    """columns of the list's id and of the position in it"""
    text_fields: tuple[str, ...]
    """in the order of the template, and after them those that it does not name"""
    template: str
    columns: tuple[Guessed, ...]
    """everything that was guessed, as it is shown"""
    left: Mapping[str, str]
    """``table.column`` -> why it is not used"""


def guess_columns(items: pl.DataFrame, events: pl.DataFrame, named: Mapping[str, str]) -> Guess:
    """Guess from the first rows of both tables.

    Args:
        items: its first rows.
        events: its first rows.
        named: what a person said, by meaning: a column, for text several with commas, for item_id one of each table
            with a colon where they differ.

    Raises:
        DataError: no column can be the id of an item, the id of a user or the time, or one that was named is not there;
            the message lists the columns and says how they are named instead.
    """
    if strangers := [meaning for meaning in named if meaning not in NAMEABLE]:
        raise DataError(f"--column {strangers[0]}=...: no such meaning; expected one of {', '.join(NAMEABLE)}")
    of_items, of_events = looks_of(items), looks_of(events)
    found: list[Guessed] = []
    in_items, in_events = _item_ids(*_only_ids(of_items, of_events, named), found)
    rest = {name: looks for name, looks in of_events.items() if name != in_events}
    timestamp = _timestamp(_only("timestamp", rest, named), found)
    rest.pop(timestamp)
    user_id = _user_id(_only("user_id", rest, named), found)
    rest.pop(user_id)
    impressions = _impressions(rest, found)
    for name in impressions or ():
        rest.pop(name)
    query = _query(_only("query", rest, named), found, is_named="query" in named)
    rest.pop(query, None)  # type: ignore[arg-type]  # None is no column
    choice = _only("label", rest, named)
    called = [choice[name] for name in likely_columns("label", list(choice))]
    label = guess_label([*called, *(x for x in choice.values() if x not in called and x.numbers is None)])
    if label:
        looks = rest.pop(label.column)
        found.append(Guessed("label", "events", label.column, label.reason, looks.examples, label.unsure))
    fields = {name: looks for name, looks in of_items.items() if name != in_items}
    if names := _named_texts(of_items, named):
        found += [_text("text", name, of_items[name], "") for name in names]
        texts, template = tuple(names), _template(names)
    else:
        texts, template = _texts(fields, in_items, found)
    dated = {name: looks for name, looks in fields.items() if looks.time and name not in texts}
    available_from = _available_from(dated, of_items[in_items], of_events[in_events], of_events[timestamp], found)
    used = {("items", one.column) for one in found if one.table == "items"}
    left = {f"items.{name}": _why_not(looks) for name, looks in fields.items() if ("items", name) not in used}
    left |= {f"events.{name}": "nothing that a recipe asks for" for name in rest if name != query}
    return Guess(
        (in_items, in_events),
        user_id,
        timestamp,
        query,
        label,
        available_from,
        impressions,
        texts,
        template,
        tuple(found),
        left,
    )


class GuessedEvents(NamedTuple):
    """Columns of a table of events alone."""

    item_id: str
    user_id: str
    timestamp: str
    query: str | None
    label: Label | None


def guess_events(events: pl.DataFrame, named: Mapping[str, str]) -> GuessedEvents:
    """As ``guess_columns``, without the items: by its name alone a column of the events is the id of an item."""
    looks = looks_of(events)
    called = likely_columns("item_id", list(looks))
    if "item_id" not in named and not called:
        raise DataError(
            "no column of the events is called like the id of an item. The columns are: "
            f"{', '.join(looks)}. Name it: --column item_id=COLUMN"
        )
    item_id = _there("item_id", named["item_id"], looks).name if "item_id" in named else called[0]
    found: list[Guessed] = []
    rest = {name: one for name, one in looks.items() if name != item_id}
    timestamp = _timestamp(_only("timestamp", rest, named), found)
    rest.pop(timestamp)
    user_id = _user_id(_only("user_id", rest, named), found)
    rest.pop(user_id)
    query = _query(_only("query", rest, named), found, is_named="query" in named)
    rest.pop(query, None)  # type: ignore[arg-type]  # None is no column
    choice = _only("label", rest, named)
    label = guess_label([choice[name] for name in likely_columns("label", list(choice))])
    return GuessedEvents(item_id, user_id, timestamp, query, label)


def _only(meaning: str, columns: Mapping[str, Looks], named: Mapping[str, str]) -> Mapping[str, Looks]:
    """The columns to choose from: the one that was named, or all."""
    if meaning not in named:
        return columns
    return {named[meaning]: _there(meaning, named[meaning], columns)}


def _there(meaning: str, name: str, columns: Mapping[str, Looks]) -> Looks:
    if name not in columns:
        raise DataError(f"--column {meaning}={name}: no such column; the columns are: {', '.join(columns)}")
    return columns[name]


def _only_ids(
    items: Mapping[str, Looks], events: Mapping[str, Looks], named: Mapping[str, str]
) -> tuple[Mapping[str, Looks], Mapping[str, Looks]]:
    if "item_id" not in named:
        return items, events
    of_items, _, of_events = named["item_id"].partition(":")
    return _only("item_id", items, {"item_id": of_items}), _only("item_id", events, {"item_id": of_events or of_items})


def _but_for_zeros(items: Mapping[str, Looks], events: Mapping[str, Looks]) -> str:
    """What to do where ids would meet if one table had not kept their leading zeros and the other lost them."""
    for name, looks in items.items():
        for other, other_looks in events.items():
            if looks.is_code and other_looks.is_code and overlap_without_zeros(other_looks, looks) >= LINKED:
                return (
                    f". Without leading zeros items.{name} and events.{other} hold the same ids: one table lost them, "
                    "as spreadsheets do. Write them alike in both, as text"
                )
    return ""


def _named_texts(columns: Mapping[str, Looks], named: Mapping[str, str]) -> list[str]:
    names = [name.strip() for name in named.get("text", "").split(",") if name.strip()]
    for name in names:
        _there("text", name, columns)
    return names


def _item_ids(items: Mapping[str, Looks], events: Mapping[str, Looks], found: list[Guessed]) -> tuple[str, str]:
    called_items, called_events = likely_columns("item_id", list(items)), likely_columns("item_id", list(events))
    users = likely_columns("user_id", list(events))[:1]
    scored = []
    for name, looks in items.items():
        if not looks.is_code or not len(looks.ids):
            continue
        by_name = _by_name(name, called_items) or 0.4 * (words_of(name)[-1:] in GENERAL_ID_WORDS)
        for other, other_looks in events.items():
            if not other_looks.is_code or other_looks.time:
                continue
            shared = overlap(other_looks, looks)
            both = by_name + _by_name(other, called_events) + 0.5 * (name == other) - (other in users)
            if shared >= LINKED:
                scored.append((2 * shared * looks.distinct_share + both, shared, name, other))
    if not scored:
        raise DataError(
            "no column of the events has ids that the items table has, so that nothing says which item an event is "
            f"about. Columns of the items: {', '.join(items)}; of the events: {', '.join(events)}. Name them: "
            f"--column item_id=COLUMN, or --column item_id=OF_THE_ITEMS:OF_THE_EVENTS{_but_for_zeros(items, events)}"
        )
    scored.sort(key=lambda one: -one[0])
    score, shared, name, other = scored[0]
    close = [f"{a} = {b}" for other_score, _, a, b in scored[1:] if other_score > 0.8 * score]
    repeated = 1 - items[name].distinct_share
    reason = f"{shared:.0%} of the {len(events[other].ids):,} different values of events.{other} are in it"
    reason += f"; {repeated:.0%} of its rows repeat an id" if repeated > 0 else "; each occurs once"
    unsure = f"could be {close[0]}" if close else ""
    found.append(Guessed("item_id", "items", name, reason, items[name].examples, unsure))
    said = "the same ids" if _kind(items[name]) == _kind(events[other]) else "the same ids, in another type"
    found.append(Guessed("item_id", "events", other, said, events[other].examples))
    return name, other


def _kind(looks: Looks) -> str:
    cells = looks.given.head(1).to_list()
    return "none" if not cells else "fraction" if "." in cells[0] else "whole" if looks.is_whole else "text"


def _by_name(name: str, called: Sequence[str]) -> float:
    """1 for the likeliest name, less for those after it, 0 for others."""
    return 1 - 0.15 * called.index(name) if name in called else 0.0


def _timestamp(columns: Mapping[str, Looks], found: list[Guessed]) -> str:
    times = {name: looks for name, looks in columns.items() if looks.time}
    called = likely_columns("timestamp", list(columns))
    if not times:
        raise DataError(
            "no column of the events holds times: dates such as 2020-09-13T12:00:00Z, or seconds or milliseconds since "
            f"1970. The columns are: {', '.join(columns)}. Name it: --column timestamp=COLUMN"
        )
    # The finest one: a day says less than a second.
    best = max(times, key=lambda name: (round(_by_name(name, called), 2), len(times[name].ids)))
    looks = times[best]
    unit, _, _ = looks.time or ("", 0, 0)
    others = [name for name in times if name != best]
    unsure = f"{', '.join(others)} holds times, too" if others and best not in called else ""
    in_order = ", in order" if looks.numbers is not None and looks.numbers.is_sorted() else ""
    found.append(Guessed("timestamp", "events", best, f"{unit}, {looks.period}{in_order}", looks.examples, unsure))
    return best


def _user_id(columns: Mapping[str, Looks], found: list[Guessed]) -> str:
    called = likely_columns("user_id", list(columns))
    # An id that comes again, for no user does a single thing only; and one of many.
    fit = {n: x for n, x in columns.items() if x.is_code and not x.time and 1 < len(x.ids) <= 0.9 * len(x.given)}
    named = [name for name in called if name in fit] or [name for name in called if columns[name].is_code]
    if not named and not fit:
        raise DataError(
            "no column of the events can be the id of a user: one that comes again, of many. The columns are: "
            f"{', '.join(columns)}. Name it: --column user_id=COLUMN"
        )
    best = named[0] if named else max(fit, key=lambda name: len(fit[name].ids))
    looks = columns[best]
    reason = f"{len(looks.ids):,} different, {len(looks.given) / max(len(looks.ids), 1):.1f} events each"
    reason = f"called so; {reason}" if named else reason
    unsure = "" if named else "by its values alone"
    if "session" in words_of(best):
        unsure = "sessions, not people: histories are as short as a visit"
    found.append(Guessed("user_id", "events", best, reason, looks.examples, unsure))
    return best


def _query(columns: Mapping[str, Looks], found: list[Guessed], *, is_named: bool) -> str | None:
    for name in list(columns) if is_named else likely_columns("query", list(columns)):
        looks = columns[name]
        if looks.numbers is None and looks.words_share >= MANY_WORDS:
            reason = f"called so; {looks.filled:.0%} of the events have one, {len(looks.ids):,} different"
            found.append(Guessed("query", "events", name, reason, looks.examples))
            return name
    return None


def _impressions(columns: Mapping[str, Looks], found: list[Guessed]) -> tuple[str, str] | None:
    for position in likely_columns("position", list(columns)):
        places = columns[position]
        for name in likely_columns("impression", list(columns)):
            lists = columns[name]
            if name != position and places.is_whole and lists.is_code and lists.distinct_share < 1:
                each = len(lists.given) / max(len(lists.ids), 1)
                found.append(Guessed("impression", "events", name, f"{each:.1f} rows each", lists.examples))
                found.append(Guessed("position", "events", position, "the place in the list", places.examples))
                return name, position
    return None


def _texts(columns: Mapping[str, Looks], item_id: str, found: list[Guessed]) -> tuple[tuple[str, ...], str]:
    """The fields that the template may use, and the template."""
    wordy = [name for name, looks in columns.items() if looks.words_share >= MANY_WORDS and len(looks.ids) > 1]
    if not wordy:
        raise DataError(
            "no column of the items holds text, and a ranker reads texts. The columns are: "
            f"{item_id}, {', '.join(columns)}. Name them: --column text=COLUMN,COLUMN"
        )
    titles = [name for name in likely_columns("title", wordy) if name in wordy]
    title = titles[0] if titles else max(wordy, key=lambda name: columns[name].distinct_share)
    unsure = "" if titles else "by its values alone: the most different short texts"
    others = [name for name in wordy if name != title and columns[name].time is None]
    short = [name for name in others if columns[name].characters <= LONG_CHARACTERS]
    long = sorted((name for name in others if name not in short), key=lambda name: columns[name].characters)
    known = likely_columns("text", short)
    attributes = [*known, *(name for name in short if name not in known)]
    in_template = [title, *attributes[:MOST_ATTRIBUTES], *long[:1]]
    found.append(_text("title", title, columns[title], unsure))
    for name in [*attributes, *long]:
        beyond = "" if name in in_template else "not in the template: it would be long; add it if it matters"
        found.append(_text("text", name, columns[name], beyond))
    numbers = [name for name in likely_columns("price", list(columns)) if columns[name].numbers is not None]
    found += [_number(name, columns[name]) for name in numbers]
    fields = (*in_template, *(name for name in [*attributes, *long] if name not in in_template), *numbers)
    return fields, _template(in_template)


def field_name(column: str) -> str:
    """What a template calls a column: letters, digits and underscores alone."""
    return column if re.fullmatch(r"\w+", column) else "_".join(words_of(column)) or "field"


def _template(names: Sequence[str]) -> str:
    # By blanks: a comma would stay where a field is empty, and costs a token.
    return " ".join(f"{{{field_name(name)}}}" for name in names)


def _available_from(
    dated: Mapping[str, Looks], item_ids: Looks, event_ids: Looks, times: Looks, found: list[Guessed]
) -> str | None:
    """The time from which an item existed: one that hardly any event is older than."""
    happened = pl.DataFrame({"id": _plain_ids(event_ids.cells), "at": times.seconds}).drop_nulls()
    chosen = None
    for name, looks in dated.items():
        existed = pl.DataFrame({"id": _plain_ids(item_ids.cells), "from": looks.seconds}).drop_nulls()
        both = happened.join(existed.unique("id", keep="last"), on="id")
        early = (both["at"] < both["from"]).sum() / max(both.height, 1)
        unit = looks.time[0] if looks.time else ""
        reason = f"{unit}, {looks.period}; {early:.1%} of the events about its items are older"
        is_chosen = chosen is None and both.height > 0 and early <= HARDLY_ANY and AVAILABLE.search(name.casefold())
        meaning = "available from" if is_chosen else "date"
        found.append(Guessed(meaning, "items", name, reason if is_chosen else f"{reason}; not used", looks.examples))
        chosen = name if is_chosen else chosen
    return chosen


def _plain_ids(cells: pl.Series) -> pl.Series:
    return cells.str.replace(WHOLE_FRACTION, "$1")


def _text(meaning: str, name: str, looks: Looks, unsure: str) -> Guessed:
    reason = f"words, {looks.characters:.0f} characters in the median, {len(looks.ids):,} different"
    reason += f"; {1 - looks.filled:.0%} empty" if looks.filled < 1 else ""
    if looks.html_share > 0:
        reason += f"; {looks.html_share:.0%} hold HTML, which is not read"
    return Guessed(meaning, "items", name, reason, looks.examples, unsure)


def _number(name: str, looks: Looks) -> Guessed:
    values = looks.numbers.to_list() if looks.numbers is not None else [0.0]
    reason = f"numbers from {min(values):g} to {max(values):g}; the template may name it"
    return Guessed("price", "items", name, reason, looks.examples)


def _why_not(looks: Looks) -> str:
    if not len(looks.given):
        return "empty"
    if len(looks.ids) == 1:
        return "the same everywhere"
    if looks.is_flag:
        return "yes or no"
    return "numbers" if looks.numbers is not None else "codes, addresses or structures: no text"
