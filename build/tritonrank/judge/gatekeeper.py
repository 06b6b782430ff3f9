"""One judge for every step: a model folder is held against its parent and against the teacher before it may stand.

The parent shows what this step cost, the teacher what all steps together have cost. Each has a budget of its own in the
recipe: ``gate.prune_budget`` and its like, and ``gate.budget``. The teacher reads what the recipe's budgets leave of a
text. Where that is a ready checkpoint that would read more, it is judged once more with whole texts, and that judgement
stands for the teacher: cutting texts is a step too, and costs what it costs.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import read_manifest
from tritonrank.artifacts.rungs import Rung, gate_metric, teacher_name, uncut_name
from tritonrank.artifacts.workspace import Workspace
from tritonrank.judge.budgets import step_budget, total_budget
from tritonrank.judge.evaluate import (
    Judgement,
    cached,
    content_hash,
    examples_hash,
    judge_artifact,
    judge_test_examples,
)
from tritonrank.judge.gate import Verdict, show_verdict, verdict
from tritonrank.judge.next_steps import users_that_tell
from tritonrank.judge.ways_out import ways_out
from tritonrank.judge.worst import forget_closed_gate, require_passed, with_worst_requests
from tritonrank.rankers.architectures import architecture_named
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.rankers.text_budgets import TEXT_METRICS, Needs, rules_of_checkpoint
from tritonrank.recipe import Recipe

UNCUT_FROM = 0.03
"""Share of judged candidates whose texts are cut, from which a ready checkpoint is judged with whole texts too."""

console = Console()


def require_ranking(recipe: Recipe, workspace: Workspace, step: str, child: Rung, parent: Rung) -> dict[str, Any]:
    """Judge a step on the test examples, against what it started from and against the teacher.

    Args:
        recipe: its gate section.
        workspace: its dataset judges, its teacher may be the parent.
        step: prune, distill or quantize.
        child: the artifact that the step made, still a draft.
        parent: what the step started from.

    Returns:
        The verdicts for the manifest, by ``gate_metric``.

    Raises:
        GateError: the ranking became worse than a budget allows; whom it hurt is in a file beside the artifacts.
    """
    record = workspace.root / f"closed-gate-{step}.txt"
    dataset, judgements = workspace.dataset, workspace.judgements
    judged = judge_artifact(child.name, child.folder, dataset, judgements)
    others: list[tuple[Judgement, float]] = []
    if parent.folder != workspace.teacher:
        before = judge_artifact(parent.name, parent.folder, dataset, judgements)
        others.append((before, step_budget(recipe, step)))
    others.append((judge_teacher(recipe, workspace.teacher, dataset, judgements), total_budget(recipe, step)))
    metrics = {}
    for other, budget in others:
        found = verdict(judged, other, budget, seed=recipe.seed)
        found = with_worst_requests(found, judged, other, dataset, TextRules.load(child.folder))
        show_verdict(found)
        advice = [f"{child.name} was not published: a gate checks that no step makes the ranking worse (docs/gate.md)."]
        advice += _chance_in_words(found, workspace) + ways_out(recipe, workspace.root, child.name, other.name)
        require_passed(found, record, "\n".join(advice))
        metrics[gate_metric(other.name)] = found.as_metrics()
    forget_closed_gate(record)
    return metrics


def _chance_in_words(found: Verdict, workspace: Workspace) -> list[str]:
    """That a gate closed on noise, and how many judged users would tell; nothing where the ranking did become worse."""
    if found.passed or not found.may_be_chance:
        return []
    users = users_that_tell(found.examples_that_tell, found.examples, read_manifest(workspace.dataset).metrics)
    return [
        f"With {found.examples} requests that may be chance: the fall is between {found.drop_low:.1%} and "
        f"{found.drop_high:.1%}; {users}"
    ]


def judge_teacher(recipe: Recipe, folder: Path, dataset_folder: Path, judgements: Path) -> Judgement:
    """The judgement that stands for the teacher: of whole texts, where it would read more than the budgets leave."""
    uncut = judge_uncut(recipe, folder, dataset_folder, judgements)
    return uncut or judge_artifact(teacher_name(recipe), folder, dataset_folder, judgements)


def judge_uncut(recipe: Recipe, folder: Path, dataset_folder: Path, judgements: Path) -> Judgement | None:
    """A ready checkpoint judged with texts as long as its positions go; None where that makes no difference.

    Args:
        recipe: its model and text sections.
        folder: the checkpoint artifact.
        dataset_folder: the prepared dataset, whose manifest says how much is cut.
        judgements: cache of judgements.
    """
    rules = uncut_rules(recipe, folder, dataset_folder)
    if rules is None:
        return None
    key = hashlib.sha256(json.dumps(asdict(rules)).encode()).hexdigest()
    path = judgements / f"{content_hash(folder)[:24]}-{examples_hash(dataset_folder, 'test')[:16]}-{key[:8]}.parquet"

    def make() -> Judgement:
        console.print(
            f"  texts are cut that the checkpoint would read: it is judged with {rules.candidate_tokens} tokens per "
            "candidate too, which takes longer than any other judgement",
            highlight=False,
            soft_wrap=True,
        )
        model = load_any_ranker(folder).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = RequestTokenizer(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), rules, 100_000)
        return judge_test_examples(uncut_name(recipe), torch_scorer(model, tokenizer), dataset_folder, rules)

    return cached(uncut_name(recipe), path, make)


def uncut_rules(recipe: Recipe, folder: Path, dataset_folder: Path) -> TextRules | None:
    """Rules under which a ready checkpoint reads whole texts; None where it does, or cannot read more."""
    counts = read_manifest(dataset_folder).metrics.get(TEXT_METRICS)
    shares = architecture_named(recipe.model.architecture).shares_positions
    if not recipe.model.checkpoint or not shares or counts is None:
        return None
    cut = max(counts[kind]["cut_share"] for kind in ("judged_candidates", "queries"))
    if cut <= UNCUT_FROM:
        return None
    rules = TextRules.load(folder)
    kept = {"history_items": rules.history_items, "history_tokens": rules.history_tokens}
    text = recipe.text.model_copy(update={"query_tokens": "auto", "candidate_tokens": "auto", **kept})
    needs = Needs(counts["queries"]["longest"], counts["items"]["longest"])
    whole = rules_of_checkpoint(recipe.model, text, needs)
    reads_more = whole.candidate_tokens > rules.candidate_tokens or whole.query_tokens > rules.query_tokens
    return whole if reads_more else None
