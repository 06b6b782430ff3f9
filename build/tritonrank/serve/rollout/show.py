"""The status of a rollout for people: where it is, what each rule reads, who has what, and the last decisions."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

COLOURS = {"good": "green", "unsure": "yellow", "bad": "red"}


def show(status: Mapping[str, Any], console: Console) -> None:
    """Print it."""
    rollout = status["rollout"]
    if status["problem"]:
        console.print(f"The last look failed: {status['problem']}", style="red", markup=False)
    if rollout is None:
        console.print("No rollout yet: tritonrank rollout start SOURCE", markup=False)
    else:
        console.print(_headline(rollout), markup=False)
        console.print(f"  {rollout['reason']}", markup=False)
        exposure = status["exposure"]
        share = exposure["by_version"] / exposure["in_all"] if exposure["in_all"] else 0.0
        console.print(
            f"  users were given {exposure['by_version']:,.0f} of its rankings, {share:.2%} of all since then",
            markup=False,
        )
        if status["readings"]:
            console.print(_readings(status["readings"]))
    if status["gateways"] or status["tritons"]:
        console.print(_places(status))
    if status["ledger"]:
        console.print(_ledger(status["ledger"]))


def _headline(rollout: Mapping[str, Any]) -> str:
    where = rollout["phase"]
    if where == "canary":
        where = f"canary for {100 * rollout['share']:g}% of the users"
    step = f", step {rollout['step'] + 1} of {rollout['steps']}" if where != "done" else ""
    held = ", held" if rollout["is_held"] else ""
    return f"{rollout['name']}: {where}{step}{held}, for {rollout['seconds'] / 60:.1f} minutes"


def _readings(readings: list[Mapping[str, Any]]) -> Table:
    table = Table("rule", "of", "reads", "certainly from", "to", "limit", "of so many", "")
    for one in readings:
        numbers = ["" if one[name] is None else f"{one[name]:g}" for name in ("value", "low", "high", "limit")]
        verdict = one["verdict"]
        table.add_row(one["rule"], one["what"], *numbers, f"{one['count']:,}", verdict, style=COLOURS[verdict])
    return table


def _places(status: Mapping[str, Any]) -> Table:
    table = Table("place", "live", "shadow", "canary", "versions")
    for one in status["gateways"]:
        table.add_row(one["url"], one["live"] or one["problem"], one["shadow"], one["canary"], "")
    for one in status["tritons"]:
        has = ", ".join(f"{name} ({state})" for name, state in one["versions"].items())
        table.add_row(one["url"], one["live"] or one["problem"], "", "", has)
    return table


def _ledger(lines: list[Mapping[str, Any]]) -> Table:
    table = Table("time", "decision", "by", "why")
    for line in lines:
        table.add_row(line["time"], line["decision"], line["by"], line["reason"])
    return table
