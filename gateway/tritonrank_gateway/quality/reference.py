"""What requests and scores looked like when the artifact was made: ``reference.json`` beside its golden.json.

It holds histograms and no texts. ``rank`` describes requests of the validation split as they are; ``recommend`` the
same users with the candidates that the catalogue finds for them, which is what a recommendation ranks: other candidates
have other scores.
"""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

RankingKind = Literal["rank", "recommend"]
Feature = Literal["context_tokens", "item_tokens", "unknown_tokens", "score", "top_score"]
FEATURES: tuple[Feature, ...] = ("context_tokens", "item_tokens", "unknown_tokens", "score", "top_score")
MOST_BYTES = 1_000_000
"""A reference has some thousands."""
TOLERANCE = 1e-3
"""That the sum of shares may be from 1."""
SHORT_HASH = 16
CANDIDATES_APART = 2
"""So many times more or fewer candidates than any ranking of the reference had: scores are not compared."""


class Spread(msgspec.Struct, frozen=True):
    """How a feature is spread, each ranking counting the same however many candidates it has.

    Attributes:
        edges: upper ends of the bins, rising; there is one more bin above.
        shares: of each bin, together 1.
        rankings: behind it.
    """

    edges: Annotated[list[float], Meta(min_length=1, max_length=100)]
    shares: list[float]
    rankings: Annotated[int, Meta(ge=1)]


class ReferenceFile(msgspec.Struct, frozen=True):
    """The file.

    Attributes:
        artifact: whose scores these are, as answers name it.
        spreads: by kind of request and feature.
        candidates: by kind of request the least and the most that a ranking had.
        propensities: how likely a user looks at a position, from 0, the first being 1; None where the data do not tell.
    """

    artifact: str
    spreads: dict[RankingKind, dict[Feature, Spread]]
    candidates: dict[RankingKind, tuple[int, int]]
    propensities: list[float] | None = None


class Reference:
    """A reference as the gateway holds it.

    Attributes:
        file: what it holds.
        sha256: the beginning of the file's hash.
    """

    def __init__(self, file: ReferenceFile, sha256: str) -> None:
        self.file, self.sha256 = file, sha256

    def compares_scores(self, kind: RankingKind, candidates: int) -> bool:
        """Whether so many candidates may have scores as in the reference: the best of ten is not the best of a
        thousand, and the first ten that a search finds are not its first thousand."""
        least, most = self.file.candidates[kind]
        return least / CANDIDATES_APART <= candidates <= most * CANDIDATES_APART

    @classmethod
    def read(cls, path: Path) -> "Reference":
        """Raises ValueError: it is not one; the message names the file and what to do."""
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes")
            text = path.read_bytes()
            file = msgspec.json.decode(text, type=ReferenceFile)
            for kind, spreads in file.spreads.items():
                for feature, spread in spreads.items():
                    _check(f"spreads.{kind}.{feature}", spread)
            if missing := file.spreads.keys() - file.candidates.keys():
                raise ValueError(f"candidates.{min(missing)}: missing")
            if file.propensities is not None and not all(0 <= one <= 1 for one in file.propensities):
                raise ValueError("propensities: expected numbers from 0 to 1")
        except (OSError, ValueError, UnicodeDecodeError, RecursionError) as error:
            said = f"{path}: not a reference ({error}); make it anew: tritonrank assemble RECIPE --force"
            raise ValueError(said) from error
        return cls(file, hashlib.sha256(text).hexdigest()[:SHORT_HASH])


def _check(where: str, spread: Spread) -> None:
    if any(low >= high for low, high in pairwise(spread.edges)):
        raise ValueError(f"{where}.edges: expected rising numbers")
    if len(spread.shares) != len(spread.edges) + 1:
        raise ValueError(f"{where}.shares: expected {len(spread.edges) + 1}, one per bin, got {len(spread.shares)}")
    if min(spread.shares) < 0 or abs(sum(spread.shares) - 1) > TOLERANCE:
        raise ValueError(f"{where}.shares: expected numbers from 0 that together are 1")
