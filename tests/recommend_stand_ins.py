"""Parts of a recommender for its tests: a catalogue of a few items and a ranker, which fail or dawdle when told to."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tritonrank_client import RankError
from tritonrank_recommend.catalogue.interface import SOURCES, Candidates, Filters, Wish
from tritonrank_recommend.engine.artifact_folder import ArtifactFolder
from tritonrank_recommend.engine.conditions import meets
from tritonrank_recommend.engine.parts import Parts
from tritonrank_recommend.engine.ranker import Scored
from tritonrank_recommend.engine.recommender import Recommender
from tritonrank_recommend.engine.rules import Rules, RulesFile
from tritonrank_recommend.engine.settings import EngineSettings
from tritonrank_recommend.stores.interface import FieldValue, ItemChange, Store

BRANDS = ("Oakline", "Brasserie", "Fern", "Kestrel")


class StandInCatalogue:
    """Items i0, i1 ...: the first are the most popular; each brand has every fourth, and one in ten is sold out.

    Attributes:
        failure: what ``retrieve`` raises.
        delay: seconds that ``retrieve`` takes.
        wishes: that it was asked for.
    """

    artifact = "catalogue-1"
    standing = None

    def __init__(self, items: int = 60) -> None:
        self.items: dict[str, dict[str, FieldValue]] = {
            f"i{number}": {
                "title": f"item {number}",
                "brand": BRANDS[number % 4],
                "price": float(number),
                "in_stock": number % 10 != 9,
            }
            for number in range(items)
        }
        self.failure: Callable[[], Exception] | None = None
        self.delay = 0.0
        self.wishes: list[Wish] = []
        self.threads: set[str] = set()
        self.looking_threads: set[str] = set()
        self.size = items

    def __len__(self) -> int:
        return self.size

    def fields(self, item_ids: Sequence[str]) -> list[Mapping[str, FieldValue] | None]:
        self.looking_threads.add(threading.current_thread().name)
        if self.failure is not None:
            raise self.failure()
        return [self.items.get(one) for one in item_ids]

    def texts(self, item_ids: Sequence[str]) -> list[str | None]:
        return [str(of["title"]) if (of := self.items.get(one)) is not None else None for one in item_ids]

    def render(self, fields: Mapping[str, FieldValue]) -> str:
        return str(fields.get("title", ""))

    def retrieve(self, wish: Wish) -> Candidates:
        self.wishes.append(wish)
        self.threads.add(threading.current_thread().name)
        if self.delay:
            time.sleep(self.delay)
        if self.failure is not None:
            raise self.failure()
        excluded = set(wish.exclude)
        ids = [one for one, of in self.items.items() if one not in excluded and meets(of, wish.filters)]
        return candidates_of(ids[: wish.size], self.items)

    def similar(self, item_id: str, size: int, filters: Filters) -> Candidates:
        brand = self.items[item_id]["brand"]
        fitting = [one for one, of in self.items.items() if of["brand"] == brand and one != item_id]
        return candidates_of([one for one in fitting if meets(self.items[one], filters)][:size], self.items)

    def apply(self, changes: Sequence[ItemChange]) -> None:
        for change in changes:
            if change.fields is None:
                self.items.pop(change.item_id, None)
            else:
                self.items[change.item_id] = change.fields


def candidates_of(ids: list[str], items: Mapping[str, Mapping[str, FieldValue]] | None = None) -> Candidates:
    """Candidates that the source of popular items brought; ``items`` has their fields."""
    fields = [(items or {}).get(one, {}) for one in ids]
    places = np.arange(len(ids), dtype=np.int32)
    return Candidates(
        ids=ids,
        fused=(1 / (60 + places)).astype(np.float32),
        ranks={name: places if name == "popular" else np.full_like(places, -1) for name in SOURCES},
        scores={name: np.full(len(ids), np.nan, np.float32) for name in SOURCES},
        popularity=np.linspace(1, 0, len(ids), dtype=np.float32),
        age_days=places.astype(np.float32),
        texts=[str(of.get("title", "")) for of in fields],
        fields=fields,
    )


class StandInRanker:
    """Scores ``item 7`` with 7, so the last come first.

    Attributes:
        failure: makes the error that it raises.
        delay: seconds that it takes.
        asked: query, history and items of each request.
        seconds: that it was given for each.
    """

    def __init__(self) -> None:
        self.failure: Callable[[], RankError] | None = None
        self.delay = 0.0
        self.asked: list[tuple[str, list[str], list[str]]] = []
        self.seconds: list[float] = []
        self.cancelled = 0

    async def score(
        self, query: str, history: Sequence[str], items: Sequence[str], *, user: str = "", seconds: float | None = None
    ) -> Scored:
        self.asked.append((query, list(history), list(items)))
        self.seconds.append(seconds or 0.0)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure()
        return Scored(np.array([float(text.split()[-1]) for text in items], np.float32), "ranker-1")


def folder_of(opened: object | None, problem: str = "") -> ArtifactFolder:
    """A folder in which this lies."""
    folder: ArtifactFolder = ArtifactFolder(None, lambda path: None, "stand-in")
    folder.opened, folder.problem = opened, problem
    return folder


def recommender_of(
    catalogue: object | None,
    ranker: StandInRanker | None,
    *,
    store: Store | None = None,
    rules: Rules | None = None,
    blend: object | None = None,
    settings: EngineSettings | None = None,
) -> Recommender:
    """A recommender of these parts."""
    file = RulesFile(None)
    file.rules = rules or Rules()
    parts = Parts(folder_of(catalogue, "" if catalogue else "missing"), folder_of(blend), file, store)
    return Recommender(parts, ranker, settings)
