"""Where the data come from, and how they become examples."""

import datetime
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings, SourcePath
from tritonrank.system.dates import iso_seconds


class SampleData(Settings):
    """A generated storefront: deterministic, no third-party data, no download."""

    source: Literal["sample"] = "sample"
    items: int = Field(400, ge=50, le=20_000, description="items in the catalogue")
    users: int = Field(600, ge=20, le=100_000, description="users with a taste of their own")


class MovieLensData(Settings):
    """A folder with movies.csv, ratings.csv and tags.csv (ml-latest-small and its relatives)."""

    source: Literal["movielens"]
    path: SourcePath = Field(description="the folder; a relative path is relative to the working directory")
    positive_rating: float = Field(4.0, ge=0.5, le=5, description="stars from which a rating is a positive")


class TablesData(Settings):
    """The user's own Parquet or CSV tables. Relative paths begin at the working directory."""

    source: Literal["tables"]
    items: SourcePath = Field(
        description="items table: a .parquet or .csv file, a folder of them, or a pattern such as items-*.parquet"
    )
    events: SourcePath = Field(
        description="events table, in one file or many as items; folders called day=2020-01-01 add a column day"
    )
    item_id: str = Field("item_id", description="column of both tables that identifies an item")
    text_fields: list[str] = Field(min_length=1, description="columns of the items table that the template may use")
    user_id: str = Field("user_id", description="column of the events table")
    timestamp: str = Field("timestamp", description="column of the events table: ISO dates, 20200913, or unix seconds")
    query: str | None = Field(None, description="column of the events table with the search query, if there is one")
    label: str | None = Field(
        None, description="numeric column of the events table; without it all events are positive"
    )
    positive_label: float = Field(1.0, description="label values from here on are positives")


DataSettings = Annotated[SampleData | MovieLensData | TablesData, Field(discriminator="source")]


class ExampleSettings(Settings):
    """How events become examples for training and judging."""

    cutoff: str | None = Field(
        None,
        description="ISO date: a user's first positive from then on is the test, the last before it the validation. "
        "Without it the last positive is the test, the second-last the validation",
    )
    training_examples: int = Field(2_400, ge=1, description="examples at the most; one per positive, newest first")
    training_negatives: int = Field(7, ge=1, le=200, description="sampled unseen items per training example")
    judged_negatives: int = Field(99, ge=9, le=999, description="sampled unseen items per judged example")
    validation_users: int = Field(100, ge=1, description="users for early stopping, fixed before training")
    test_users: int = Field(400, ge=1, description="users for the gates and the tables, fixed before training")

    @field_validator("cutoff", mode="before")
    @classmethod
    def _cutoff_is_a_date(cls, value: object) -> object:
        if isinstance(value, datetime.date):  # YAML reads an unquoted 2015-06-30 as a date
            return value.isoformat()
        if isinstance(value, int) and not isinstance(value, bool):  # and 20150630 as a number
            value = str(value)
        if isinstance(value, str) and iso_seconds(value) is None:
            raise ValueError("expected an ISO date such as 2015-06-30")
        return value
