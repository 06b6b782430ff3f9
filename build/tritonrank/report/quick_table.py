"""What ``build --quick`` found, for people: the runs as a curve, what the rest is likely to give, and what to do next.

Read from quick.json, without anything that models need.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

QUICK_FILE = "quick.json"
BAR = 24
"""Characters of the longest bar."""
SURE = 0.95
"""Share of the drawn curves from which a forecast is called likely, or unlikely from the other side."""
WIDE = 0.1
"""NDCG@10 between the ends of an interval from which it is called wide."""

console = Console()


def show_quick(result: Mapping[str, Any], minutes: str, next_command: str) -> None:
    """Print the curve and its forecast for people, then one line of JSON for scripts.

    Args:
        result: of quick.json.
        minutes: how long a whole build takes, in words; empty where that is not known.
        next_command: what builds everything.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    console.print(_table(result))
    for line in in_words(result):
        say(line)
    say(f"A whole build takes {minutes}: {next_command}" if minutes else f"A whole build: {next_command}")
    print(json.dumps(quick_json(result)))


def quick_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """What scripts need of it: the forecast for the whole, and the chance to beat the best baseline."""
    full = result["forecasts"][0]
    best = best_baseline(result)
    return {
        "recipe": result["recipe"],
        "ndcg@10": {str(run["examples"]): run["ndcg@10"]["mean"] for run in result["runs"]},
        "has_learnt": result["has_learnt"],
        "forecast": {"examples": full["examples"], **full["ndcg@10"]} if result["has_learnt"] else None,
        "best_baseline": best,
        "chance_to_beat_it": full["against"][best]["better"] if result["has_learnt"] else None,
    }


def best_baseline(result: Mapping[str, Any]) -> str:
    """Of those that cost no training, the one that ranks best."""
    return max(map(str, result["forecasts"][0]["against"]), key=lambda name: float(result["baselines"][name]["mean"]))


def in_words(result: Mapping[str, Any]) -> list[str]:
    """What the curve says, a sentence or two per line, most important first."""
    full, further = result["forecasts"]
    best = best_baseline(result)
    if not result["has_learnt"]:
        return [
            f"No forecast: the largest run, of {result['runs'][-1]['steps']} steps, is too short or hardly better "
            "than chance. Such runs are no part of a curve, and a whole training may well be far better. "
            f"The best baseline (a ranking without training) is {best} with {result['baselines'][best]['mean']:.3f}."
        ]
    lines = [
        f"With all {full['examples']:,} training examples the ranker is likely to reach NDCG@10 "
        f"{_with_interval(full['ndcg@10'])} (95% of the curves that fit the runs).",
        _against(full, best, result["baselines"][best]),
    ]
    if full["ndcg@10"]["high"] - full["ndcg@10"]["low"] > WIDE:
        lines.append(
            f"That interval is wide: runs this short scatter, and {result['test_users']} judged users differ. A build "
            "of everything will tell; more judged users (examples.test_users) tell it better."
        )
    lines.append(_further(result, further, best))
    return lines


def _against(forecast: Mapping[str, Any], best: str, baseline: Mapping[str, float]) -> str:
    chance = forecast["against"][best]
    said = f"The best baseline (a ranking without training) is {best} with {baseline['mean']:.3f}: "
    difference = _with_interval(chance["difference"], "+")
    if chance["better"] >= SURE:
        return f"{said}the ranker is likely to beat it, by {difference}."
    if chance["better"] <= 1 - SURE:
        return f"{said}the ranker is likely to stay behind it, by {difference}."
    return f"{said}whether the ranker beats it is open, difference {difference}, better in {chance['better']:.0%}."


def _further(result: Mapping[str, Any], further: Mapping[str, Any], best: str) -> str:
    """What more examples would give, or what else can be done where there are none."""
    full = result["forecasts"][0]
    available = result["positives_to_learn_from"]
    gain = further["ndcg@10"]["mean"] - full["ndcg@10"]["mean"]
    twice = f"Twice as many would add about {gain:+.3f}, to {_with_interval(further['ndcg@10'])}"
    if available > full["examples"]:
        more = min(further["examples"], available)
        return (
            f"{twice}: --set examples.training_examples={more} (the data have {available:,} positives to learn from)."
        )
    return (
        f"{twice}, but the data have no more positives to learn from: more passes over them (--set finetune.epochs=2) "
        "may help instead, which these runs do not tell."
    )


def _table(result: Mapping[str, Any]) -> Table:
    """Runs, forecast and baselines with a bar each; narrow enough for 80 columns."""
    title = f"{result['recipe']}: {result['test_users']} test requests"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("NDCG@10 [95%]", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    full = result["forecasts"][0]
    rows = [
        (f"{run['examples']:,} examples ({run['examples'] / result['training_examples']:.1%})", run["ndcg@10"], "")
        for run in result["runs"]
    ]
    forecasts = result["forecasts"] if result["has_learnt"] else []
    rows += [(f"{one['examples']:,} examples, forecast", one["ndcg@10"], "bold") for one in forecasts]
    rows += [(name, value, "dim") for name, value in result["baselines"].items()]
    highest = max([full["ndcg@10"]["high"], *(value["mean"] for _, value, _ in rows)]) or 1.0
    for name, value, style in rows:
        table.add_row(name, _with_interval(value), _bar(value, highest), style=style)
    return table


def _bar(value: Mapping[str, float], highest: float) -> str:
    """Up to the mean in full, on to the upper end lightly."""
    full = round(BAR * value["mean"] / highest)
    return "█" * full + "░" * max(0, min(BAR, round(BAR * value["high"] / highest)) - full)


def _with_interval(value: Mapping[str, float], sign: str = "") -> str:
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f} {value['high']:{sign}.3f}]"


def read_quick(folder: Path) -> dict[str, Any]:
    """What the runs gave.

    Args:
        folder: of the artifact.
    """
    result: dict[str, Any] = json.loads((folder / QUICK_FILE).read_text(encoding="utf-8"))
    return result
