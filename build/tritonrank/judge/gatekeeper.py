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
from typing import Any, NamedTuple

import torch
from rich.console import Console
from tokenizers import Tokenizer
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import read_manifest
from tritonrank.judge.evaluate import (
    Judgement,
    cached,
    content_hash,
    examples_hash,
    judge_artifact,
    judge_test_examples,
)
from tritonrank.judge.gate import show_verdict, verdict
from tritonrank.judge.metrics import BOOTSTRAP_SAMPLES
from tritonrank.judge.rungs import CHECKPOINT, INT8, PRUNED, STUDENT, UNCUT, UNCUT_WAY_OUT
from tritonrank.judge.rungs import FINE_TUNED as FINE_TUNED  # for those who name their rungs here
from tritonrank.judge.worst import forget_closed_gate, require_passed, with_worst_requests
from tritonrank.rankers.pretrained import load_any_ranker
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.rankers.text_budgets import TEXT_METRICS, Needs, rules_of_checkpoint
from tritonrank.recipe import Recipe

UNCUT_FROM = 0.03
"""Share of judged candidates whose texts are cut, from which a ready checkpoint is judged with whole texts too."""
WAYS_OUT = {
    PRUNED: "Cut less (prune.gflop, or the sizes in the prune section), or allow more: --set gate.prune_budget=0.8",
    STUDENT: "Train the student longer (distill.epochs), or on more (distill.examples)",
    INT8: "The FP32 graph passed; serve it: tritonrank build RECIPE --set quantize.method=none, then: tritonrank "
    "serve {root}. Or keep more layers out of INT8: --set quantize.noise=0.01",
}
"""What can be done when the gate closes on a rung; ``{root}`` is the folder of the recipe's artifacts."""
OTHER_WAY_OUT = "What was built before passed and can be served: leave this precision out of tensorrt.precisions"

console = Console()


class Rung(NamedTuple):
    """A model artifact and what tables call it."""

    name: str
    folder: Path


def teacher_name(recipe: Recipe) -> str:
    """What tables call the ranker that everything is held against."""
    return CHECKPOINT if recipe.model.checkpoint else FINE_TUNED


def require_ranking(
    recipe: Recipe, step: str, child: Rung, parent: Rung, teacher: Rung, dataset_folder: Path, judgements: Path
) -> dict[str, Any]:
    """Judge a step on the test examples.

    Args:
        recipe: its gate section.
        step: prune, distill or quantize.
        child: the artifact that the step made, still a draft.
        parent: what the step started from.
        teacher: the fine-tuned ranker; may be the parent.
        dataset_folder: the prepared dataset.
        judgements: cache of judgements.

    Returns:
        The verdicts for the manifest, by ``gate against <name>``.

    Raises:
        GateError: the ranking became worse than a budget allows; whom it hurt is in a file beside the artifacts.
    """
    root = judgements.parent
    record = root / f"closed-gate-{step}.txt"
    judged = judge_artifact(child.name, child.folder, dataset_folder, judgements)
    others: list[tuple[Judgement, float]] = []
    if parent.folder != teacher.folder:
        before = judge_artifact(parent.name, parent.folder, dataset_folder, judgements)
        others.append((before, step_budget(recipe, step)))
    others.append((judge_teacher(recipe, teacher.folder, dataset_folder, judgements), total_budget(recipe, step)))
    metrics = {}
    for other, budget in others:
        found = verdict(judged, other, budget, seed=recipe.seed)
        found = with_worst_requests(found, judged, other, dataset_folder, TextRules.load(child.folder))
        show_verdict(found)
        way_out = WAYS_OUT.get(child.name, OTHER_WAY_OUT).format(root=root)
        if other.name == uncut_name(recipe):  # what this step started from reads as little
            way_out = UNCUT_WAY_OUT
        require_passed(found, record, f"{child.name} was not published. {way_out}.")
        metrics[f"gate against {other.name}"] = found.as_metrics()
    forget_closed_gate(record)
    return metrics


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


def uncut_name(recipe: Recipe) -> str:
    """What tables call the teacher with whole texts."""
    return f"{teacher_name(recipe)}{UNCUT}"


def uncut_rules(recipe: Recipe, folder: Path, dataset_folder: Path) -> TextRules | None:
    """Rules under which a ready checkpoint reads whole texts; None where it does, or cannot read more."""
    counts = read_manifest(dataset_folder).metrics.get(TEXT_METRICS)
    if not recipe.model.checkpoint or recipe.model.architecture != JOINT or counts is None:
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


def gate_settings(recipe: Recipe, step: str) -> dict[str, Any]:
    """What a step's verdict depends on; another step's budget does not make this one again."""
    return {
        "step_budget": step_budget(recipe, step),
        "total_budget": total_budget(recipe, step),
        "bootstrap_samples": BOOTSTRAP_SAMPLES,
    }


def step_budget(recipe: Recipe, step: str) -> float:
    """What a step may cost against its parent."""
    own: float | None = getattr(recipe.gate, f"{step}_budget")
    return recipe.gate.budget if own is None else own


def total_budget(recipe: Recipe, step: str) -> float:
    """What everything up to this step may cost against the teacher; distillation has yet to repair what pruning did."""
    return step_budget(recipe, step) if step == "prune" and recipe.distill else recipe.gate.budget
