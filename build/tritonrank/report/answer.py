"""The straight answer of a build: is it better than what is there already, what to serve, and what to do if it is not.

``judge/worth.py`` finds it, summary.json keeps it as ``verdict``; here it is put into the words that the table and the
report's first lines share. Nothing here loads a model.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonrank.artifacts.rungs import FINE_TUNED, STUDENT, TEACHERS
from tritonrank.report.build_table import against_served_now, serve_command

SUMMARY_FILE, COMPARISON_FILE = "summary.json", "comparison.json"
DISTILLED, GIVEN = "distilled", "given"
"""How a ranker was made, beside fine-tuned."""
BUILDING = frozenset({"build", "finetune", "demo"})
"""Verbs whose parameters are those of build."""
LOST_EXIT_CODE = 3
"""Of a build that went to its end although something that is there already ranks better beyond doubt."""


def read_answer(file: Path) -> dict[str, Any]:
    """What ``summarize`` or ``compare`` wrote.

    Args:
        file: summary.json or comparison.json.
    """
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if result.get("against_served"):  # somebody may have promoted another build since
        result["against_served"] = against_served_now(file.parents[1], result["against_served"])
    return result


def exit_code(file: Path, policy: str) -> int:
    """Of a command that went to its end.

    Args:
        file: summary.json or comparison.json.
        policy: ``gate.training``.
    """
    return 0 if policy == "ignore" or is_success(read_answer(file)) else LOST_EXIT_CODE


def called(ranker: str, made: str) -> str:
    """A ranker in a sentence: nobody trained a checkpoint that is taken as it is.

    Args:
        ranker: what tables call it.
        made: fine-tuned, distilled or given.
    """
    name = "the checkpoint as given" if made == GIVEN else f"the {made} ranker"
    return name if ranker in TEACHERS else f"{name} ({ranker})"


def made_how(result: Mapping[str, Any]) -> str:
    """What training made the ranker that is served: a student learns whatever its teacher is."""
    if any(row["name"] == STUDENT for row in result["rows"]):
        return DISTILLED
    return FINE_TUNED if result["trained"] else GIVEN


def lost_in_words(ranker: str, made: str, lost: Sequence[Mapping[str, Any]], examples: int) -> str:
    """Who ranks better and by how much."""
    names = " and ".join(
        f"{one['name']} (NDCG@10 higher by {one['difference']:.3f} [{one['low']:.3f} {one['high']:.3f}])"
        for one in lost
    )
    verb = "ranks" if len(lost) == 1 else "rank"
    return f"{names} {verb} better than {called(ranker, made)} beyond doubt, on {examples:,} requests"


def this_command() -> str:
    """What was typed, as it can be typed again."""
    return shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "tritonrank"), *sys.argv[1:]])


def build_command(typed: str) -> str:
    """What builds the same recipe, with the same settings; what may help is added to it.

    Args:
        typed: the command that built or trained.
    """
    words = shlex.split(typed)
    if len(words) > 2 and words[0] == "tritonrank" and words[1] in BUILDING:
        return shlex.join(["tritonrank", "build", *words[2:]])
    return "tritonrank build RECIPE"


def next_in_lines(steps: Sequence[str], typed: str) -> list[str]:
    """What may help, one line each, with the command that it is added to."""
    return [f"What may help, with {build_command(typed)}:", *(f"  {step}" for step in steps)] if steps else []


def headline_of(result: Mapping[str, Any]) -> str:
    """Whether the build is better than what is there already, in one sentence; nothing in summaries without a verdict.

    Args:
        result: of summary.json.
    """
    found = result.get("verdict")
    if not found:
        return ""
    made = made_how(result)
    if found["loses_to"]:
        return f"Not a success: {lost_in_words(found['serve'], made, found['loses_to'], result['examples'])}."
    against = result.get("against_served")
    if against and against["better"] is False:
        return "Not a success: no baseline ranks better beyond doubt, but the build that is served does."
    better = [row for row in result["rows"] if "gain" in row and row["gain"]["low"] > 0]
    if not better:
        return f"Not worse than any baseline, and not proved to be better than one. {found['undecided']}".strip()
    best = max(better, key=lambda row: row["ndcg@10"]["mean"])
    name = called(found["serve"], made)
    beaten = f"{name} ranks better than {best['name']} by {with_interval(best['gain'], '+')} NDCG@10"
    return f"{beaten[0].upper()}{beaten[1:]}, beyond doubt. {found['undecided']}".strip()


def next_steps_of(result: Mapping[str, Any]) -> Sequence[str]:
    """What may help; nothing after a success."""
    steps: Sequence[str] = [] if is_success(result) else (result.get("verdict") or {}).get("next", [])
    return steps


def mood(result: Mapping[str, Any]) -> str:
    """good: better than all that is there, beyond doubt; bad: worse than some of it; open: nobody can tell."""
    if not is_success(result):
        return "bad"
    verdict = result.get("verdict")
    return "good" if verdict and not verdict["undecided"] else "open"


def worse_segments_in_words(result: Mapping[str, Any]) -> str:
    """For whom the build ranks worse than the best baseline; nothing where that is for nobody."""
    found = result.get("segments") or {"baseline": "", "rows": []}
    worse = [
        f"{row['kind']}: {row['name']} ({with_interval(row['gain'], '+')} on {row['examples']} requests)"
        for row in found["rows"]
        if row["verdict"] == "worse"
    ]
    return f"For some it ranks worse than {found['baseline']}: {'; '.join(worse)}" if worse else ""


def against_served_in_words(result: Mapping[str, Any]) -> str:
    """Whether the build beats the one that is served; nothing where none is."""
    served = result.get("against_served")
    if not served:
        return ""
    said = {True: "better than", False: "worse than", None: "not to be told from"}[served["better"]]
    interval = {"mean": served["difference"], "low": served["low"], "high": served["high"]}
    return f"It ranks {said} the build that is served ({served['build']}): {with_interval(interval, '+')} NDCG@10."


def is_success(result: Mapping[str, Any]) -> bool:
    """Nothing ranks better beyond doubt: no baseline, and not the build that is served."""
    verdict, served = result.get("verdict"), result.get("against_served")
    return (not verdict or bool(verdict["success"])) and not (served and served["better"] is False)


def what_to_serve(result: Mapping[str, Any], folder: Path) -> str:
    """The last line of a build: which of its rankers, why, and the command.

    Args:
        result: of summary.json.
        folder: artifacts/<recipe>.
    """
    serve, command = f"tritonrank serve {shlex.quote(str(folder))}", serve_command(folder)
    found = result.get("verdict")
    if not found:
        return f"What to serve: {command}"
    rows = {row["name"]: row for row in result["rows"]}
    served, teacher = rows[found["serve"]], rows[result["teacher"]]
    if found["loses_to"]:
        best = found["loses_to"][0]["name"]
        return (
            f"What to serve: rather {best} than one of these rankers. {found['serve']} can be served all the same: "
            f"{command}"
        )
    against = result.get("against_served")
    if against and against["better"] is False:
        return f"What to serve: what is served now, build {against['build']}: it ranks better. {serve}"
    said = f"NDCG@10 {served['ndcg@10']['mean']:.3f}"
    if served is not teacher:
        said += f", {result['teacher']} has {teacher['ndcg@10']['mean']:.3f}"
    if "milliseconds_per_100" in served:
        said += f"; {served['milliseconds_per_100']:.0f} ms per 100 candidates"
        if served is not teacher:
            said += f", {result['teacher']} takes {teacher['milliseconds_per_100']:.0f}"
    return f"What to serve: {found['serve']} ({said}): {command}"


def with_interval(value: Mapping[str, float], sign: str = "") -> str:
    return f"{value['mean']:{sign}.3f} [{value['low']:{sign}.3f} {value['high']:{sign}.3f}]"
