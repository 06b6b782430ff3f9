"""MovieLens, in the folder layout that GroupLens publishes (ml-latest-small and its relatives).

Movies become items, ratings become events. Titles are put the way people say them ("Matrix, The (1999)" is "The
Matrix" of 1999), because the ranker reads text.
"""

import polars as pl

from tritonrank.data import columns
from tritonrank.data.faults import Faults
from tritonrank.data.labels import with_gain
from tritonrank.data.loading import Tables
from tritonrank.data.source import check_rows, read_source
from tritonrank.errors import DataError
from tritonrank.recipe import MovieLensData

FILES = ("movies.csv", "ratings.csv", "tags.csv")
TAGS_PER_ITEM = 5
YEAR = r"\s*\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$"
ARTICLES = "The|A|An|La|Le|Les|El|Los|Las|Il|Lo|Gli|Der|Die|Das|Den|Det|Un|Une|Una|O|Os"


def load(settings: MovieLensData) -> Tables:
    """Read the folder; item fields are title, year, genres and tags.

    Raises:
        DataError: files are missing or have faults; the faults of all three files are in the one message.
    """
    if absent := [name for name in FILES if not (settings.path / name).is_file()]:
        raise DataError(
            f"{settings.path}: {', '.join(absent)} not found; expected a MovieLens folder with {', '.join(FILES)}. "
            f"Looked in {settings.path.absolute()}. "
            "Download and unpack https://files.grouplens.org/datasets/movielens/ml-latest-small.zip, "
            "then set data.path to the folder"
        )
    faults = Faults()
    movies, ratings, tags = (read_source(settings.path / name, faults) for name in FILES)
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

    tagged_ids = columns.identifiers(tags, "movieId", faults)
    columns.check_known(tags, tagged_ids, movie_ids, movies, faults)
    tag_texts = columns.texts(tags, "tag", faults)
    faults.raise_any()

    items = pl.DataFrame([movie_ids.alias("item_id"), titles.alias("title"), genres.alias("genres")])
    events = pl.DataFrame([user_ids.alias("user_id"), rated_ids.alias("item_id"), seconds.alias("timestamp")])
    return Tables(
        items=_readable(items)
        .join(_frequent_tags(tagged_ids, tag_texts), on="item_id", how="left", maintain_order="left")
        .select("item_id", "title", "year", "genres", pl.col("tags").fill_null("")),
        events=with_gain(
            events.select(
                "user_id",
                "item_id",
                pl.lit("").alias("query"),
                "timestamp",
                (stars >= settings.positive_rating).cast(pl.Int8).alias("label"),
            )
        ),
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
