"""Which events are positives: what words for them mean in shops' logs, and from which rating on somebody liked it.

Suggestions for a recipe that a person reads; an event type that is not known here counts nothing, and is named.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import polars as pl

from tritonrank.data.column_looks import Looks
from tritonrank.data.meanings import words_of

MOST_TYPES = 30
"""More different values are no event types."""
LIKED_SHARE = 0.6
"""A rating is a positive from the lowest value on that at most this share of ratings reaches."""

SHOWN, VIEWED, CLICKED, WANTED, BOUGHT, REGRETTED = "shown", "viewed", "clicked", "wanted", "bought", "regretted"
WEIGHTS: Mapping[str, float] = {SHOWN: 0, REGRETTED: 0, VIEWED: 0, CLICKED: 0, WANTED: 1, BOUGHT: 3}
"""Of each kind; where there is nothing stronger, what is viewed, clicked or wanted counts 1."""

_KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("impression", "impressions", "imp", "shown", "show", "display", "displayed", "exposure", "expose", "listed",
         "serp", "anzeige", "impresion", "impressao", "affichage", "показ", "曝光", "表示"), SHOWN),
    **dict.fromkeys(
        ("view", "views", "viewed", "pageview", "pv", "viewitem", "productview", "viewproduct", "itemview", "detail",
         "detailview", "viewcontent", "visit", "browse", "seen", "ansicht", "angesehen", "aufruf", "vue",
         "consultation", "vista", "visualizacion", "visualizacao", "visualizzazione", "bekeken", "wyswietlenie",
         "goruntuleme", "просмотр", "浏览", "閲覧", "조회"), VIEWED),
    **dict.fromkeys(
        ("click", "clicks", "clicked", "clk", "tap", "open", "opened", "select", "selectitem", "klick", "angeklickt",
         "clic", "clique", "klik", "tiklama", "клик", "点击", "クリック", "클릭", "play", "played", "watch", "listen",
         "read", "download"), CLICKED),
    **dict.fromkeys(
        ("cart", "addtocart", "addcart", "cartadd", "addtobasket", "basket", "addtobag", "begincheckout", "checkout",
         "fav", "favorite", "favourite", "like", "liked", "wishlist", "addtowishlist", "save", "saved", "bookmark",
         "collect", "share", "warenkorb", "indenwarenkorb", "merken", "merkzettel", "panier", "ajoutpanier", "carrito",
         "anadiralcarrito", "carrinho", "carrello", "winkelwagen", "koszyk", "sepet", "корзина", "加购", "收藏",
         "カート", "장바구니"), WANTED),
    **dict.fromkeys(
        ("purchase", "purchases", "purchased", "buy", "bought", "order", "ordered", "transaction", "sale", "sold",
         "conversion", "book", "booked", "booking", "subscribe", "kauf", "gekauft", "bestellung", "bestellt", "achat",
         "achete", "commande", "compra", "comprado", "pedido", "acquisto", "ordine", "aankoop", "bestelling", "zakup",
         "satinalma", "покупка", "заказ", "购买", "購入", "구매"), BOUGHT),
    **dict.fromkeys(
        ("removefromcart", "remove", "removed", "return", "returned", "refund", "refunded", "cancel", "cancelled",
         "canceled", "dislike", "disliked", "unlike", "skip", "hide", "hidden", "report", "bounce", "retoure",
         "storno", "retour", "devolucion", "devolucao", "reso", "возврат", "退货", "返品"), REGRETTED),
}  # fmt: skip
"""What an event type is called -> what it is, in a few languages; compared without case, blanks, signs and accents."""


@dataclass(frozen=True)
class Label:
    """A guess which events are positives."""

    column: str
    weights: dict[str, float] | None
    """by event type; None where the column holds numbers"""
    positive_label: float
    """of numbers: from here on"""
    reason: str
    unsure: str
    """what a person should look at; empty: nothing"""


def kind_of(event_type: str) -> str | None:
    """What an event type is; None where the word is not known."""
    return _kinds().get(_plain("".join(words_of(event_type))))


@cache
def _kinds() -> dict[str, str]:
    return {_plain(word): kind for word, kind in _KINDS.items()}


def _plain(word: str) -> str:
    """Without accents on Latin letters."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", word) if not "\u0300" <= sign <= "\u036f")


def guess_label(columns: Sequence[Looks]) -> Label | None:
    """The first of likely columns that says which events are positives.

    Args:
        columns: likeliest by their names first.
    """
    for looks in columns:
        types = looks.given.value_counts(sort=True).sort("count", looks.name, descending=[True, False])
        named = {str(value): count for value, count in types.head(MOST_TYPES + 1).iter_rows()}
        if looks.numbers is None and len(named) <= MOST_TYPES and any(kind_of(value) for value in named):
            return _typed(looks.name, named)
        if looks.numbers is not None and looks.numbers.n_unique() > 1 and looks.time is None:
            return _rated(looks.name, looks.numbers)
    return None


def _typed(column: str, counts: Mapping[str, int]) -> Label:
    kinds = {value: kind_of(value) for value in counts}
    weights = {value: WEIGHTS[kind] if kind else 0.0 for value, kind in kinds.items()}
    if not any(weights.values()):
        strongest = next(kind for kind in (CLICKED, VIEWED, SHOWN, REGRETTED) if kind in kinds.values())
        weights = {value: float(kinds[value] == strongest) for value in counts}
    unknown = [value for value, kind in kinds.items() if kind is None]
    told = ", ".join(f"{value} ({count:,})" for value, count in list(counts.items())[:6])
    unsure = f"{', '.join(map(repr, unknown))}: not known, so worth 0; give weights" if unknown else ""
    in_order = dict(sorted(weights.items(), key=lambda one: one[1]))
    return Label(column, in_order, 1.0, f"words for what users do: {told}", unsure)


def _rated(column: str, numbers: pl.Series) -> Label:
    values = numbers.unique().sort().to_list()
    if values == [0.0, 1.0]:
        return Label(column, None, 1.0, f"0 or 1; {float((numbers == 1).mean()):.0%} are 1", "")  # type: ignore[arg-type]  # a number
    reach = {value: float((numbers >= value).mean()) for value in values}
    threshold = next((value for value in values if reach[value] <= LIKED_SHARE), values[-1])
    reason = f"numbers from {values[0]:g} to {values[-1]:g}; {reach[threshold]:.0%} are {threshold:g} or more"
    scale = len(values) <= 21 and values[-1] <= 100
    unsure = "" if scale else f"no scale of ratings: is {threshold:g} where liking begins?"
    return Label(column, None, threshold, reason, unsure)
