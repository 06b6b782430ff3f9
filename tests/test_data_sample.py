"""The generated storefront is reproducible, and what drives its clicks can be read in its texts."""

import polars as pl
import pytest
from tritonrank.data.loading import Tables, load_tables
from tritonrank.data.storefront import CATEGORIES
from tritonrank.recipe import SampleData


@pytest.fixture(scope="module")
def storefront() -> Tables:
    return load_tables(SampleData(items=240, users=200), seed=17)


@pytest.fixture(scope="module")
def clicks(storefront: Tables) -> pl.DataFrame:
    return storefront.events.filter(pl.col("label") == 1).join(storefront.items, on="item_id", maintain_order="left")


def test_the_seed_decides_everything(storefront: Tables) -> None:
    again, other = (load_tables(SampleData(items=240, users=200), seed) for seed in (17, 18))
    assert again.items.equals(storefront.items)
    assert again.events.equals(storefront.events)
    assert not other.items.equals(storefront.items)
    assert not other.events.equals(storefront.events)


def test_more_users_leave_the_others_as_they_were(storefront: Tables) -> None:
    fewer = load_tables(SampleData(items=240, users=50), seed=17)
    assert storefront.events.head(fewer.events.height).equals(fewer.events)


def test_the_tables_are_clean(storefront: Tables) -> None:
    items, events = storefront.items, storefront.events
    assert items.columns == ["item_id", "title", "brand", "category", "attributes", "price"]
    assert items["item_id"].is_unique().all()
    assert items["title"].is_unique().all()
    assert events["item_id"].is_in(items["item_id"].implode()).all()
    assert items.null_count().sum_horizontal().item() == events.null_count().sum_horizontal().item() == 0
    lengths = events.group_by("user_id").len()["len"].to_list()
    assert min(lengths) >= 8
    assert max(lengths) <= 25
    assert events.select(pl.col("timestamp").diff().over("user_id").min()).item() > 0
    assert 0.4 < events.filter(pl.col("query") != "").height / events.height < 0.6
    assert 0.1 < events.filter(pl.col("label") == 0).height / events.height < 0.2


def test_queries_find_their_category(clicks: pl.DataFrame) -> None:
    category_of = {search: name for name, category in CATEGORIES.items() for search in category.searches}
    searched = clicks.filter(pl.col("query") != "")
    hits = [
        any(search in query and category_of[search] == category for search in category_of)
        for query, category in searched.select("query", "category").iter_rows()
    ]
    assert sum(hits) / len(hits) > 0.95


def test_words_of_the_query_are_in_the_clicked_text(clicks: pl.DataFrame) -> None:
    """A brand in the query is the clicked brand far more often than by chance (a category has 3 to 5 brands)."""
    brands = clicks["brand"].unique().to_list()
    named = [
        (brand, clicked)
        for query, clicked in clicks.select("query", "brand").iter_rows()
        for brand in brands
        if brand.lower() in query
    ]
    assert len(named) > 50
    assert sum(brand == clicked for brand, clicked in named) / len(named) > 0.55


def test_history_tells_the_next_category(clicks: pl.DataFrame) -> None:
    """Without a query, the next click is mostly in a category the user has clicked before; by chance in 2-4 of 12."""
    seen: dict[str, set[str]] = {}
    hits = []
    for user, query, category in clicks.select("user_id", "query", "category").iter_rows():
        if len(seen.setdefault(user, set())) >= 2 and not query:
            hits.append(category in seen[user])
        seen[user].add(category)
    assert sum(hits) / len(hits) > 0.7


def test_popularity_is_uneven(clicks: pl.DataFrame) -> None:
    counts = clicks["item_id"].value_counts(sort=True)["count"].to_list()
    assert sum(counts[:24]) > 0.25 * sum(counts)  # a tenth of the items


@pytest.mark.parametrize(("items", "users"), [(50, 20), (60, 30)])
def test_the_smallest_storefronts_work(items: int, users: int) -> None:
    tables = load_tables(SampleData(items=items, users=users), seed=3)
    assert tables.items.height == items
    assert tables.events["user_id"].n_unique() == users
    assert not tables.events.select("user_id", "item_id").is_duplicated().any()
