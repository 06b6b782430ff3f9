"""What an event says: whether it is a positive, and how much it counts.

The gain of an event is its weight where events have types (a purchase counts three times an item put into the cart),
and 1 for a positive where they have none; 0 is seen and not liked. Gains are worths, used as they are: a list with a
purchase counts three times in training, and NDCG adds them up without 2^gain - 1, which is for the grades of annotators
(docs/labels.md).
"""

from collections.abc import Mapping

import polars as pl

from tritonrank.data import columns
from tritonrank.data.faults import Faults
from tritonrank.data.source import SourceTable
from tritonrank.recipe import TablesData

SHOWN_TYPES = 10


def with_gain(events: pl.DataFrame) -> pl.DataFrame:
    """Events with a column gain, for sources whose positives all count alike."""
    return events.with_columns(pl.col("label").cast(pl.Float32).alias("gain"))


def gains(events: SourceTable, settings: TablesData, faults: Faults) -> pl.Series:
    """[rows] Float32, called gain: by weight, by ``positive_label``, or 1 where the table has no column of either."""
    rows = events.frame.height
    if settings.label_column is None:
        return pl.repeat(1.0, rows, dtype=pl.Float32, eager=True).alias("gain")
    if settings.event_weights is None:
        values = columns.numbers(events, settings.label_column, faults, "data.label")
        return (values >= settings.positive_label).cast(pl.Float32).alias("gain")
    return _weighted(events, settings.label_column, settings.event_weights, faults)


def _weighted(events: SourceTable, name: str, weights: Mapping[str, float], faults: Faults) -> pl.Series:
    types = _in_words(columns.texts(events, name, faults, "data.label"))
    by_word = {_word(key): weight for key, weight in weights.items()}
    if name in events.frame.columns:
        counted = types.filter(events.sound).value_counts(sort=True).sort("count", name, descending=[True, False])
        strangers = [(word, count) for word, count in counted.iter_rows() if word and word not in by_word]
        if strangers:
            found = ", ".join(f"{word!r} ({count:,} rows)" for word, count in strangers[:SHOWN_TYPES])
            more = f" and {len(strangers) - SHOWN_TYPES} more" if len(strangers) > SHOWN_TYPES else ""
            message = (
                f"column {name!r} holds {found}{more}, to which data.label gives no weight; it has "
                f"{', '.join(weights)}. Add a line for each below data.label, such as {strangers[0][0]}: 0 for what is "
                "no positive"
            )
            faults.add(events.path, f"event types {name}", message)
    return types.replace_strict(by_word, default=None, return_dtype=pl.Float32).alias("gain")


def _in_words(types: pl.Series) -> pl.Series:
    """Types as the keys of the recipe are compared: without blanks around them, whole numbers without a fraction."""
    return types.str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")


def _word(key: str) -> str:
    return str(_in_words(pl.Series([key]))[0])
