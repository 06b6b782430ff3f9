"""Lists to distil from: real contexts, the item liked next, and unseen items that the teacher likes nearly as much.

For every context a pool of unseen items is drawn by popularity; the teacher scores all of them once. The list is the
positive, the pool's best by the teacher's scores (hard negatives), and some of the rest by lot, so that the student
learns the bottom of the ranking too. Lists and scores are kept on disk as they are made: a run that was interrupted
goes on where it was, and a second training with the same teacher asks it nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import whole_file
from tritonrank.data.dataset import Dataset, Example
from tritonrank.data.lists import EXAMPLE_SCHEMA, training_popularity
from tritonrank.data.negatives import NegativeSampler, example_random
from tritonrank.data.requests import requests_of
from tritonrank.errors import RecipeError
from tritonrank.rankers.scorers import Scorer
from tritonrank.recipe import DistillSettings, Recipe
from tritonrank.system.progress import track

EXAMPLES_PER_FILE = 200

Scored = tuple[Example, list[float]]


def scored_lists(recipe: Recipe, dataset_folder: Path, teacher: Scorer, rules: TextRules, cache: Path) -> list[Scored]:
    """Examples to distil from, each with the teacher's score of every candidate.

    Args:
        recipe: its distill section says how many, and how candidates are chosen.
        dataset_folder: the prepared dataset; its training examples give the contexts.
        teacher: scores requests.
        rules: how an item becomes a text.
        cache: folder for what is made, of this teacher, dataset and settings alone.

    Raises:
        RecipeError: the catalogue is too small for distill.pool.
    """
    settings = recipe.distill
    assert settings is not None  # the pipeline distils only with the section
    dataset = Dataset.read(dataset_folder)
    generator = np.random.default_rng(recipe.seed)
    wanted = min(settings.examples, len(dataset.training))
    examples = [dataset.training[i] for i in sorted(generator.choice(len(dataset.training), wanted, replace=False))]
    events = pl.read_parquet(dataset_folder / "events.parquet", glob=False)
    maker = _ListMaker(recipe, settings, dataset, events, teacher, rules)
    starts = range(0, len(examples), EXAMPLES_PER_FILE)
    made: list[Scored] = []
    for start in track(starts, "the teacher scores candidates"):
        path = cache / f"{start:06d}.parquet"
        if not path.is_file():
            _write(path, [maker.make(example) for example in examples[start : start + EXAMPLES_PER_FILE]])
        made += _read(path)
    return made


class _ListMaker:
    def __init__(
        self,
        recipe: Recipe,
        settings: DistillSettings,
        dataset: Dataset,
        events: pl.DataFrame,
        teacher: Scorer,
        rules: TextRules,
    ) -> None:
        self._settings, self._dataset, self._teacher, self._rules = settings, dataset, teacher, rules
        self._seed = recipe.seed
        self._items = list(dataset.items)
        index = {item: place for place, item in enumerate(self._items)}
        popularity = training_popularity(events, index)
        self._sampler = NegativeSampler(popularity)
        # Whatever a user met at any time is no negative: it might be what the judge asks for.
        met = events.group_by("user_id").agg(pl.col("item_id").unique(maintain_order=True))
        self._met = {user: np.array([index[item] for item in items]) for user, items in met.iter_rows()}
        most = max(map(len, self._met.values()))
        if len(self._items) - most < settings.pool:
            raise RecipeError(
                f"distill.pool: {settings.pool} unseen items are asked for, but the user who met the most leaves only "
                f"{len(self._items) - most}; lower it to that or less"
            )

    def make(self, example: Example) -> Scored:
        """The example with candidates of its own pool, and the teacher's scores."""
        settings = self._settings
        random = example_random(self._seed, f"distill:{example.example_id}")
        drawn = self._sampler.draw(random, self._met[example.user_id], settings.pool)
        liked = {item: gain for item, gain in zip(example.candidates, example.labels, strict=True) if gain}
        pool = [*liked, *(self._items[place] for place in drawn)]
        request = requests_of(self._dataset, [replace(example, candidates=pool)], self._rules)[0]
        scores = self._teacher.score(request)
        beside = choose_negatives(random, scores[len(liked) :], settings.hard_negatives, settings.random_negatives)
        chosen = [*range(len(liked)), *(len(liked) + place for place in beside)]
        places = random.permutation(chosen).tolist()
        candidates, labels = [pool[place] for place in places], [liked.get(pool[place], 0.0) for place in places]
        return replace(example, candidates=candidates, labels=labels, weights=[]), [
            float(scores[place]) for place in places
        ]


def choose_negatives(random: np.random.Generator, scores: NDArray[np.float32], hardest: int, others: int) -> list[int]:
    """Places of the highest scores, best first, then some of the other places by lot."""
    by_score = np.argsort(-scores, kind="stable")
    hard, rest = by_score[:hardest], by_score[hardest:]
    return [*hard.tolist(), *random.choice(rest, others, replace=False).tolist()]


def _write(path: Path, lists: Sequence[Scored]) -> None:
    rows = [{name: getattr(example, name) for name in EXAMPLE_SCHEMA} | {"scores": scores} for example, scores in lists]
    table = pl.DataFrame(rows, schema=EXAMPLE_SCHEMA | {"scores": pl.List(pl.Float32())}, orient="row")
    with whole_file(path) as draft:  # under torchrun every process may be making it
        table.write_parquet(draft)


def _read(path: Path) -> list[Scored]:
    rows = pl.read_parquet(path, glob=False).iter_rows(named=True)
    return [(Example(**{name: row[name] for name in EXAMPLE_SCHEMA}), row["scores"]) for row in rows]
