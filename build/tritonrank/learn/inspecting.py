"""Step ``inspect``: are the new hours what they seem (``guards/``)? What is left out is written down for the examples.

Hours that were refused once are looked at once more, by the next night and apart from those that came since: what is
known of sound days may have grown, or somebody has allowed it. If they are refused again they are left out, and the
night goes on with the rest. So a poisoned day costs a night and its own hours, and no more.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from tritonrank.artifacts import write_whole
from tritonrank.data.event_log import KNOWN_AT, read_rows
from tritonrank.data.loading import load_tables
from tritonrank.errors import ArtifactError
from tritonrank.learn.guards.baseline import Baseline
from tritonrank.learn.guards.day import Day
from tritonrank.learn.guards.findings import Inspection
from tritonrank.learn.guards.inspection import inspect
from tritonrank.learn.ledger import Ledger, Night
from tritonrank.learn.left_out import LeftOut
from tritonrank.learn.night_events import gains_of, log_of
from tritonrank.learn.run import Run
from tritonrank.learn.windows import Span, Windows

BASELINE = "baseline"
"""Folder of a night: what days are compared with, once this one is accepted."""
LEFT_OUT = "left_out"
"""Folder beside the nights': whose events and which pages none of them learns. It stays when a night's files go."""


def inspect_night(run: Run) -> dict[str, Any]:
    """Look through the new hours, and write down what of them may be learnt."""
    windows, recipe = run.windows, run.recipe
    spans = parts_of(windows.new, refused_before(run.ledger, run.night))
    rows = read_rows(log_of(recipe), windows.new.start, windows.new.end)
    items = load_tables(recipe.data, recipe.seed, recipe.text.template_fields).items["item_id"].to_list()
    baseline = baseline_of(run.ledger, run.night.parent)
    found: list[Inspection] = []
    left_out: list[LeftOut] = []
    for span in spans:
        events, shown = _within(rows.events, span), _within(rows.shown, span)
        inspection = inspect(
            Day(events, shown, span.start, span.end, items, gains_of(recipe)), baseline, recipe.learn.guards
        )
        found.append(inspection)
        if inspection.refuses:
            left_out.append(LeftOut(span, inspection.reasons[0]))
            continue
        baseline = inspection.baseline
        left_out += _rows_left_out(span, events, shown, inspection)
    baseline.write(run.ledger.folder_of(run.night) / BASELINE)
    _write_left_out(run.ledger, run.night, left_out)
    findings = [finding.as_json() for one in found for finding in one.findings]
    count, last = sum(finding["left_out"] for finding in findings), found[-1]
    refused = "; ".join(last.reasons)
    said = f"refused: {refused}" if refused else f"{count:,} of {rows.events.height:,} events left out"
    return last.as_json() | {"refused": refused, "findings": findings, "left_out": count, "said": said}


def parts_of(new: Span, refused: Sequence[Span]) -> list[Span]:
    """The new hours, those that were refused before apart; the last part is what nobody has seen yet.

    Args:
        new: all of them.
        refused: spans that begin within them, oldest first.
    """
    starts = sorted({new.start, *(span.end for span in refused if new.start < span.end < new.end)})
    return [Span(start, end) for start, end in zip(starts, [*starts[1:], new.end], strict=True)]


def refused_before(ledger: Ledger, night: Night) -> list[Span]:
    """The hours of earlier nights that the guards refused, and no accepted night has taken since."""
    spans: list[Span] = []
    for other in ledger.nights():
        if other.id == night.id:
            break
        if other.told("inspect").get("refused"):
            spans.append(Windows.of_json(dict(other.told("collect")["windows"])).new)
    return spans


def baseline_of(ledger: Ledger, parent: str) -> Baseline:
    """What sound days were like, as the parent left it; empty before the first night."""
    return Baseline.read(ledger.folder_of(parent) / BASELINE) if parent else Baseline()


def left_out_of(ledger: Ledger, night: Night) -> list[LeftOut]:
    """All that this night, and those that it stands on, do not count.

    Raises:
        ArtifactError: a file of it is missing or damaged.
    """
    chain = [one for one in ledger.standing(night.base) if one.id != night.id]
    return [entry for one in (*chain, night) for entry in _read_left_out(ledger, one)]


def _rows_left_out(span: Span, events: pl.DataFrame, shown: pl.DataFrame, kept: Inspection) -> Iterator[LeftOut]:
    """What the guards took out of hours that they let through: whole users, with their pages, and single events."""
    users = events.select("user_id").unique().join(kept.events, on="user_id", how="anti")["user_id"].sort()
    if len(users):
        yield LeftOut(span, "all of their events are left out", tuple(users))
    single = events.join(kept.events, on=["user_id", "event_id"], how="anti")
    single = (
        single.filter(~pl.col("user_id").is_in(users.implode())).select("user_id", "event_id").unique().sort(pl.all())
    )
    pages = shown.join(kept.shown, on="page", how="anti")["page"].unique().sort()
    if single.height:
        yield LeftOut(span, "these events are left out", (), tuple(single.rows()), tuple(pages))


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


def _within(rows: pl.DataFrame, span: Span) -> pl.DataFrame:
    return rows.filter(pl.col(KNOWN_AT).is_between(span.start, span.end, closed="left"))
