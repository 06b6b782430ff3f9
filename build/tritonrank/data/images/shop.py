"""A generated shop whose pictures show what its titles hide: ``python -m tritonrank.data.images.shop FOLDER``.

An item has a kind, which its title names, and a colour and a pattern, which its picture alone shows. Everyone likes
two kinds, one colour and one pattern, and chooses by them. So a ranker of texts can learn the kinds, and a ranker of
images everything: what images are worth is the difference.

The folder gets items.csv, events.csv and pictures/*.png; docs/images.md has the recipe that reads them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

KINDS = ("vase", "rug", "lamp", "bowl")
MAKERS = ("Norda", "Elvin", "Sato", "Brook", "Tessel", "Okka")
COLOURS = {
    "red": (205, 40, 45),
    "blue": (40, 80, 200),
    "green": (45, 150, 70),
    "yellow": (240, 205, 50),
    "black": (35, 35, 40),
    "pink": (240, 150, 190),
}
PATTERNS = ("plain", "stripes", "dots")
SIDE = 96
"""Pixels of a picture."""
FEWEST_EVENTS, MOST_EVENTS = 7, 12
KIND_PULL, COLOUR_PULL, PATTERN_PULL = 1.5, 4.0, 1.5
"""How strongly each reason speaks for an item, in units of a softmax logit."""
WITHOUT_PICTURE = 0.05
"""Share of the items that have none, as in any shop."""
FIRST_SECOND = 1_735_689_600  # 2025-01-01 UTC
DAY = 86_400


@dataclass(frozen=True)
class Look:
    """What a picture shows."""

    kind: str
    colour: str
    pattern: str


def write_shop(folder: Path, items: int = 240, users: int = 700, seed: int = 17) -> None:
    """Write tables and pictures; the same numbers give the same files.

    Args:
        folder: where they go.
        items: in the catalogue.
        users: each with 7 to 12 events.
        seed: of everything.
    """
    random = np.random.default_rng([seed, 0])
    looks = [
        Look(KINDS[number % len(KINDS)], _pick([*COLOURS], random), _pick(PATTERNS, random)) for number in range(items)
    ]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, look in enumerate(looks, 1):
        picture = f"item-{number:04d}.png" if random.random() >= WITHOUT_PICTURE else ""
        if picture:
            _draw(look, folder / "pictures" / picture, np.random.default_rng([seed, 1, number]))
        rows.append((f"item-{number:04d}", f"{_pick(MAKERS, random)} {look.kind}", picture))
    pl.DataFrame(rows, schema=["item_id", "title", "image"], orient="row").write_csv(folder / "items.csv")
    events = [event for user in range(users) for event in _events(user, looks, np.random.default_rng([seed, 2, user]))]
    columns = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(events, schema=columns, orient="row").write_csv(folder / "events.csv")


def _events(user: int, looks: list[Look], random: np.random.Generator) -> list[tuple[str, str, int]]:
    kinds = {_pick(KINDS, random) for _ in range(2)}
    colour, pattern = _pick([*COLOURS], random), _pick(PATTERNS, random)
    liking = np.array(
        [
            KIND_PULL * (look.kind in kinds)
            + COLOUR_PULL * (look.colour == colour)
            + PATTERN_PULL * (look.pattern == pattern)
            for look in looks
        ]
    )
    count = min(int(random.integers(FEWEST_EVENTS, MOST_EVENTS + 1)), len(looks))
    # The best of perturbed likings, in the order of their size: draws without replacement (the Gumbel trick).
    chosen = np.argsort(-(liking + random.gumbel(size=len(looks))))[:count]
    seconds = FIRST_SECOND + np.sort(random.integers(0, 90 * DAY, size=count))
    order = random.permutation(count)  # what is liked most is not liked first
    return [
        (f"user-{user:05d}", f"item-{chosen[place] + 1:04d}", int(second))
        for place, second in zip(order, seconds, strict=True)
    ]


def _draw(look: Look, path: Path, random: np.random.Generator) -> None:
    """A silhouette of the kind in its colour and pattern, never twice quite the same, on a background of its own."""
    from PIL import Image, ImageDraw

    ground = tuple(int(value) for value in random.integers(225, 256, size=3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    fill = Image.new("RGB", (SIDE, SIDE), _near(COLOURS[look.colour], random))
    pen, light = ImageDraw.Draw(fill), _near((250, 250, 245), random)
    step = int(random.integers(10, 15))
    for start in range(-SIDE, 2 * SIDE, step):
        if look.pattern == "stripes":
            pen.line([(start, 0), (start + SIDE // 2, SIDE)], fill=light, width=step // 3)
        if look.pattern == "dots":
            for height in range(0, SIDE, step):
                pen.ellipse([start, height, start + step // 2, height + step // 2], fill=light)
    shape = Image.new("L", (SIDE, SIDE), 0)
    _outline(ImageDraw.Draw(shape), look.kind, *(int(value) for value in random.integers(-6, 7, size=2)))
    picture.paste(fill, mask=shape)
    picture.save(path)


def _outline(pen: "ImageDraw", kind: str, right: int, down: int) -> None:
    def place(*corners: tuple[int, int]) -> list[tuple[int, int]]:
        return [(x + right, y + down) for x, y in corners]

    match kind:
        case "vase":
            pen.polygon(place((38, 14), (58, 14), (54, 34), (70, 60), (58, 84), (38, 84), (26, 60), (42, 34)), fill=255)
        case "rug":
            pen.polygon(place((14, 26), (82, 26), (82, 70), (14, 70)), fill=255)
        case "lamp":
            pen.polygon(place((34, 12), (62, 12), (76, 44), (20, 44)), fill=255)
            pen.polygon(place((45, 44), (51, 44), (51, 84), (45, 84)), fill=255)
        case _:
            pen.pieslice([*place((14, 4), (82, 84))[0], *place((82, 84))[0]], 0, 180, fill=255)


def _near(colour: tuple[int, int, int], random: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(np.array(colour) + random.integers(-14, 15, size=3), 0, 255))


def _pick(choices: list[str] | tuple[str, ...], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]


if __name__ == "__main__":
    write_shop(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}: items.csv, events.csv, pictures/")
