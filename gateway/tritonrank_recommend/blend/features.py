"""What a blend looks at: numbers of the ranker, of retrieval and of the item, by name.

    ranker                the ranker's logit
    fused                 reciprocal rank fusion of all sources
    rank.SOURCE           1 / (60 + rank) in a source; 0 where the source did not bring the item
    score.SOURCE          the source's own score, such as the cosine of the two towers
    popularity            log(1 + decayed popularity)
    age                   log(1 + days since the item was first seen)
    field.NAME            a numeric field of the item
    NAME.z                any of them as a z-score within the request
    NAME.cold             any of them, z-scores too, where nothing is known of what the user likes; 0 for everybody else

The same code makes them when a blend is learnt and when it serves. NaN is: not known.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.interface import Candidates
from tritonrank_recommend.stores.interface import FieldValue

RANKER = "ranker"
Z = ".z"
COLD = ".cold"
OF_HISTORY = ("knn", "ease")
"""Sources that score every candidate of a user with a history, and none of a user without one."""
FIELD = "field."
RANK = "rank."
SCORE = "score."
RANK_OFFSET = 60.0
"""Of reciprocal rank fusion (Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114)."""

Column = NDArray[np.float32]


def known_feature(name: str) -> bool:
    """Whether a feature may be called so."""
    plain = name.removesuffix(COLD).removesuffix(Z)
    return plain in (RANKER, *_PLAIN) or any(
        plain.startswith(prefix) and len(plain) > len(prefix) for prefix in (RANK, SCORE, FIELD)
    )


def feature_matrix(names: Sequence[str], candidates: Candidates, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[candidates, names] float32; NaN is: not known."""
    matrix = np.zeros((len(names), len(candidates.ids)), dtype=np.float32)
    made: dict[str, Column] = {RANKER: np.asarray(logits, dtype=np.float32)}
    is_cold = all(np.isnan(candidates.scores[source]).all() for source in OF_HISTORY if source in candidates.scores)
    scaled: list[int] = []
    for number, name in enumerate(names):
        if name.endswith(COLD) and not is_cold:
            continue  # 0
        own = name.removesuffix(COLD)
        plain = own.removesuffix(Z)
        if plain not in made:
            made[plain] = _column(plain, candidates)
        matrix[number] = made[plain]
        if own.endswith(Z):
            scaled.append(number)
    if scaled:
        matrix[scaled] = _z_scores(matrix[scaled])
    return matrix.T


def _column(name: str, candidates: Candidates) -> Column:
    if name in _PLAIN:
        return _PLAIN[name](candidates)
    kind, _, rest = name.partition(".")
    if f"{kind}." == RANK:
        ranks = candidates.ranks.get(rest)
        if ranks is None:
            return _unknown(candidates)
        brought = 1.0 / (RANK_OFFSET + np.maximum(ranks, 0))
        return np.asarray(np.where(ranks < 0, 0.0, brought), dtype=np.float32)
    if f"{kind}." == SCORE:
        scores = candidates.scores.get(rest)
        return _unknown(candidates) if scores is None else np.asarray(scores, dtype=np.float32)
    return np.array([_number(of.get(rest)) for of in candidates.fields], dtype=np.float32)


def _number(value: FieldValue) -> float:
    """A number, also where a table has it as text; else NaN."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _unknown(candidates: Candidates) -> Column:
    return np.full(len(candidates.ids), np.nan, dtype=np.float32)


def _z_scores(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """[features, candidates] of each row; 0 where all are equal, and what is not known stays so."""
    known = np.isfinite(rows)
    counts = np.maximum(known.sum(axis=1, keepdims=True), 1)
    values = rows.astype(np.float64)
    middle = np.where(known, values, 0.0).sum(axis=1, keepdims=True) / counts
    apart = np.where(known, values - middle, 0.0)
    spread = np.sqrt(np.square(apart).sum(axis=1, keepdims=True) / counts)
    # Rounding alone gives equal values a spread of this size.
    is_one_value = spread <= 1e-6 * (np.abs(middle) + 1e-12)
    scaled = apart / np.where(is_one_value, np.inf, spread)
    return np.asarray(np.where(known, scaled, rows), dtype=np.float32)


def _log(values: NDArray[np.float32]) -> Column:
    return np.asarray(np.log1p(np.maximum(values, 0.0)), dtype=np.float32)


_PLAIN: dict[str, Callable[[Candidates], Column]] = {
    "fused": lambda candidates: np.asarray(candidates.fused, dtype=np.float32),
    "popularity": lambda candidates: _log(candidates.popularity),
    "age": lambda candidates: _log(candidates.age_days),
}
