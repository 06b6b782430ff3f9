"""The encoder learns to put what is chosen near who chose it: in-batch and hard negatives, on the ranker's examples.

The vectors of a user's history come from a table of all items and get no gradient, so that a step encodes what was
chosen, one hard negative per choice, and the queries: about 2 item texts and a query per choice, forwards and
backwards. Encoding six items of each history as well would cost four times as much. Whatever a step encodes is put
into the table, so that it follows the encoder without passes of its own.

A step's softmax goes over all items that it encoded, whoever they were encoded for. What is chosen often is there
often: its logit is lowered by the logarithm of how often (log-Q correction, Yi et al. 2019), or the towers would learn
to hold popular items down. Hard negatives are drawn from what the table ranks high for a user. Items that a user has
met are never negatives.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tritonrank.retrieval.choices import NOTHING, Choices, Numbers
from tritonrank.retrieval.item_table import MIXER_RATE, POOL, Mixer, history_of
from tritonrank.retrieval.text_tower import TextTower, padded
from tritonrank.system.machine import has_bf16_products
from tritonrank.system.progress import step
from tritonrank.train.arguments import GRADIENT_CLIP, SMALLEST_IN_BF16, WARMUP_RATIO, WEIGHT_DECAY

CHOICES_PER_STEP = 64
HARD_FROM = 64
"""A hard negative is drawn from so many items that come first for the user."""
TEXTS_PER_PASS = 32
"""Texts of similar length go through the encoder together: less padding, and less memory for gradients."""

Ids = Sequence[Sequence[int]]


def train_encoder(
    tower: TextTower,
    items: Ids,
    queries: Ids,
    table: Tensor,
    choices: Choices,
    *,
    epochs: float,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Train in place.

    Args:
        tower: without a projection.
        items, queries: token ids of the items and of ``choices.queries``.
        table: the items' unit vectors by this tower, (items, dimension); it is changed, too.
        choices: what is learnt from.
        epochs: passes over them.
        learning_rate: peak, after warm-up.
        seed: of order, negatives and dropout.

    Returns:
        Mean loss of each tenth of the training.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    mixer = Mixer()
    frequency = _frequencies(choices, len(items))
    steps = max(1, round(len(choices) * epochs / CHOICES_PER_STEP))
    optimizer = torch.optim.AdamW(
        [
            {"params": list(tower.parameters()), "lr": learning_rate, "weight_decay": WEIGHT_DECAY},
            {"params": list(mixer.parameters()), "lr": MIXER_RATE, "weight_decay": 0.0},
        ]
    )
    warmup = max(1, round(WARMUP_RATIO * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / warmup, max(0.0, (steps - done) / max(1, steps - warmup)))
    )
    in_bf16 = tower.dimension >= SMALLEST_IN_BF16 and has_bf16_products()
    losses = []
    tower.train()
    with step("retriever", total=steps) as bar:
        for rows in _steps(len(choices), steps, random):
            negatives = _hard_negatives(mixer, table, choices, rows, random)
            encoded = np.unique(np.concatenate([choices.chosen[rows], negatives]))
            asked = np.unique(choices.query[rows][choices.query[rows] != NOTHING])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
                vectors = _encode(tower, [*(items[item] for item in encoded), *(queries[query] for query in asked)])
            of_items, of_queries = vectors[: len(encoded)], vectors[len(encoded) :]
            users = _users(mixer, table, choices, rows, asked, of_queries)
            loss = _loss(users, of_items, mixer, choices, rows, encoded, frequency)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
            torch.nn.utils.clip_grad_norm_(tower.parameters(), GRADIENT_CLIP)
            optimizer.step()
            schedule.step()
            table[torch.from_numpy(encoded)] = of_items.detach()
            losses.append(float(loss.detach()))
            bar.advance()
            bar.update(note=f"loss {losses[-1]:.3f}")
    tower.eval()
    return [float(part.mean()) for part in np.array_split(np.array(losses), min(10, len(losses)))]


def _loss(
    users: Tensor,
    items: Tensor,
    mixer: Mixer,
    choices: Choices,
    rows: Numbers,
    encoded: Numbers,
    frequency: NDArray[np.float64],
) -> Tensor:
    """Softmax cross-entropy of what was chosen among all items of the step."""
    logits = users @ items.T * mixer.scale.exp() - torch.from_numpy(np.log(frequency[encoded])).float()
    logits = logits.masked_fill(torch.from_numpy(choices.is_met(rows, encoded)), -torch.inf)
    targets = torch.from_numpy(np.searchsorted(encoded, choices.chosen[rows]))
    each = functional.cross_entropy(logits, targets, reduction="none")
    return (each * torch.from_numpy(choices.weight[rows])).mean()


def _users(mixer: Mixer, table: Tensor, choices: Choices, rows: Numbers, asked: Numbers, of_queries: Tensor) -> Tensor:
    """Users' vectors; the gradient goes to the queries and to the mixing."""
    vectors, is_there = history_of(table, choices.history[rows])
    query = choices.query[rows]
    mine = torch.zeros(len(rows), table.shape[1])
    if len(asked):
        has_query = torch.from_numpy(query != NOTHING)
        places = torch.from_numpy(np.searchsorted(asked, query[query != NOTHING]))
        mine = mine.masked_scatter(has_query.unsqueeze(1).expand_as(mine), of_queries[places])
    users: Tensor = mixer(mine, vectors, is_there)
    return users


@torch.no_grad()
def _hard_negatives(
    mixer: Mixer, table: Tensor, choices: Choices, rows: Numbers, random: np.random.Generator
) -> Numbers:
    """One item for each choice that the table ranks high by the history alone, and that the user has not met."""
    size = len(table)
    pool = np.arange(size) if size <= POOL else np.sort(random.choice(size, POOL, replace=False))
    vectors, is_there = history_of(table, choices.history[rows])
    users = mixer(torch.zeros(len(rows), table.shape[1]), vectors, is_there)
    scores = users @ table[torch.from_numpy(pool)].T
    taken = choices.is_met(rows, pool) | (pool[None, :] == choices.chosen[rows][:, None])
    scores = scores.masked_fill(torch.from_numpy(taken), -torch.inf)
    first = scores.topk(min(HARD_FROM, len(pool)), dim=1).indices.numpy()
    places = first[np.arange(len(rows)), random.integers(0, first.shape[1], size=len(rows))]
    negatives: Numbers = pool[places]
    return negatives


def _encode(tower: TextTower, ids: Ids) -> Tensor:
    """Unit vectors in FP32, in the order of the texts."""
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    parts = []
    for start in range(0, len(order), TEXTS_PER_PASS):
        rows, mask = padded([ids[place] for place in order[start : start + TEXTS_PER_PASS]])
        parts.append(tower(rows, mask).float())
    vectors = torch.cat(parts)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return functional.normalize(vectors[back], dim=-1)


def _frequencies(choices: Choices, items: int) -> NDArray[np.float64]:
    """Share of the choices that are of each item; at least that of an item in a catalogue where all are alike, so that
    hard negatives, which nobody chose, do not outweigh everything."""
    counts = np.bincount(choices.chosen, minlength=items)
    shares: NDArray[np.float64] = np.maximum(counts / max(1, len(choices)), 1 / items)
    return shares


def _steps(count: int, steps: int, random: np.random.Generator) -> Iterator[Numbers]:
    """Numbers of choices, a step after the other; every pass over them in an order of its own."""
    passes = math.ceil(steps * CHOICES_PER_STEP / count)
    order = np.concatenate([random.permutation(count) for _ in range(passes)])
    for number in range(steps):
        yield order[number * CHOICES_PER_STEP : (number + 1) * CHOICES_PER_STEP]
