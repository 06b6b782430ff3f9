"""The ledger as a page: ``nights.html`` beside it, and as a table. It needs nothing from elsewhere.

What is drawn was measured by the nights themselves; nothing is computed here but differences.
"""

import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank import report as report_room
from tritonrank.artifacts import write_whole
from tritonrank.learn.judging import Compared
from tritonrank.learn.ledger import STEPS, Ledger, Night
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.rows import IntervalRow, interval_plot
from tritonrank.report.plots.svg import figure

PAGE_FILE = "nights.html"
NEW, LIVE, OLD = 1, 5, 3
"""Colours of the page's palette."""
PLOTTED = ("newest", "frozen", "old")
"""Judged sets that every night has, as far as there is data for them."""
SHOWN = 10
"""Nights in the terminal's table, newest last; the page has all."""
OPEN = "under way, or cut off"

console = Console()


def write_page(ledger: Ledger, recipe: str) -> Path:
    """Write the page of all nights; raises StorageError."""
    nights = ledger.nights()
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *map(Path, report_room.__path__)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "utc": _utc}
    rendered = environment.get_template("nights.html.j2").render(
        recipe=recipe,
        headline=headline(nights),
        mood=_mood(nights),
        nights=list(reversed(nights)),
        rows={night.id: judged(night) for night in nights},
        findings={night.id: night.told("inspect").get("findings", []) for night in nights},
        outcome=in_words,
        steps=STEPS,
        curves=[(name, curve(nights, name)) for name in PLOTTED],
        last=judged_plot(nights),
        seconds=seconds_plot(nights),
        learnt=learnt_plot(nights),
        exposure=exposure_plot(nights),
    )
    return write_whole(ledger.folder / PAGE_FILE, rendered)


def judged(night: Night) -> list[Compared]:
    """What the judge of a night found, window by window and segment by segment."""
    return [Compared(**row) for row in night.told("judge").get("compared", [])]


def headline(nights: Sequence[Night]) -> str:
    """What the last night came to."""
    if not nights:
        return "No night yet."
    last = nights[-1]
    return f"The last night, {last.id}, is {in_words(last)}. {last.reason}".strip()


def in_words(night: Night) -> str:
    """Its outcome, and what became of it."""
    if night.is_open:
        return OPEN
    if night.outcome != "accepted":
        return "without anything new" if night.outcome == "nothing" else night.outcome
    return {"live": "accepted and live", "back": "accepted, then taken back", "": "accepted"}[night.decision]


def curve(nights: Sequence[Night], name: str) -> Markup:
    """NDCG@10 of one judged set, night by night: what served, and what was learnt."""
    points: dict[str, list[tuple[float, float | None]]] = {"live": [], "new": []}
    for number, night in enumerate(nights, start=1):
        for row in judged(night):
            if row.name == name:
                points["live"].append((number, row.live_ndcg))
                points["new"].append((number, row.new_ndcg))
    series = [
        Series("served", points["live"], LIVE, dashed=True, dots=True),
        Series("learnt", points["new"], NEW, dots=True),
    ]
    return line_plot(series, x_label="night", y_label=f"NDCG@10, {name}")


def judged_plot(nights: Sequence[Night]) -> Markup:
    """The last judged night's differences, each with its interval."""
    rows = next((rows for night in reversed(nights) if (rows := judged(night))), [])
    drawn = [
        IntervalRow(row.name, -100 * row.drop, -100 * row.high, -100 * row.low, NEW if row.passed else 2)
        for row in rows
    ]
    return interval_plot(drawn, x_label="change of NDCG@10, %") if drawn else Markup("")


def seconds_plot(nights: Sequence[Night]) -> Markup:
    """Minutes that each night took, and its training of them."""
    whole = [(float(number), _seconds(night) / 60) for number, night in enumerate(nights, start=1) if night.steps]
    training = [
        (float(number), float(night.told("finetune")["seconds"]) / 60)
        for number, night in enumerate(nights, start=1)
        if night.told("finetune")
    ]
    series = [Series("whole night", whole, LIVE, dots=True), Series("training", training, NEW, dots=True)]
    return line_plot(series, x_label="night", y_label="minutes")


def learnt_plot(nights: Sequence[Night]) -> Markup:
    """Events that each night read, and of them those that were left out."""
    events = [
        (float(number), float(night.told("collect")["events"]))
        for number, night in enumerate(nights, start=1)
        if "events" in night.told("collect")
    ]
    left_out = [
        (float(number), float(night.told("inspect")["left_out"]))
        for number, night in enumerate(nights, start=1)
        if "left_out" in night.told("inspect")
    ]
    series = [Series("read", events, NEW, dots=True), Series("left out", left_out, 2, dots=True)]
    return line_plot(series, x_label="night", y_label="events")


def exposure_plot(nights: Sequence[Night]) -> Markup:
    """Whether lists become narrower while they are learnt from: by day, as the last night to see it counted."""
    days = {row["day"]: row for night in nights for row in night.told("inspect").get("exposure", [])}
    if not days:
        return Markup("")
    ordinals = {day: datetime.date.fromisoformat(day).toordinal() for day in sorted(days)}
    first = min(ordinals.values())
    top, gini = (
        [(float(place - first), days[day][name]) for day, place in ordinals.items()] for name in ("top_tenth", "gini")
    )
    series = [Series("most popular tenth", top, NEW, dots=True), Series("Gini", gini, 2, dots=True)]
    return line_plot(series, x_label="day", y_label="share of what was shown; Gini")


def show(nights: Sequence[Night]) -> None:
    """The last nights as a table, for people."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("night", "came to"):
        table.add_column(column, no_wrap=column == "night")
    for column in ("hours", "events", "left out", "newest", "frozen", "min"):
        table.add_column(column, justify="right", no_wrap=True)
    for night in nights[-SHOWN:]:
        sets = {row.name: row for row in judged(night)}
        changes = [f"{-sets[name].drop:+.2%}" if name in sets else "-" for name in ("newest", "frozen")]
        collected, inspected = night.told("collect"), night.told("inspect")
        counts = [
            f"{collected['hours']:,.0f}" if "hours" in collected else "-",
            f"{collected['events']:,}" if "events" in collected else "-",
            f"{inspected['left_out']:,}" if "left_out" in inspected else "-",
        ]
        table.add_row(night.id, in_words(night), *counts, *changes, f"{_seconds(night) / 60:.1f}")
    console.print(table)


def show_night(night: Night) -> None:
    """What one night did, step by step, and what it was judged by."""
    table = Table(title=f"night {night.id}", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("what it did", overflow="fold")
    for name in STEPS:
        told = night.told(name)
        if told:
            table.add_row(name, f"{told['seconds']:.1f}", str(told.get("said", "")))
    console.print(table)
    if rows := judged(night):
        sets = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        sets.add_column("judged on")
        for column in ("lists", "served", "learnt", "change [95%]"):
            sets.add_column(column, justify="right", no_wrap=True)
        sets.add_column("")
        for row in rows:
            cells = [f"{row.lists:,}", f"{row.live_ndcg:.4f}", f"{row.new_ndcg:.4f}"]
            cells.append(f"{-row.drop:+.1%} [{-row.high:+.1%}, {-row.low:+.1%}]")
            sets.add_row(row.name, *cells, "" if row.passed else row.reason, style="" if row.passed else "red")
        console.print(sets)
    for finding in night.told("inspect").get("findings", []):
        console.print(f"  {finding['reason']}", style="red" if finding["refuses"] else "yellow", markup=False)
    style = {"accepted": "green", "refused": "red", "failed": "red"}.get(night.outcome, "")
    console.print(f"{in_words(night)}: {night.reason}", style=style, markup=False, highlight=False, soft_wrap=True)


def result(night: Night) -> Mapping[str, Any]:
    """What scripts need, JSON-able."""
    return {
        "night": night.id,
        "parent": night.parent,
        "outcome": night.outcome,
        "decision": night.decision,
        "reason": night.reason,
        "steps": {name: night.told(name)["seconds"] for name in night.steps},
        "build": night.told("build").get("build"),
        "source": night.told("publish").get("source"),
        "sets": list(night.told("judge").get("compared", [])),
    }


def _mood(nights: Sequence[Night]) -> str:
    if not nights or nights[-1].is_open or nights[-1].outcome == "nothing":
        return ""
    return "good" if nights[-1].stands else "bad"


def _seconds(night: Night) -> float:
    return sum(float(told["seconds"]) for told in night.steps.values())


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))
