"""Where the data come from, and how they become examples."""

import datetime
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from tritonrank.recipe.base import Names, Settings, SourceLocation, SourcePath
from tritonrank.system.dates import iso_seconds


class SourceSettings(Settings):
    """What all sources can be asked."""

    @property
    def weighs_positions(self) -> bool:
        """Whether a positive weighs more where fewer people look."""
        return False


class SampleData(SourceSettings):
    """A generated storefront: deterministic, no third-party data, no download."""

    LOCATIONS: ClassVar[frozenset[str]] = frozenset()
    source: Literal["sample"] = "sample"
    items: int = Field(400, ge=50, le=20_000, description="items in the catalogue")
    users: int = Field(600, ge=20, le=100_000, description="users with a taste of their own")


class PublicData(SourceSettings):
    """A public data set in the files its publishers give out (docs/data.md says where to get each)."""

    LOCATIONS: ClassVar[frozenset[str]] = frozenset({"path"})
    """the settings that say where the data are: a dataset depends on the data alone, wherever they are"""
    source: Literal["movielens", "recbole", "mind", "esci", "hm", "kuairec", "yoochoose"]
    path: SourcePath = Field(description="the folder; a relative path begins at the recipe's folder")
    positive_rating: float | None = Field(
        None,
        gt=0,
        description="rating from which an event is a positive. Default: 4 stars (movielens, recbole), watched twice "
        "(kuairec); every click, purchase or product that is not irrelevant elsewhere",
    )

    @field_validator("positive_rating")
    @classmethod
    def _stars_end_at_five(cls, value: float | None, told: ValidationInfo) -> float | None:
        if value is not None and told.data.get("source") == "movielens" and not 0.5 <= value <= 5:
            raise ValueError("expected stars from 0.5 to 5")
        return value


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Impressions:
    """Columns of the events table that say what was shown together."""

    id: str
    position: str | None = None
    propensity: bool = False

    def __post_init__(self) -> None:
        if self.propensity and self.position is None:
            raise ValueError("propensity: true needs position, the column that says where in the list an item stood")


class TablesData(SourceSettings):
    """The user's own tables, in files or databases. Relative paths begin at the recipe's folder."""

    LOCATIONS: ClassVar[frozenset[str]] = frozenset({"items", "events"})
    source: Literal["tables"]
    items: SourceLocation = Field(
        description="items table: a .csv, .tsv, .jsonl or .parquet file (.gz or .zst, too), a folder of them, a "
        "pattern such as items-*.parquet, a URL such as s3://shop/items or sqlite:///shop.db#products (docs/data.md), "
        "or the folder of a catalogue such as artifacts/shop/catalogue"
    )
    events: SourceLocation = Field(description="events table, as items; folders called day=2020-01-01 add a column day")
    item_id: str | dict[str, str] = Field(
        "item_id",
        description="column of both tables that identifies an item; where they call it differently, "
        "{items: sku, events: product_code}",
    )
    text_fields: Names = Field(
        description="columns of the items table that the template may use; where their names hold blanks or signs, "
        "{title: Product Title}: what the template calls them, and the columns",
    )
    fields: Names | None = Field(
        None,
        description="further columns of the items table that the catalogue keeps for filters, rules and the blend, as "
        "text_fields; numbers stay numbers, lists stay lists. The ranker does not see them",
    )
    user_id: str = Field("user_id", description="column of the events table")
    timestamp: str = Field("timestamp", description="column of the events table: ISO dates, 20200913, or unix seconds")
    query: str | None = Field(None, description="column of the events table with the search query, if there is one")
    label: str | dict[str, str | float] | None = Field(
        None,
        description="numeric column of the events table; without it all events are positive. Or types and their "
        "weights, {column: event_type, view: 0, add_to_cart: 1, purchase: 3}, where 0 is no positive",
    )
    positive_label: float = Field(1.0, description="values of a numeric label from here on are positives")
    available_from: str | None = Field(
        None,
        description="column of the items table with the time from which an item existed; earlier events are left out",
    )
    impressions: Impressions | None = Field(
        None,
        description="columns of the events table, {id: of what was shown together, position: in the list, "
        "propensity: true}. Shown and not chosen are negatives of that list; propensity weighs a positive by how "
        "seldom people look at its position",
    )
    tolerate: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of a table's rows that one kind of dirt may cost (docs/labels.md); beyond it the build "
        "stops. 0: no dirt at all, and bad cells are named by their lines",
    )

    @field_validator("item_id")
    @classmethod
    def _both_tables_have_ids(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        if isinstance(value, dict) and set(value) != {"items", "events"}:
            raise ValueError("expected one column, or {items: COLUMN, events: COLUMN}")
        return value

    @property
    def text_columns(self) -> dict[str, str]:
        """What the template calls a field -> its column."""
        named = self.text_fields
        return named if isinstance(named, dict) else {name: name for name in named}

    @property
    def field_columns(self) -> dict[str, str]:
        """What a filter calls a field -> its column, of those that are no texts."""
        named = self.fields or {}
        return named if isinstance(named, dict) else {name: name for name in named}

    @property
    def items_key(self) -> str:
        """The column of the items table that identifies an item."""
        return self.item_id["items"] if isinstance(self.item_id, dict) else self.item_id

    @property
    def events_key(self) -> str:
        """The column of the events table that says which item an event is about."""
        return self.item_id["events"] if isinstance(self.item_id, dict) else self.item_id

    @field_validator("label", mode="before")
    @classmethod
    def _types_have_weights(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        column, weights = value.get("column"), {str(key): value for key, value in value.items() if key != "column"}
        if not isinstance(column, str) or not column:
            raise ValueError("expected column: and the name of a column of the events table among the types")
        wrong = [key for key, weight in weights.items() if not _is_weight(weight)]
        if wrong:
            raise ValueError(f"the weight of {wrong[0]!r} is {weights[wrong[0]]!r}; expected a number from 0 on")
        if any(isinstance(key, bool) for key in value):
            raise ValueError("YAML reads yes, no, on and off as true and false; put the event types into quotes")
        if not any(weights.values()):
            raise ValueError("no event type has a weight above 0, so that nothing would be a positive")
        return {"column": column} | {key: float(weight) for key, weight in weights.items()}

    @property
    def weighs_positions(self) -> bool:
        """Whether a positive weighs more where fewer people look."""
        return self.impressions is not None and self.impressions.propensity

    @property
    def label_column(self) -> str | None:
        """The column of the events table that says what a positive is."""
        return str(self.label["column"]) if isinstance(self.label, dict) else self.label

    @property
    def event_weights(self) -> dict[str, float] | None:
        """Weight by event type; None where the label is a number."""
        if not isinstance(self.label, dict):
            return None
        return {key: float(weight) for key, weight in self.label.items() if key != "column"}


EVENT_WEIGHTS: dict[str, float] = {"view": 0.0, "click": 1.0, "cart": 2.0, "purchase": 3.0, "rating": 2.0, "skip": 0.0}
"""What the types of a log's events are worth, unless a recipe says otherwise."""
SHOWN_TYPE = "shown"
"""Of the rows that say what was shown beside an event; never worth anything."""


class EventsData(TablesData):
    """The training log of a gateway (docs/events.md), whose columns are known, and a table of the items."""

    source: Literal["events"]  # type: ignore[assignment]  # another tag of the same settings
    events: SourceLocation = Field(
        description="the log: the folder that the gateway's --events-log names, or a pattern for several such as logs/*"
    )
    label: dict[str, float] = Field(  # type: ignore[assignment]  # a log's column is known
        {},
        description="weights of event types, where 0 is no positive, such as {click: 1, purchase: 5}. Those that are "
        f"not named have {', '.join(f'{name}: {weight:g}' for name, weight in EVENT_WEIGHTS.items())}; a rating counts "
        "from 4 stars on",
    )
    query: str | None = "query"
    impressions: Impressions | None = Impressions("page", "position")

    @field_validator("label", mode="before")
    @classmethod
    def _types_have_weights(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError("expected event types and their weights, such as {click: 1, purchase: 3}")  # noqa: TRY004
        if strangers := [str(name) for name in value if name not in EVENT_WEIGHTS]:
            raise ValueError(f"{strangers[0]!r} is no event type on items; there are {', '.join(EVENT_WEIGHTS)}")
        wrong = [name for name, weight in value.items() if not _is_weight(weight)]
        if wrong:
            raise ValueError(f"the weight of {wrong[0]!r} is {value[wrong[0]]!r}; expected a number from 0 on")
        if not any((EVENT_WEIGHTS | value).values()):
            raise ValueError("no event type has a weight above 0, so that nothing would be a positive")
        return value

    @model_validator(mode="after")
    def _columns_are_known(self) -> Self:
        known = ("user_id", "timestamp", "query", "positive_label")
        named = [name for name in known if getattr(self, name) != type(self).model_fields[name].default]
        if named or (isinstance(self.item_id, dict) and self.item_id["events"] != "item_id"):
            raise ValueError(f"data.{(named or ['item_id.events'])[0]}: a log has columns of its own; leave it out")
        if self.impressions and (self.impressions.id, self.impressions.position) != ("page", "position"):
            raise ValueError("data.impressions: of a log it is {id: page, position: position}; add propensity: true")
        return self

    @property
    def events_key(self) -> str:
        return "item_id"

    @property
    def label_column(self) -> str | None:
        return "type"

    @property
    def event_weights(self) -> dict[str, float] | None:
        return EVENT_WEIGHTS | self.label | {SHOWN_TYPE: 0.0}


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


PUBLIC_SOURCES: tuple[str, ...] = get_args(PublicData.model_fields["source"].annotation)
SOURCES = ("sample", *PUBLIC_SOURCES, "tables", "events")
DataSettings = Annotated[SampleData | PublicData | TablesData | EventsData, Field(discriminator="source")]


class ExampleSettings(Settings):
    """How events become examples for training and judging."""

    cutoff: str | None = Field(
        None,
        description="ISO date such as 2015-06-30: a user's first positive from then on is the test, the last before it "
        "the validation. "
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
