"""What is learnt over vectors of texts that stay as they are: seconds, where training an encoder takes minutes.

An item's vector is ``normalize(normalize(P e) + r)``: e is its text's vector, P one projection for all texts (queries
too), r what the item has beyond its text, learnt from who chose it and 0 for items that nobody met. A user's vector is
mixed of the vectors of the query and of the history (``Mixer``). The loss is the softmax over the whole catalogue,
sampled where it is large: uniformly, so that how negatives are drawn says nothing of popularity.

The idea of a vector for an item's text plus one of its own is that of LightFM (Kula 2015); leaving the second out at
random, so that the first alone stays comparable, is DropoutNet's (Volkovs et al. 2017).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tritonrank.retrieval.choices import HISTORY, NOTHING, Choices, Numbers
from tritonrank.system.progress import step

POOL = 4_096
"""Items that the softmax of a step goes over; a smaller catalogue is taken whole."""
CHOICES_PER_STEP, STEPS_PER_PASS = 256, 16
"""At the most, and at the least: few choices make smaller steps."""
PASSES = 12
"""Over the choices, at the most; the pass that explains the validation users best counts."""
PATIENCE = 2
"""Passes without a better one after which training ends."""
RESIDUAL_DROPOUT = 0.2
"""Share of items whose r is left out in a step."""
MIXER_RATE, PROJECTION_RATE, RESIDUAL_RATE = 2e-2, 1e-3, 1e-3
"""Learning rates of Adam."""
FIRST_SCALE = 12.0
"""What cosines are multiplied by before the softmax, at the start; it is learnt."""


class Mixer(nn.Module):
    """a, and w by recency: (1 + n)^-power e^(-decay n) of the n-th newest item."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.tensor(0.5))
        self.power = nn.Parameter(torch.tensor(-0.5))
        self.decay = nn.Parameter(torch.tensor(-3.0))
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def history_weights(self) -> Tensor:
        """By recency, newest first; the newest has 1."""
        number = torch.arange(HISTORY, dtype=torch.float32)
        power, decay = functional.softplus(self.power), functional.softplus(self.decay)
        return (1 + number) ** -power * torch.exp(-decay * number)

    def query_weight(self) -> Tensor:
        return functional.softplus(self.query)

    @torch.no_grad()
    def learnt(self) -> tuple[float, tuple[float, ...]]:
        """a and w as numbers."""
        return float(self.query_weight()), tuple(round(float(weight), 6) for weight in self.history_weights())

    def forward(self, queries: Tensor, history: Tensor, is_there: Tensor) -> Tensor:
        """Users' unit vectors, (users, dimension).

        Args:
            queries: (users, dimension); zeros where there is no query.
            history: (users, HISTORY, dimension).
            is_there: (users, HISTORY).
        """
        weights = self.history_weights() * is_there
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
        mixed = (weights.unsqueeze(1) @ history).squeeze(1) + self.query_weight() * queries
        return functional.normalize(mixed, dim=-1)


class ItemTable(nn.Module):
    """Vectors of items, and of texts that are no item.

    Args:
        texts: unit vectors of the items' texts, (items, dimension).
        known: numbers of the items that have an r.
    """

    def __init__(self, texts: Tensor, known: Numbers) -> None:
        super().__init__()
        self._texts = texts
        row = torch.full((len(texts),), len(known), dtype=torch.long)
        row[torch.from_numpy(known)] = torch.arange(len(known))
        self._row = row
        self.projection = nn.Parameter(torch.eye(texts.shape[1]))
        self.residual = nn.Embedding(len(known) + 1, texts.shape[1], padding_idx=len(known), sparse=True)
        nn.init.zeros_(self.residual.weight)

    def forward(self, items: Tensor, dropout: float = 0.0) -> Tensor:
        """Unit vectors of items, by number."""
        own = self.residual(self._row[items])
        if dropout:
            own = own * (torch.rand(len(items), 1) >= dropout)
        return functional.normalize(self.of_texts(self._texts[items]) + own, dim=-1)

    def of_texts(self, vectors: Tensor) -> Tensor:
        """The same for texts that are no item, such as queries; zeros stay zeros."""
        return functional.normalize(vectors @ self.projection, dim=-1)

    def residuals(self) -> NDArray[np.float16]:
        """r of the known items, in their order."""
        return self.residual.weight[:-1].detach().numpy().astype(np.float16)

    def __len__(self) -> int:
        return len(self._texts)


@dataclass(frozen=True)
class Pass:
    """What one pass over the choices left.

    Attributes:
        number: from 1; 0 is before the first.
        loss: mean over the choices of the pass; None before the first.
        validation: mean of -log p(chosen) on validation choices.
    """

    number: int
    loss: float | None
    validation: float


def train_table(
    table: ItemTable, mixer: Mixer, queries: Tensor, training: Choices, validation: Choices, validation_queries: Tensor,
    seed: int, *, only_mixes: bool = False,
) -> list[Pass]:  # fmt: skip
    """Train in place, up to the pass that explains the validation choices best.

    Args:
        table, mixer: as they start.
        queries, validation_queries: unit vectors of ``training.queries`` and ``validation.queries``.
        training, validation: choices; users' own items are never negatives.
        seed: of order, negatives and dropout.
        only_mixes: True leaves the table as it is.

    Returns:
        All passes, the first before any training.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(mixer.parameters(), lr=MIXER_RATE)]
    if not only_mixes:
        optimizers += [
            torch.optim.Adam([table.projection], lr=PROJECTION_RATE),
            torch.optim.SparseAdam(list(table.residual.parameters()), lr=RESIDUAL_RATE),
        ]
    passes = [Pass(0, None, _judge(table, mixer, validation, validation_queries, seed))]
    best, kept = passes[0], _state(table, mixer)
    with step("towers", total=PASSES * len(training)) as bar:
        for number in range(1, PASSES + 1):
            losses = []
            for rows in _batches(len(training), random):
                loss = _loss(table, mixer, queries, training, rows, random, RESIDUAL_DROPOUT)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
                for optimizer in optimizers:
                    optimizer.step()
                losses.append(float(loss.detach()) * len(rows))
                bar.advance(len(rows))
            found = _judge(table, mixer, validation, validation_queries, seed)
            passes.append(Pass(number, sum(losses) / len(training), found))
            if found < best.validation:
                best, kept = passes[-1], _state(table, mixer)
            elif number - best.number >= PATIENCE:
                break
    table.load_state_dict(kept[0])
    mixer.load_state_dict(kept[1])
    return passes


def _loss(
    table: ItemTable,
    mixer: Mixer,
    queries: Tensor,
    choices: Choices,
    rows: Numbers,
    random: np.random.Generator,
    dropout: float = 0.0,
) -> Tensor:
    """Mean of -log p(chosen), the softmax over a pool of items that the user has not met otherwise."""
    chosen, history = choices.chosen[rows], choices.history[rows]
    drawn = np.arange(len(table)) if len(table) <= POOL else random.choice(len(table), POOL, replace=False)
    pool = np.unique(np.concatenate([drawn, chosen]))
    needed = np.unique(np.concatenate([pool, history[history != NOTHING]]))
    vectors = table(torch.from_numpy(needed), dropout)
    is_there = torch.from_numpy(history != NOTHING)
    places = torch.from_numpy(np.where(history == NOTHING, 0, np.searchsorted(needed, history)))
    asked = torch.from_numpy(choices.query[rows])
    of_queries = torch.zeros(len(rows), vectors.shape[1])
    if (asked != NOTHING).any():
        of_queries[asked != NOTHING] = table.of_texts(queries[asked[asked != NOTHING]])
    users = mixer(of_queries, vectors[places], is_there)
    logits = users @ vectors[torch.from_numpy(np.searchsorted(needed, pool))].T * mixer.scale.exp()
    logits = logits.masked_fill(torch.from_numpy(choices.is_met(rows, pool)), -torch.inf)
    targets = torch.from_numpy(np.searchsorted(pool, chosen))
    each = functional.cross_entropy(logits, targets, reduction="none")
    return (each * torch.from_numpy(choices.weight[rows])).mean()


@torch.no_grad()
def _judge(table: ItemTable, mixer: Mixer, choices: Choices, queries: Tensor, seed: int) -> float:
    random = np.random.default_rng(seed)
    losses = [
        float(_loss(table, mixer, queries, choices, rows, random)) * len(rows)
        for rows in np.array_split(np.arange(len(choices)), -(-len(choices) // CHOICES_PER_STEP))
    ]
    return sum(losses) / len(choices)


def _batches(count: int, random: np.random.Generator) -> Iterator[Numbers]:
    order = random.permutation(count)
    at_once = min(CHOICES_PER_STEP, max(1, count // STEPS_PER_PASS))
    for start in range(0, count, at_once):
        yield order[start : start + at_once]


def _state(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]


def history_of(table: Tensor, history: Numbers) -> tuple[Tensor, Tensor]:
    """Vectors of histories and where there is an item, as ``Mixer`` takes them."""
    return table[torch.from_numpy(np.where(history == NOTHING, 0, history))], torch.from_numpy(history != NOTHING)


def unit(vectors: NDArray[np.float32]) -> Tensor:
    """Vectors of texts as the table takes them."""
    return functional.normalize(torch.from_numpy(vectors), dim=-1)
