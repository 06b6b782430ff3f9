"""Step ``inspect``: are the new hours what they seem (``guards/``)? What may not be learnt is written down.

Hours that were refused once are looked at once more, by the next night and apart from those that came since: what is
known of sound days may have grown, or somebody has allowed it (``learn.guards.allow``). If they are refused again they
are left out for good, and the night goes on with the rest. So a poisoned day costs a night and its own hours, no more.
"""

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from tritonrank.artifacts import write_whole
from tritonrank.data.event_log import read_rows
from tritonrank.data.tables import load_items
from tritonrank.errors import ArtifactError
from tritonrank.learn.exposure import exposure_by_day, liked_of
from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.guards.findings import NightInspection
from tritonrank.learn.guards.inspection import inspect_night
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.lists.left_out import LeftOut
from tritonrank.learn.lists.night_events import gains_of, log_of
from tritonrank.learn.lists.windows import Span
from tritonrank.learn.run import NothingNewError, Run
from tritonrank.recipe import TablesData

BASELINE = "baseline"
"""Folder of a night: what days are compared with, once this one is accepted."""
LEFT_OUT = "left_out"
"""Folder beside the nights': whose events and which pages none of them learns. It stays when a night's files go."""


def inspect_hours(run: Run) -> dict[str, Any]:
    """Look through the hours that no night has found sound yet, and write down what of them may not be learnt.

    Raises:
        NothingNewError: too few people were there to tell whether they are.
    """
    recipe, windows = run.recipe, run.windows
    again, fresh = spans_to_inspect(_earlier(run.ledger, run.night), Span(windows.new.start, windows.newest.end))
    rows = read_rows(log_of(recipe), again.start, fresh.end)
    items = _item_ids(run)

    def look(span: Span, baseline: Baseline) -> NightInspection:
        return inspect_night(rows, span, items, gains_of(recipe), baseline, recipe.learn.guards)

    inspected: list[NightInspection] = []
    baseline = baseline_of(run.ledger, run.night)
    for span in (again, fresh):
        if not span.is_empty:
            inspected.append(look(span, baseline))
            baseline = inspected[-1].baseline
    if inspected and (waiting := inspected[-1].waits_for):
        raise NothingNewError(waiting)
    baseline.write(run.ledger.folder_of(run.night) / BASELINE)
    left = [one for part in inspected for one in part.left_out]
    # Hours that were refused, and of which now too few people tell anything: more will not come for them.
    untold = inspected[0].waits_for if len(inspected) > 1 else ""
    left += [LeftOut(again, untold)] if untold else []
    _write_left_out(run.ledger, run.night, left)
    days = [day for part in inspected for day in part.as_json()["days"]]
    left_out = sum(day["left_out"] for day in days)
    refused = inspected[-1].refused if inspected else ""
    dropped = untold or (inspected[0].refused if len(inspected) > 1 else "")
    said = f"{left_out:,} of {sum(day['events'] for day in days):,} events left out"
    said += f"; hours that an earlier night refused are left out for good: {dropped}" if dropped else ""
    return {
        "refused": refused,
        "days": days,
        "findings": [finding for day in days for finding in day["findings"]],
        "left_out": left_out,
        "exposure": _exposure(run, items),
        "until": fresh.end,
        "said": f"refused: {refused}" if refused else said if days else "all of these hours were looked through before",
    }


def spans_to_inspect(earlier: Sequence[Night], read: Span) -> tuple[Span, Span]:
    """Of the hours that a night reads those that an earlier one refused, and those that nobody has looked through.

    Args:
        earlier: nights before it, of the same build, oldest first.
        read: the hours, whether they are learnt or judged.

    Returns:
        Both, one after the other. Where nothing has come since a night was refused, its hours are the second: they are
        what this night is about, and not left out.
    """
    sound, seen = read.start, read.start
    for night in earlier:
        inspected = night.told("inspect")
        if inspected:
            seen = max(seen, float(inspected["until"]))
            sound = sound if inspected["refused"] else max(sound, float(inspected["until"]))
    sound, seen = min(sound, read.end), min(seen, read.end)
    return (Span(sound, seen), Span(seen, read.end)) if seen < read.end else (Span(sound, sound), Span(sound, read.end))


def baseline_of(ledger: Ledger, night: Night) -> Baseline:
    """What sound days were like, as the accepted night left it that this one starts from."""
    return Baseline.read(ledger.folder_of(night.parent) / BASELINE) if night.parent else Baseline()


def left_out_of(ledger: Ledger, night: Night) -> list[LeftOut]:
    """All that this night and those before it found that no night may learn.

    Raises:
        ArtifactError: a file of it is missing or damaged.
    """
    sound = [one for one in _earlier(ledger, night) if one.told("inspect") and not one.told("inspect")["refused"]]
    return [entry for one in (*sound, night) for entry in _read_left_out(ledger, one)]


def _exposure(run: Run, items: Sequence[str]) -> list[dict[str, Any]]:
    """Who was shown on the days of these hours: the share of the most popular tenth, and Gini (``exposure.py``)."""
    windows, known = run.windows, pl.Series("item_id", items, dtype=pl.String)
    rows = read_rows(log_of(run.recipe), windows.read.start, windows.read.end)
    if rows.shown.is_empty():
        return []
    figures = exposure_by_day(rows.shown, liked_of(rows.events), known)
    first = pl.from_epoch(pl.lit(int(windows.new.start)), "s").dt.date()
    return [
        {"day": day.isoformat(), "top_tenth": None if tenths is None else tenths[0], "gini": gini}
        for day, tenths, gini in figures.filter(pl.col("day") >= first).select("day", "deciles", "gini").rows()
    ]


def _item_ids(run: Run) -> list[str]:
    """Of the items as they are now: a shop's own table may have new ones, other sources do not change."""
    if isinstance(run.recipe.data, TablesData):
        return load_items(run.recipe.data, run.recipe.text.template_fields)[0]["item_id"].to_list()
    return pl.read_parquet(run.workspace.dataset / "items.parquet", glob=False)["item_id"].to_list()


def _earlier(ledger: Ledger, night: Night) -> list[Night]:
    return [one for one in ledger.nights() if one.base == night.base and one.id < night.id]


def _write_left_out(ledger: Ledger, night: Night, left_out: Sequence[LeftOut]) -> None:
    """Ids of users are in no ledger and on no page, only here."""
    told = [one.as_json() for one in left_out]
    write_whole(ledger.folder / LEFT_OUT / f"{night.id}.json", json.dumps(told) + "\n")


def _read_left_out(ledger: Ledger, night: Night) -> list[LeftOut]:
    path = ledger.folder / LEFT_OUT / f"{night.id}.json"
    try:
        return [LeftOut.of_json(told) for told in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: what night {night.id} left out cannot be read ({error}). Put the file back, or begin anew from a "
            "build: tritonrank build RECIPE"
        ) from None
