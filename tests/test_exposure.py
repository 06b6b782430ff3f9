"""Exposure: shares by popularity, Gini, and new items, live and over the log, against counts by brute force."""

import asyncio
import datetime
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from recommend_stand_ins import StandInCatalogue, recommender_of
from test_recommend_routes import serving
from tiny_catalogue import ITEMS, tiny_catalogue
from tritonrank.errors import DataError
from tritonrank.learn.exposure import arrivals_of, curves, exposure_by_day, exposure_of_log
from tritonrank_gateway.quality.exposure import BATCH_PAGES, LEAST_SHOWN, NEWEST_SHOWN, Exposure
from tritonrank_recommend.catalogue import open_catalogue
from tritonrank_recommend.catalogue.opened import OpenCatalogue
from tritonrank_recommend.exposure import DAY, NEW_ITEMS, NEW_SECONDS, NewItem, gini, read_new_items, write_new_items
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.stores import open_store
from tritonrank_recommend.stores.interface import ItemChange, Store

NOW = 1_790_000_000.0
IDS = [str(item["item_id"]) for item in ITEMS]
FIELDS = {"title": "Acme red lamp", "brand": "Acme", "category": "lamp", "tags": ["red"], "price": 5.0}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def counted(exposure: Exposure) -> dict[tuple[str, ...], float]:
    """All samples, by name and labels."""
    registry = CollectorRegistry()
    registry.register(exposure)
    page = generate_latest(registry).decode()
    return {
        (sample.name.removeprefix("tritonrank_exposure_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def opened(folder: Path, items: int = len(ITEMS)) -> OpenCatalogue:
    """A catalogue in which item-00 is the most popular, item-01 the next, and so on."""
    events = [
        (f"user-{user}", IDS[place], int(NOW - DAY), 1) for place in range(items) for user in range(items - place)
    ]
    catalogue = open_catalogue(tiny_catalogue(folder, ITEMS[:items], events))
    assert isinstance(catalogue, OpenCatalogue)
    return catalogue


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], OpenCatalogue]:
    folder = tmp_path_factory.mktemp("exposure") / "catalogue"
    opened(folder)
    return lambda: open_catalogue(folder)  # type: ignore[return-value]


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    generator = np.random.default_rng(1)
    for items in (1, 2, 7, 50):
        counts = generator.integers(0, 9, items)
        if counts.sum() < items:
            counts[0] += items  # enough to have shown each
        differences = np.abs(counts[:, None] - counts[None, :]).mean()
        shown = counts[counts > 0]
        assert gini(shown, items) == pytest.approx(differences / (2 * counts.mean()))
    assert gini(np.ones(10), 10) == pytest.approx(0)
    assert gini(np.array([10]), 10) == pytest.approx(0.9)
    assert gini(np.ones(10), 1_000_000) == pytest.approx(0), "ten shown items cannot be spread over a million"
    assert np.isnan(gini(np.array([], dtype=np.int64), 10))


def test_items_stand_in_tenths_of_popularity(built: Callable[[], OpenCatalogue]) -> None:
    catalogue = built()
    tenths = catalogue.standing.tenths(IDS)
    assert tenths.tolist() == [place * 10 // len(IDS) + 1 for place in range(len(IDS))]
    catalogue.apply([ItemChange("later", FIELDS), ItemChange(IDS[3], None), ItemChange(IDS[0], FIELDS)])
    assert catalogue.standing.tenths(["later", IDS[3], IDS[0], "nobody's"]).tolist() == [0, -1, 1, -1]
    assert catalogue.standing.here(["later", IDS[3], IDS[0], "nobody's"]).tolist() == [True, False, True, False]
    catalogue.apply([ItemChange("later", None)])
    assert catalogue.standing.tenths(["later"]).tolist() == [-1]
    assert catalogue.standing.added() == {}
    assert list(catalogue.standing.ids()) == IDS


def test_an_item_that_came_days_ago_came_days_ago_after_a_restart(built: Callable[[], OpenCatalogue]) -> None:
    catalogue = built()
    catalogue.apply([ItemChange("later", FIELDS, changed=NOW - 3 * DAY)])
    assert catalogue.standing.added() == {"later": NOW - 3 * DAY}


def test_shares_and_gini_are_those_of_what_was_shown(built: Callable[[], OpenCatalogue]) -> None:
    catalogue, generator = built(), np.random.default_rng(2)
    exposure = Exposure(lambda: catalogue, None, Clock())
    catalogue.apply([ItemChange("later", FIELDS)])
    names = [*IDS, "later", "nobody's"]
    weights = 1 / np.arange(1, len(names) + 1)
    pages = [
        generator.choice(names, 7, replace=False, p=weights / weights.sum()).tolist()
        for _ in range(2 * BATCH_PAGES + 50)
    ]
    for number, page in enumerate(pages):
        if number == 100:
            assert ("gini",) not in counted(exposure), "fewer than it takes"
        exposure.shown(page)
    found, shown = counted(exposure), Counter(itertools.chain(*pages))
    place = {item_id: number for number, item_id in enumerate(IDS)}
    labels: Counter[str] = Counter()
    for item_id, count in shown.items():
        label = {"later": "added", "nobody's": "unknown"}.get(item_id) or str(place[item_id] * 10 // len(IDS) + 1)
        labels[label] += count
    assert {key[1]: value for key, value in found.items() if key[0] == "items_total"} == {
        label: labels[label] for label in ("unknown", "added", *map(str, range(1, 11)))
    }
    assert sum(shown.values()) >= LEAST_SHOWN
    assert found[("gini_items",)] == sum(shown.values())
    assert found[("gini",)] == pytest.approx(gini(np.array([*shown.values()]), len(catalogue)))


def test_gini_is_of_the_newest_alone(built: Callable[[], OpenCatalogue]) -> None:
    catalogue = built()
    exposure = Exposure(lambda: catalogue, None, Clock())
    for _ in range(NEWEST_SHOWN // 20 + BATCH_PAGES):
        exposure.shown(IDS[:1] * 20)
    assert counted(exposure)[("gini",)] > 0.9
    assert counted(exposure)[("gini_items",)] == NEWEST_SHOWN
    for _ in range(NEWEST_SHOWN // len(IDS) + 1):
        exposure.shown(IDS)
    assert counted(exposure)[("gini",)] < 0.01


async def test_new_items_wait_for_their_first_impression(built: Callable[[], OpenCatalogue]) -> None:
    catalogue, clock = built(), Clock()
    exposure = Exposure(lambda: catalogue, None, clock)
    late, early = (ItemChange(name, FIELDS, changed=NOW - age) for name, age in (("late", 100.0), ("early", 2 * DAY)))
    old = ItemChange("old", FIELDS, changed=NOW - NEW_SECONDS - 1)
    catalogue.apply([old, early, late])
    assert counted(exposure)[("new_items", "month", "no")] == 1
    assert counted(exposure)[("new_items", "day", "no")] == 1
    exposure.shown(["late", "old", IDS[0]])
    clock.now += 50
    exposure.shown(["late"])
    found = counted(exposure)
    assert found[("new_items", "day", "yes")] == 1
    assert found[("first_impression_seconds_count",)] == 1
    assert found[("first_impression_seconds_sum",)] == pytest.approx(100)
    catalogue.apply([ItemChange("early", None)])
    await exposure.keep()
    assert [counted(exposure)[("new_items", "month", shown)] for shown in ("yes", "no")] == [0, 0]
    clock.now += DAY
    assert counted(exposure)[("new_items", "month", "yes")] == 1
    clock.now += NEW_SECONDS
    assert counted(exposure)[("new_items", "month", "yes")] == 0


async def test_gateways_share_what_they_know_and_find_it_again(built: Callable[[], OpenCatalogue]) -> None:
    store, clock = open_store("sqlite::memory:"), Clock()
    one, other = built(), built()
    changes = [ItemChange(f"new-{number}", FIELDS, changed=NOW - 1_000) for number in range(3)]
    first, second = Exposure(lambda: one, store, clock), Exposure(lambda: other, store, clock)
    one.apply(changes)
    other.apply(changes)
    first.shown(["new-0"])
    second.shown(["new-1"])
    await first.keep()
    await second.keep()
    await first.keep()
    for exposure in (first, second):
        assert counted(exposure)[("new_items", "day", "yes")] == 2
        assert counted(exposure)[("new_items", "day", "no")] == 1
    first.shown(["new-1"])
    assert counted(first)[("first_impression_seconds_count",)] == 1, "the other gateway had shown it"
    again = Exposure(lambda: other, store, clock)
    await again.keep()
    assert counted(again)[("new_items", "day", "yes")] == 2
    await store.put(NEW_ITEMS, b"no record", 60)
    await first.keep()
    assert read_new_items((await store.get(NEW_ITEMS)) or b"").keys() == {"new-0", "new-1", "new-2"}
    await store.close()


async def test_what_a_build_adds_is_new_when_it_takes_the_place_of_another(tmp_path: Path) -> None:
    now = opened(tmp_path / "first", len(ITEMS) - 4)
    exposure = Exposure(lambda: now, None, Clock())
    await exposure.keep()
    assert not any(value for key, value in counted(exposure).items() if key[0] == "new_items")
    now = opened(tmp_path / "second")
    await exposure.keep()
    assert counted(exposure)[("new_items", "day", "no")] == 4
    exposure.shown(IDS[-2:])
    await exposure.keep()
    assert counted(exposure)[("new_items", "day", "yes")] == 2


async def test_a_store_that_is_away_and_a_catalogue_that_is_none_cost_no_page() -> None:
    class Away:
        async def get(self, key: str) -> bytes | None:
            await asyncio.sleep(60)
            raise AssertionError("nobody waits so long")

    exposure = Exposure(lambda: StandInCatalogue(), Away(), Clock())  # type: ignore[arg-type]
    exposure.shown(["i1"])
    with pytest.raises(TimeoutError):
        await exposure.keep()
    assert counted(exposure)[("items_total", "unknown")] == 1
    exposure.start()
    await exposure.close()


async def test_pages_of_the_route_count(tmp_path: Path) -> None:
    catalogue = opened(tmp_path / "catalogue")
    async with serving(recommender_of(catalogue, None, store=open_store("sqlite::memory:"))) as http:
        put = {"items": [{"item_id": "late", "fields": FIELDS}]}
        assert (await http.put("/v1/items", json=put)).status_code == 200
        wish = {"query": "lamp", "filters": {"category": "lamp"}}
        pages = [(await http.post("/v1/recommend", json=wish)).json() for _ in range(3)]
        exposure = http.app.state.gateway.exposure  # type: ignore[attr-defined]
        found = counted(exposure)
    shown = [item["item_id"] for page in pages for item in page["items"]]
    assert len(shown) == 30
    assert sum(value for key, value in found.items() if key[0] == "items_total") == 30
    assert found[("items_total", "added")] == shown.count("late") == 3
    assert found[("new_items", "day", "yes")] == 1


# Over the log


def day_of(pages: list[tuple[float, list[str]]]) -> pl.DataFrame:
    return pl.DataFrame({"shown_at": [at for at, _ in pages], "item_ids": [ids for _, ids in pages]})


def test_days_are_told_by_what_was_liked_before() -> None:
    start = NOW // DAY * DAY
    items = pl.Series("item_id", [f"i{number}" for number in range(20)])
    liked = pl.DataFrame(
        {
            "item_id": [f"i{number}" for number in range(20) for _ in range(20 - number)] + ["i19"] * 50,
            "timestamp": [start + 5.0] * 210 + [start + DAY + 5.0] * 50,
        }
    )
    pages = [(start + 10, ["i0", "i1"]), (start + DAY + 10, ["i0", "i0", "i19", "i5"]), (start + 2 * DAY, ["i19"])]
    arrivals = pl.DataFrame({"item_id": ["i5", "i6"], "came": [start + DAY + 1.0, start + DAY + 2.0]})
    days = exposure_by_day(day_of(pages), liked, items, arrivals).to_dicts()
    first = datetime.datetime.fromtimestamp(start, datetime.UTC).date()
    assert [one["day"] for one in days] == [first + datetime.timedelta(days=number) for number in range(3)]
    assert days[0]["deciles"] is None, "nobody had liked anything"
    assert days[0]["items"] == 18
    assert days[1]["deciles"] == pytest.approx([0.5, *[0.0] * 8, 0.25]), "i5 came that day and is in no tenth"
    assert days[1]["added"] == pytest.approx(0.25)
    assert days[1]["gini"] == pytest.approx(gini(np.array([2, 1, 1]), 20))
    assert (days[1]["new_items"], days[1]["new_items_shown"]) == (2, 1)
    assert days[1]["first_impression_hours"] == pytest.approx(9 / 3_600)
    assert days[2]["deciles"][0] == 1.0, "i19 is the most popular by then"
    assert days[2]["first_impression_hours"] is None
    top, coefficients = curves(exposure_by_day(day_of(pages), liked, items))
    assert [y for _, y in top.points] == [None, pytest.approx(0.5), 1.0]
    assert len(coefficients.points) == 3
    undated = exposure_by_day(day_of(pages), liked, items).to_dicts()[1]
    assert undated["new_items"] is None
    assert exposure_by_day(day_of([]).cast({"shown_at": pl.Float64}), liked).is_empty()


def test_older_likes_count_less() -> None:
    start = NOW // DAY * DAY
    liked = pl.DataFrame({"item_id": ["a"] * 3 + ["b"] * 2, "timestamp": [start - 60 * DAY] * 3 + [start - 1] * 2})
    items = pl.Series("item_id", [*"ab", *map(str, range(8))])
    (day,) = exposure_by_day(day_of([(start, ["b"])]), liked, items).to_dicts()
    assert day["deciles"][0] == 1.0
    (day,) = exposure_by_day(day_of([(start, ["b"])]), liked, items, half_life_days=1e6).to_dicts()
    assert day["deciles"][1] == 1.0


def test_a_real_log_is_read(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'store.db'}"

    async def serve() -> None:
        store = open_store(url)
        log = EventLog(tmp_path / "log", store, every_seconds=0.01)
        log.start()
        for user in ("", "u1"):
            impression = Impression("p", user, "", NOW, "", ("a", "b"), (0, 1), (0, 1), (0.0, 0.0), (0.0, 0.0))
            log.log_impression(impression)
        await _kept(store)
        await log.close()
        await store.close()

    asyncio.run(serve())
    (day,) = exposure_of_log(tmp_path / "log", ["a", "b", "c"], url).to_dicts()
    assert (day["pages"], day["shown"], day["items"]) == (2, 4, 3), "pages of nobody in particular count, too"
    assert (day["new_items"], day["new_items_shown"]) == (1, 1)
    assert arrivals_of(url).rows() == [("b", NOW - 7_200)]
    assert day["first_impression_hours"] == pytest.approx(2)
    with pytest.raises(DataError, match="no log of events"):
        exposure_of_log(tmp_path / "elsewhere")


async def _kept(store: Store) -> None:
    await store.put(NEW_ITEMS, write_new_items({"b": NewItem(NOW - 7_200, NOW)}), 60)
