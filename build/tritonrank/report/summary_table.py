"""What a build achieved, as a table for people: read from summary.json, without anything that models need."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tritonrank.artifacts.rungs import FINE_TUNED, UNCUT
from tritonrank.judge.ways_out import UNCUT_WAY_OUT
from tritonrank.rankers.text_counts import text_warnings, without_text_in_words

SUMMARY_FILE = "summary.json"

console = Console()


def show_summary(folder: Path) -> None:
    """Print the table for people, then one line of JSON for scripts.

    Args:
        folder: of the summary.
    """
    result = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    # Narrow enough for 80 columns, which is what a pipe or a CI log gets: rich would cut the intervals off.
    title = f"{result['recipe']}: {result['examples']} test requests"
    table = Table(title=title, caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    teacher = result.get("teacher", FINE_TUNED)
    for column in ("", "NDCG@10 [95%]", f"vs {teacher} [95%]\n+ better, - worse", "size", "ms/100"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            row["name"],
            _with_interval(row["ndcg@10"]),
            _with_interval(row["difference"], sign="+") if row["name"] != teacher else "reference",
            f"{row['megabytes']:.0f} MB" if "megabytes" in row else "",
            f"{row['milliseconds_per_100']:.0f}" if "milliseconds_per_100" in row else "",
        )
    table.caption = f"{_cost(result['rows'], teacher)}; ms/100: one request with 100 candidates, in process"
    if read := (result.get("text") or {}).get("items"):
        table.caption += f"; {read['cut_share']:.1%} of the item texts are cut at {read['budget']} tokens"
    if fewer := [row for row in result["rows"] if row.get("examples", result["examples"]) < result["examples"]]:
        table.caption += f"; {fewer[0]['name']}: the first {fewer[0]['examples']} requests alone"
    console.print(table)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    notes = text_warnings(result["text"]) if result.get("text") else []
    without_text = without_text_in_words(result["items_without_text"]) if result.get("items_without_text") else ""
    for note in [*notes, *([without_text] if without_text else [])]:
        say(note, style="yellow")
    if "served" in result:
        say(f"served: {result['served']}")
    if defeat := defeat_in_words(result):
        say(defeat, style="bold red")
    print(
        json.dumps({"recipe": result["recipe"], "ndcg@10": {r["name"]: r["ndcg@10"]["mean"] for r in result["rows"]}})
    )


def defeat_in_words(result: Mapping[str, Any]) -> str:
    """That a free baseline ranks better, and what to do; nothing where none does.

    Args:
        result: of summary.json.
    """
    if not result.get("beaten_by"):
        return ""
    names = ", ".join(
        f"{one['name']} ranks better than {result['served']} by {_with_interval(one['difference'], '+')} NDCG@10"
        for one in result["beaten_by"]
    )
    if any(one["name"].endswith(UNCUT) for one in result["beaten_by"]):
        todo = f"let it read whole texts. {UNCUT_WAY_OUT}"
    elif result["trained"]:
        todo = "train longer or on more: --set examples.training_examples=... --set finetune.epochs=..."
    else:
        todo = "train the checkpoint on these data, which it does not fit as it is: name it as model.base"
    said = f"This ranker loses beyond doubt: {names}. Before it is served, {todo}"
    cut = text_warnings(result["text"]) if result.get("text") else []
    return said + (f", and let it read more: {cut[0]}" if cut else "")


def _cost(rows: Sequence[dict[str, Any]], name_of_teacher: str) -> str:
    """Parameters and GFLOP of what is served; of a smaller model also as shares of the teacher's."""
    teacher, served = next(row for row in rows if row["name"] == name_of_teacher), rows[-1]
    texts = []
    for key, unit, scale in (("parameters", "M parameters", 1e6), ("gflop_per_request", "GFLOP per request", 1.0)):
        share = served[key] / teacher[key]
        digits = 1 if scale > 1 or served[key] < 20 else 0
        smaller = f" ({share:.2f} of the {name_of_teacher} ranker's)" if share < 1 else ""
        texts.append(f"{served[key] / scale:.{digits}f} {unit}{smaller}")
    return ", ".join(texts)


def _with_interval(value: dict[str, float], sign: str = "") -> str:
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f} {value['high']:{sign}.3f}]"
