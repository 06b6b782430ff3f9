"""Stage ``compare``: right after training, is the ranker worth going on with?

It is held against what needs no training: popularity and item kNN, which are counted, and the encoder's zero-shot
cosine; a ready checkpoint whose texts are cut also against itself with whole texts. Where one of them ranks better
beyond doubt, that is said before the minutes that export and INT8 take, and ``gate.training: stop`` ends the build.
All judgements are kept, and the gates and the summary take them from there.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from tritonrank.artifacts import Draft, read_manifest
from tritonrank.artifacts.rungs import FINE_TUNED, UNCUT, teacher_name
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.errors import GateError
from tritonrank.judge.evaluate import Judgement, judge_artifact
from tritonrank.judge.gatekeeper import judge_uncut
from tritonrank.judge.next_steps import more_judged_users, next_steps
from tritonrank.judge.worth import Against, Answer, against_all, closest_undecided, losses
from tritonrank.recipe import Recipe
from tritonrank.report.answer import COMPARISON_FILE, GIVEN, lost_in_words, next_in_lines, this_command
from tritonrank.report.baselines import FREE_BASELINES, baseline_judgements

console = Console()


def compare(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Judge the teacher and what it has to beat, say who won, and write comparison.json: verdict and differences.

    Raises:
        GateError: it lost, and ``gate.training`` is stop.
    """
    dataset, name = Dataset.read(workspace.dataset), teacher_name(recipe)
    others = baseline_judgements(recipe, dataset, workspace, FREE_BASELINES)
    teacher = judge_artifact(name, workspace.teacher, workspace.dataset, workspace.judgements)
    if uncut := judge_uncut(recipe, workspace.teacher, workspace.dataset, workspace.judgements):
        others[uncut.name] = uncut
    compared = against_all(teacher, others)
    answer = answer_of(recipe, workspace, dataset, name, compared, others | {name: teacher})
    result = {"verdict": answer.as_json(), "gains": {one.name: vars(one.gain) for one in compared}}
    (draft.folder / COMPARISON_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    say_comparison(answer, compared, recipe)


def say_comparison(answer: Answer, compared: Sequence[Against], recipe: Recipe) -> None:
    """One line per baseline, and what follows if one ranks better.

    Raises:
        GateError: as ``compare``.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for one in compared:
        gain = one.gain
        said = "is worse" if gain.low > 0 else "ranks better" if one.is_lost else "may be as good"
        say(f"  {one.name} {said}: {answer.serve} has {gain.mean:+.3f} [{gain.low:+.3f} {gain.high:+.3f}] NDCG@10")
    if answer.success:
        if answer.undecided:
            say(f"  {answer.undecided}", style="yellow")
        return
    made = GIVEN if recipe.model.checkpoint else FINE_TUNED
    lost = lost_in_words(answer.serve, made, answer.loses_to, compared[0].examples)
    said = "\n".join([f"{lost}.", *next_in_lines(answer.next, this_command())])
    if recipe.gate.training == "stop":
        going_on = "Or go on all the same: --set gate.training=warn"
        raise GateError(f"{said}\nNothing was made of it, because gate.training is stop. {going_on}")
    say(f"  {said}", style="bold red")


def answer_of(
    recipe: Recipe,
    workspace: Workspace,
    dataset: Dataset,
    ranker: str,
    compared: Sequence[Against],
    judged: Mapping[str, Judgement],
    against_served: Mapping[str, Any] | None = None,
) -> Answer:
    """The verdict on a ranker.

    Args:
        recipe: that made it.
        workspace: with the dataset and the teacher.
        dataset: the prepared one.
        ranker: what tables call the one that is, or would be, served.
        compared: it beside everything else.
        judged: all judgements by name, the rungs among them.
        against_served: it beside the build that is served, where there is one.
    """
    serious = [one for one in compared if one.name in FREE_BASELINES or one.name.endswith(UNCUT)]
    lost = losses(serious)
    counted, trained = (read_manifest(folder).metrics for folder in (workspace.dataset, workspace.teacher))
    means = {name: one.interval().mean for name, one in judged.items() if len(one.table) == len(dataset.test)}
    close = closest_undecided(serious)
    undecided = ""
    if close and not lost:
        interval = f"{close.gain.mean:+.3f} [{close.gain.low:+.3f} {close.gain.high:+.3f}]"
        users = more_judged_users(close.gain, close.examples, counted)
        unclear = f"{close.examples:,} requests cannot tell whether {ranker} or {close.name} ranks better"
        undecided = f"{unclear} ({interval}): {users}"
    lost_to = [one["name"] for one in lost]
    lost_to += ["the served build"] if against_served and against_served["better"] is False else []
    return Answer(
        success=not lost,
        best=max(means, key=lambda name: means[name]),
        serve=ranker,
        loses_to=lost,
        next=next_steps(recipe, dataset, counted, trained, lost_to) if lost_to else [],
        undecided=undecided,
    )
