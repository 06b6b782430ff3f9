"""What a ranker has to beat: random, popularity, item co-occurrence kNN, and the encoder before fine-tuning.

Counts come from training events only, as do those behind the negatives.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tritonrank_runtime.images import ImageTable, without_images
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import read_manifest, sha256_file, stage_key
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.requests import requests_of
from tritonrank.judge.counted import NEIGHBOUR_HISTORY, neighbour_baseline, popularity_baseline
from tritonrank.judge.evaluate import ExampleScorer, Judgement, cached, judge
from tritonrank.rankers.pretrained import load_encoder, load_tokenizer
from tritonrank.rankers.scorers import torch_scorer
from tritonrank.rankers.text_budgets import text_rules
from tritonrank.recipe import Recipe
from tritonrank.train.finetune import images_of, untrained_ranker

UNTRAINED = "untrained"
UNTRAINED_EXAMPLES = 50
"""Test examples that the untrained ranker is judged on. It ranks about as chance does, and judging it on all of them
took as long as judging the trained one. A language model that answers before it is trained is judged on all of them."""
FREE_BASELINES = ("popularity", "item kNN", "zero-shot cosine")
"""What costs no training and no model server: a ranker that loses to one of them is not worth its place."""


def all_baselines(
    recipe: Recipe, dataset: Dataset, rules: TextRules, workspace: Workspace
) -> dict[str, Callable[[], ExampleScorer]]:
    """The maker of every baseline by name, cheapest first; a ready checkpoint has no untrained state.

    Args:
        recipe: its seed and model.
        dataset: what may be counted.
        rules: the ranker's.
        workspace: with the images, where the ranker reads some.
    """
    makers: dict[str, Callable[[], ExampleScorer]] = {
        "random": lambda: random_baseline(recipe.seed),
        "popularity": lambda: popularity_baseline(dataset.training_events),
        "item kNN": lambda: neighbour_baseline(dataset.training_events),
        "zero-shot cosine": lambda: cosine_baseline(recipe, dataset, rules),
    }
    if recipe.model.checkpoint:
        return makers
    return makers | {UNTRAINED: lambda: untrained_baseline(recipe, dataset, images_of(recipe, workspace))}


def baseline_judgements(
    recipe: Recipe, dataset: Dataset, workspace: Workspace, names: Collection[str] | None = None
) -> dict[str, Judgement]:
    """Baselines on the test examples, cached by what they depend on.

    Args:
        recipe: its seed, text and model sections.
        dataset: the prepared one.
        workspace: with the cache of judgements.
        names: those that are wanted; default: all.
    """
    model = {"base": recipe.model.base, "architecture": recipe.model.architecture}
    rules = text_rules(recipe, workspace.dataset)
    text = {name: value for name, value in asdict(rules).items() if name in type(recipe.text).model_fields}
    frame = {"frame": asdict(rules.frame)} if rules.frame else {}
    settings = {"seed": recipe.seed, "text": text, **model, **frame}
    answers = rules.frame is not None and rules.frame.yes is not None
    key = stage_key("baselines", settings, {"dataset": read_manifest(workspace.dataset)})
    test = sha256_file(workspace.dataset / "test.parquet")
    judged = {}
    for name, make in all_baselines(recipe, dataset, rules, workspace).items():
        if names is None or name in names:
            path = workspace.judgements / f"{name.replace(' ', '-')}-{key[:16]}-{test[:16]}.parquet"
            is_chance = name == UNTRAINED and not answers
            examples = dataset.test[:UNTRAINED_EXAMPLES] if is_chance else dataset.test
            judged[name] = cached(name, path, partial(_judge_baseline, name, make, examples))
    return judged


def _judge_baseline(name: str, make: Callable[[], ExampleScorer], examples: Sequence[Example]) -> Judgement:
    return judge(name, make(), examples)


def random_baseline(seed: int) -> ExampleScorer:
    generator = np.random.default_rng(seed)
    return lambda example: generator.random(len(example.candidates), dtype=np.float32)


def cosine_baseline(recipe: Recipe, dataset: Dataset, rules: TextRules) -> ExampleScorer:
    """Zero-shot: cosine of the encoder's mean-pooled item text and the mean of query and history texts.

    Of the history it takes as many items as the ranker; beside a ranker that reads none, as many as kNN.
    """
    embed = _embedder(recipe)
    newest = rules.history_items or NEIGHBOUR_HISTORY
    items = {item: without_images(render_fields(rules.item_template, fields)) for item, fields in dataset.items.items()}
    wanted = sorted({item for e in dataset.test for item in [*e.candidates, *e.history[-newest:]]})
    vectors = dict(zip(wanted, embed([items[item] for item in wanted]), strict=True))
    queries = sorted({example.query for example in dataset.test} - {""})
    query_vectors = dict(zip(queries, embed(queries), strict=True))

    def score(example: Example) -> NDArray[np.float32]:
        parts = [vectors[item] for item in example.history[-newest:]]
        parts += [query_vectors[example.query]] if example.query else []
        candidates = np.stack([vectors[item] for item in example.candidates])
        context = np.mean(parts, axis=0) if parts else np.zeros(candidates.shape[1])
        return np.asarray(candidates @ context, dtype=np.float32)

    return score


def untrained_baseline(recipe: Recipe, dataset: Dataset, images: ImageTable | None = None) -> ExampleScorer:
    """The base model with the head that fine-tuning starts from: a random one, or a language model's own answers, which
    makes it the zero-shot ranker."""
    torch.manual_seed(recipe.seed)
    model, tokenizer = untrained_ranker(recipe.model_copy(update={"model": recipe.model.untrained}), images=images)
    scorer = torch_scorer(model.eval(), tokenizer)
    return lambda example: scorer.score(requests_of(dataset, [example], tokenizer.rules)[0])


def _embedder(recipe: Recipe) -> Callable[[list[str]], NDArray[np.float32]]:
    base = recipe.model.untrained
    encoder, tokenizer = load_encoder(base.source, base.revision), load_tokenizer(base.source, base.revision)
    tokenizer.padding_side = "right"  # where a causal model's texts do not look
    if tokenizer.pad_token is None:  # language models were trained without; the mask covers it
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)

    @torch.inference_mode()
    def embed(texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, (texts, hidden): mean over the tokens of the last hidden state."""
        vectors = []
        for start in range(0, len(texts), 64):
            inputs = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            hidden = encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            vectors.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return np.asarray(torch.cat(vectors).numpy()) if vectors else np.zeros((0, 1), dtype=np.float32)

    return embed
