"""What a ranker reads of the data: texts without a token, texts that are cut, histories that do not fit.

Counted once, by ``prepare``, with the tokenizer and the budgets that everything later uses; the table for people, the
summary's footnote and the report read the counts from the dataset's manifest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import RequestTokenizer, TextRules

TEXTS_AT_ONCE = 1_000
CUT_WARNING = 0.05
"""Share of cut texts from which people are warned: beyond it the ranking is another one."""
HISTORY_WARNING = 0.5
"""Share of the wanted history items below which people are warned: some of the oldest always give way to long texts."""
IDS_SHOWN = 5
TEXTS_SHOWN = 2
SHOWN = 80
"""Characters of an item's text."""
SETTINGS = {"items": "candidate_tokens", "queries": "query_tokens", "history": "history_items"}


class TextLengths:
    """Tokens of texts before anything is cut.

    Args:
        tokenizer: with rules that cut nothing (``text_budgets.measuring_rules``).
    """

    def __init__(self, tokenizer: RequestTokenizer) -> None:
        self._tokenizer = tokenizer

    def of_texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text; 0 where the tokenizer keeps none."""
        return [
            len(ids)
            for start in range(0, len(texts), TEXTS_AT_ONCE)
            for ids in self._tokenizer.items(texts[start : start + TEXTS_AT_ONCE])
        ]

    def of_items(self, items: pl.DataFrame) -> dict[str, int]:
        """Tokens of each item by id, rendered as the server renders an item's fields: item_id and text fields."""
        template = self._tokenizer.rules.item_template
        texts = [render_fields(template, row) for row in items.iter_rows(named=True)]
        return dict(zip(items["item_id"].to_list(), self.of_texts(texts), strict=True))


def count_texts(
    rules: TextRules,
    named: Mapping[str, str],
    item_lengths: Mapping[str, int],
    query_lengths: Sequence[int],
    judged: pl.DataFrame,
    examples: Sequence[str] = (),
) -> dict[str, Any]:
    """What the budgets mean for the data, JSON-able.

    Args:
        rules: the budgets.
        named: who decided each of them.
        item_lengths: tokens of every item that is ranked, by id.
        query_lengths: tokens of every different query.
        judged: the test examples.
        examples: rendered items to show.

    Returns:
        rules; named; examples, without the ends of long ones; for items, queries and the judged candidates how many
        there are and which share is cut; for histories how many items are read of those wanted.
    """
    lengths = list(item_lengths.values())
    candidates = [item_lengths[item] for row in judged["candidates"] for item in row]
    read = list(_history_items_read(rules, item_lengths, judged["history"].to_list()))
    return {
        "rules": rules.as_json(),
        "named": dict(named),
        "examples": [text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in examples],
        "items": _cut_texts(lengths, rules.candidate_tokens),
        "queries": _cut_texts(query_lengths, rules.query_tokens),
        "judged_candidates": _cut_texts(candidates, rules.candidate_tokens),
        "history": {
            "budget": rules.history_items,
            "tokens": rules.history_tokens,
            "wanted": float(np.mean([wanted for wanted, _ in read])) if read else 0.0,
            "read": float(np.mean([fits for _, fits in read])) if read else 0.0,
        },
    }


def show_counts(metrics: Mapping[str, Any], console: Console) -> None:
    """What was prepared, in a few lines.

    Args:
        metrics: of the dataset's manifest.
        console: where to.
    """
    examples = metrics["examples"]
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # ids may look like markup
    say(
        f"  {metrics['items']:,} items, {metrics['users']:,} users, {metrics['events']:,} events, "
        f"{metrics['positive_events']:,} of them positive; {examples['train']:,} examples to train, "
        f"{examples['validation']:,} to validate, {examples['test']:,} to judge"
    )
    for split, reasons in metrics["skipped_users"].items():
        if counted := [f"{count:,} {reason}" for reason, count in reasons.items() if count]:
            say(f"  users, {split}: {', '.join(counted)}")
    for text in metrics["text"]["examples"]:
        say(f"  an item as it is read: {text!r}")
    console.print(_table(metrics["text"]))
    for warning in text_warnings(metrics["text"]):
        say(f"  {warning}", style="yellow")
    if said := cost_in_words(metrics["text"]):
        say(f"  {said}")


def without_text_in_words(found: Mapping[str, Any]) -> str:
    """How many items have no text, and what that means; nothing where all have one."""
    if not found["count"]:
        return ""
    more = ", ..." if found["count"] > len(found["first"]) else ""
    said = (
        f"{found['count']:,} of {found['of']:,} items have no text (first: {', '.join(found['first'])}{more}): they "
        "are never judged or learnt from, and the server ranks them last"
    )
    return f"{said}. {found['events']:,} events are about them" if found["events"] else said


def text_warnings(text: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of text of which too much is cut, with the setting that would hold more."""
    warnings = []
    advice = {one.setting: one for one in budget_advice(text)}
    for kind, what in (("items", "item texts"), ("queries", "queries")):
        found, setting = text[kind], SETTINGS[kind]
        if found["count"] and found["cut_share"] > CUT_WARNING:
            said = (
                f"{found['cut_share']:.0%} of the {what} are cut at {found['budget']} tokens and lose "
                f"{found['lost']:.0f} (median)"
            )
            if setting in advice:
                warnings.append(f"{said}: --set {advice[setting]} would hold 95% of them whole")
            else:  # the model takes no more
                warnings.append(f"{said}: the model reads no more")
    history = text["history"]
    if "history_tokens" in advice:
        warnings.append(
            f"{history['read']:.1f} of {history['wanted']:.1f} history items fit into {history['tokens']} tokens: "
            f"--set {advice['history_tokens']} would hold about all, or lower text.history_items"
        )
    if not history["budget"] and not text["queries"]["count"]:
        warnings.append(
            "nothing of the user is read: the data have no query and text.history_items is 0, so that everybody gets "
            "the same ranking. Name data.query, or let the ranker read a history: --set text.history_items=8"
        )
    return warnings


class BudgetAdvice(NamedTuple):
    """A budget that would hold what is cut now."""

    setting: str
    tokens: int
    reason: str

    def __str__(self) -> str:
        """As ``--set`` takes it."""
        return f"text.{self.setting}={self.tokens}"


def budget_advice(text: Mapping[str, Any]) -> list[BudgetAdvice]:
    """What to set so that 95% of the texts of each kind are read whole; nothing for budgets that hold them already.

    Args:
        text: as ``count_texts`` returns it.
    """
    advice = []
    for kind, what in (("items", "item texts"), ("queries", "queries")):
        found, setting = text[kind], SETTINGS[kind]
        is_cut = found["count"] and found["cut_share"] > CUT_WARNING
        if is_cut and text["named"][setting] != "model":  # which takes no more
            reason = f"{found['cut_share']:.0%} of the {what} are cut at {found['budget']} tokens"
            advice.append(BudgetAdvice(setting, found["tokens_95"], reason))
    history = text["history"]
    if history["read"] < HISTORY_WARNING * history["wanted"]:
        enough = round(history["tokens"] * history["wanted"] / max(history["read"], 0.5))
        reason = f"{history['read']:.1f} of {history['wanted']:.1f} history items fit into {history['tokens']} tokens"
        advice.append(BudgetAdvice("history_tokens", enough, reason))
    return advice


def cost_in_words(text: Mapping[str, Any]) -> str:
    """What long rows cost, where the budgets came from the model: nobody chose them."""
    if text["named"]["candidate_tokens"] != "model" or not text["items"]["count"]:
        return ""
    row = text["rules"]["candidate_tokens"] + text["rules"]["query_tokens"]
    median = text["items"]["tokens_50"]
    return (
        f"Budgets from the model: rows of up to about {row} tokens, {median:.0f} of them the median item's. What a "
        "request takes grows with the tokens of its texts; a lower text.candidate_tokens is faster and ranks by less."
    )


def text_rows(text: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    """What is read of each kind of text, as cells: kind, budget, who decided it, median and 95% length, what is cut."""
    rows = []
    for kind, what in (("items", "item text"), ("queries", "query")):
        found = text[kind]
        lengths = (f"{found['tokens_50']:.0f}", f"{found['tokens_95']:.0f}") if found["count"] else ("", "")
        cut = f"{found['cut_share']:.1%} cut" if found["count"] else "none in the data"
        rows.append((what, f"{found['budget']} tokens", text["named"][SETTINGS[kind]], *lengths, cut))
    history = text["history"]
    budget = f"{history['budget']} items, {history['tokens']} tokens" if history["budget"] else "none"
    fits = f"{history['read']:.1f} of {history['wanted']:.1f} items fit" if history["wanted"] else ""
    rows.append(("history", budget, text["named"]["history_items"], "", "", fits))
    return rows


def _table(text: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("  it reads", "budget", "set by", "median", "95%", ""):
        table.add_column(column, justify="right" if column in {"median", "95%"} else "left", no_wrap=True)
    for row in text_rows(text):
        table.add_row(f"  {row[0]}", *row[1:])
    return table


def _cut_texts(lengths: Sequence[int], budget: int) -> dict[str, Any]:
    """Of texts of so many tokens; what is lost is the median over those that are cut."""
    array = np.array(lengths, dtype=np.int64)
    cut = array[array > budget] - budget
    return {
        "budget": budget,
        "count": len(array),
        "tokens_50": int(np.quantile(array, 0.5, method="inverted_cdf")) if len(array) else 0,
        "tokens_95": int(np.quantile(array, 0.95, method="inverted_cdf")) if len(array) else 0,
        "longest": int(array.max(initial=0)),
        "cut": len(cut),
        "cut_share": len(cut) / len(array) if len(array) else 0.0,
        "lost": float(np.median(cut)) if len(cut) else 0.0,
    }


def _history_items_read(
    rules: TextRules, item_lengths: Mapping[str, int], histories: Iterable[Sequence[str]]
) -> Iterator[tuple[int, int]]:
    """Per history the items wanted and those that ``RequestTokenizer.context`` keeps, the newest first."""
    for history in histories:
        newest = history[-rules.history_items :] if rules.history_items else []
        budget, kept = rules.history_tokens, 0
        for item in reversed(newest):
            cost = min(item_lengths[item], rules.candidate_tokens) + (1 if kept else 0)
            if (kept and cost > budget) or not rules.history_tokens:
                break
            kept, budget = kept + 1, budget - cost
        yield len(newest), kept
