"""The vocabulary of the generated storefront: what is sold, under which invented brands, in which words."""

from dataclasses import dataclass


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
