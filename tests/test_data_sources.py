"""The sources give the two tables, whatever the files look like; every fault is found and named by its line."""

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError
from small_tables import EVENTS, ITEMS, write_tables
from tritonrank.data import columns
from tritonrank.data import tables as own_tables
from tritonrank.data.loading import load_tables
from tritonrank.errors import DataError
from tritonrank.recipe import DataSettings, PublicData, TablesData
from tritonrank_runtime.item_text import render_fields

MOVIES = """movieId,title,genres
1,"Matrix, The (1999)",Action|Sci-Fi
2,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Adventure
3,"Avventura, L' (Adventure, The) (1960)",(no genres listed)
4,Untitled,Drama
"""
RATINGS = """userId,movieId,rating,timestamp
7,1,4.0,1000000100
7,2,3.5,1000000090
8,3,5.0,1000000080
"""
TAGS = """userId,movieId,tag,timestamp
7,1,Neo,100
8,1,neo ,101
8,1,red pill,102
7,1,bullet time,103
"""


NOW = 1_800_000_000
TIMES = "an ISO date such as 2020-09-13T12:00:00Z, 20200913, or unix seconds from 1995-01-01 to 2027-01-15"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest time that an event may have, whenever the tests run."""
    monkeypatch.setattr(columns, "latest_second", lambda: NOW)
    monkeypatch.setattr(own_tables, "latest_second", lambda: NOW)


def movielens(folder: Path, movies: str = MOVIES, ratings: str = RATINGS, tags: str = TAGS) -> PublicData:
    for name, text in (("movies.csv", movies), ("ratings.csv", ratings), ("tags.csv", tags)):
        (folder / name).write_bytes(text.encode("utf-8", errors="surrogateescape"))
    return PublicData(source="movielens", path=folder)


def faults_of(settings: DataSettings) -> list[str]:
    """The fault lines of a load, each cut to begin with the file's name."""
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    return [line.strip().rsplit("/", 1)[-1] for line in str(caught.value).splitlines()[1:]]


def test_movielens_reads_as_people_speak(tmp_path: Path) -> None:
    tables = load_tables(movielens(tmp_path), seed=1)
    assert tables.items.rows() == [
        ("1", "The Matrix", "1999", "Action Sci-Fi", "neo, bullet time, red pill"),
        ("2", "The City of Lost Children (La Cité des enfants perdus)", "1995", "Adventure", ""),
        ("3", "L'Avventura (The Adventure)", "1960", "", ""),
        ("4", "Untitled", "", "Drama", ""),
    ]
    assert tables.items.columns == ["item_id", "title", "year", "genres", "tags"]


def test_movielens_events_keep_their_order(tmp_path: Path) -> None:
    events = load_tables(movielens(tmp_path), seed=1).events
    assert events.rows() == [
        ("7", "1", "", 1_000_000_100, 1, 1.0),
        ("7", "2", "", 1_000_000_090, 0, 0.0),
        ("8", "3", "", 1_000_000_080, 1, 1.0),
    ]
    assert events.dtypes == [pl.String, pl.String, pl.String, pl.Int64, pl.Int8, pl.Float32]


def test_empty_tags_are_no_fault(tmp_path: Path) -> None:
    tables = load_tables(movielens(tmp_path, tags="userId,movieId,tag,timestamp\n"), seed=1)
    assert tables.items["tags"].to_list() == ["", "", "", ""]


def test_windows_files_and_byte_order_marks_are_no_fault(tmp_path: Path) -> None:
    settings = movielens(tmp_path, movies="\ufeff" + MOVIES.replace("\n", "\r\n"))
    assert load_tables(settings, seed=1).items["title"][0] == "The Matrix"


def test_all_faults_of_all_files_come_together(tmp_path: Path) -> None:
    movies = 'movieId,title,genres\n1,"two\nlines",Drama\n1,Again,Drama\n,Namén,Drama\n5,short\n6,Caf\udce9,Drama\n'
    ratings = (
        "userId,movieId,rating,timestamp\n"
        "7,1,5.5,1000000100\n"  # 2
        "7,1,0,1000000100\n"
        "7,1,NaN,1000000100\n"
        "7,99,4,1000000100\n"  # 5
        ",1,4,1000000100\n"
        "7,1,4,-1\n"
        "7,1,4,1700000000000\n"  # 8, milliseconds
        "7,1,4,1000000100,extra\n"
        "\n"  # blank lines are nobody's fault
        "7,1,good,soon\n"  # 11
        "7,5,4,1000000100\n"  # the item's row is broken, but its id is known
    )
    tags = "userId,movieId,label\n7,98,x\n"
    assert faults_of(movielens(tmp_path, movies, ratings, tags)) == [
        "movies.csv:7: broken UTF-8 at byte offset 82 (0xE9); expected UTF-8 throughout",
        "movies.csv:6: 2 field(s); expected 3 (movieId, title, genres)",
        "movies.csv:5: movieId is empty; expected an id",
        "movies.csv:4: movieId is '1'; expected each id once; this one occurred before",
        "ratings.csv:9: 5 field(s); expected 4 (userId, movieId, rating, timestamp)",
        "ratings.csv:6: userId is empty; expected an id",
        "ratings.csv:5: movieId is '99'; expected an item id of movies.csv",
        "ratings.csv:2: rating is '5.5'; expected a number from 0.5 to 5",
        "ratings.csv:3: rating is '0'; expected a number from 0.5 to 5",
        "ratings.csv:4: rating is 'NaN'; expected a number from 0.5 to 5",
        "ratings.csv: ... and 1 more of this kind",
        f"ratings.csv:7: timestamp is '-1'; expected {TIMES}",
        f"ratings.csv:8: timestamp is '1700000000000'; expected {TIMES} "
        "(it looks like milliseconds, 2023-11-14: divide by 1,000)",
        f"ratings.csv:11: timestamp is 'soon'; expected {TIMES}",
        "tags.csv:2: movieId is '98'; expected an item id of movies.csv",
        "tags.csv:1: no column 'tag'; the columns are: userId, movieId, label",
    ]


def test_the_byte_offset_points_at_the_broken_byte(tmp_path: Path) -> None:
    (fault,) = faults_of(movielens(tmp_path, movies=MOVIES + "5,ok,x\n6,Caf\udce9,Drama\n"))
    offset = int(fault.split("at byte offset ")[1].split()[0])
    assert (tmp_path / "movies.csv").read_bytes()[offset] == 0xE9


def test_a_quote_that_never_closes_is_named_where_it_opens(tmp_path: Path) -> None:
    faults = faults_of(movielens(tmp_path, movies=MOVIES + '5,"endless,Drama\n6,swallowed,Drama\n'))
    assert len(faults) == 1
    assert faults[0].startswith("movies.csv:6: not a CSV row")


def test_reading_goes_on_after_a_bad_quote(tmp_path: Path) -> None:
    movies = MOVIES + '5,"bad"quote,Drama\n6,fine,Drama\n6,again,Drama\n'
    # The rating of movie 5 is not blamed: its item was lost with the bad row.
    faults = faults_of(movielens(tmp_path, movies=movies, ratings=RATINGS + "7,5,4,1000000100\n"))
    assert faults[0].startswith("movies.csv:6: not a CSV row")
    assert faults[1:] == ["movies.csv:8: movieId is '6'; expected each id once; this one occurred before"]


def test_many_faults_of_a_kind_are_counted_and_do_not_hide_others(tmp_path: Path) -> None:
    ratings = RATINGS + "7,1,9,1000000100\n" * 25 + "7,77,4,1000000100\n"
    faults = faults_of(movielens(tmp_path, ratings=ratings))
    assert faults[0] == "ratings.csv:30: movieId is '77'; expected an item id of movies.csv"
    assert len(faults) == 5
    assert faults[-1] == "ratings.csv: ... and 22 more of this kind"


@pytest.mark.parametrize("content", ["", "movieId,title,genres\n"])
def test_empty_files_are_named_and_do_not_blame_the_others(tmp_path: Path, content: str) -> None:
    (fault,) = faults_of(movielens(tmp_path, movies=content))
    assert fault.startswith("movies.csv: ")
    assert "expected" in fault


def test_a_column_that_occurs_twice_is_a_fault(tmp_path: Path) -> None:
    (fault,) = faults_of(movielens(tmp_path, movies=MOVIES.replace("genres", "title", 1)))
    assert fault == "movies.csv:1: column title occurs twice; expected each name once"


def test_a_missing_folder_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"movies\.csv, ratings\.csv, tags\.csv.*grouplens.*data\.path"):
        load_tables(PublicData(source="movielens", path=tmp_path / "none"), seed=1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_are_mapped(tmp_path: Path, suffix: str) -> None:
    tables = load_tables(write_tables(tmp_path, suffix), seed=1)
    assert tables.items.sort("item_id").rows(named=True) == [
        {"item_id": "10", "sku": "10", "name": "Lamp", "watts": "5.5"},
        {"item_id": "11", "sku": "11", "name": "", "watts": "7"},
    ]
    assert tables.events.rows() == [("a", "11", "lamp", 1_000_000_100, 0, 0.0), ("b", "10", "", 1_000_000_200, 1, 1.0)]


def test_query_and_label_are_optional(tmp_path: Path) -> None:
    settings = write_tables(tmp_path, "csv").model_copy(update={"query": None, "label": None})
    assert load_tables(settings, seed=1).events.rows() == [
        ("a", "11", "", 1_000_000_100, 1, 1.0),
        ("b", "10", "", 1_000_000_200, 1, 1.0),
    ]


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("csv", ["1704067200", "1704070800.9"]),
        ("csv", ["2024-01-01", "2024-01-01T01:00:00Z"]),
        ("csv", ["2024-01-01 00:00:00", "2024-01-01T02:00:00.25+01:00"]),
        ("parquet", ["2024-01-01", "1704070800"]),
        ("parquet", [1704067200.0, 1704070800.5]),
        ("parquet", [datetime(2024, 1, 1), datetime(2024, 1, 1, 1)]),
        ("parquet", [datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 1, tzinfo=UTC)]),
    ],
)
def test_timestamps_are_seconds_or_dates(tmp_path: Path, suffix: str, values: list[object]) -> None:
    settings = write_tables(tmp_path, suffix, events=EVENTS.with_columns(pl.Series("at", values)))
    assert load_tables(settings, seed=1).events["timestamp"].to_list() == [1704067200, 1704070800]


def test_dates_are_midnight_utc(tmp_path: Path) -> None:
    events = EVENTS.with_columns(pl.Series("at", [date(1971, 1, 2), date(2024, 1, 1)]))
    settings = write_tables(tmp_path, "parquet", events=events)
    assert load_tables(settings, seed=1).events["timestamp"].to_list() == [31_622_400, 1704067200]


def test_parquet_faults_name_the_row(tmp_path: Path) -> None:
    events = EVENTS.with_columns(
        sku=pl.Series([12, None]),
        stars=pl.Series([float("nan"), None]),
        at=pl.Series([-1, 1_000_000_200]),
        search=pl.Series([[b"1"], [b"2"]]),
    )
    assert faults_of(
        write_tables(
            tmp_path, "parquet", ITEMS.vstack(pl.DataFrame({"sku": [10], "name": ["Desk"], "watts": [1.0]})), events
        )
    ) == [
        "events.parquet: row 2: sku is empty; expected an id",
        f"events.parquet: row 1: at is -1; expected {TIMES}",
        "events.parquet: column 'search', which data.query names, holds List(Binary); "
        "expected text, numbers, booleans, dates, or lists of these. "
        "Convert it, or set data.query to another of: who, sku, at, search, stars",
        "events.parquet: row 1: stars is nan; expected a number",
        "events.parquet: row 2: stars is empty; expected a number",
    ]


def test_mistyped_columns_are_faults(tmp_path: Path) -> None:
    events = EVENTS.with_columns(at=pl.lit(True), stars=pl.lit(date(2024, 1, 1)))
    at, stars = faults_of(write_tables(tmp_path, "parquet", events=events))
    assert at.startswith(
        "events.parquet: column 'at', which data.timestamp names, holds Boolean; expected unix seconds"
    )
    assert stars.startswith("events.parquet: column 'stars', which data.label names, holds Date; expected numbers")


def test_damaged_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    settings = write_tables(tmp_path, "parquet")
    settings.items.write_bytes(b"PAR1 but not really")
    settings.events.unlink()
    damaged, missing = faults_of(settings)
    assert damaged.startswith("items.parquet: cannot be read as Parquet")
    assert missing.startswith("events.parquet: no such file")
    excel = settings.items.rename(tmp_path / "items.xlsx")
    fault = faults_of(settings.model_copy(update={"items": excel}))[0]
    assert fault.startswith("items.xlsx: unknown file type '.xlsx'; expected .csv")


def test_a_text_field_cannot_hide_the_id(tmp_path: Path) -> None:
    settings = write_tables(tmp_path, "csv").model_copy(update={"text_fields": ["item_id"]})
    with pytest.raises(DataError, match="would hide the id column 'sku'"):
        load_tables(settings, seed=1)


def test_lists_are_joined_as_the_server_joins_them(tmp_path: Path) -> None:
    items = ITEMS.with_columns(name=pl.Series([["oak", None, "lamp"], []]), watts=pl.Series([[5.5, 7.0], None]))
    settings = write_tables(tmp_path, "parquet", items)
    read = load_tables(settings, seed=1).items.rows(named=True)
    sent = items.select("name", "watts", pl.col("sku").cast(pl.String)).to_dicts()
    for name in ("name", "watts", "sku"):
        assert [row[name] for row in read] == [render_fields(f"{{{name}}}", fields) for fields in sent]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_text_that_is_json_stays_the_text_it_is(tmp_path: Path, suffix: str) -> None:
    texts = ['{"en": "oak lamp"}', "[1, 2]"]
    settings = write_tables(tmp_path, suffix, ITEMS.with_columns(name=pl.Series(texts)))
    assert load_tables(settings, seed=1).items["name"].to_list() == texts


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("priced", ["watts", "price, net"])
def test_another_separator_is_found(tmp_path: Path, separator: str, priced: str) -> None:
    settings = write_tables(tmp_path, "csv").model_copy(update={"text_fields": ["name", priced]})
    lines = [["sku", "name", priced, "at"], ["10", "Lamp, small", "5,5", "x"], ["11", "Desk", "7,0", "y"]]
    settings.items.write_text("".join(separator.join(line) + "\n" for line in lines))
    items = load_tables(settings, seed=1).items
    assert items.rows() == [("10", "Lamp, small", "5,5"), ("11", "Desk", "7,0")]


def test_a_pipe_in_a_name_is_no_other_separator(tmp_path: Path) -> None:
    settings = write_tables(tmp_path, "csv").model_copy(update={"text_fields": ["name|long"]})
    settings.items.write_text("sku,name|long\n10,a|b\n11,c\n")
    assert load_tables(settings, seed=1).items["name|long"].to_list() == ["a|b", "c"]


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ("user_id", "customer"),
        ("user_id", "UserID"),
        ("user_id", "usr_id"),
        ("item_id", "product_sku"),
        ("timestamp", "created_at"),
        ("query", "search_term"),
        ("label", "event_type"),
    ],
)
def test_a_missing_column_names_its_setting_and_what_may_be_meant(tmp_path: Path, setting: str, column: str) -> None:
    names = {"user_id": "who", "item_id": "sku", "timestamp": "at", "query": "search", "label": "stars"}
    settings = write_tables(tmp_path, "csv", events=EVENTS.rename({names[setting]: column}))
    settings = settings.model_copy(update={setting: setting})
    (fault,) = [fault for fault in faults_of(settings) if fault.startswith("events.csv")]
    assert f"no column {setting!r}" in fault
    assert f"data.{setting}" in fault
    assert f"did you mean {column!r}" in fault


def test_labels_that_are_words_are_one_fault(tmp_path: Path) -> None:
    events = EVENTS.with_columns(stars=pl.Series(["view", "purchase"]))
    (fault,) = faults_of(write_tables(tmp_path, "csv", events=pl.concat([events] * 20)))
    assert "'view' (20)" in fault
    assert "'purchase' (20)" in fault
    assert "data.label" in fault


def test_a_few_wrong_labels_are_named_by_line(tmp_path: Path) -> None:
    events = EVENTS.with_columns(stars=pl.Series(["4", "good"]))
    assert faults_of(write_tables(tmp_path, "csv", events=events)) == [
        "events.csv:3: stars is 'good'; expected a number"
    ]


def test_a_wrong_name_in_the_template_comes_with_the_other_faults(tmp_path: Path) -> None:
    settings = write_tables(tmp_path, "csv", events=EVENTS.with_columns(stars=pl.Series(["4", "good"])))
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1, template_fields=["name", "colour", "sku"])
    message = str(caught.value)
    assert "2 fault(s)" in message
    assert "text.item_template uses {colour}" in message
    assert "stars is 'good'" in message


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path, "csv")
    monkeypatch.chdir(tmp_path)
    settings = TablesData(source="tables", items=Path("item.csv"), events=Path("no.csv"), text_fields=["name"])
    with pytest.raises(DataError) as caught:
        load_tables(settings, seed=1)
    near, far = str(caught.value).splitlines()[1:]
    assert near.strip().startswith("item.csv: no such file")
    for fault in (near, far):
        assert f"Looked for {tmp_path}" in fault
    assert near.endswith("There is items.csv")
    assert "There is" not in far


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = {"source": "tables", "items": "~/items.csv", "events": "~/events.csv", "text_fields": ["name"]}
    settings = TablesData.model_validate(home)
    assert (settings.items, settings.events) == (tmp_path / "items.csv", tmp_path / "events.csv")
    assert PublicData.model_validate({"source": "movielens", "path": "~/ml"}).path == tmp_path / "ml"
    with pytest.raises(ValidationError, match="nobody-of-this-name"):
        TablesData.model_validate(home | {"items": "~nobody-of-this-name/items.csv"})


def test_the_tables_may_call_the_id_differently(tmp_path: Path) -> None:
    together = write_tables(tmp_path, "csv")
    events = pl.read_csv(tmp_path / "events.csv", infer_schema=False).rename({"sku": "product_code"})
    events.write_csv(tmp_path / "apart.csv")
    ids = {"items": "sku", "events": "product_code"}
    apart = TablesData.model_validate(
        together.model_dump(mode="json") | {"events": str(tmp_path / "apart.csv"), "item_id": ids}
    )
    assert load_tables(apart, 0).events.equals(load_tables(together, 0).events)
    with pytest.raises(ValidationError, match="items: COLUMN, events: COLUMN"):
        TablesData.model_validate(together.model_dump(mode="json") | {"item_id": {"items": "sku"}})
