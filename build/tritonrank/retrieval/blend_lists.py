"""The lists that a blend learns from and is judged on: what retrieval finds just before a held-out like.

Learnt from are the users' validation positives, of all users who have one: neither ranker nor counts have learnt from
them. (The ranker's best weights were chosen on some of them, which is the one thing they were used for.) Judged on are
the test positives of the recipe's test users. The rest of a user's later events plays no part.

So that new users are served well, too, one user in five is learnt from a second time as if nothing were known of what
they liked.

Candidates are all items that the user has not met before: that is what a shop ranks. Where retrieval misses the
positive, the list cannot be learnt from: put in by hand, the positive would be the one candidate that no source
brought, and a model would learn just that. Judged, such a list counts as 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tritonrank_recommend.blend.features import feature_matrix
from tritonrank_recommend.catalogue.interface import Candidates, Catalogue, Liked, Source, Wish

from tritonrank.data.negatives import stable_hash
from tritonrank.data.splits import TEST
from tritonrank.retrieval.ranker_scores import RankerScores
from tritonrank.system.progress import track

CANDIDATES = 200
"""That are retrieved and ranked, as the gateway does by default."""
MOST_HISTORY = 200
"""As a profile in the store keeps."""
COLD_EVERY = 5
"""One user in so many is learnt from a second time, with the history withheld: what is right for new users is learnt
from users of whom we know what they liked."""
WITHHELD = ", history withheld"


@dataclass(frozen=True)
class Moment:
    """A user just before a held-out like.

    Attributes:
        example_id: ``user_id:n``, as of the examples.
        query: may be empty.
        history: liked before, newest last.
        met: all items that the user has met before, whatever came of it, without the positive.
        positive: what the user went on to like.
        timestamp: of that, unix seconds.
    """

    example_id: str
    query: str
    history: list[Liked]
    met: list[str]
    positive: str
    timestamp: float

    def wish(self, *, size: int = CANDIDATES, sources: Sequence[Source]) -> Wish:
        """What is asked of retrieval."""
        return Wish(
            query=self.query,
            history=self.history,
            exclude=self.met,
            size=size,
            sources=sources,
            now=self.timestamp,
        )

    @property
    def history_ids(self) -> list[str]:
        return [liked.item_id for liked in self.history]


@dataclass(frozen=True)
class BlendList:
    """A moment with its features.

    Attributes:
        moment: of which user.
        ids: of the candidates, in the order of retrieval.
        features: [candidates, features].
        logits: of the ranker, [candidates].
        positive: its place among the candidates; None where retrieval missed it.
        candidates: as retrieval gave them.
    """

    moment: Moment
    ids: list[str]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    positive: int | None
    candidates: Candidates | None = None


def moments(dataset_folder: Path, split: str, *, most: int, seed: int) -> list[Moment]:
    """The held-out likes of a split, one per user, in an order that says nothing.

    Args:
        dataset_folder: of ``prepare``.
        split: validation or test. Of the test only the users whom the recipe judges.
        most: so many at the most, drawn by seed.
        seed: of the recipe.
    """
    events = pl.read_parquet(dataset_folder / "events.parquet", glob=False)
    found = list(_moments(events, split))
    if split == TEST:
        judged = set(pl.read_parquet(dataset_folder / f"{TEST}.parquet", columns=["example_id"])["example_id"])
        found = [moment for moment in found if moment.example_id in judged]
    return sorted(found, key=lambda moment: stable_hash(seed, moment.example_id))[:most]


def withheld(moment: Moment) -> Moment:
    """The same user as if nothing were known of what they liked."""
    return replace(moment, example_id=moment.example_id + WITHHELD, history=[])


def with_cold(found: Sequence[Moment]) -> list[Moment]:
    """The moments, and one in five with its history withheld."""
    return [*found, *map(withheld, found[::COLD_EVERY])]


def blend_list(
    moment: Moment, candidates: Candidates, features: NDArray[np.float32], logits: NDArray[np.float32]
) -> BlendList:
    """A moment with what was found for it."""
    found = candidates.ids.index(moment.positive) if moment.positive in candidates.ids else None
    return BlendList(moment, candidates.ids, features, logits, found, candidates)


def make_lists(
    catalogue: Catalogue,
    ranker: RankerScores,
    found: Sequence[Moment],
    sources: Sequence[Source],
    names: Sequence[str],
    title: str,
) -> list[BlendList]:
    """What retrieval finds for each moment, scored by the ranker, with its features."""
    lists = []
    for moment in track(found, title):
        candidates = catalogue.retrieve(moment.wish(sources=sources))
        logits = ranker.score(moment.example_id, moment.query, moment.history_ids, candidates.ids)
        lists.append(blend_list(moment, candidates, feature_matrix(names, candidates, logits), logits))
    ranker.save()
    return lists


def _moments(events: pl.DataFrame, split: str) -> Iterator[Moment]:
    has_impressions = "impression" in events.columns
    columns = ["item_id", "query", "timestamp", "label", "split", *(["impression"] if has_impressions else [])]
    for (user,), of_user in events.group_by("user_id", maintain_order=True):
        rows = list(of_user.select(columns).iter_rows())
        for number, row in enumerate(rows):
            item, query, timestamp, label, use = row[:5]
            if use != split or label <= 0:
                continue
            # What was shown together with the like is neither known before it nor met before it.
            shown_together = row[5] if has_impressions else None
            before = [
                other
                for other in rows[:number]
                if other[0] != item and not (shown_together is not None and other[5] == shown_together)
            ]
            history = [Liked(other[0], 1.0, float(other[2])) for other in before if other[3] > 0]
            yield Moment(
                f"{user}:{number}",
                query or "",
                history[-MOST_HISTORY:],
                list(dict.fromkeys(other[0] for other in before)),
                item,
                float(timestamp),
            )
