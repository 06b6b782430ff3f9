"""MovieLens in the files that GroupLens gives out: 100k, 1M, 10M, 20M, 25M, 32M and latest.

Movies become items, ratings become events. Titles are put the way people say them ("Matrix, The (1999)" is "The
Matrix" of 1999), because the ranker reads text. Newer data sets are CSV files with headers; 1M and 10M cut their cells
by ``::``, 100k by tabs and pipes, and these have no headers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from tritonrank.data import columns
from tritonrank.data.adapters.reading import find_all, find_one, read_plain
from tritonrank.data.faults import Faults
from tritonrank.data.labels import with_gain
from tritonrank.data.loading import Tables
from tritonrank.data.source import SourceTable, check_rows, read_source
from tritonrank.recipe import PublicData

CSV = ("movies.csv", "ratings.csv", "tags.csv")
DAT = ("movies.dat", "ratings.dat")
OLDEST = ("u.item", "u.data")
EXPECTED = f"a MovieLens folder with {', '.join(CSV)}, with {' and '.join(DAT)}, or with {' and '.join(OLDEST)}"
WHERE = "Download https://files.grouplens.org/datasets/movielens/ml-latest-small.zip or one of its relatives"
POSITIVE_RATING = 4.0
TAGS_PER_ITEM = 5
YEAR = r"\s*\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$"
ARTICLES = "The|A|An|La|Le|Les|El|Los|Las|Il|Lo|Gli|Der|Die|Das|Den|Det|Un|Une|Una|O|Os"
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""The columns of u.item after the fifth, 1 where a movie is of the genre."""
RATING_COLUMNS = ("userId", "movieId", "rating", "timestamp")
TAG_COLUMNS = ("userId", "movieId", "tag", "timestamp")


@dataclass(frozen=True)
class _Raw:
    """The tables of any variant under the names of the newer ones; all columns are String."""

    movies: SourceTable
    ratings: SourceTable
    tags: SourceTable | None


def files(folder: Path) -> list[Path]:
    """The files of whichever variant the folder holds; movies first, then ratings, then tags where there are any."""
    if found := find_all(folder, *CSV) or find_all(folder, *OLDEST):
        return found
    found = find_all(folder, *DAT)
    tags = find_one(found[0].parent, "tags.dat") if found else None
    return [*found, *([tags] if tags else [])]


def template(files: list[Path]) -> str:
    """An item template for a start."""
    return "{title} ({year}) {genres}"


def load(settings: PublicData, files: list[Path]) -> Tables:
    """Read the folder; item fields are title, year, genres and tags.

    Raises:
        DataError: files have faults; those of all files are in the one message.
    """
    faults = Faults()
    read: dict[str, Callable[[list[Path], Faults], _Raw]] = {"movies.csv": _read_csv, "movies.dat": _read_dat}
    raw = read.get(files[0].name.removesuffix(".gz").removesuffix(".zst"), _read_oldest)(files, faults)
    movies, ratings, tags = raw.movies, raw.ratings, raw.tags
    check_rows(movies, faults)
    check_rows(ratings, faults)  # tags may be empty: nobody has to tag anything

    movie_ids = columns.identifiers(movies, "movieId", faults)
    columns.check_unique(movies, movie_ids, faults)
    titles, genres = columns.texts(movies, "title", faults), columns.texts(movies, "genres", faults)

    user_ids = columns.identifiers(ratings, "userId", faults)
    rated_ids = columns.identifiers(ratings, "movieId", faults)
    columns.check_known(ratings, rated_ids, movie_ids, movies, faults)
    stars = columns.numbers(ratings, "rating", faults, low=0.5, high=5)
    seconds = columns.timestamps(ratings, "timestamp", faults)

    if tags is not None:
        tagged_ids = columns.identifiers(tags, "movieId", faults)
        columns.check_known(tags, tagged_ids, movie_ids, movies, faults)
        frequent = (tagged_ids, columns.texts(tags, "tag", faults))
    else:
        frequent = (pl.Series(dtype=pl.String), pl.Series(dtype=pl.String))
    faults.raise_any()

    items = pl.DataFrame([movie_ids.alias("item_id"), titles.alias("title"), genres.alias("genres")])
    events = pl.DataFrame([user_ids.alias("user_id"), rated_ids.alias("item_id"), seconds.alias("timestamp")])
    positive = stars >= (settings.positive_rating or POSITIVE_RATING)
    return Tables(
        items=_readable(items)
        .join(_frequent_tags(*frequent), on="item_id", how="left", maintain_order="left")
        .select("item_id", "title", "year", "genres", pl.col("tags").fill_null("")),
        events=with_gain(
            events.select(
                "user_id",
                "item_id",
                pl.lit("").alias("query"),
                "timestamp",
                positive.cast(pl.Int8).alias("label"),
            )
        ),
    )


def _read_csv(files: list[Path], faults: Faults) -> _Raw:
    movies, ratings, tags = (read_source(file, faults) for file in files)
    return _Raw(movies, ratings, tags)


def _read_dat(files: list[Path], faults: Faults) -> _Raw:
    movies = read_plain(files[0], "::", ("movieId", "title", "genres"), faults)
    ratings = read_plain(files[1], "::", RATING_COLUMNS, faults)
    tags = read_plain(files[2], "::", TAG_COLUMNS, faults) if len(files) > 2 else None
    return _Raw(movies, ratings, tags)


def _read_oldest(files: list[Path], faults: Faults) -> _Raw:
    names = ("movieId", "title", "released", "video", "url", *GENRES)
    movies = read_plain(files[0], "|", names, faults)
    marked = pl.concat_list(pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES[1:])
    genres = marked.list.drop_nulls().list.join("|").alias("genres")
    return _Raw(
        replace(movies, frame=movies.frame.select("movieId", "title", genres), header=["movieId", "title", "genres"]),
        read_plain(files[1], "\t", RATING_COLUMNS, faults),
        None,
    )


def _readable(items: pl.DataFrame) -> pl.DataFrame:
    title = pl.col("title").str.replace(YEAR, "").str.strip_chars()
    # The article goes to the front, also of the second title in parentheses:
    # "City of Lost Children, The (Cité des enfants perdus, La)".
    title = title.str.replace(rf"^([^(]+?), ({ARTICLES})($|\s*\()", "$2 $1$3")
    title = title.str.replace(r"^([^(]+?), (L['\u2019])($|\s*\()", "$2$1$3")
    title = title.str.replace_all(rf"\((a\.k\.a\. )?([^()]+), ({ARTICLES})\)", "(${1}$3 $2)")
    title = title.str.replace_all(r"\((a\.k\.a\. )?([^()]+), (L['\u2019])\)", "(${1}$3$2)")
    genres = (
        pl.col("genres").str.replace("(no genres listed)", "", literal=True).str.replace_all("|", " ", literal=True)
    )
    return items.select("item_id", title, pl.col("title").str.extract(YEAR).fill_null("").alias("year"), genres)


def _frequent_tags(item_ids: pl.Series, tags: pl.Series) -> pl.DataFrame:
    """item_id and tags: the item's most frequent tags, comma-joined; ties go to the alphabet.

    Tags are something users did, with a time of their own: some were given after, and because of, the very ratings
    that are held out for judging, even by the judged user. A template with {tags} may therefore look better offline
    than it is; that is why the field has to be asked for by name.
    """
    given = pl.DataFrame([item_ids.alias("item_id"), tags.alias("tag")])
    return (
        given.with_columns(pl.col("tag").str.strip_chars().str.to_lowercase())
        .filter(pl.col("tag") != "")
        .group_by("item_id", "tag")
        .len()
        .sort("item_id", "len", "tag", descending=[False, True, False])
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("tag").head(TAGS_PER_ITEM))
        .select("item_id", pl.col("tag").list.join(", ").alias("tags"))
    )
