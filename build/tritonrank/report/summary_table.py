"""What a build achieved, as a table for people: read from summary.json, without anything that models need.

What is there already stands above what was built. Signs read the same way in both halves: + is good for the build.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritonrank.artifacts.rungs import FINE_TUNED
from tritonrank.judge.engine_words import ENGINE_FILE, engine_in_words, read_choice
from tritonrank.rankers.text_counts import text_warnings, without_text_in_words
from tritonrank.report.answer import (
    SUMMARY_FILE,
    against_served_in_words,
    headline_of,
    is_success,
    mood,
    next_in_lines,
    next_steps_of,
    read_answer,
    what_to_serve,
    with_interval,
    worse_segments_in_words,
)
from tritonrank.report.build_table import served_in_words

console = Console()


def show_summary(folder: Path) -> None:
    """Print the table and the answer for people; where that is no terminal, one line of JSON for scripts as well.

    Args:
        folder: of the summary.
    """
    result = read_answer(folder / SUMMARY_FILE)
    console.print(_table(result))
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    notes = text_warnings(result["text"]) if result.get("text") else []
    without_text = without_text_in_words(result["items_without_text"]) if result.get("items_without_text") else ""
    for note in [*notes, *([without_text] if without_text else [])]:
        say(note, style="yellow")
    style = {"good": "green", "open": "yellow", "bad": "bold red"}[mood(result)]
    steps = next_in_lines(next_steps_of(result), result.get("command", ""))
    for line in (headline_of(result), against_served_in_words(result), *steps):
        if line:
            say(line, style=style)
    if is_success(result) and (worse := worse_segments_in_words(result)):
        say(worse, style="yellow")
    if (folder.parent / "engine" / ENGINE_FILE).is_file():
        for line in engine_in_words(read_choice(folder.parent / "engine")):
            say(line)
    for line in served_in_words(folder.parent):
        say(line)
    say(what_to_serve(result, folder.parent), style="bold")
    if not sys.stdout.isatty():
        means = {row["name"]: row["ndcg@10"]["mean"] for row in result["rows"]}
        print(json.dumps({"recipe": result["recipe"], "ndcg@10": means, "success": is_success(result)}))


def _table(result: Mapping[str, Any]) -> Table:
    # Narrow enough for 80 columns, which is what a pipe or a CI log gets: rich would cut the intervals off.
    title = f"{result['recipe']}: {result['examples']} test requests"
    table = Table(title=title, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", "NDCG@10 [95%]", "difference [95%]", "size", "ms/100"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    teacher, served = result.get("teacher", FINE_TUNED), result.get("served", "")
    there = [row for row in result["rows"] if "megabytes" not in row]
    built = [row for row in result["rows"] if "megabytes" in row]
    if there:
        table.add_row(Text("without training", style="bold"), "", Text(f"{served} has", style="dim"), "", "")
    for row in there:
        table.add_row(f"  {row['name']}", with_interval(row["ndcg@10"]), _gain(row.get("gain")), "", "")
    if there and built:
        table.add_row(Text("what was built", style="bold"), "", Text(f"against {teacher}", style="dim"), "", "")
    for row in built:
        is_served = row["name"] == served
        table.add_row(
            Text(f"{'> ' if is_served else '  '}{row['name']}", style="bold" if is_served else ""),
            with_interval(row["ndcg@10"]),
            with_interval(row["difference"], sign="+") if row["name"] != teacher else "reference",
            f"{row['megabytes']:.0f} MB",
            f"{row['milliseconds_per_100']:.0f}" if "milliseconds_per_100" in row else "",
        )
    table.caption = _caption(result, built, teacher)
    return table


def _gain(gain: Mapping[str, float] | None) -> Text:
    """What the build has more than a baseline."""
    if gain is None:
        return Text("")
    style = "red" if gain["high"] < 0 else "green" if gain["low"] > 0 else "yellow"
    return Text(with_interval(gain, "+"), style=style)


def _caption(result: Mapping[str, Any], built: Sequence[Mapping[str, Any]], teacher: str) -> str:
    """What the columns mean, and what the ranker costs."""
    said = "Difference: + is good for the build. ms/100: milliseconds for one request with 100 candidates, in this "
    said += "process. >: what the repository serves"
    said += f" ({_cost(built, teacher)})" if built else ""
    if read := (result.get("text") or {}).get("items"):
        said += f". {read['cut_share']:.1%} of the item texts are cut at {read['budget']} tokens"
    if fewer := [row for row in result["rows"] if row.get("examples", result["examples"]) < result["examples"]]:
        said += f". {fewer[0]['name']}: the first {fewer[0]['examples']} requests alone"
    if padding := result.get("plan_padding"):
        said += f". A TensorRT plan computes {padding['ratio']:.2f} tokens for each one that a request needs"
    return f"{said}. Words: docs/glossary.md"


def _cost(built: Sequence[Mapping[str, Any]], name_of_teacher: str) -> str:
    """Parameters and GFLOP of what is served; of a smaller model also as shares of the teacher's."""
    teacher, served = next(row for row in built if row["name"] == name_of_teacher), built[-1]
    texts = []
    for key, unit, scale in (("parameters", "M parameters", 1e6), ("gflop_per_request", "GFLOP per request", 1.0)):
        share = served[key] / teacher[key]
        digits = 1 if scale > 1 or served[key] < 20 else 0
        smaller = f" ({share:.2f} of the {name_of_teacher} ranker's)" if share < 1 else ""
        texts.append(f"{served[key] / scale:.{digits}f} {unit}{smaller}")
    return ", ".join(texts)
