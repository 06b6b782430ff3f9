"""Stage ``prune``: the fine-tuned ranker becomes a smaller dense model that any runtime serves faster.

Whole layers go first; then heads and FFN neurons, by importance measured in what is left, the same number in every
layer; then the tokens and positions that nobody needs. The ranking suffers, so that distillation usually follows and
the gate allows this step more (``gate.prune_budget``).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedModel
from tritonrank_runtime.images import copy_images, without_images
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TOKENIZER_FILE, RequestTokenizer, TextRules

from tritonrank.artifacts import Draft
from tritonrank.artifacts.rungs import PRUNED, Rung, teacher_name
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.negatives import stable_hash
from tritonrank.data.requests import requests_of
from tritonrank.judge.gatekeeper import require_ranking
from tritonrank.judge.metrics import ndcg
from tritonrank.rankers.anatomy import Sizes, head_group_of, head_size_of, resized, sizes_of
from tritonrank.rankers.architectures import architecture_of
from tritonrank.rankers.cost import gflop_of
from tritonrank.rankers.modeling import first_position
from tritonrank.rankers.pretrained import copy_tokenizer, load_any_ranker
from tritonrank.rankers.score_meaning import score_meaning
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.recipe import Recipe
from tritonrank.shrink.cut import Kept, cut, everything
from tritonrank.shrink.importance import Batch, choose_layers, measure_importance, most_important
from tritonrank.shrink.sizes import target_sizes
from tritonrank.shrink.vocabulary import coverage, plain_tokenizer, shrunk, tokens_to_keep, write_tokenizer
from tritonrank.train.batches import Collator

LAYER_CRITERIA = ("ablation", "influence", "taylor")
CRITERION = "taylor"
"""For heads and neurons: |activation x gradient| of the ranking loss. Wherever the norm of the weights was tried, it
kept worse ones (docs/log.md)."""
CRITERIA = (CRITERION, "magnitude")
CALIBRATION_EXAMPLES = 64
"""Training requests on which importance is measured, never judged ones."""
COUNTED_REQUESTS = 50
EXAMPLES_PER_BATCH = 8
HELD_OUT_SHARE = 5
"""Every fifth item, drawn by lot, is left out of a trial vocabulary to see what texts to come will cost."""

console = Console()


def prune(recipe: Recipe, workspace: Workspace, draft: Draft) -> None:
    """Cut the teacher to the recipe's target, and judge it.

    Args:
        recipe: its prune and gate sections.
        workspace: with the dataset and the fine-tuned ranker, of either architecture.
        draft: gets the smaller checkpoint; pruning.json beside it names what stayed.

    Raises:
        GateError: the ranking became worse than this step may make it.
        RecipeError: the target cannot be met.
    """
    settings = recipe.prune
    assert settings is not None  # the pipeline has this stage only with the section
    dataset, teacher = Dataset.read(workspace.dataset), load_any_ranker(workspace.teacher).eval()
    tokenizer = RequestTokenizer.from_folder(workspace.teacher, cache_entries=100_000)
    requests = requests_of(dataset, dataset.validation[:COUNTED_REQUESTS], tokenizer.rules)
    counted = [tokenizer.tensors(tokenizer.context(r.query, r.history), tokenizer.items(r.items)) for r in requests]
    full = sizes_of(teacher.config)

    def gflop(sizes: Sizes) -> float:
        return gflop_of(resized(teacher.config, sizes), counted)

    target = target_sizes(
        full, head_size_of(teacher.config), settings, recipe.tensor_parallel, gflop, head_group_of(teacher.config)
    )
    cutter = _Cutter(teacher, target, _calibration(dataset, teacher, tokenizer, recipe.seed))
    kept = cutter.kept(settings.layer_criterion, CRITERION)
    draft.metrics |= cutter.measured
    if target != full:
        draft.metrics["validation ndcg@10 by criteria"] = _compare(cutter, settings.layer_criterion, dataset, tokenizer)
    tokens, draft.metrics["vocabulary"] = _vocabulary(
        dataset, teacher, workspace.teacher, tokenizer, settings.reserve_tokens
    )
    kept = replace(kept, tokens=tokens, positions=_positions(teacher, tokenizer))
    smaller = cut(teacher, kept)
    smaller.save_pretrained(draft.folder, safe_serialization=True)
    copy_tokenizer(str(workspace.teacher), draft.folder)
    copy_images(workspace.teacher, draft.folder)
    write_tokenizer(draft.folder, kept.tokens)
    _renumbered(tokenizer.rules, kept.tokens).save(draft.folder)
    score_meaning(workspace.teacher).save(draft.folder)
    kept.save(draft.folder)
    sizes = {"teacher": full, "pruned": kept.sizes}
    draft.metrics |= {
        "sizes": {name: asdict(size) for name, size in sizes.items()},
        "gflop_per_request": {name: gflop(size) for name, size in sizes.items()},
        "parameters": {"teacher": _parameters(teacher), "pruned": _parameters(smaller)},
    }
    _show(draft.metrics)
    rungs = Rung(PRUNED, draft.folder), Rung(teacher_name(recipe), workspace.teacher)
    draft.metrics |= require_ranking(recipe, workspace, "prune", *rungs)


class _Cutter:
    """Chooses what stays of the teacher by any pair of criteria; measures each only once."""

    def __init__(self, teacher: PreTrainedModel, target: Sizes, batches: Sequence[Batch]) -> None:
        self.teacher = teacher
        self.measured: dict[str, Any] = {}
        """for the manifest: importances of the criteria that were asked for first"""
        self._target, self._batches = target, batches
        self._layers: dict[str, list[int]] = {}

    def kept(self, layer_criterion: str, criterion: str) -> Kept:
        """Layers, heads and neurons of the target's sizes; all tokens and positions."""
        full = sizes_of(self.teacher.config)
        layers = self._kept_layers(layer_criterion)
        whole = everything(full)
        whole = replace(whole, layers=layers, heads=whole.heads[: len(layers)], neurons=whole.neurons[: len(layers)])
        if (self._target.heads, self._target.ffn_neurons) == (full.heads, full.ffn_neurons):
            return whole
        importance = measure_importance(cut(self.teacher, whole), self._batches, criterion)
        self.measured.setdefault(
            "importance", {"heads": importance.heads.tolist(), "neurons": importance.neurons.round(9).tolist()}
        )
        group = head_group_of(self.teacher.config)
        groups = most_important(importance.heads, self._target.heads // group)
        heads = [[one * group + head for one in row for head in range(group)] for row in groups]
        neurons = most_important(importance.neurons, self._target.ffn_neurons)
        return replace(whole, heads=heads, neurons=neurons)

    def _kept_layers(self, criterion: str) -> list[int]:
        if criterion not in self._layers:
            choice = choose_layers(self.teacher, self._batches, criterion, self._target.layers)
            self.measured.setdefault("layers", asdict(choice) | {"criterion": criterion})
            self._layers[criterion] = choice.kept
        return self._layers[criterion]


def _compare(cutter: _Cutter, chosen: str, dataset: Dataset, tokenizer: RequestTokenizer) -> dict[str, float]:
    """NDCG@10 on the validation users right after cutting, before anything is repaired, by both criteria's names."""
    pairs: list[tuple[str, str]] = [(chosen, criterion) for criterion in CRITERIA]
    pairs += [(layer_criterion, CRITERION) for layer_criterion in LAYER_CRITERIA]
    requests = requests_of(dataset, dataset.validation, tokenizer.rules)
    found: dict[str, float] = {}
    by_choice: dict[str, float] = {}
    for pair in dict.fromkeys(pairs):
        kept = cutter.kept(*pair)
        choice = json.dumps(asdict(kept))
        if choice not in by_choice:  # criteria often agree on the layers
            scorer = torch_scorer(cut(cutter.teacher, kept), tokenizer)
            values = [ndcg(scorer.score(r), e.labels) for r, e in zip(requests, dataset.validation, strict=True)]
            by_choice[choice] = float(np.mean(values))
        found[" + ".join(pair)] = by_choice[choice]
        console.print(f"  {' + '.join(pair)}: validation NDCG@10 {by_choice[choice]:.4f} as cut", highlight=False)
    return found


def _calibration(dataset: Dataset, teacher: PreTrainedModel, tokenizer: RequestTokenizer, seed: int) -> list[Batch]:
    """Training examples drawn by seed, never judged ones."""
    generator = np.random.default_rng(seed)
    wanted = min(CALIBRATION_EXAMPLES, len(dataset.training))
    picks = generator.choice(len(dataset.training), size=wanted, replace=False)
    collate = Collator(dataset, tokenizer, teacher)
    examples = [dataset.training[i] for i in sorted(picks)]
    return [collate(examples[start : start + EXAMPLES_PER_BATCH]) for start in range(0, wanted, EXAMPLES_PER_BATCH)]


def _vocabulary(
    dataset: Dataset, teacher: PreTrainedModel, folder: Path, tokenizer: RequestTokenizer, reserve: int
) -> tuple[list[int], dict[str, Any]]:
    """The tokens that stay, and what that does to texts: the catalogue's own, and such as were held out on trial."""
    rules = tokenizer.rules
    whole = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    first = first_position(teacher.config)
    items = {
        item_id: without_images(render_fields(rules.item_template, fields)) for item_id, fields in dataset.items.items()
    }
    queries = dataset.training_events["query"].unique().to_list()
    held_out = {i for i in items if stable_hash(0, i) % HELD_OUT_SHARE == 0}
    trial = [*queries, *(text for item_id, text in items.items() if item_id not in held_out)]
    unseen = [items[item_id] for item_id in sorted(held_out)]
    reports = {"before": coverage(plain_tokenizer(whole), unseen)}
    reports["after"] = coverage(plain_tokenizer(shrunk(whole, tokens_to_keep(whole, trial, reserve, first))), unseen)
    framed = _in_frame(tokenizer, queries, list(items.values()))
    tokens = tokens_to_keep(whole, [*queries, *items.values()], reserve, first, framed)
    return tokens, {
        "tokens": len(tokens),
        "held-out items": {name: asdict(report) for name, report in reports.items()},
        "held-out extra tokens": reports["after"].tokens / max(1, reports["before"].tokens) - 1,
    }


def _in_frame(tokenizer: RequestTokenizer, queries: Sequence[str], items: Sequence[str]) -> set[int]:
    """Tokens of a language model's prompt, and of the texts as they stand in it: a blank before a word is part of the
    word there. None where texts stand between special tokens alone."""
    frame = tokenizer.rules.frame
    if frame is None:
        return set()
    rows: list[Sequence[int]] = [tokenizer.context(query, []) for query in queries]
    rows += [tokenizer.context("", [item]) for item in items]
    rows += [*tokenizer.items(items), tokenizer.context("", items[:2])]
    layout = tokenizer.layout
    rows += [layout.prefix, layout.middle, layout.suffix, layout.separator, layout.heading, layout.closing]
    return {token for row in rows for token in row} | {one for one in (frame.yes, frame.no) if one is not None}


def _renumbered(rules: TextRules, kept: Sequence[int]) -> TextRules:
    """The rules with the answers of a prompt by their new ids."""
    if rules.frame is None:
        return rules
    places = {token: place for place, token in enumerate(kept)} | {None: None}
    frame = replace(rules.frame, yes=places[rules.frame.yes], no=places[rules.frame.no])
    return replace(rules, frame=frame)


def _positions(teacher: PreTrainedModel, tokenizer: RequestTokenizer) -> int:
    """Rows of the position table that the token budgets can reach; all positions where there is no table."""
    architecture, longest = architecture_of(teacher.config), sizes_of(teacher.config).positions
    if not architecture.has_position_table(teacher.config):
        return longest
    needed = first_position(teacher.config) + architecture.positions(teacher.config, tokenizer)
    return min(longest, needed)


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _show(metrics: dict[str, Any]) -> None:
    before, after = metrics["sizes"]["teacher"], metrics["sizes"]["pruned"]
    changes = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before)
    shares = {name: metrics[name]["pruned"] / metrics[name]["teacher"] for name in ("parameters", "gflop_per_request")}
    console.print(
        f"  {changes}\n  {shares['parameters']:.3f} of the parameters, {shares['gflop_per_request']:.3f} of the GFLOP "
        "per request",
        highlight=False,
    )
