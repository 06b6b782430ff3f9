"""Judging one thing on request, a model folder or a live server, against the parent that it came from."""

from pathlib import Path

from rich.console import Console
from tritonrank_client import RankClient
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.evaluate import Judgement, judge_artifact, judge_test_examples
from tritonrank.judge.gate import show_verdict, verdict
from tritonrank.judge.gatekeeper import judge_uncut
from tritonrank.judge.worst import require_passed, with_worst_requests
from tritonrank.rankers.server_scorer import ServerScorer
from tritonrank.recipe import Recipe

SHOWN_METRICS = ("ndcg@10", "mrr@10", "recall@10", "auc")

console = Console(emoji=False)


def judge_against_parent(recipe: Recipe, workspace: Workspace, judged: Path | str, against: Path | None = None) -> None:
    """Judge on the recipe's test examples, print the metrics beside the parent's, and let the gate decide.

    Args:
        recipe: its gate's budget counts.
        workspace: where its dataset and its fine-tuned checkpoint are.
        judged: a folder with a checkpoint or an ONNX graph, or the address of a live server.
        against: the parent's folder; without it the fine-tuned checkpoint, with its texts uncut where they were cut.

    Raises:
        GateError: the ranking is worse than the parent's by more than the budget, or too few examples can tell.
        ArtifactError: a folder is missing or damaged.
    """
    parent = _judge_parent(recipe, workspace, against)
    rules = TextRules.load(workspace.teacher)
    if isinstance(judged, Path):
        child = judge_artifact(judged.name, judged, workspace.dataset, workspace.judgements)
    else:
        with RankClient(judged) as client:
            child = judge_test_examples(judged, ServerScorer(client), workspace.dataset, rules)
    found = verdict(child, parent, recipe.gate.budget, seed=recipe.seed)
    found = with_worst_requests(found, child, parent, workspace.dataset, rules)
    for metric in SHOWN_METRICS:
        own, other = (one.interval(metric) for one in (child, parent))
        console.print(f"{metric:<10} {own}   {parent.name}: {other}", highlight=False, markup=False, soft_wrap=True)
    show_verdict(found)
    require_passed(found, workspace.root / "closed-gate-evaluate.txt", "Judge another: --artifact or --server.")


def _judge_parent(recipe: Recipe, workspace: Workspace, against: Path | None) -> Judgement:
    folder = against or workspace.teacher
    uncut = None if against else judge_uncut(recipe, folder, workspace.dataset, workspace.judgements)
    return uncut or judge_artifact(folder.name, folder, workspace.dataset, workspace.judgements)
