"""What ``check`` found, as tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tritonrank.pipeline.outlook import in_words
from tritonrank.rankers.text_counts import SETTINGS, text_rows

TEXT_SHOWN = 90
"""Characters of a rendered item."""
SPLITS = {"train": "to learn from", "validation": "to stop training at its best", "test": "to judge by"}


def show_check(found: Mapping[str, Any], console: Console) -> None:
    """Print everything, the conclusions last.

    Args:
        found: as ``check_recipe`` returns it, of a recipe that can be built.
        console: where to.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # ids may look like markup
    _title(console, "What there is")
    console.print(_counts(found))
    if found["dropped"]:
        _title(console, "Left out, by rule")
        console.print(_table(("what", "rows", "share", "rule", "such as"), map(_dropped, found["dropped"]), {1, 2}))
    _title(console, "Users")
    for split, reasons in found["users"].items():
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count) or "all are taken"
        say(f"  {SPLITS[split]}: {found['counts']['examples'][split]:,}; {told}")
    _title(console, "Tokens that are read")
    console.print(_table(("text", "budget", "set by", "median", "95%", "", "holds 95%"), _budgets(found), {3, 4}))
    _title(console, f"{len(found['shown'])} lists as the ranker reads them")
    for example in found["shown"]:
        _show_example(example, say)
    _title(console, "How much can be seen")
    _show_judged(found["judged"], say)
    _title(console, "How long a build takes here")
    _show_stages(found["stages"], say)
    if found["suggestions"]:
        _title(console, "Suggestions: add them to the command, or write the line into the recipe")
        rows = ((f"--set {one['set']}", one["yaml"], one["reason"]) for one in found["suggestions"])
        console.print(_table(("option", "line", "why"), rows, set()))
    for warning in found["warnings"]:
        say(f"! {warning['what']}" + (f"\n    {warning['next']}" if warning["next"] else ""), style="yellow")


def _title(console: Console, title: str) -> None:
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        heading = Text(f"  {column}" if place == 0 else column, style="dim")
        table.add_column(heading, justify="right" if place in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"  {cell}" if place == 0 else cell) for place, cell in enumerate(row)))
    return table


def _counts(found: Mapping[str, Any]) -> Table:
    counts = found["counts"]
    rows = [
        ("items", f"{counts['items']:,}", ""),
        ("users", f"{counts['users']:,}", ""),
        ("events", f"{counts['events']:,}", f"{counts['positive_events']:,} of them positive"),
    ]
    rows += [
        (f"  {', '.join(kind['names'])}", f"{kind['events']:,}", f"worth {kind['gain']:g}, of {kind['users']:,} users")
        for kind in found["kinds"]
    ]
    rows.append(("examples", f"{counts['examples']['train']:,}", "to learn from"))
    return _table(("", "count", ""), rows, {1})


def _dropped(one: Mapping[str, Any]) -> Sequence[str]:
    return one["kind"], f"{one['count']:,}", f"{one['share']:.1%}", one["rule"], ", ".join(map(str, one["examples"]))


def _budgets(found: Mapping[str, Any]) -> list[Sequence[str]]:
    advised = {one["key"].partition(".")[2]: f"--set {one['set']}" for one in found["suggestions"]}
    settings = (SETTINGS["items"], SETTINGS["queries"], "history_tokens")
    rows = text_rows(found["text"])
    return [(*row, advised.get(name, "as it is")) for row, name in zip(rows, settings, strict=True)]


def _show_example(example: Mapping[str, Any], say: Any) -> None:
    query = f"query {example['query']!r}" if example["query"] else "no query"
    say(f"  {query}; {example['history_length']} liked before, the newest last:")
    for item in example["history"]:
        say(f"      {_item(item)}")
    say(f"    {example['candidates_in_all']} candidates, among them:")
    for item in example["candidates"]:
        say(f"    {'+' if item['liked'] else ' '} {_item(item)}")


def _item(item: Mapping[str, Any]) -> str:
    text = item["text"] if len(item["text"]) <= TEXT_SHOWN else f"{item['text'][:TEXT_SHOWN]}..."
    cut = f"  ({item['tokens']} tokens, {item['read']} are read)" if item["tokens"] > item["read"] else ""
    return f"{text!r}{cut}"


def _show_judged(judged: Mapping[str, Any], say: Any) -> None:
    say(f"  {judged['users']:,} users are judged, {judged['can_be']:,} could be, {judged['candidates']} items each")
    between, within = judged["between_rankers"], judged["of_one_ranker"]
    say(
        f"  a difference of NDCG@10 between two rankers is seen from about {between['smallest_difference']:.3f} on, "
        f"between a ranker and its INT8 graph from {within['smallest_difference']:.3f}"
    )
    say(
        f"  ({judged['formula']}; s = {between['deviation']:.2f}, measured between item kNN and popularity on these "
        f"users, and {within['deviation']:.2f})"
    )
    for name, found in judged["baselines"].items():
        say(f"  to beat: {name}  NDCG@10 {found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")


def _show_stages(stages: Sequence[Mapping[str, Any]], say: Any) -> None:
    if not stages:
        say("  not known for this model or machine: times are measured for the packaged model on CPU cores")
        return
    told = ", ".join(f"{stage['stage']} {in_words(stage['seconds'])}" for stage in stages)
    say(f"  about {in_words(sum(stage['seconds'] for stage in stages))}: {told}")
