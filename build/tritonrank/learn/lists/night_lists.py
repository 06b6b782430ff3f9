"""Which lists a night learns, and which it is judged on.

Of the log's lists a user has one in turn, newest first, as ``prepare`` takes them; of older lists a lot is drawn anew
each night. Who validates is never judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tritonrank.data.choices import lottery
from tritonrank.data.dropped import Dropped, ids_of
from tritonrank.data.lists import ListMaker, places_of, training_popularity
from tritonrank.data.negatives import stable_hash
from tritonrank.data.splits import TEST, TRAIN, VALIDATION
from tritonrank.errors import DataError
from tritonrank.learn.lists.night_events import BASE_PLACE, NightEvents, chosen_of_log, settled_in, validates
from tritonrank.learn.lists.shown_lists import LIST_AT
from tritonrank.learn.lists.windows import Windows
from tritonrank.recipe import Recipe
from tritonrank.recipe.learning import FROZEN, NEWEST, OLD

FEWEST_CANDIDATES = 2
"""Of an old list some of whose items are gone; below it there is no order."""
ROW = ["user_id", "position"]
"""What tells events apart; lists are called by it."""


class NothingToLearnError(DataError):
    """New hours hold no list to learn, or none to judge; the next night takes them."""


@dataclass(frozen=True)
class NightLists:
    """What a night learns and is judged on.

    Attributes:
        examples: by split, with the columns of ``Example``.
        judged: rows of the log behind test and validation lists: ROW, LIST_AT, impression and split.
        sets: newest, frozen and old -> ids of test lists.
        counts: for the manifest.
        dropped: what was left out, by kind.
    """

    examples: dict[str, pl.DataFrame]
    judged: pl.DataFrame
    sets: dict[str, pl.Series]
    counts: dict[str, int]
    dropped: list[Dropped]


def choose_lists(recipe: Recipe, base: Path, windows: Windows, items: pl.DataFrame, night: NightEvents) -> NightLists:
    """Make the lists of a night.

    Args:
        recipe: how many, and how many negatives.
        base: the dataset that ``prepare`` made.
        windows: of the night.
        items: the catalogue.
        night: what is known.

    Raises:
        NothingToLearnError: no list is new, or none can be judged.
        DataError: the catalogue is too small for the negatives asked for.
    """
    settings, learn, marked, seed = recipe.examples, recipe.learn, night.marked, recipe.seed
    ids = items["item_id"]
    room = len(ids) - max(settings.training_negatives, settings.judged_negatives)
    met = marked.group_by("user_id", maintain_order=True).agg(pl.col("item_id").n_unique().alias("met"))
    insatiable = met.filter((pl.col("met") > room) & (room > 0))["user_id"]
    log = chosen_of_log(marked, ~pl.col("user_id").is_in(insatiable.implode()))
    log = log.with_columns(validates(log["user_id"], seed).alias("validates"))

    has_context = (pl.col("others_before") > 0) | (pl.col("query") != "")
    learnable = log.filter(~settled_in(windows.frozen) & has_context)
    new, older = (learnable.filter(settled_in(span)) for span in (windows.new, windows.replay))
    # Strictly after all that is learnt: what was shown before and settled since is the next night's.
    newest = log.filter(settled_in(windows.newest) & (pl.col(LIST_AT) >= windows.newest.start))
    frozen = log.filter(settled_in(windows.frozen) & ~pl.col("validates"))
    chosen = {
        NEWEST: in_turns(newest.filter(~pl.col("validates")), settings.test_users, seed, NEWEST),
        FROZEN: in_turns(frozen, settings.test_users, seed, FROZEN),
    }
    if new.is_empty() or chosen[NEWEST].is_empty():
        what = "learn" if new.is_empty() else "judge"
        raise NothingToLearnError(
            f"the new hours of the log hold {new.height} lists to learn and {chosen[NEWEST].height} to judge; a night "
            f"needs some of both, and there are none to {what}. The next night takes these hours as well"
        )
    maker = ListMaker(ids, training_popularity(marked, places_of(ids)), settings, seed, night.propensities)
    of_log = pl.concat(chosen.values()).unique(ROW, keep="first", maintain_order=True)
    old = _base_lists(base, TEST, marked, ids)
    test = pl.concat([maker.make(TEST, of_log, marked), old])

    wanted = math.ceil(settings.validation_users * (1 - learn.replay_share))
    validating = in_turns(newest.filter(pl.col("validates")), wanted, seed, VALIDATION)
    of_base = _base_lists(base, VALIDATION, marked, ids).head(settings.validation_users - validating.height)
    validation = pl.concat([maker.make(VALIDATION, validating, marked), of_base])
    if validation.is_empty():
        raise NothingToLearnError(
            "nobody validates: neither the newest hours nor the recipe's dataset hold lists for it"
        )

    # What answers a list that is judged, now or in any night to come, is not learnt after it either.
    answers = _answers(pl.concat([test.filter(~pl.col("example_id").is_in(_ids(chosen[NEWEST]).implode())), of_base]))
    answers = pl.concat([answers, _answers(maker.make(TEST, chosen[FROZEN], marked))]).unique()
    taken = in_turns(new, learn.most_lists, seed, TRAIN)
    learnt = maker.make(TRAIN, taken, marked)
    known = _knows(learnt, answers)
    lists = learnt.filter(~known)
    share = learn.replay_share / (1 - learn.replay_share)
    replayed = _replayed(base, older, marked, ids, maker, answers, round(lists.height * share), f"{seed}:{windows.new}")
    train = _alike([lists, *replayed])

    examples = {TRAIN: train, VALIDATION: validation, TEST: test}
    counts = {
        "new": lists.height,
        "replayed from the log": replayed[0].height,
        "replayed from the recipe's dataset": replayed[1].height,
        NEWEST: chosen[NEWEST].height,
        FROZEN: chosen[FROZEN].height,
        OLD: old.height,
    }
    dropped = [
        *ids_of("users who met nearly every item", "nothing is learnt or judged of them", insatiable, met.height),
        *ids_of(
            "new lists whose answer is judged elsewhere",
            "not learnt",
            learnt.filter(known)["example_id"],
            learnt.height,
        ),
    ]
    if taken.height < new.height:
        over = new.height - taken.height
        dropped.append(Dropped.of("new lists beyond learn.most_lists", "not learnt", over, new.height, ()))
    return NightLists(
        examples,
        pl.concat(
            [
                of_log.select(*ROW, LIST_AT, "impression", pl.lit(TEST).alias("held_out")),
                validating.select(*ROW, LIST_AT, "impression", pl.lit(VALIDATION).alias("held_out")),
            ]
        ),
        {NEWEST: _ids(chosen[NEWEST]), FROZEN: _ids(chosen[FROZEN]), OLD: old["example_id"]},
        counts,
        dropped,
    )


def in_turns(rows: pl.DataFrame, most: int, seed: int, purpose: str) -> pl.DataFrame:
    """Everybody's newest first, then everybody's second-newest, and so on, until there are enough.

    Args:
        rows: of ``NightEvents.marked``.
        most: so many at the most.
        seed: with ``purpose`` draws who comes first.
        purpose: of the rows.
    """
    turn = pl.col("position").rank("ordinal", descending=True).over("user_id").cast(pl.Int64).alias("turn")
    if rows.is_empty():
        return rows
    return (
        rows.with_columns(turn, lottery(rows["user_id"], seed, purpose))
        .sort("turn", "lottery", "user_id")
        .head(most)
        .drop("turn", "lottery")
    )


def _replayed(
    base: Path,
    older: pl.DataFrame,
    marked: pl.DataFrame,
    ids: pl.Series,
    maker: ListMaker,
    answers: pl.DataFrame,
    wanted: int,
    night: str,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lists of earlier hours of the log and of the base, all alike likely; each night draws anew."""
    of_base = _base_lists(base, TRAIN, marked, ids)
    names = pl.concat([_ids(older), of_base["example_id"]])
    draws = pl.Series([stable_hash(0, f"replay:{night}:{name}") for name in names], dtype=pl.UInt64)
    drawn = names.gather(draws.arg_sort().head(wanted))
    from_log = maker.make(TRAIN, older.filter(_ids(older).is_in(drawn.implode())), marked)
    from_base = of_base.filter(pl.col("example_id").is_in(drawn.implode()))
    return from_log.filter(~_knows(from_log, answers)), from_base


def _base_lists(base: Path, split: str, marked: pl.DataFrame, ids: pl.Series) -> pl.DataFrame:
    """Lists of the base by the numbers that events have here, without items that are gone.

    A list whose positive is gone, or whose user was erased, is gone, too.
    """
    lists = pl.read_parquet(base / f"{split}.parquet", glob=False)
    places = marked.filter(pl.col(BASE_PLACE).is_not_null()).select(*ROW, BASE_PLACE)
    place = pl.col("example_id").str.extract(r":(\d+)$").cast(pl.Int64)
    lists = lists.with_columns(place.alias(BASE_PLACE)).join(
        places, on=["user_id", BASE_PLACE], how="inner", maintain_order="left"
    )
    lists = lists.with_columns(_name().alias("example_id")).drop("position", BASE_PLACE)
    known = ids.implode()
    if not lists["candidates"].explode().is_in(known).all():
        cells = [name for name in ("candidates", "labels", "weights") if name in lists.columns]
        left = lists.explode(cells).filter(pl.col("candidates").is_in(known))
        others = [name for name in lists.columns if name not in cells]
        lists = left.group_by(others, maintain_order=True).agg(cells).select(lists.columns)
        lists = lists.filter((pl.col("labels").list.max() > 0) & (pl.col("candidates").list.len() >= FEWEST_CANDIDATES))
    if not lists["history"].explode().drop_nulls().is_in(known).all():
        gone = pl.element().is_in(known)
        lists = lists.with_columns(pl.col("history").list.eval(pl.element().filter(gone)))
    return lists


def _answers(lists: pl.DataFrame) -> pl.DataFrame:
    """user_id and item_id of all positives of lists."""
    rows = lists.select("user_id", "candidates", "labels").explode("candidates", "labels")
    return rows.filter(pl.col("labels") > 0).select("user_id", pl.col("candidates").alias("item_id"))


def _knows(lists: pl.DataFrame, answers: pl.DataFrame) -> pl.Series:
    """[lists] whether one of its positives is among answers."""
    told = lists.select("example_id", "user_id", "candidates", "labels").explode("candidates", "labels")
    told = told.filter(pl.col("labels") > 0).join(
        answers, left_on=["user_id", "candidates"], right_on=["user_id", "item_id"], how="semi"
    )
    return lists["example_id"].is_in(told["example_id"].implode())


def _alike(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """All lists in one table; where some have weights, those of the others are 1."""
    if any("weights" in frame.columns for frame in frames):
        ones = pl.col("labels").list.eval(pl.element() * 0 + 1).cast(pl.List(pl.Float32)).alias("weights")
        frames = [frame if "weights" in frame.columns else frame.with_columns(ones) for frame in frames]
    return pl.concat(frames)


def _name() -> pl.Expr:
    return pl.format("{}:{}", "user_id", "position")


def _ids(rows: pl.DataFrame) -> pl.Series:
    """How the lists of rows of events are called."""
    return rows.select(_name().alias("example_id")).to_series()
