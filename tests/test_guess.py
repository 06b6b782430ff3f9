"""Columns are guessed by names and by values, with reasons, and doubts are said."""

import random
from typing import Any

import polars as pl
import pytest
from tritonrank.data.column_looks import Looks
from tritonrank.data.guess import Guess, guess_columns
from tritonrank.data.guess_events import guess_label, kind_of
from tritonrank.data.meanings import words_of
from tritonrank.errors import DataError

WORDS = ["oak lamp", "brass desk", "linen chair", "glass bowl", "steel pot", "wool rug", "amber vase", "slate tray"]


def items(**columns: Any) -> pl.DataFrame:
    known = {"sku": [f"S{number}" for number in range(40)], "name": [f"{WORDS[n % 8]} {n}" for n in range(40)]}
    return pl.DataFrame(known | columns)


def events(**columns: Any) -> pl.DataFrame:
    drawn = random.Random(1)
    known = {
        "customer": [f"C{drawn.randrange(20)}" for _ in range(200)],
        "sku": [f"S{drawn.randrange(40)}" for _ in range(200)],
        "when": [1_600_000_000_000 + number * 1000 for number in range(200)],
    }
    return pl.DataFrame(known | columns)


def guessed(of_items: pl.DataFrame | None = None, of_events: pl.DataFrame | None = None, **named: str) -> Guess:
    return guess_columns(items() if of_items is None else of_items, events() if of_events is None else of_events, named)


def doubts(guess: Guess) -> dict[str, str]:
    return {one.meaning: one.unsure for one in guess.columns if one.unsure}


def test_a_plain_shop_is_understood_without_a_doubt() -> None:
    found = guessed()
    assert found.item_ids == ("sku", "sku")
    assert (found.user_id, found.timestamp, found.query, found.label) == ("customer", "when", None, None)
    assert found.template == "{name}"
    assert doubts(found) == {}
    (time,) = [one for one in found.columns if one.meaning == "timestamp"]
    assert "milliseconds" in time.reason
    assert "2020-09-13" in time.reason


def test_names_of_other_languages_are_known() -> None:
    german = {"sku": "Artikelnummer", "name": "Bezeichnung"}
    found = guessed(
        items(Beschreibung=[" ".join(WORDS) + f" {n}" for n in range(40)]).rename(german),
        events().rename({"customer": "Kunde", "when": "Zeitpunkt"}),
    )
    assert (found.user_id, found.timestamp) == ("Kunde", "Zeitpunkt")
    assert found.template.startswith("{Bezeichnung}")
    assert doubts(found) == {}
    assert words_of("Catégorie-ID") == ["categorie", "id"]


def test_ids_that_lost_their_zeros_are_told_apart_from_ids_that_never_meet() -> None:
    padded = items().with_columns(sku=pl.Series([f"{number:05d}" for number in range(40)]))
    lost = events().with_columns(sku=pl.Series([str(number % 40) for number in range(200)]))
    with pytest.raises(DataError, match=r"leading zeros items\.sku and events\.sku"):
        guessed(padded, lost)
    with pytest.raises(DataError) as found:
        guessed(padded, events().with_columns(sku=pl.lit("other")))
    assert "leading zeros" not in str(found.value)


def test_values_link_the_tables_where_names_do_not() -> None:
    numbers = [number + 500 for number in range(40)]
    of_items = items().drop("sku").with_columns(nr=pl.Series(numbers), weight=pl.Series([n % 7 for n in range(40)]))
    drawn = random.Random(2)
    ids = [float(drawn.choice(numbers)) for _ in range(200)]
    of_events = (
        events().drop("sku").with_columns(ref=pl.Series(ids), amount=pl.Series([drawn.randrange(5) for _ in ids]))
    )
    assert guessed(of_items, of_events).item_ids == ("nr", "ref")


def test_small_whole_numbers_do_not_pass_for_users() -> None:
    """User ids 1 to 20 are all among item ids 0 to 39; their column says whose they are."""
    of_items = items(sku=list(range(40))).rename({"sku": "id"})
    drawn = random.Random(3)
    users, things = [drawn.randrange(20) for _ in range(200)], [drawn.randrange(40) for _ in range(200)]
    found = guessed(of_items, events(customer=users, sku=things).rename({"customer": "user_id", "sku": "item"}))
    assert found.item_ids == ("id", "item")
    assert found.user_id == "user_id"


def test_an_unnamed_user_is_doubted_and_a_session_is_no_person() -> None:
    assert "user_id" in doubts(guessed(of_events=events().rename({"customer": "x"})))
    assert "sessions" in doubts(guessed(of_events=events().rename({"customer": "session_id"})))["user_id"]


def test_text_comes_in_the_order_in_which_it_may_be_cut() -> None:
    of_items = items(
        url=["https://shop.example/p"] * 40,
        about=[f"<p>a long text on {WORDS[n % 8]} and what it is good for, {n}</p>" * 3 for n in range(40)],
        brand=[["Kestrel", "Marlo"][n % 2] for n in range(40)],
        stock=["true", "false"] * 20,
        price=[f"{n},90" for n in range(40)],
        raw=['{"a": 1}'] * 40,
    )  # fmt: skip
    found = guessed(of_items)
    assert found.template == "{name} {brand} {about}"
    assert found.text_fields == ("name", "brand", "about", "price")
    assert {name for name in found.left if name.startswith("items.")} == {"items.url", "items.stock", "items.raw"}
    (about,) = [one for one in found.columns if one.column == "about"]
    assert "100% hold HTML" in about.reason


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (["view", "add_to_cart", "purchase"], {"view": 0, "add_to_cart": 1, "purchase": 3}),
        (["pageView", "AddToCart", "order"], {"pageView": 0, "AddToCart": 1, "order": 3}),
        (["Ansicht", "Warenkorb", "Kauf", "Retoure"], {"Ansicht": 0, "Warenkorb": 1, "Kauf": 3, "Retoure": 0}),
        (["visualização", "carrinho", "compra"], {"visualização": 0, "carrinho": 1, "compra": 3}),
        (["浏览", "收藏", "购买"], {"浏览": 0, "收藏": 1, "购买": 3}),
        (["impression", "click"], {"impression": 0, "click": 1}),
        (["view"], {"view": 1}),
    ],
)
def test_event_types_get_weights_in_the_words_of_several_languages(words: list[str], weights: dict[str, float]) -> None:
    label = guess_label([Looks.of(pl.Series("kind", words * 5))])
    assert label is not None
    assert label.weights == weights
    assert not label.unsure


def test_an_unknown_type_counts_nothing_and_is_named() -> None:
    label = guess_label([Looks.of(pl.Series("kind", ["view", "purchase", "zorp"] * 5))])
    assert label is not None
    assert label.weights is not None
    assert label.weights["zorp"] == 0
    assert "zorp" in label.unsure
    assert kind_of("zorp") is None


@pytest.mark.parametrize(
    ("values", "threshold"),
    [
        ([0, 1, 1, 0], 1),
        ([5] * 20 + [4] * 35 + [3] * 27 + [2] * 11 + [1] * 7, 4),  # as in MovieLens 100k
        ([5.0] * 13 + [4.5] * 8 + [4.0] * 27 + [3.5] * 13 + [3.0] * 20 + [2.0] * 19, 4),  # and in ml-latest-small
        (list(range(1, 11)) * 4, 5),
    ],
)
def test_liking_begins_where_at_most_three_in_five_ratings_are(values: list[float], threshold: float) -> None:
    label = guess_label([Looks.of(pl.Series("rating", values))])
    assert label is not None
    assert label.positive_label == threshold
    assert not label.unsure


def test_a_date_of_items_counts_where_events_come_after_it() -> None:
    before = items(online_since=["2020-01-01"] * 40, updated_at=["2020-01-01"] * 40)
    assert guessed(before).available_from == "online_since"
    after = items(online_since=["2024-01-01"] * 40)
    assert guessed(after).available_from is None


def test_lists_that_were_shown_are_noticed() -> None:
    shown = events(impression_id=[number // 5 for number in range(200)], position=[number % 5 for number in range(200)])
    assert guessed(of_events=shown).impressions == ("impression_id", "position")


def test_what_a_person_says_counts() -> None:
    of_events = events(seller=[f"V{number % 9}" for number in range(200)], note=["oak lamp", "desk"] * 100)
    found = guessed(of_events=of_events, user_id="seller", query="note", text="name,sku", item_id="sku:sku")
    assert (found.user_id, found.query, found.text_fields) == ("seller", "note", ("name", "sku"))


@pytest.mark.parametrize(
    ("of_items", "of_events", "named", "said"),
    [
        (items(sku=[f"X{n}" for n in range(40)]), events(), {}, "--column item_id=OF_THE_ITEMS:OF_THE_EVENTS"),
        (items(), events(when=["soon"] * 200), {}, "--column timestamp=COLUMN"),
        (
            items(),
            events(customer=[f"c{n}" for n in range(200)]).rename({"customer": "x"}),
            {},
            "--column user_id=COLUMN",
        ),
        (items().select("sku"), events(), {}, "--column text=COLUMN"),
        (items(), events(), {"user_id": "klient"}, "no such column; the columns are: customer"),
        (items(), events(), {"userid": "customer"}, "item_id, user_id"),
    ],
)
def test_what_cannot_be_guessed_says_how_it_is_named(
    of_items: pl.DataFrame, of_events: pl.DataFrame, named: dict[str, str], said: str
) -> None:
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        guess_columns(of_items, of_events, named)
