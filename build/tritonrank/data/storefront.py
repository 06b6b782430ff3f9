"""The vocabulary of the generated storefront: what is sold, under which invented brands, in which words.

Products and searches are drawn from it, for the sample data (``sample.py``) and for simulated shoppers (load tests).
"""

import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Category:
    nouns: tuple[str, ...]
    """how titles call it"""
    searches: tuple[str, ...]
    """how people search for it"""
    features: tuple[tuple[str, ...], ...]
    """an item has one of each group"""
    prices: tuple[float, float]
    """cheapest and dearest"""


CATEGORIES = {
    "headphones": Category(
        ("headphones", "over-ear headphones", "wireless headset"),
        ("headphones", "headset", "headphones for travel"),
        (
            ("noise cancelling", "open back", "foldable"),
            ("bluetooth", "wired", "usb-c"),
            ("30 h battery", "50 h battery"),
        ),
        (25, 450),
    ),
    "running shoes": Category(
        ("running shoes", "trail runners", "road running shoes"),
        ("running shoes", "shoes for jogging", "trail shoes"),
        (("cushioned", "lightweight", "stability"), ("waterproof", "breathable mesh"), ("wide fit", "regular fit")),
        (45, 220),
    ),
    "coffee makers": Category(
        ("coffee maker", "espresso machine", "filter coffee machine"),
        ("coffee maker", "coffee machine", "espresso machine"),
        (("built-in grinder", "thermal carafe", "milk frother"), ("programmable", "manual"), ("1 L", "1.8 L")),
        (30, 700),
    ),
    "tents": Category(
        ("tent", "dome tent", "trekking tent"),
        ("tent", "camping tent", "tent for hiking"),
        (("2 person", "3 person", "4 person"), ("ultralight", "pop-up", "four season"), ("waterproof", "two doors")),
        (60, 650),
    ),
    "desks": Category(
        ("desk", "standing desk", "writing desk"),
        ("desk", "office desk", "desk for home office"),
        (("height adjustable", "corner", "folding"), ("oak", "bamboo", "steel"), ("120 cm", "160 cm")),
        (90, 900),
    ),
    "lamps": Category(
        ("desk lamp", "floor lamp", "table lamp"),
        ("lamp", "reading lamp", "light for bedroom"),
        (("dimmable", "warm light", "daylight"), ("led", "smart"), ("brass", "linen shade", "glass")),
        (15, 260),
    ),
    "backpacks": Category(
        ("backpack", "hiking backpack", "daypack"),
        ("backpack", "hiking backpack", "rucksack"),
        (("waterproof", "laptop sleeve", "ventilated back"), ("20 L", "30 L", "55 L"), ("recycled", "canvas")),
        (30, 280),
    ),
    "jackets": Category(
        ("jacket", "rain jacket", "insulated jacket"),
        ("jacket", "rain jacket", "winter jacket"),
        (("windproof", "down", "softshell"), ("waterproof", "packable"), ("hooded", "high collar")),
        (50, 480),
    ),
    "keyboards": Category(
        ("keyboard", "mechanical keyboard", "compact keyboard"),
        ("keyboard", "mechanical keyboard", "keyboard for office"),
        (
            ("tactile switches", "linear switches", "silent switches"),
            ("bluetooth", "usb-c"),
            ("tenkeyless", "full size"),
        ),
        (25, 240),
    ),
    "cameras": Category(
        ("mirrorless camera", "compact camera", "action camera"),
        ("camera", "travel camera", "camera for video"),
        (("4k video", "full frame", "30x zoom"), ("waterproof", "image stabilisation"), ("flip screen", "viewfinder")),
        (150, 2400),
    ),
    "water bottles": Category(
        ("water bottle", "insulated bottle", "sports bottle"),
        ("water bottle", "bottle for gym", "thermos"),
        (("insulated", "collapsible", "straw lid"), ("0.5 L", "0.75 L", "1 L"), ("steel", "glass")),
        (8, 60),
    ),
    "watches": Category(
        ("sports watch", "smartwatch", "field watch"),
        ("watch", "gps watch", "running watch"),
        (("gps", "heart rate", "solar"), ("leather strap", "silicone strap"), ("waterproof", "sapphire glass")),
        (40, 800),
    ),
}

# Invented names; each brand sells in a few categories, so a brand says something about taste.
BRANDS = {
    "Northfell": ("tents", "backpacks", "jackets", "water bottles"),
    "Aldergrove": ("tents", "backpacks", "jackets", "running shoes"),
    "Tarnwick": ("jackets", "running shoes", "water bottles", "watches"),
    "Corvane": ("headphones", "keyboards", "cameras", "watches"),
    "Lumeva": ("lamps", "desks", "headphones"),
    "Hollin & Rye": ("desks", "lamps", "coffee makers"),
    "Brightwater": ("coffee makers", "water bottles", "lamps"),
    "Kestrel": ("cameras", "headphones", "backpacks", "tents"),
    "Ostrava Works": ("keyboards", "desks", "headphones"),
    "Peakline": ("running shoes", "tents", "watches", "jackets", "backpacks"),
    "Marlo": ("coffee makers", "lamps", "keyboards", "water bottles"),
    "Vantor": ("cameras", "keyboards", "watches", "desks", "running shoes"),
}

COLOURS = ("black", "white", "blue", "green", "red", "grey", "sand", "orange")

LINES = (
    "Ridge", "Harbor", "Nova", "Atlas", "Drift", "Ember", "Solace", "Vale", "Pico", "Summit", "Echo", "Juniper",
    "Meridian", "Slate", "Aria", "Tempo", "Willow", "Fjord", "Cinder", "Orbit", "Birch", "Quill", "Comet", "Mesa",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """An item that was drawn, and what it is like."""

    title: str
    brand: str
    category: str
    features: tuple[str, ...]
    """one of each group of its category"""
    colour: str
    price: str
    price_level: float
    """0 cheap to 1 dear, within the category"""

    @property
    def words(self) -> frozenset[str]:
        """Its brand, colour and features: what tastes and queries are matched against."""
        return frozenset([self.brand, self.colour, *self.features])

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """title, brand, category, attributes, price: an items table's row behind its id."""
        return self.title, self.brand, self.category, ", ".join([*self.features, self.colour]), self.price


def draw_product(
    name: str, titles: set[str], random: np.random.Generator, brands: Collection[str] = tuple(BRANDS)
) -> Product:
    """A product of a category whose title no other one has.

    Args:
        name: of the category.
        titles: that are taken; the new one is added.
        random: chooses.
        brands: that may make it; at least one of them sells in the category.
    """
    category = CATEGORIES[name]
    brand = pick([brand for brand, known in BRANDS.items() if name in known and brand in brands], random)
    features = [pick(choices, random) for choices in category.features]
    colour = pick(COLOURS, random)
    level = float(random.beta(2, 2))
    low, high = category.prices
    price = f"{low * (high / low) ** level:.0f}.{pick(['00', '50', '90', '99'], random)}"
    title = _title(brand, category, features, titles, random)
    return Product(title, brand, name, tuple(features), colour, price, level)


def draw_search(name: str, liked: Collection[str], random: np.random.Generator) -> tuple[str | None, str]:
    """(the word an item should have, the query); mostly it names something the user likes anyway.

    Args:
        name: of the category that is searched.
        liked: brands, colours and features.
        random: chooses.
    """
    noun = pick(CATEGORIES[name].searches, random)
    features = [feature for choices in CATEGORIES[name].features for feature in choices]
    brands = [brand for brand, sold in BRANDS.items() if name in sold]
    kind = random.random()
    if kind < 0.25:
        return None, noun
    pool = features if kind < 0.65 else brands if kind < 0.85 else list(COLOURS)
    favourites = [word for word in pool if word in liked]
    wanted = pick(favourites if favourites and random.random() < 0.7 else pool, random)
    return wanted, f"{wanted} {noun}".lower() if random.random() < 0.8 else f"{noun} {wanted}".lower()


def pick(choices: Sequence[str], random: np.random.Generator) -> str:
    """One of them, each as likely."""
    return choices[int(random.integers(len(choices)))]


def _title(brand: str, category: Category, features: list[str], taken: set[str], random: np.random.Generator) -> str:
    """A name that no other item has; sometimes it carries a feature, as shop titles do."""
    edition = 1
    while True:
        noun = pick(category.nouns, random)
        tells = random.random() < 0.4 and features[0] not in noun  # no "Insulated Insulated Bottle"
        words = [features[0], noun] if tells else [noun]
        line = pick(LINES, random) + (f" {edition}" if edition > 1 else "")
        title = f"{brand} {line} {string.capwords(' '.join(words))}"
        if title not in taken:
            taken.add(title)
            return title
        edition += 1
