"""What another order would have earned in clicks, as a table for people and a line of JSON for scripts."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tritonrank.system.dates import day_of

ESTIMATES = {
    "ips": "IPS: clicks weighed by place",
    "snips": "SNIPS: the same, normalized",
    "dr": "DR: with what a model of the clicks expects",
}
PLACES_SHOWN = 10

console = Console()


def show_clicks(found: Mapping[str, Any], model: str) -> None:
    """Print what ``other_orders.estimate_clicks`` found of a ranker, and all of it as the last line."""
    console.print(
        f"{found['pages']:,} pages of {found['users']:,} users, {day_of(found['from'])} to {day_of(found['until'])}, "
        f"{found['clicks']:,} clicks; {found['moved']:.1%} of the items stood where a lot had put them",
        highlight=False,
    )
    looked = " ".join(f"{value:.2f}" for value in found["looked_at"][:PLACES_SHOWN])
    console.print(f"how likely a place is looked at, from the top: {looked}", highlight=False)
    table = Table(title=f"Clicks per page: the order that was served, and that of {model}")
    for name, justify in (("", "left"), ("served", "right"), ("ranker", "right"), ("ranker is better by", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # one of two words
    for estimator, row in found["clicks_per_page"].items():
        table.add_row(
            ESTIMATES[estimator], _cell(row["live"]), _cell(row["ranker"]), _cell(row["difference"], sign="+")
        )
    console.print(table)
    console.print(_verdict(found["clicks_per_page"]["dr"]["difference"]), highlight=False)
    print(json.dumps(found))


def _cell(told: Mapping[str, float], sign: str = "") -> str:
    return f"{told['value']:{sign}.3f} [{told['low']:{sign}.3f}, {told['high']:{sign}.3f}]"


def _verdict(difference: Mapping[str, float]) -> str:
    sure = f"{difference['level']:.0%}"
    if difference["low"] > 0:
        return f"By DR the ranker's order gets more clicks; the {sure} interval lies above 0."
    if difference["high"] < 0:
        return f"By DR the ranker's order gets fewer clicks; the {sure} interval lies below 0."
    return f"By DR nothing is decided: the {sure} interval includes 0. More pages make it narrower."
