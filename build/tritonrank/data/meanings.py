"""What columns of shops' tables mean, and the names under which people keep them, in a few of their languages.

One list, read by those who guess the columns of unknown files and by the message about a column that is not there.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """What a column can be."""

    setting: str
    """the setting that maps it; empty where none does"""
    table: str
    """``items``, ``events`` or ``both``"""
    names: tuple[str, ...]
    """what the column is called, likeliest first; words of a name such as customer_id count, too"""


MEANINGS: Mapping[str, Meaning] = {
    "item_id": Meaning(
        "data.item_id",
        "both",
        (
            "item_id", "sku", "product_id", "article_id", "asin", "movie_id", "book_id", "news_id", "video_id",
            "document_id", "doc_id", "offer_id", "listing_id", "parent_asin", "item", "product", "article", "movie",
            "book", "document", "doc", "offer", "isbn", "ean", "gtin",
            "artikelnummer", "artikel_nr", "artikel", "produkt_id", "produkt", "referencia", "articulo", "articolo",
        ),
    ),
    "user_id": Meaning(
        "data.user_id",
        "events",
        (
            "user_id", "customer_id", "client_id", "visitor_id", "member_id", "account_id", "person_id", "buyer_id",
            "reviewer_id", "session_id", "uid", "user", "customer", "client", "visitor", "member", "account",
            "person", "buyer", "session",
            "kunde", "kundennummer", "nutzer", "benutzer", "cliente", "usuario", "utilisateur", "utente", "klant",
        ),
    ),
    "timestamp": Meaning(
        "data.timestamp",
        "events",
        (
            "timestamp", "event_time", "created_at", "time", "date", "datetime", "event_timestamp", "ts", "t_dat",
            "ordered_at", "purchased_at", "created", "ordered", "when", "unix", "day", "at",
            "zeitpunkt", "zeit", "datum", "fecha", "heure", "tijd",
        ),
    ),
    "query": Meaning(
        "data.query",
        "events",
        (
            "query", "search_query", "search_term", "search_text", "keyword", "keywords", "search", "term", "phrase",
            "suchbegriff", "suchanfrage", "busqueda", "recherche",
        ),
    ),
    "label": Meaning(
        "data.label",
        "events",
        (
            "label", "event_type", "rating", "stars", "action", "event", "click", "clicked", "purchase", "purchased",
            "watch_ratio", "esci_label", "score", "type",
            "aktion", "ereignis", "accion", "evento", "azione", "bewertung",
        ),
    ),
    "position": Meaning("data.impressions", "events", ("position", "rank", "slot", "pos")),
    "impression": Meaning(
        "data.impressions", "events", ("impression_id", "list_id", "request_id", "impression", "page_view_id", "slate")
    ),
    "price": Meaning(
        "",
        "items",
        (
            "price", "cost", "amount", "list_price", "sale_price", "net", "gross", "preis", "precio", "prix", "prezzo",
            "prijs",
        ),
    ),
    "title": Meaning(
        "data.text_fields",
        "items",
        (
            "title", "name", "product_title", "product_name", "prod_name", "headline", "caption", "movie_title",
            "bezeichnung", "titel", "produktname", "titulo", "nombre", "titre", "nom", "titolo", "nome", "naam",
        ),
    ),
    "text": Meaning(
        "data.text_fields",
        "items",
        (
            "description", "brand", "category", "categories", "genres", "genre", "colour", "color", "abstract",
            "summary", "text", "tags", "keywords", "details", "features", "bullet_point", "material", "author",
            "beschreibung", "marke", "kategorie", "farbe", "descripcion", "marca", "categoria", "marque", "categorie",
            "descrizione", "omschrijving", "merk",
        ),
    ),
}  # fmt: skip


def words_of(name: str) -> list[str]:
    """The words of a column's name in small letters without accents: ``customerID`` and ``Customer-Id`` are customer,
    id."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", letters.strip())
    return re.findall(r"[^\W_]+", spaced.casefold())


def likely_columns(meaning: str, header: Sequence[str]) -> list[str]:
    """The columns that may have a meaning, likeliest first.

    A name that is known as a whole comes before one that has a known word in it, as ``shop_customer_no`` has.
    """
    names = MEANINGS[meaning].names
    whole = {"".join(words_of(name)): place for place, name in enumerate(names)}
    single = {name: place for place, name in enumerate(names) if "_" not in name}
    ranked = []
    for number, column in enumerate(header):
        words = words_of(column)
        places = [whole[joined]] if (joined := "".join(words)) in whole else []
        places += [len(names) + single[word] for word in words if word in single]
        if places:
            ranked.append((min(places), number, column))
    return [column for _, _, column in sorted(ranked)]


def meant_by(setting: str, name: str, header: Sequence[str]) -> list[str]:
    """Up to two columns that may be meant by a name that is not there: spelt alike, or called as people call such.

    Args:
        setting: the key of the recipe that names the column, such as ``data.user_id``; may be empty.
        name: the name that was looked for.
        header: the names that are there.
    """
    by_fold = {"".join(words_of(column)) or column: column for column in header}
    spelt = difflib.get_close_matches("".join(words_of(name)) or name, by_fold, n=2, cutoff=0.75)
    meaning = setting.rpartition(".")[2]
    called = likely_columns(meaning, header) if meaning in MEANINGS else []
    return list(dict.fromkeys([*(by_fold[fold] for fold in spelt), *called]))[:2]
