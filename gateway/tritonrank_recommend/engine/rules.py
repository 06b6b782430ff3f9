"""The shop's own rules, from a TOML file: what is never shown, what always holds, what is raised, what stands where.

Each table of the file is one class here, and each key one attribute. A file that is wrong is refused by key; one that
changes while serving and is wrong leaves the rules before it in force.
"""

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tritonrank_recommend.catalogue.columns import FilterError
from tritonrank_recommend.engine.filters import check_filters
from tritonrank_recommend.events import EventType

LOG = logging.getLogger("tritonrank_recommend")
MOST_POSITION = 199
Conditions = dict[str, Any]
"""On fields of an item, in the words of ``filters`` in a request."""


class RulesError(ValueError):
    """A rules file that cannot be used; the message names the file and the key."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a rule is in force.

    Attributes:
        context: what the request's context must hold, such as ``{page = "home"}``.
        begins, until: days in UTC, the last one included.
    """

    context: dict[str, str] = {}
    begins: datetime.date | None = None
    until: datetime.date | None = None

    def holds(self, context: Mapping[str, str], now: float) -> bool:
        """Whether the rule is in force for a request with this context at this time (unix seconds)."""
        if any(context.get(name) != value for name, value in self.context.items()):
            return False
        if self.begins is None and self.until is None:
            return True
        today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
        return (self.begins is None or self.begins <= today) and (self.until is None or today <= self.until)


class Cap(Rule, frozen=True, kw_only=True):
    """At most ``most`` of the first ``first`` items have the same value in ``field``; of a list each value counts."""

    field: Annotated[str, Meta(min_length=1)]
    most: Annotated[int, Meta(ge=1)]
    first: Annotated[int, Meta(ge=1, le=MOST_POSITION + 1)] = 20


class Boost(Rule, frozen=True, kw_only=True):
    """Raises or lowers items.

    Attributes:
        when: conditions on the item's fields; none are met by every item.
        add: in standard deviations of the request's scores; 1 lifts an average item among the best sixth.
        multiply: the same as a factor: ``multiply = f`` is ``add = ln f``; below 1 it lowers.
        by: a numeric field by whose value the effect is multiplied; an item without it is left alone.
    """

    when: Conditions = {}
    add: float = 0.0
    multiply: Annotated[float, Meta(gt=0)] = 1.0
    by: str = ""


class Pin(Rule, frozen=True, kw_only=True):
    """An item that stands at ``position`` (from 0), unless a filter or an exclusion keeps it out.

    With ``query`` only where that was searched for, whatever its case.
    """

    item_id: Annotated[str, Meta(min_length=1)]
    position: Annotated[int, Meta(ge=0, le=MOST_POSITION)]
    query: str | None = None


class SeenItems(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``exclude_seen`` leaves out: items with an event of these types, in the last ``days``; 0 is for ever."""

    types: tuple[EventType, ...] = ("purchase", "rating", "skip")
    days: Annotated[float, Meta(ge=0)] = 0.0


class NewItems(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the first ``first`` items at least this share is not older than ``days``, as far as there are such."""

    share: Annotated[float, Meta(ge=0, le=1)]
    days: Annotated[float, Meta(gt=0)] = 30.0
    first: Annotated[int, Meta(ge=1, le=MOST_POSITION + 1)] = 20


class Explore(Rule, frozen=True, kw_only=True):
    """Neighbours among the first ``first`` items change places with the probability ``swap``, see ``exploring.py``."""

    swap: Annotated[float, Meta(gt=0, le=0.5)]
    first: Annotated[int, Meta(ge=2, le=MOST_POSITION + 1)] = 20


class Blocked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items that are never shown."""

    item_ids: frozenset[str] = frozenset()


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All rules; without a file these defaults."""

    seen: SeenItems = SeenItems()
    filters: Conditions = {}
    block: Blocked = Blocked()
    cap: list[Cap] = []
    boost: list[Boost] = []
    pin: list[Pin] = []
    new: NewItems | None = None
    explore: Explore | None = None


def read_rules(path: Path) -> Rules:
    """The rules of a file.

    Raises:
        RulesError: it cannot be read, or a key is wrong.
    """
    try:
        rules = msgspec.toml.decode(path.read_bytes(), type=Rules)
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise RulesError(_said(path, f"{key}: {said}" if key else said)) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise RulesError(_said(path, str(error))) from error
    try:
        check_filters(rules.filters)
        for place, boost in enumerate(rules.boost):
            check_filters(boost.when, f"boost[{place}].when")
    except FilterError as error:
        raise RulesError(_said(path, str(error))) from None
    for place, boost in enumerate(rules.boost):
        if boost.add == 0.0 and boost.multiply == 1.0:
            raise RulesError(_said(path, f"boost[{place}]: expected `add` or `multiply`; it changes nothing"))
    taken: set[tuple[object, ...]] = set()
    for place, pin in enumerate(rules.pin):
        where_it_stands = (pin.position, pin.query, tuple(sorted(pin.context.items())), pin.begins, pin.until)
        if where_it_stands in taken:
            raise RulesError(_said(path, f"pin[{place}].position: another pin stands at {pin.position}"))
        taken.add(where_it_stands)
    return rules


def _said(path: Path, what: str) -> str:
    return f"{path}: {what}; docs/recommend.md has the tables and keys"


class RulesFile:
    """The rules of a file, read again when it changes.

    Args:
        path: None for the default rules.

    Raises:
        RulesError: the file is wrong at the start.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = self._look()
        self.rules = read_rules(path) if path is not None else Rules()
        self.failures = 0

    def refresh(self) -> bool:
        """Read the file again if it changed; whether new rules are in force. A wrong one is logged and not taken."""
        stamp = self._look()
        if self._path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.rules = read_rules(self._path)
        except RulesError as error:
            self.failures += 1
            LOG.warning("%s; the rules before it stay in force", error)
            return False
        return True

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)
