"""How well the whole recommends, as a table for people and a line of JSON for scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tritonrank.artifacts import MANIFEST, read_manifest
from tritonrank.retrieval.recommend_quality import QUALITY_FILE

METHODS = {
    "ranker": "the ranker's own order",
    "linear": "a weighted sum of the ranker's score and the signals of retrieval",
    "lambdamart": "LambdaMART over the ranker's score and the signals of retrieval",
}
SHOWN = ("ndcg@10", "recall@20", "recall@100", "mrr")

console = Console()


def show_quality(quality: Mapping[str, Any]) -> None:
    """Print what ``judge_whole`` found, and its means as the last line."""
    for title, part in sections(quality).items():
        console.print(quality_table(title, part))
    means = {row["name"]: row["ndcg@10"][0] for row in quality["full_catalogue"]["rows"]}
    print(json.dumps({"blend": quality["blend"], "ndcg@10": means}))


def recommended(root: Path) -> dict[str, Any] | None:
    """What the report shows of a build's blend; None where it has none."""
    if not (root / "blend" / MANIFEST).is_file():
        return None
    manifest = read_manifest(root / "blend")
    quality = json.loads((root / "blend" / QUALITY_FILE).read_text(encoding="utf-8"))
    header, *rows = quality_rows(quality)
    return {
        "method": METHODS[manifest.metrics["method"]],
        "learnt_from": manifest.metrics["lists_with_positive"],
        "found": quality["found_by_retrieval"],
        "users": quality["users"],
        "items": quality["items"],
        "candidates": quality["candidates"],
        "header": header,
        "rows": rows,
    }


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
