"""The report of a build: one page that says what compression gained, what it cost, and how that was found out.

``report.html`` needs nothing from elsewhere, neither network nor scripts: it can be mailed, archived beside the
artifacts, read on a phone. ``report.md`` beside it says the same without plots. Everything is read from what the stages
recorded; nothing is measured here. Texts of items are users' data, so that both templates escape all of them.

    ladder.py        the rungs from the teacher to what is served, and the gates between them
    compression.py   what was cut where, noise by layer, ranges of activations
    comparison.py    the requests that became worst, both rankings side by side
    provenance.py    commands, machine, versions, settings, hashes
    plots.py         inline SVG
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from tritonrank.artifacts import write_whole
from tritonrank.artifacts.rungs import FINE_TUNED
from tritonrank.errors import ArtifactError
from tritonrank.judge.gate import Verdict
from tritonrank.judge.reliability import read_reliability, wilson_interval
from tritonrank.judge.segments import KINDS
from tritonrank.rankers.text_counts import cost_in_words, text_rows, text_warnings, without_text_in_words
from tritonrank.report.answer import (
    against_served_in_words,
    build_command,
    headline_of,
    mood,
    next_steps_of,
    what_to_serve,
    worse_segments_in_words,
)
from tritonrank.report.comparison import comparison
from tritonrank.report.compression import Pruning, Quantization, pruning, quantizations
from tritonrank.report.engine_table import engine_shown
from tritonrank.report.ladder import (
    BaselineRow,
    Build,
    LadderRow,
    baselines,
    exact_ratio,
    gates,
    ladder,
    read_build,
    verdict_in_words,
)
from tritonrank.report.plots.kept_matrix import kept_matrix
from tritonrank.report.plots.rows import BarRow, IntervalRow, Mark, bar_plot, histogram, interval_plot
from tritonrank.report.plots.svg import figure
from tritonrank.report.provenance import provenance
from tritonrank.report.recommend_table import recommended

REPORT_FILE = "report.html"
HISTOGRAMS_SHOWN = 6
RUNG, SERVED, BASELINE = 1, 3, 5
"""Colours of the page's palette."""
INT8, FP32 = 1, 4
KEPT, REMOVED = 1, 5
MEASURES = {
    "loss without": "ranking loss without this layer alone",
    "influence": "1 - cosine of what goes in and what comes out",
    "taylor": "|activation x gradient| of what the layer adds",
}

SECTIONS = {
    "ladder": "From training to serving",
    "segments": "For whom it ranks well",
    "recommend": "What users see out of the whole catalogue",
    "texts": "What the model reads",
    "gates": "The gates",
    "engine": "What computes",
    "calibration": "How true the probabilities are",
    "pruning": "What was pruned where",
    "int8": "Layers and activations",
    "worst": "The worst requests",
    "made": "How it was made",
}
"""By the name that links to them, in order."""
ALWAYS = frozenset({"ladder", "worst", "made"})

console = Console()


def make_report(artifacts: Path, out: Path | None = None) -> list[Path]:
    """Write the report of a build as HTML, and as Markdown beside it.

    Args:
        artifacts: ``artifacts/<recipe>``, built as far as the summary.
        out: the page; default: report.html in ``artifacts``. The Markdown has the same name with ``.md``.

    Returns:
        Both files.

    Raises:
        ArtifactError: there is no summary, an artifact is damaged, or the page cannot be written.
    """
    page = out or artifacts / REPORT_FILE
    if page.suffix.lower() not in {".html", ".htm"}:
        raise ArtifactError(f"{page}: the report is an HTML page; name it so: --out {page.with_suffix('.html')}")
    contents = gather(read_build(artifacts))
    way_out = "name another place: --out FILE.html"
    written = [write_whole(page, render("page.html.j2", contents), way_out)]
    return [*written, write_whole(page.with_suffix(".md"), render("page.md.j2", contents), way_out)]


def gather(build: Build) -> dict[str, Any]:
    """All that the templates show."""
    rows, cut = ladder(build), pruning(build)
    others, passed = baselines(build), gates(build)
    served = next(row for row in rows if row.is_served)
    made = provenance(build)
    shown = {
        "name": build.summary["recipe"],
        "examples": build.summary["examples"],
        "timed_requests": build.summary.get("timed_requests"),
        "exact_ratios": any(exact_ratio(row) for row in build.summary["rows"]),
        "is_timed": any(row.milliseconds is not None for row in rows),
        "headline": headline(rows[0], served),
        "texts": texts_read(build),
        "warnings": build.warnings,
        "rows": rows,
        "is_live": any(row.live for row in rows),
        "teacher": rows[0],
        "served": served,
        "baselines": others,
        "quality_plot": quality_plot(rows, others),
        "gates": passed,
        "gate_plots": gate_plots(passed),
        "engine": engine_shown(build.root),
        "recommend": recommended(build.root),
        "calibration": calibration_plots(build),
        "pruning": cut,
        "pruning_plots": pruning_plots(cut) if cut else {},
        "quantizations": [(one, quantization_plots(one)) for one in quantizations(build)],
        "int8": quantizations(build),
        "comparison": comparison(build),
        "provenance": made,
        "made": max(stage.created for stage in made.stages),
    }
    shown |= first_lines(build)
    return shown | {"sections": {name: title for name, title in SECTIONS.items() if name in ALWAYS or shown[name]}}


def first_lines(build: Build) -> dict[str, Any]:
    """The straight answer. Of a summary that tells of other artifacts than those here, nothing is said."""
    result = build.summary if build.summary_is_current else {}
    said = {
        "answer": headline_of(result),
        "against_served": against_served_in_words(result),
        "next_steps": next_steps_of(result),
        "worse_segments": worse_segments_in_words(result),
        "serve": what_to_serve(result, build.root),
        "segments": segments_shown(result),
    }
    return said | {"mood": mood(result), "build_command": build_command(result.get("command", ""))}


def segments_shown(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The segments of the summary, kind by kind; those by a text field are many and are folded."""
    found = result.get("segments")
    if not found or not found["rows"]:
        return None
    kinds: dict[str, list[Any]] = {}
    for row in found["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    shown: dict[str, Any] = dict(found) | {
        "shown": [(kind, rows) for kind, rows in kinds.items() if kind in KINDS],
        "folded": [(kind, rows) for kind, rows in kinds.items() if kind not in KINDS],
    }
    return shown


def headline(teacher: LadderRow, served: LadderRow) -> str:
    """The build in one sentence."""
    parts = []
    for name, ratio in (
        ("parameters", served.parameters_ratio),
        ("GFLOP per request", served.gflop_ratio),
        ("latency in process", served.latency_ratio),
        ("bytes", served.size_ratio),
    ):
        if ratio is not None:
            parts.append(f"{ratio:.2f} of its {name}")
    costs = f", at {', '.join(parts)}" if parts else ""
    if served.ndcg is None or teacher.ndcg is None:
        return f"{served.name} is served; beside {called(teacher.name)}{costs}."
    change = served.ndcg.mean / teacher.ndcg.mean - 1 if teacher.ndcg.mean else 0.0
    compared = f"NDCG@10 {served.ndcg.mean:.3f}, {called(teacher.name)} has {teacher.ndcg.mean:.3f} ({change:+.1%})"
    return f"{served.name} is served: {compared}{costs}."


def texts_read(build: Build) -> dict[str, Any] | None:
    """What ``prepare`` counted of the texts; None in builds from before it did."""
    metrics = build.artifacts["dataset"].manifest.metrics if "dataset" in build.artifacts else {}
    if "text" not in metrics:
        return None
    without_text = without_text_in_words(metrics["items_without_text"])
    counted = (
        f"{metrics['items']:,} items, {metrics['users']:,} users, {metrics['events']:,} events, "
        f"{metrics['positive_events']:,} of them positive."
    )
    shown = [f"An item as it is read: {text}" for text in metrics["text"]["examples"]]
    sentences = [counted, *shown, without_text and f"{without_text}.", cost_in_words(metrics["text"])]
    return {
        "rows": text_rows(metrics["text"]),
        "sentences": [sentence for sentence in sentences if sentence],
        "warnings": text_warnings(metrics["text"]),
    }


def called(teacher: str) -> str:
    """The first rung in a sentence."""
    return "the fine-tuned ranker" if teacher == FINE_TUNED else f"the {teacher}"


def quality_plot(rows: list[LadderRow], others: list[BaselineRow]) -> Markup:
    drawn = [IntervalRow(one.name, one.ndcg.mean, one.ndcg.low, one.ndcg.high, BASELINE) for one in others]
    for row in rows:
        if row.ndcg:
            colour = SERVED if row.is_served else RUNG
            drawn.append(IntervalRow(row.name, row.ndcg.mean, row.ndcg.low, row.ndcg.high, colour))
    return interval_plot(drawn, "NDCG@10, 95% intervals over users")


def gate_plots(passed: list[Verdict]) -> list[tuple[float, Markup]]:
    """By budget, because what a step may cost before it is repaired would dwarf all others: drops in percent."""
    plots = []
    for budget in dict.fromkeys(gate.budget for gate in passed):
        rows = [
            IntervalRow(
                f"{gate.child} / {gate.parent}",
                100 * gate.drop,
                100 * gate.drop_low,
                100 * gate.drop_high,
                RUNG,
                100 * gate.bound,
            )
            for gate in passed
            if gate.budget == budget
        ]
        marks = [Mark(0.0, "", "zero"), Mark(100 * budget, "budget"), Mark(300 * budget, "3 x budget", "limit dashed")]
        plots.append((budget, interval_plot(rows, "fall of NDCG@10 in %, 95% interval", marks)))
    return plots


def calibration_plots(build: Build) -> list[dict[str, Any]]:
    """How often candidates were right that were given about the same probability, with the sigmoid and with the curve.

    A rate's interval is Wilson's.
    """
    shown = []
    for name, found in read_reliability(build.root / "calibration").items():
        rows = []
        for one in found["bins"]:
            low, high = wilson_interval(one["rate"], one["count"])
            rows.append(IntervalRow(f"said {one['said']:.3f}", one["rate"], low, high))
        shown.append({"name": name, "plot": interval_plot(rows, "share that was right"), **found})
    return shown


def pruning_plots(cut: Pruning) -> dict[str, Markup]:
    kept = {parts.layer for parts in cut.layers if parts.heads}
    # Dots, because an axis from 0 would hide what such losses differ by.
    importance = [
        IntervalRow(f"layer {layer}", value, value, value, KEPT if layer in kept else REMOVED)
        for layer, value in enumerate(cut.layer_importance)
    ]
    best_first = sorted(cut.criteria.items(), key=lambda one: -one[1])
    criteria = [
        BarRow(name, value, KEPT if name == cut.chosen else REMOVED, f"{value:.3f}") for name, value in best_first
    ]
    return {
        "matrix": kept_matrix(cut.layers, cut.heads, cut.neurons),
        "importance": interval_plot(importance, MEASURES.get(cut.layer_measure, cut.layer_measure)),
        "criteria": bar_plot(criteria, "validation NDCG@10 right after cutting"),
    }


def quantization_plots(one: Quantization) -> dict[str, Any]:
    noise = (
        [BarRow(name, value, INT8 if is_int8 else FP32) for name, value, is_int8 in one.sensitivity.layers]
        if one.sensitivity
        else []
    )
    return {
        "noise": bar_plot(noise, "change of the logits by this layer alone"),
        "histograms": [
            (row, histogram(row.counts, *row.counted, f"values of the input of {row.name}"))
            for row in [row for row in one.activations if row.counts][:HISTOGRAMS_SHOWN]
        ],
    }


def render(template: str, contents: dict[str, Any]) -> str:
    """A template of this folder, filled in; HTML is escaped by Jinja, Markdown by the filter ``md``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "md": escape_markdown, "called": called, "in_words": verdict_in_words}
    environment.globals["zip"] = zip
    return environment.get_template(template).render(contents)


def escape_markdown(text: object) -> str:
    """Text that Markdown shows as it is, within a table cell too: no markup, no HTML, no line break, no link."""
    one_line = re.sub(r"\s+", " ", str(text)).strip()
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", one_line)
    # Renderers make links of bare addresses.
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;&#47;")
