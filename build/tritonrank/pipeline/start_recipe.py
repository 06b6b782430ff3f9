"""A drafted recipe as a file that explains itself: each line with the reason for it."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tritonrank import __version__
from tritonrank.data.adapters import ADAPTERS, recognise
from tritonrank.data.guess import Guessed
from tritonrank.errors import DataError
from tritonrank.pipeline.start import Drafted, Measured, measure, relative_to_recipe
from tritonrank.system.database_url import Location

COMMENT_WIDTH = 110


def recipe_text(drafted: Drafted, out: Path, items: Location, events: Location) -> str:
    """The YAML.

    Args:
        drafted: what to write.
        out: the file that it will be: its paths begin there.
        items: as the user named it.
        events: as the user named it.
    """
    data = drafted.values["data"] | {
        "items": relative_to_recipe(items, out),
        "events": relative_to_recipe(events, out),
    }
    queries = "" if drafted.guess.query else "there are none"
    return _whole(out, drafted.values, _data_lines(drafted, data), drafted.measured, drafted.fault, queries)


def folder_recipe_text(folder: Path, out: Path, name: str, minutes: float) -> str:
    """The YAML for a public data set.

    Raises:
        DataError: the folder holds none that is known.
    """
    source = recognise(folder)
    if source is None:
        known = "; ".join(f"{name}: {adapter.expected}" for name, adapter in ADAPTERS.items())
        raise DataError(
            f"{folder}: no data set that is known. Known are {known}. "
            "For tables of your own: tritonrank init --items FILE --events FILE"
        )
    adapter = ADAPTERS[source]
    data = {"source": source, "path": folder.absolute()}
    values = {"name": name, "data": data, "text": {"item_template": adapter.template(adapter.files(folder))}}
    measured, fault = measure(values, minutes)
    lines = [*_line("source", source, "its files say so"), *_line("path", relative_to_recipe(folder, out), "")]
    return _whole(out, values, lines, measured, fault, "" if adapter.has_queries else "there are none")


def _whole(
    out: Path,
    values: Mapping[str, Any],
    data_lines: Iterable[str],
    measured: Measured | None,
    fault: str,
    without_queries: str,
) -> str:
    lines = [
        f"# Written by tritonrank {__version__} init on {datetime.now(UTC):%Y-%m-%d}, from what the tables hold.",
        "# Every line is a guess with its reason: change what is wrong. `tritonrank settings` explains each.",
        f"#   tritonrank check {out.name}           what a build would do, in seconds",
        f"#   tritonrank build {out.name} --quick   a tenth of it, and what the rest is likely to give",
        f"#   tritonrank build {out.name}",
        f"name: {_flow(values['name'])}",
        "",
        "data:  # relative paths begin at this file's folder",
        *data_lines,
        "",
        "text:",
        *_text_lines(values["text"], measured, without_queries),
    ]
    if measured:
        lines += ["", "examples:", *_example_lines(values["examples"], measured)]
    else:
        lines += ["", f"# examples: the defaults hold; they could not be sized: {fault.splitlines()[0]}"]
    return "\n".join(lines) + "\n"


def _data_lines(drafted: Drafted, data: Mapping[str, Any]) -> Iterator[str]:
    guess = drafted.guess
    reasons = {
        name: _told(glimpse.kind, glimpse.rows)
        for name, glimpse in (("items", drafted.items), ("events", drafted.events))
    }
    by_meaning: dict[str, Guessed] = {}
    for one in guess.columns:
        by_meaning.setdefault(one.meaning, one)
    for key in ("item_id", "user_id", "timestamp", "query", "available_from"):
        if known := by_meaning.get(key.replace("available_", "available ")):
            reasons[key] = _reason(known)
    if guess.label:
        unsure = f"; LOOK: {guess.label.unsure}" if guess.label.unsure else ""
        is_typed = guess.label.weights is not None
        reasons["label"] = f"{guess.label.reason}{'; 0 is no positive' if is_typed else ''}{unsure}"
        reasons["positive_label"] = "from here on it is a positive"
    else:
        yield "  # label: no column says what users did; every event is a positive"
    if shown := by_meaning.get("impression"):
        reasons["impressions"] = f"lists that were shown: {shown.reason}; what was shown and not taken is a negative"
    left = [name.partition(".")[2] for name in guess.left if name.startswith("items.")]
    reasons["text_fields"] = f"what the template may use{'; not: ' + ', '.join(left) if left else ''}"
    for key, value in data.items():
        yield from _line(key, value, reasons.get(key, ""))
    if not guess.query:
        yield "  # query: no column holds what was searched for"
    for one in guess.columns:
        if one.meaning == "date":
            yield f"  # {one.table}.{one.column}: {one.reason}"


def _text_lines(text: Mapping[str, Any], measured: Measured | None, without_queries: str) -> Iterator[str]:
    read = "what the ranker reads of an item; what comes last is cut first"
    yield from _line("item_template", text["item_template"], read)
    if not measured:
        return
    reasons = {
        "query_tokens": without_queries or f"tokens; median {measured.query_tokens[0]}, 95% {measured.query_tokens[1]}",
        "history_items": f"what users liked before: {measured.history:.0f} in the median",
        "history_tokens": "tokens of all of them together",
        "candidate_tokens": f"tokens of an item; median {measured.item_tokens[0]}, 95% {measured.item_tokens[1]}",
    }
    for key, reason in reasons.items():
        yield from _line(key, text[key], reason)


def _example_lines(examples: Mapping[str, int], measured: Measured) -> Iterator[str]:
    reasons = {
        "training_examples": f"of {measured.trainable:,} that there are; more take longer than --minutes of init",
        "training_negatives": "items beside a positive that its user never met",
        "judged_negatives": f"the same in judged lists; who met the most leaves {measured.unseen:,} items unseen",
        "validation_users": f"of {measured.validated:,}: they say when training is at its best",
        "test_users": f"of {measured.judged:,}: they judge; the more, the smaller a difference is seen",
    }
    for key, reason in reasons.items():
        yield from _line(key, examples[key], reason)


def _line(key: str, value: Any, reason: str) -> Iterator[str]:
    """One setting: the reason behind it where there is room, above it otherwise."""
    line = f"  {key}: {_flow(value)}"
    if not reason:
        yield line
    elif len(line) + len(reason) + 4 <= COMMENT_WIDTH:
        yield f"{line}  # {reason}"
    else:
        yield f"  # {reason}"
        yield line


def _flow(value: Any) -> str:
    """YAML on one line; weights without a fraction where they have none."""
    if isinstance(value, dict):
        value = {key: int(one) if isinstance(one, float) and one.is_integer() else one for key, one in value.items()}
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    written = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return written.removesuffix("\n").removesuffix("\n...")


def _reason(one: Guessed) -> str:
    unsure = f"; LOOK: {one.unsure}" if one.unsure else ""
    return " ".join(f"{one.reason}{unsure}".split())


def _told(kind: str, rows: int | None) -> str:
    return f"{kind}; {rows:,} rows" if rows is not None else kind
