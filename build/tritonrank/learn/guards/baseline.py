"""What accepted nights were like: what the next day is compared with.

A measure of a day is a number whose spread from day to day is about the same on all levels: the logarithm of a rate,
the logit of a share. Of n accepted nights with mean m and standard deviation s, the next sound day lies with
probability 1 - a above

    m - t(a, n - 1) * sqrt(s^2 (1 + 1/n) + e)

(the prediction interval of Student's t). e is how much larger the error of the day itself, squared, is than that of
those nights: a day of few users may be further out. With few nights t is large, and only large poisons are seen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from scipy.stats import t as student

from tritonrank.artifacts import whole_file, write_whole
from tritonrank.errors import ArtifactError

REMEMBERED_NIGHTS = 28
"""Four whole weeks, so that all days of the week are in them alike."""
KEPT_PER_NIGHT = 0.9
"""Of what is known of an item: after a week half of it counts."""
USER_SECONDS = 90 * 86_400.0
"""Who has not been seen for so long is new again."""
FIGURES, ITEMS, USERS = "baseline.json", "items.parquet", "users.parquet"
ITEM_COLUMNS: dict[str, type[pl.DataType]] = {
    "likes": pl.Float64,
    "dislikes": pl.Float64,
    "liked": pl.Float64,
    "expected": pl.Float64,
}
USER_COLUMNS: dict[str, type[pl.DataType]] = {"user": pl.String, "seen": pl.Float64}


@dataclass(frozen=True)
class Measure:
    """Something about a day, on a scale on which days can be compared.

    Attributes:
        value: logarithm, logit or share; ``inspection.py`` says which.
        error: standard error within the day, of the users who happened to come.
    """

    value: float
    error: float = 0.0


Night = Mapping[str, Measure]


@dataclass(frozen=True)
class Usual:
    """Where a sound day lies.

    Attributes:
        mean: of the accepted nights.
        spread: half the width of the prediction interval.
        nights: that it comes from.
    """

    mean: float
    spread: float
    nights: int

    @property
    def low(self) -> float:
        """A sound day is below it seldom."""
        return self.mean - self.spread

    @property
    def high(self) -> float:
        """A sound day is above it seldom."""
        return self.mean + self.spread


def usual_of(known: Sequence[Measure], error: float, false_alarms: float, least_nights: int) -> Usual | None:
    """Where a measure of the next sound day lies, by what it was on accepted nights; None while these are too few.

    Args:
        known: the measure of each night.
        error: of the day that is looked at.
        false_alarms: share of sound days beyond either end, each.
        least_nights: as in ``GuardSettings``.
    """
    if len(known) < max(least_nights, 2):
        return None
    values, errors = np.array([one.value for one in known]), np.array([one.error for one in known])
    count = len(known)
    wider = max(0.0, error**2 - float((errors**2).mean()))
    variance = float(values.var(ddof=1)) * (1 + 1 / count) + wider
    quantile = float(student.ppf(1 - false_alarms, count - 1))
    return Usual(float(values.mean()), quantile * float(np.sqrt(variance)), count)


@dataclass(frozen=True)
class Baseline:
    """What is kept of accepted nights.

    Attributes:
        nights: measures by name of each, oldest first, at most REMEMBERED_NIGHTS.
        items: item_id, and sums over the nights that fade by KEPT_PER_NIGHT: ``likes``, ``dislikes``, and of what was
            shown on pages ``liked`` and ``expected``, the likes that the places alone would have brought.
        users: ``user``, the first digits of the hash of the id, and ``seen``, when they acted last (unix seconds).
    """

    nights: tuple[Night, ...] = ()
    items: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"item_id": pl.String, **ITEM_COLUMNS}))
    users: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=USER_COLUMNS))

    def after(self, night: Night, items: pl.DataFrame, users: pl.DataFrame, end: float) -> "Baseline":
        """With one more night.

        Args:
            night: its measures.
            items: its sums, columns as in ``items``.
            users: who acted in it, columns as in ``users``.
            end: of the night, unix seconds.
        """
        faded = self.items.with_columns(pl.col(*ITEM_COLUMNS) * KEPT_PER_NIGHT)
        kept = [faded, items.select(faded.columns).with_columns(pl.col(*ITEM_COLUMNS).cast(pl.Float64))]
        summed = pl.concat(kept).group_by("item_id").agg(pl.col(*ITEM_COLUMNS).sum()).sort("item_id")
        seen = pl.concat([self.users, users.select(list(USER_COLUMNS))]).group_by("user").agg(pl.col("seen").max())
        recent = seen.filter(pl.col("seen") > end - USER_SECONDS).sort("user")
        return Baseline((*self.nights, night)[-REMEMBERED_NIGHTS:], summed, recent)

    def usual(self, name: str, error: float, false_alarms: float, least_nights: int) -> Usual | None:
        """Where a measure of a sound day lies; None while too few nights have it.

        Args:
            name: of the measure.
            error: of the day that is looked at.
            false_alarms: share of sound days beyond either end, each.
            least_nights: that have to have it.
        """
        return usual_of([night[name] for night in self.nights if name in night], error, false_alarms, least_nights)

    def median(self, name: str) -> float | None:
        """Of a measure, over the nights that have it; None where none has."""
        known = [night[name].value for night in self.nights if name in night]
        return float(np.median(known)) if known else None

    def write(self, folder: Path) -> None:
        """Write it into a folder; the figures come last, and without them nothing counts.

        Raises:
            StorageError: something cannot be written.
        """
        for name, table in ((ITEMS, self.items), (USERS, self.users)):
            with whole_file(folder / name) as draft:
                table.write_parquet(draft)
        told = [{name: asdict(one) for name, one in night.items()} for night in self.nights]
        write_whole(folder / FIGURES, json.dumps({"nights": told}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Baseline":
        """Read what ``write`` wrote; an empty one where no night was accepted yet.

        Raises:
            ArtifactError: it is damaged.
        """
        path = folder / FIGURES
        if not path.is_file():
            return cls()
        try:
            told = json.loads(path.read_text(encoding="utf-8"))["nights"]
            nights = tuple({name: Measure(**one) for name, one in night.items()} for night in told)
            items, users = (pl.read_parquet(folder / name, glob=False) for name in (ITEMS, USERS))
            return cls(nights, items.select("item_id", *ITEM_COLUMNS), users.select(list(USER_COLUMNS)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"{folder}: what accepted nights were like cannot be read ({reason}); take the folder of the night "
                "before, or remove this one: the next nights are then compared with nothing until there are enough"
            ) from error
