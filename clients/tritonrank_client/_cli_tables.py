"""What the commands print: tables for people, a line of JSON for programs."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._recommend_results import RecommendedItem
from ._results import ModelInfo, RankResult


def print_ranking(result: RankResult) -> None:
    ranked_by = f" by {result.artifact}" if result.artifact else ""
    table = Table(title=f"{len(result.ranking)} items ranked{ranked_by} in {result.seconds * 1000:.1f} ms")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id")
    table.add_column("item", overflow="fold")
    for position, place in enumerate(result.ranking, start=1):
        text = place.item if isinstance(place.item, str) else json.dumps(place.item, ensure_ascii=False)
        # Text, because rich would take brackets in a title for markup.
        score = f"{place.score:.4f}" if place.has_text else (result.unscored or {}).get(place.index, "no text")
        table.add_row(str(position), score, Text("" if place.item_id is None else str(place.item_id)), Text(text))
    Console().print(table)
    for counts, what in (
        (result.missing_fields, "lack a field that the template uses"),
        (result.unknown_fields, "have a field that it does not use"),
    ):
        if counts:
            told = ", ".join(f"{name} ({count})" for name, count in counts.items())
            print(f"items and history entries {what}: {told}", file=sys.stderr)


def print_items(items: Sequence[RecommendedItem], title: str) -> None:
    table = Table(title=title)
    table.add_column("place", justify="right")
    table.add_column("score", justify="right")
    for heading in ("id", "fields", "why"):
        table.add_column(heading, overflow="fold")
    for item in items:
        why = ", ".join(item.sources) if item.explanation is None else item.explanation.sentence
        fields = json.dumps(item.fields, ensure_ascii=False)
        table.add_row(str(item.position + 1), f"{item.score:.4f}", Text(item.item_id), Text(fields), Text(why))
    Console().print(table)


def print_model(described: ModelInfo) -> None:
    versions = ", ".join(described.versions) or "none"
    table = Table(title=f"{described.name} ({described.platform or 'no platform'}), versions {versions}")
    for heading in ("", "name", "datatype", "shape"):
        table.add_column(heading)
    for role, tensors in (("input", described.inputs), ("output", described.outputs)):
        for tensor in tensors:
            table.add_row(role, Text(tensor.name), tensor.datatype, Text(str(list(tensor.shape))))
    Console().print(table)
    if described.template:
        print(f"an item's text: {described.template}\nits fields: {', '.join(described.fields) or 'none'}")


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, default=dict))
