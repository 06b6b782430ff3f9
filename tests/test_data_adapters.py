"""Public data sets are read in the files their publishers give out; those here are our own, in their formats."""

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from tritonrank.data.adapters import ADAPTERS, recognise
from tritonrank.data.adapters.movielens import GENRES
from tritonrank.data.loading import Tables, load_tables, source_fingerprints
from tritonrank.errors import DataError
from tritonrank.recipe import PublicData, Recipe
from tritonrank.recipe.data import PUBLIC_SOURCES

MOVIES = [("1", "Matrix, The (1999)", ["Action", "Sci-Fi"]), ("2", "Amélie (2001)", ["Romance"]), ("3", "Up", [])]
RATINGS = [("7", "1", "5", "978300760"), ("7", "2", "3", "978300761"), ("8", "2", "4", "978300762")]


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def lines(rows: list[tuple[str, ...]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


def movielens_csv(folder: Path) -> None:
    movies = "".join(f'{number},"{title}",{"|".join(genres)}\n' for number, title, genres in MOVIES)
    tags = "userId,movieId,tag,timestamp\n"
    write(
        folder,
        {
            "movies.csv": "movieId,title,genres\n" + movies,
            "ratings.csv": "userId,movieId,rating,timestamp\n" + lines(RATINGS, ","),
            "tags.csv": tags,
        },
    )


def movielens_1m(folder: Path) -> None:
    movies = [(number, title, "|".join(genres)) for number, title, genres in MOVIES]
    write(
        folder,
        {"movies.dat": lines(movies, "::").encode("latin-1"), "ratings.dat": lines(RATINGS, "::"), "users.dat": "x"},
    )


def movielens_100k(folder: Path) -> None:
    movies = [
        (number, title, "01-Jan-1999", "", "http://example.org", *("1" if name in genres else "0" for name in GENRES))
        for number, title, genres in MOVIES
    ]
    write(folder, {"u.item": (lines(movies, "|") + "\n").encode("latin-1"), "u.data": lines(RATINGS, "\t")})


def recbole(folder: Path) -> None:
    items = [
        ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq", "vector:float_seq"),
        ("1", 'The "Matrix', "1999", "Action Sci-Fi", "0.1 0.2"),
        ("2", "Amélie", "2001", "Romance", "0.3 0.4"),
        ("3", "Up", "", "", ""),
    ]
    events = [("user_id:token", "item_id:token", "rating:float", "timestamp:float"), *RATINGS]
    write(folder, {"ml.inter": lines(events, "\t"), "ml.item": lines(items, "\t"), "ml.user": "user_id:token\n"})


def mind(folder: Path) -> None:
    news = [
        ("N1", "sports", "soccer", 'A "goal', "They won", "https://example.org", "[]", "[]"),
        ("N2", "news", "world", "An election", "", "https://example.org", "[]", "[]"),
        ("N3", "food", "soup", "Hot soup", "With salt", "https://example.org", "[]", "[]"),
    ]
    train = [
        ("1", "U1", "11/11/2019 9:05:58 AM", "N3 N1", "N1-0 N2-1"),
        ("2", "U2", "11/12/2019 12:00:00 PM", "", "N3-0 N1-1"),
    ]
    dev = [("1", "U1", "11/15/2019 8:00:00 PM", "N3 N1", "N3-1")]
    for place, rows in (("train", train), ("dev", dev)):
        write(folder / place, {"news.tsv": lines(news, "\t"), "behaviors.tsv": lines(rows, "\t")})


def esci(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "example_id": [0, 1, 2, 3, 4],
            "query": [" oak lamp", "oak lamp", "oak lamp", "oak lamp", "lampe"],
            "query_id": [5, 5, 5, 5, 6],
            "product_id": ["B1", "B2", "B3", "B4", "B1"],
            "product_locale": ["us", "us", "us", "us", "es"],
            "esci_label": ["E", "S", "C", "I", "E"],
            "split": ["train"] * 5,
        }
    ).write_parquet(folder / "shopping_queries_dataset_examples.parquet")
    pl.DataFrame(
        {
            "product_id": ["B1", "B2", "B3", "B4", "B1"],
            "product_title": ["Lamp", "Light", "Bulb", "Chair", "Lámpara"],
            "product_description": [None, "bright", None, None, None],
            "product_bullet_point": [None] * 5,
            "product_brand": ["Oaky"] * 5,
            "product_color": [None] * 5,
            "product_locale": ["us", "us", "us", "us", "es"],
        },
        schema_overrides={"product_bullet_point": pl.String, "product_color": pl.String},
    ).write_parquet(folder / "shopping_queries_dataset_products.parquet")


def hm(folder: Path) -> None:
    articles = (
        "article_id,product_code,prod_name,product_type_name,product_group_name,graphical_appearance_name,"
        "colour_group_name,department_name,index_name,section_name,garment_group_name,detail_desc\n"
        '0108775015,0108775,Strap top,Vest top,Upper body,Solid,Black,Jersey,Ladies,Basics,Jersey,"Top, narrow"\n'
        "0108775044,0108775,Strap top,Vest top,Upper body,Solid,White,Jersey,Ladies,Basics,Jersey,\n"
    )
    bought = (
        "t_dat,customer_id,article_id,price,sales_channel_id\n"
        "2018-09-20,000058a12d,0108775015,0.0508,2\n"
        "2018-09-21,000058a12d,0108775044,0.0305,2\n"
        "2018-09-21,000058a12d,0999999999,0.0305,2\n"
    )
    write(folder, {"articles.csv": articles, "transactions_train.csv.gz": gzip.compress(bought.encode())})


def kuairec(folder: Path) -> None:
    watched = (
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
        "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.273\n"
        "0,9598,30000,10984,2020-07-05 00:13:41.297,20200705,1593879221.297,2.731\n"
        "1,3649,30000,10867,2020-07-06 00:13:41.297,20200706,1593965621.297,2.761\n"
        "1,9598,100,10984,2020-07-06 00:14:41.297,20200706,1593965681.297,0.009\n"
        "2,9598,30000,10984,2020-07-06 00:15:41.297,20200706,1593965741.297,2.731\n"
        "2,3649,100,10867,,,,0.01\n"
    )
    captions = (
        "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,first_level_category_name,"
        "second_level_category_id,second_level_category_name,third_level_category_id,third_level_category_name\n"
        '3649,UNKNOWN,"a song, sung\nin two lines",[song],8,music,673,singing,-124,UNKNOWN\n'
        "9598,UNKNOWN,a dog,[],9,pets,674,dogs,-124,UNKNOWN\n"
    )
    write(folder / "data", {"big_matrix.csv": watched, "kuairec_caption_category.csv": captions})


def yoochoose(folder: Path) -> None:
    clicks = (
        "1,2014-04-07T10:51:09.277Z,214536502,0\n"
        "1,2014-04-07T10:54:09.868Z,214536500,S\n"
        "2,2014-04-07T13:56:37.614Z,214662742,7\n"
    )
    buys = "2,2014-04-07T13:58:37.446Z,214662742,12462,1\n2,2014-04-07T13:59:37.446Z,214662742,10471,1\n"
    write(folder, {"yoochoose-clicks.dat": clicks, "yoochoose-buys.dat": buys})


Written = tuple[str, Callable[[Path], None]]
DATA_SETS: dict[str, Written] = {
    "latest": ("movielens", movielens_csv),
    "1m": ("movielens", movielens_1m),
    "100k": ("movielens", movielens_100k),
    "recbole": ("recbole", recbole),
    "mind": ("mind", mind),
    "esci": ("esci", esci),
    "hm": ("hm", hm),
    "kuairec": ("kuairec", kuairec),
    "yoochoose": ("yoochoose", yoochoose),
}


def read(folder: Path, name: str, positive_rating: float | None = None) -> Tables:
    source, make = DATA_SETS[name]
    make(folder)
    return load_tables(settings_of(folder, source, positive_rating), seed=1)


def settings_of(folder: Path, source: str, positive_rating: float | None = None) -> PublicData:
    values = {"source": source, "path": folder, "positive_rating": positive_rating}
    return PublicData.model_validate(values)


def gains(tables: Tables) -> list[tuple[str, str, float]]:
    rounded = tables.events.with_columns(pl.col("gain").cast(pl.Float64).round(4))
    return rounded.select("user_id", "item_id", "gain").rows()


@pytest.mark.parametrize("name", DATA_SETS)
def test_templates_name_fields_that_are_there(tmp_path: Path, name: str) -> None:
    tables = read(tmp_path, name)
    adapter = ADAPTERS[DATA_SETS[name][0]]
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "data": {"source": DATA_SETS[name][0], "path": tmp_path},
            "text": {"item_template": adapter.template(adapter.files(tmp_path))},
        }
    )
    assert recipe.text.template_fields
    assert set(recipe.text.template_fields) <= set(tables.items.columns)
    assert adapter.has_queries == (tables.events["query"] != "").any()


def test_every_source_has_an_adapter_and_a_test() -> None:
    assert set(ADAPTERS) == set(PUBLIC_SOURCES) == {source for source, _ in DATA_SETS.values()}


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_give_the_two_tables(tmp_path: Path, name: str) -> None:
    tables = read(tmp_path, name)
    assert tables.items.columns[0] == "item_id"
    assert set(tables.items.dtypes) == {pl.String}
    assert tables.items["item_id"].is_unique().all()
    assert dict(list(tables.events.schema.items())[:6]) == {
        "user_id": pl.String,
        "item_id": pl.String,
        "query": pl.String,
        "timestamp": pl.Int64,
        "label": pl.Int8,
        "gain": pl.Float32,
    }
    assert not tables.items.null_count().sum_horizontal()[0]
    assert not tables.events.drop("impression", strict=False).null_count().sum_horizontal()[0]
    assert tables.events.height > 0
    assert ((tables.events["gain"] > 0).cast(pl.Int8) == tables.events["label"]).all()


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_are_recognised_and_each_file_counts(tmp_path: Path, name: str) -> None:
    source, make = DATA_SETS[name]
    make(tmp_path)
    assert recognise(tmp_path) == source
    before = source_fingerprints(settings_of(tmp_path, source)) or {}
    files = ADAPTERS[source].files(tmp_path)
    assert sorted(before) == sorted(file.relative_to(tmp_path).as_posix() for file in files)
    for file in files:
        file.write_bytes(file.read_bytes() + b" ")
        after = source_fingerprints(settings_of(tmp_path, source)) or {}
        assert [key for key in before if after[key] != before[key]] == [file.relative_to(tmp_path).as_posix()]
        before = after


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_folder_without_the_files_says_what_is_expected_and_where_to_get_it(tmp_path: Path, name: str) -> None:
    source, _ = DATA_SETS[name]
    assert recognise(tmp_path) is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        load_tables(settings_of(tmp_path, source), seed=1)
    message = str(caught.value)
    assert "holds notes.txt" in message
    assert ADAPTERS[source].expected in message
    assert "data.path" in message
    with pytest.raises(DataError, match="is no folder"):
        load_tables(settings_of(tmp_path / "absent", source), seed=1)


@pytest.mark.parametrize("name", ["latest", "1m", "100k"])
def test_all_variants_of_movielens_are_alike(tmp_path: Path, name: str) -> None:
    tables = read(tmp_path, name)
    assert tables.items.rows() == [
        ("1", "The Matrix", "1999", "Action Sci-Fi", ""),
        ("2", "Amélie", "2001", "Romance", ""),
        ("3", "Up", "", "", ""),
    ]
    assert tables.events["timestamp"].to_list() == [978300760, 978300761, 978300762]
    assert gains(tables) == [("7", "1", 1.0), ("7", "2", 0.0), ("8", "2", 1.0)]
    assert gains(read(tmp_path, name, positive_rating=5)) == [("7", "1", 1.0), ("7", "2", 0.0), ("8", "2", 0.0)]


def test_tags_of_the_10m_data_set_are_read(tmp_path: Path) -> None:
    movielens_1m(tmp_path)
    write(tmp_path, {"tags.dat": "7::1::Neo::978300760\n8::1::neo::978300761\n"})
    tables = load_tables(settings_of(tmp_path, "movielens"), seed=1)
    assert tables.items["tags"].to_list() == ["neo", "", ""]


def test_recbole_fields_keep_their_names_and_vectors_are_no_text(tmp_path: Path) -> None:
    tables = read(tmp_path, "recbole")
    assert tables.items.columns == ["item_id", "movie_title", "release_year", "class"]
    assert tables.items.row(0) == ("1", 'The "Matrix', "1999", "Action Sci-Fi")
    assert gains(tables) == [("7", "1", 1.0), ("7", "2", 0.0), ("8", "2", 1.0)]
    write(tmp_path, {"ml.inter": "user_id:token\titem_id:token\n7\t1\n8\t2\n"})
    without_times = load_tables(settings_of(tmp_path, "recbole"), seed=1)
    assert without_times.events["timestamp"].diff().to_list() == [None, 1]
    assert "no times" in without_times.notes[0]
    write(tmp_path, {"ml.inter": "user_id,item_id\n7,1\n"})
    with pytest.raises(DataError, match=r"ml\.inter:1: .*item_id:token"):
        load_tables(settings_of(tmp_path, "recbole"), seed=1)


def test_mind_shows_what_was_not_clicked_and_keeps_earlier_clicks(tmp_path: Path) -> None:
    tables = read(tmp_path, "mind")
    assert tables.items.row(0, named=True)["title"] == 'A "goal'
    first = 1_573_463_158  # 2019-11-11 09:05:58
    of_one = tables.events.filter(pl.col("user_id") == "U1").sort("timestamp")
    assert of_one.select("item_id", pl.col("timestamp") - first, "label").rows() == [
        ("N3", -2, 1),
        ("N1", -1, 1),
        ("N1", 0, 0),
        ("N2", 0, 1),
        ("N3", 4 * 86_400 + 39_242, 1),
    ]
    assert of_one["impression"].to_list() == [None, None, "train-1", "train-1", "dev-1"]
    write(tmp_path / "test", {"news.tsv": (tmp_path / "dev" / "news.tsv").read_bytes()})
    write(tmp_path / "test", {"behaviors.tsv": "1\tU1\t11/15/2019 8:00:00 PM\tN3\tN3 N1\n"})
    with pytest.raises(DataError, match="says nothing of a click"):
        load_tables(settings_of(tmp_path, "mind"), seed=1)


def test_esci_has_graded_labels_of_one_shop(tmp_path: Path) -> None:
    tables = read(tmp_path, "esci")
    assert gains(tables) == [("5", "B1", 1.0), ("5", "B2", 0.1), ("5", "B3", 0.01), ("5", "B4", 0.0)]
    assert set(tables.events["query"]) == {"oak lamp"}
    assert tables.events["impression"].n_unique() == 1
    assert tables.items["product_title"].to_list() == ["Lamp", "Light", "Bulb", "Chair"]
    assert "us is read" in tables.notes[0]
    assert [gain for *_, gain in gains(read(tmp_path, "esci", positive_rating=1))] == [1, 0, 0, 0]


def test_hm_keeps_the_zeros_of_its_ids_and_counts_unknown_articles(tmp_path: Path) -> None:
    tables = read(tmp_path, "hm")
    assert gains(tables) == [("000058a12d", "0108775015", 1.0), ("000058a12d", "0108775044", 1.0)]
    assert tables.items["detail_desc"].to_list() == ["Top, narrow", ""]
    assert [dropped.count for dropped in tables.dropped] == [1]


def test_kuairec_takes_what_was_watched_twice(tmp_path: Path) -> None:
    tables = read(tmp_path, "kuairec")
    assert [gain for *_, gain in gains(tables)] == [0, 1, 1, 0, 1]
    assert [dropped.count for dropped in tables.dropped] == [1]  # without a time
    assert tables.items["manual_cover_text"].to_list() == ["", ""]
    assert [gain for *_, gain in gains(read(tmp_path, "kuairec", positive_rating=1))] == [1, 1, 1, 0, 1]


def test_yoochoose_weighs_purchases(tmp_path: Path) -> None:
    tables = read(tmp_path, "yoochoose")
    assert tables.items.rows() == [
        ("214536502", "", ""),
        ("214536500", "special offer", ""),
        ("214662742", "7", "10471"),
    ]
    assert [gain for *_, gain in gains(tables)] == [1, 1, 1, 3, 3]
    assert [gain for *_, gain in gains(read(tmp_path, "yoochoose", positive_rating=3))] == [0, 0, 0, 3, 3]


@pytest.mark.parametrize(
    ("name", "file", "line", "place"),
    [
        ("1m", "ratings.dat", "7::1::5\n", ":4"),
        ("100k", "u.data", "7\t1\t5\n", ":4"),
        ("recbole", "ml.inter", "7\t1\n", ":5"),
        ("yoochoose", "yoochoose-clicks.dat", "1,2,3,4,5\n", ":4"),
    ],
)
def test_lines_with_other_fields_are_named(tmp_path: Path, name: str, file: str, line: str, place: str) -> None:
    source, make = DATA_SETS[name]
    make(tmp_path)
    with (tmp_path / file).open("a") as opened:
        opened.write(line)
    with pytest.raises(DataError, match=rf"{file}{place}: \d field\(s\); expected"):
        load_tables(settings_of(tmp_path, source), seed=1)
