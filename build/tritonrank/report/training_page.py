"""How a training went, as one page: ``training.html`` beside the artifacts, with the curves of loss and NDCG@10.

It is written when the training ends, from what goes into its manifest, and needs nothing from elsewhere: neither a
tracker nor a network nor scripts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from tritonrank.artifacts import write_whole
from tritonrank.artifacts.flat import flat
from tritonrank.report.plots.axes import Series, line_plot
from tritonrank.report.plots.svg import figure

PAGES = {"finetune": "training.html", "distill": "training-student.html"}
LOSS, NDCG = "loss", "validation_ndcg@10"
TOLD = {
    "steps": "steps",
    "training_seconds": "seconds",
    "processes": "processes",
    "sharding": "sharding",
    "mixed_precision": "mixed precision",
    "trained_parameters": "parameters trained",
    "best_validation_ndcg@10": "best validation NDCG@10",
}
"""Of the manifest's metrics, what the table shows."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}: {{ section }}</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --faint: #5b6470; --rule: #d9dee4;
  --c1: #0b6bb5; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --card: #1d2127; --ink: #e8eaed; --faint: #a2abb6; --rule: #363c45; --c1: #5bb1f5; }
}
body { margin: 0 auto; max-width: 1080px; padding: 1.25rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
figure { margin: 0; background: var(--card); padding: .8rem; border-radius: 8px; min-width: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 1rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, Roboto, Arial, sans-serif; fill: var(--faint); }
.grid { stroke: var(--rule); } .stroke1 { stroke: var(--c1); fill: none; stroke-width: 1.5; }
.fill1 { fill: var(--c1); }
table { border-collapse: collapse; } td { padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--rule); }
td:last-child { overflow-wrap: anywhere; } .faint { color: var(--faint); font-size: .875rem; }
</style>
</head>
<body>
<h1>{{ name }}: {{ section }}</h1>
<p>{{ answer }}</p>
<div class="plots">
{% for plot, told in plots %}<figure>{{ plot }}<figcaption class="faint">{{ told }}</figcaption></figure>
{% endfor %}</div>
<h2>The run</h2>
<table>{% for key, value in run %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Settings</h2>
<table>{% for key, value in settings %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
</body>
</html>
"""


def write_training_page(
    folder: Path, name: str, section: str, metrics: Mapping[str, Any], settings: Mapping[str, Any]
) -> Path | None:
    """Write the page of a training.

    Args:
        folder: where the recipe's artifacts are.
        name: the recipe's.
        section: ``finetune`` or ``distill``.
        metrics: as the manifest has them, with lists of (step, value).
        settings: of the training.

    Returns:
        The page; None where nothing was trained.
    """
    losses, judged = metrics.get(LOSS) or [], metrics.get(NDCG) or []
    if not losses and not judged:
        return None
    plots = [
        (_curve(losses, "loss on training lists"), "Mean loss since the point before."),
        (_curve(judged, "validation NDCG@10"), "What decides which weights are kept."),
    ]
    page = Environment(autoescape=True).from_string(TEMPLATE)
    written = page.render(
        name=name,
        section=section,
        answer=_answer(judged),
        plots=[(plot, told) for plot, told in plots if plot],
        run=[(told, _shown(metrics[key])) for key, told in TOLD.items() if metrics.get(key) is not None],
        settings=[(f"{section}.{key}", _shown(value)) for key, value in flat(settings)],
    )
    path = folder / PAGES[section]
    write_whole(path, written)
    return path


def _curve(points: Sequence[Sequence[float]], label: str) -> Any:
    pairs = [(float(step), float(value)) for step, value in points]
    return line_plot([Series(label, pairs, 1, dots=len(pairs) <= 30)], x_label="step", y_label=label)


def _answer(judged: Sequence[Sequence[float]]) -> str:
    if not judged:
        return "Nothing was judged on the way; the last weights are kept."
    step, best = max(judged, key=lambda point: point[1])
    last_step, last = judged[-1]
    kept = f"Validation NDCG@10 was best at step {step:,.0f} of {last_step:,.0f}, {best:.4f}; those weights are kept."
    if step == last_step and len(judged) > 1:
        return f"{kept} It was still rising: more epochs may give more."
    return kept if step == last_step else f"{kept} It ended at {last:.4f}."


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return figure(value) if abs(value) >= 1e-3 or value == 0 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
