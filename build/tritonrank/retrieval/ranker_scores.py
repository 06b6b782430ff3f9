"""The ranker's scores of retrieved candidates, kept on disk: a score does not depend on what else is in the list, so
that another retrieval costs only the items that it newly brings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_runtime.item_text import render_fields
from tritonrank_runtime.text import TextRules

from tritonrank.artifacts import read_manifest, whole_file
from tritonrank.judge.evaluate import content_hash
from tritonrank.judge.open_scorer import open_scorer
from tritonrank.rankers.scorers import Request, Scorer

SAVED_EVERY = 100
"""Lists, so that a build that is stopped goes on from there."""
NEWEST_HISTORY = 32
"""Texts of the history that are handed over; the ranker's own budget takes the newest of these."""


class RankerScores:
    """Scores candidates for a user as the served ranker does.

    Args:
        model_folder: of the artifact that is served.
        dataset_folder: of ``prepare``.
        items: fields by item id.
        cache: folder of judgements.
    """

    def __init__(
        self, model_folder: Path, dataset_folder: Path, items: Mapping[str, Mapping[str, str]], cache: Path
    ) -> None:
        self._model = model_folder
        self._rules = TextRules.load(model_folder)
        self._items = items
        dataset = read_manifest(dataset_folder).artifact[:16]
        self._file = cache / f"retrieved-{content_hash(model_folder)[:24]}-{dataset}.parquet"
        self._known = _read(self._file)
        self._scorer: Scorer | None = None
        self._unsaved = 0

    def score(self, name: str, query: str, history: Sequence[str], candidates: Sequence[str]) -> NDArray[np.float32]:
        """[candidates] logits.

        Args:
            name: of the moment: the same name has the same query and history.
            query: may be empty.
            history: item ids, newest last.
            candidates: item ids.
        """
        known = self._known.setdefault(name, {})
        wanted = [item for item in candidates if item not in known]
        if wanted:
            self._scorer = self._scorer or open_scorer(self._model)
            texts = [self._text(item) for item in history[-NEWEST_HISTORY:]]
            scores = self._scorer.score(Request(query, texts, [self._text(item) for item in wanted]))
            known.update(zip(wanted, scores.tolist(), strict=True))
            self._unsaved += 1
            if self._unsaved >= SAVED_EVERY:
                self.save()
        return np.array([known[item] for item in candidates], dtype=np.float32)

    def save(self) -> None:
        """Keep what was scored."""
        if not self._unsaved:
            return
        rows = [(name, list(known), list(known.values())) for name, known in self._known.items()]
        schema = {"name": pl.String(), "items": pl.List(pl.String()), "scores": pl.List(pl.Float32())}
        with whole_file(self._file) as draft:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(draft)
        self._unsaved = 0

    def _text(self, item_id: str) -> str:
        return render_fields(self._rules.item_template, self._items[item_id])


def _read(file: Path) -> dict[str, dict[str, float]]:
    if not file.is_file():
        return {}
    rows = pl.read_parquet(file, glob=False).iter_rows()
    return {name: dict(zip(items, scores, strict=True)) for name, items, scores in rows}
