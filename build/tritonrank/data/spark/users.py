"""What happens to the events of some users, all of which are here: the code of one machine, on a partition.

Nothing that is done to a user's events asks for another user's. What does (how popular an item is, who is drawn) is
counted on the cluster and comes in as an argument.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO

import polars as pl

from tritonrank.data.choices import PLACE, Tally, eligible
from tritonrank.data.dirt import COPIES, COPIES_RULE, copies_in
from tritonrank.data.dropped import SOUGHT, Loss
from tritonrank.data.impressions import Propensities
from tritonrank.data.lists import ListMaker, as_popularity, most_met, places_of
from tritonrank.data.spark.files import ORDER
from tritonrank.data.spark.frames import Schema
from tritonrank.data.splits import mark_splits
from tritonrank.recipe import ExampleSettings

KEPT, COPY, WITHOUT_TEXT = 0, 1, 2
"""What became of an event, in the column ``fate``; only KEPT ones are marked."""
MARKS: Schema = {
    "split": pl.String(),
    "choices": pl.Int8(),
    "position": pl.UInt32(),
    "positives_before": pl.Int64(),
    "others_before": pl.Int64(),
    "fate": pl.Int8(),
}
TOLD: Schema = {"told": pl.String()}
PLACED: Schema = {"split": pl.String(), "round": pl.Int64(), "lottery": pl.Int64(), "user_id": pl.String()}
CHUNK: Schema = {"split": pl.String(), "most_met": pl.Int64(), "rows": pl.Binary()}
ROWS_PER_CHUNK = 250_000
UNSIGNED = 1 << 63
Cut = tuple[int, int, str]
"""The PLACE of the last positive that is taken, its lottery number as Spark has it."""


@dataclass(frozen=True)
class Told:
    """What a partition, or all, counted."""

    tally: Tally | None
    """None: of no users"""
    lost_events: int
    """about items without text"""
    lost_users: int
    """who have no other events"""
    copies: int
    first_copies: list[tuple[int, int, str]]
    """unit, row, item, of the first SOUGHT"""

    def __add__(self, other: "Told") -> "Told":
        """Those of users that come later, too."""
        tallies = [tally for tally in (self.tally, other.tally) if tally]
        return Told(
            tallies[0] + tallies[1] if len(tallies) > 1 else next(iter(tallies), None),
            self.lost_events + other.lost_events,
            self.lost_users + other.lost_users,
            self.copies + other.copies,
            sorted([*self.first_copies, *other.first_copies])[:SOUGHT],
        )

    @classmethod
    def read(cls, text: str) -> "Told":
        """What ``tell`` wrote."""
        found = json.loads(text)
        if found["tally"]:
            without = found["tally"].pop("without_positive")
            loss = Loss(**without | {"ids": tuple(without["ids"])})
            found["tally"] = Tally(**found["tally"], without_positive=loss)
        found["first_copies"] = [tuple(one) for one in found["first_copies"]]
        return cls(**found)

    def loss(self) -> Loss:
        """The copies, as ``without_copies`` counts them."""
        ids = tuple(item for _, _, item in self.first_copies)
        return Loss(COPIES, COPIES_RULE, self.copies, ids)


def marker(
    columns: Sequence[str], absent: Sequence[str], settings: ExampleSettings, *, has_copies: bool
) -> Callable[[pl.DataFrame], Iterable[pl.DataFrame]]:
    """What puts a partition's events in order, takes out copies, and says what each is for.

    Args:
        columns: of ``Tables.events``.
        absent: items without text.
        settings: ``cutoff`` is used.
        has_copies: whether copies are still there.
    """

    def run(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        frame = frame.sort(list(ORDER))
        if has_copies:
            is_copy = copies_in(frame.select(columns))
            yield _unmarked(frame.filter(is_copy), COPY)
            frame = frame.filter(~is_copy)
        if absent:
            gone = frame["item_id"].is_in(list(absent))
            yield _unmarked(frame.filter(gone), WITHOUT_TEXT)
            frame = frame.filter(~gone)
        yield mark_splits(frame, settings).with_columns(pl.lit(KEPT, pl.Int8).alias("fate"))

    return run


def _unmarked(events: pl.DataFrame, fate: int) -> pl.DataFrame:
    marks = [pl.lit(None, dtype).alias(name) for name, dtype in MARKS.items() if name != "fate"]
    return events.with_columns(*marks, pl.lit(fate, pl.Int8).alias("fate"))


def tell(marked: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Count a partition."""
    kept = of_fate(marked, KEPT)
    copies, without_text = (marked.filter(pl.col("fate") == fate) for fate in (COPY, WITHOUT_TEXT))
    everyone = pl.concat([kept["user_id"], without_text["user_id"]]).n_unique()
    told = Told(
        Tally.of(kept) if kept.height else None,
        without_text.height,
        everyone - kept["user_id"].n_unique(),
        copies.height,
        copies.sort(list(ORDER)).head(SOUGHT).select(*ORDER, "item_id").rows(),
    )
    yield pl.DataFrame({"told": [json.dumps(asdict(told))]})


def of_fate(marked: pl.DataFrame, fate: int) -> pl.DataFrame:
    """The events of which this became."""
    return marked.filter(pl.col("fate") == fate)


def placer(splits: Sequence[str], seed: int) -> Callable[[pl.DataFrame], Iterable[pl.DataFrame]]:
    """What gives the positives of a partition that can become examples their place in line."""

    def run(marked: pl.DataFrame) -> Iterator[pl.DataFrame]:
        for split in splits:
            yield _placed(of_fate(marked, KEPT), split, seed)

    return run


def _placed(kept: pl.DataFrame, split: str, seed: int) -> pl.DataFrame:
    """The positives of a split with their place, the lottery as a signed number: Spark has no other."""
    signed = (pl.col("lottery") ^ pl.lit(UNSIGNED, pl.UInt64)).reinterpret(signed=True)
    return eligible(kept, split, seed).with_columns(signed.alias("lottery"))


def lister(
    catalogue: pl.Series,
    popularity: pl.DataFrame,
    settings: ExampleSettings,
    seed: int,
    counts: pl.DataFrame | None,
    cuts: Mapping[str, Cut],
    negatives: Mapping[str, int],
) -> Callable[[pl.DataFrame], Iterable[pl.DataFrame]]:
    """What makes the examples of a partition's users, as CHUNK.

    Args:
        catalogue: item ids.
        popularity: as ``learnt_positives`` counts it, of all users.
        settings: how many negatives.
        seed: of negatives and order.
        counts: as ``shown_and_clicked`` counts, of all users; None: positives do not weigh by their position.
        cuts: by split.
        negatives: by split.
    """

    def run(marked: pl.DataFrame) -> Iterator[pl.DataFrame]:
        kept = of_fate(marked, KEPT)
        maker = ListMaker(
            catalogue,
            as_popularity(popularity, places_of(catalogue)),
            settings,
            seed,
            None if counts is None else Propensities(counts),
        )
        for split, cut in cuts.items():
            chosen = _placed(kept, split, seed).filter(_up_to(cut)).sort(PLACE)
            if chosen.is_empty():
                continue
            most = most_met(kept, chosen)
            rows = b""
            if len(catalogue) - most >= negatives[split]:  # who gathers the chunks says it where they are too few
                made = maker.make(split, chosen, kept)
                rows = packed(made.with_columns(chosen.select(pl.col(name).alias(f"by_{name}") for name in PLACE)))
            yield _chunk(split, most, rows)

    return run


def _up_to(cut: Cut) -> pl.Expr:
    first, second, third = (pl.col(name) for name in PLACE)
    same = (second < cut[1]) | ((second == cut[1]) & (third <= cut[2]))
    return (first < cut[0]) | ((first == cut[0]) & same)


def writer(columns: Sequence[str]) -> Callable[[pl.DataFrame], Iterable[pl.DataFrame]]:
    """What packs a partition's events, by user and time, as CHUNK."""

    def run(marked: pl.DataFrame) -> Iterator[pl.DataFrame]:
        kept = of_fate(marked, KEPT).sort("user_id", "position").select(*columns, "split")
        for part in kept.iter_slices(ROWS_PER_CHUNK):
            yield _chunk("", 0, packed(part))

    return run


def _chunk(split: str, most: int, rows: bytes) -> pl.DataFrame:
    return pl.DataFrame({"split": [split], "most_met": [most], "rows": [rows]}, schema=dict(CHUNK))


def packed(frame: pl.DataFrame) -> bytes:
    """A frame as Parquet."""
    written = BytesIO()
    frame.write_parquet(written)
    return written.getvalue()
