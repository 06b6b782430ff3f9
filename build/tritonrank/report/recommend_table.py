"""How well the whole recommends, as a table for people and a line of JSON for scripts."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("ndcg@10", "recall@20", "recall@100", "mrr")

console = Console()


def show_quality(quality: Mapping[str, Any]) -> None:
    """Print what ``judge_whole`` found, and its means as the last line."""
    for title, part in sections(quality).items():
        console.print(quality_table(title, part))
    means = {row["name"]: row["ndcg@10"][0] for row in quality["full_catalogue"]["rows"]}
    print(json.dumps({"blend": quality["blend"], "ndcg@10": means}))


def sections(quality: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The protocols that were judged, by title."""
    full, sampled, cold = quality["full_catalogue"], quality.get("sampled"), quality.get("cold")
    found = {f"Full catalogue: {full['items']:,} items, {full['users']} users": full}
    if sampled:
        found[f"One positive among sampled items, {sampled['users']} users"] = sampled
    if cold:
        found[f"Full catalogue, history withheld, {cold['users']} users"] = cold
    return found


def quality_rows(part: Mapping[str, Any]) -> list[list[str]]:
    """A header and one row per ranking; the last column is what the blend is better by, in NDCG@10."""
    metrics = [metric for metric in SHOWN if metric in part["rows"][0]]
    others = [name for name in ("coverage@10", "novelty@10") if name in part["rows"][0]]
    better = {row["to"]: row["ndcg@10"] for row in part["differences"]}
    rows = [["ranking", *metrics, *others, "blend is better by"]]
    for row in part["rows"]:
        difference = better.get(row["name"])
        rows.append(
            [
                row["name"],
                f"{row['ndcg@10'][0]:.3f} [{row['ndcg@10'][1]:.3f}, {row['ndcg@10'][2]:.3f}]",
                *(f"{row[metric][0]:.3f}" for metric in metrics[1:]),
                *(f"{row[name]:.1%}" if name == "coverage@10" else f"{row[name]:.1f}" for name in others),
                f"{difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}]" if difference else "",
            ]
        )
    return rows


def quality_table(title: str, part: Mapping[str, Any]) -> Table:
    header, *rows = quality_rows(part)
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
