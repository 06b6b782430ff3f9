"""Who is shown: popular items or all of them, and how soon new ones. A ranker that learns from what was shown shows the
same again (a feedback loop), and a new item that is never shown is never learnt: both are seen here first.

Of each page the ids are put aside; some dozens of pages are looked at together, by NumPy, or when Prometheus' page is
made. What is kept: a count by tenth of popularity, the newest 10,000 shown items (their hashes), and of up to 10,000
new items when each came and was first shown. That last record is laid into the store once a minute, where gateways
share it and find it again after a restart. Used from one event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from tritonrank_recommend.catalogue.interface import Catalogue
from tritonrank_recommend.catalogue.standing import ADDED, TENTHS, UNKNOWN, Standing
from tritonrank_recommend.exposure import DAY, NEW_ITEMS, NEW_SECONDS, NewItem, gini, read_new_items, write_new_items
from tritonrank_recommend.stores.interface import Store, StoreError

from tritonrank_gateway.quality.counted import Distribution

LOG = logging.getLogger("tritonrank_gateway")
NAME = "tritonrank_exposure_"
BATCH_PAGES = 64
"""That are put aside before they are looked at together."""
NEWEST_SHOWN = 10_000
"""Shown items that the Gini coefficient is made of: it depends on their number, so that is always the same."""
LEAST_SHOWN = 1_000
"""Below it no coefficient is given."""
MOST_NEW = 10_000
"""Of more new items the newest are followed."""
ASK_AGAIN = -1
"""In place of how many items came after the build."""
KEEP_EVERY_SECONDS = 60.0
STORE_SECONDS = 1.0
"""That the store may take for the record."""
PART = 10_000
"""Ids of a build that are compared at once."""
WAITS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, DAY, 3 * DAY, 7 * DAY, NEW_SECONDS)
LABELS = {UNKNOWN: "unknown", ADDED: "added"} | {tenth: str(tenth) for tenth in range(1, TENTHS + 1)}


class Exposure(Collector):
    """Takes shown pages; gives metrics.

    Args:
        catalogue: the one in use, asked again and again; None while there is none.
        store: where the record of new items is shared; None keeps it in this process.
        clock: unix seconds.
    """

    def __init__(
        self,
        catalogue: Callable[[], Catalogue | None],
        store: Store | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalogue, self._store, self._clock = catalogue, store, clock
        self._aside: list[tuple[float, Sequence[str]]] = []
        self._counts = np.zeros(len(LABELS), dtype=np.int64)
        self._newest = np.zeros(NEWEST_SHOWN, dtype=np.int64)
        self._shown = 0
        self._new: dict[str, NewItem] = {}
        self._waits = Distribution(WAITS)
        self._standing: Standing | None = None
        self._added_count = ASK_AGAIN
        self._built: tuple[Standing, NDArray[np.int64]] | None = None
        self._keeping: asyncio.Task[None] | None = None

    def shown(self, item_ids: Sequence[str]) -> None:
        """A page with these items was shown."""
        self._aside.append((self._clock(), item_ids))
        if len(self._aside) >= BATCH_PAGES:
            self._look()

    def start(self) -> None:
        """Share the record of new items from here on."""
        self._keeping = asyncio.create_task(self._keep_on())

    async def close(self) -> None:
        """Write the record a last time."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            await self._keep_safely()

    async def keep(self) -> None:
        """Take what other gateways know of new items, tell what is known here, and forget items that are not new any
        more or are gone.

        Raises:
            StoreError: the store does not answer.
        """
        self._added_count = ASK_AGAIN  # what was being added at the last look
        self._look()
        await self._compare_builds()
        kept = await self._read()
        self._merge(kept)
        await self._forget()
        if self._store is not None and self._new != kept:
            async with asyncio.timeout(STORE_SECONDS):
                await self._store.put(NEW_ITEMS, write_new_items(self._new), NEW_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' page."""
        self._look()
        items = CounterMetricFamily(
            f"{NAME}items",
            "Items shown by /v1/recommend, by tenth of popularity: 1 the most popular",
            labels=["decile"],
        )
        for tenth, label in LABELS.items():
            items.add_metric([label], float(self._counts[tenth - UNKNOWN]))
        yield items
        behind = min(self._shown, NEWEST_SHOWN)
        coefficient = GaugeMetricFamily(
            f"{NAME}gini", "Of the newest shown items: 0 all are shown alike, 1 a few alone"
        )
        catalogue = self._catalogue()
        if behind >= LEAST_SHOWN and catalogue is not None:
            counts = np.unique(self._newest[:behind], return_counts=True)[1]
            coefficient.add_metric([], gini(counts, len(catalogue)))
        yield coefficient
        yield GaugeMetricFamily(f"{NAME}gini_items", f"Shown items behind it, at most {NEWEST_SHOWN}", behind)
        yield from self._collect_new()

    def _collect_new(self) -> Iterator[Metric]:
        now = self._clock()
        counts = {(age, shown): 0 for age in ("day", "month") for shown in ("yes", "no")}
        for item in self._new.values():
            if (seconds := now - item.came) <= NEW_SECONDS:
                counts["day" if seconds < DAY else "month", "yes" if item.shown else "no"] += 1
        family = GaugeMetricFamily(
            f"{NAME}new_items",
            "Items that came within a day, or within a month before it, by whether they were ever shown",
            labels=["age", "shown"],
        )
        for labels, count in counts.items():
            family.add_metric(labels, count)
        yield family
        waits = HistogramMetricFamily(
            f"{NAME}first_impression_seconds", "Since a new item came until it was shown for the first time"
        )
        waits.add_metric([], *self._waits.exposed())
        yield waits

    def _look(self) -> None:
        """Look at what was put aside."""
        aside, self._aside = self._aside, []
        catalogue = self._catalogue()
        standing = None if catalogue is None else catalogue.standing
        if standing is not None:
            self._take_added(standing)
        if not aside:
            return
        ids = list(chain.from_iterable(page for _, page in aside))
        tenths = np.full(len(ids), UNKNOWN, np.int8) if standing is None else standing.tenths(ids)
        self._counts += np.bincount(tenths - UNKNOWN, minlength=len(LABELS))
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))[-NEWEST_SHOWN:]
        self._newest[(self._shown + np.arange(len(hashes))) % NEWEST_SHOWN] = hashes
        self._shown += len(hashes)
        if self._new:
            for at, page in aside:
                self._first_shown(at, self._new.keys() & set(page))

    def _first_shown(self, at: float, item_ids: Iterable[str]) -> None:
        waited = []
        for item_id in item_ids:
            item = self._new[item_id]
            if not item.shown:
                item.shown = at
                waited.append(max(0.0, at - item.came))
        if waited:
            self._waits.add(np.array(waited))

    def _take_added(self, standing: Standing) -> None:
        """Items that came while serving are new from then on."""
        if standing is self._standing and standing.added_count == self._added_count:
            return
        self._standing, self._added_count = standing, standing.added_count
        self._add(standing.added())

    def _add(self, came: dict[str, float]) -> None:
        oldest = self._clock() - NEW_SECONDS
        for item_id, at in came.items():
            if at >= oldest:
                self._new.setdefault(item_id, NewItem(at))
        if len(self._new) > MOST_NEW:
            newest = sorted(self._new.items(), key=lambda one: -one[1].came)[:MOST_NEW]
            self._new = dict(newest)

    async def _compare_builds(self) -> None:
        """Of a catalogue that took the place of another, items that the other one lacked came with it."""
        catalogue = self._catalogue()
        standing = None if catalogue is None else catalogue.standing
        if standing is None or (self._built is not None and self._built[0] is standing):
            return
        before = None if self._built is None else self._built[1]
        hashes, later = await asyncio.to_thread(_compared, standing, before)
        self._built = standing, hashes
        self._add(dict.fromkeys(later, self._clock()))

    async def _read(self) -> dict[str, NewItem]:
        if self._store is None:
            return {}
        async with asyncio.timeout(STORE_SECONDS):
            kept = await self._store.get(NEW_ITEMS)
        try:
            return read_new_items(kept) if kept else {}
        except msgspec.DecodeError as error:
            LOG.warning("the store's record of new items cannot be read (%s); it is written anew", error)
            return {}

    def _merge(self, kept: dict[str, NewItem]) -> None:
        """Of two records of an item each has the first of both moments."""
        for item_id, told in kept.items():
            own = self._new.get(item_id)
            if own is None:
                self._new[item_id] = NewItem(told.came, told.shown)
                continue
            own.came = min(own.came, told.came)
            own.shown = min(own.shown, told.shown) if own.shown and told.shown else own.shown or told.shown

    async def _forget(self) -> None:
        oldest = self._clock() - NEW_SECONDS
        self._new = {item_id: item for item_id, item in self._new.items() if item.came >= oldest}
        if self._standing is not None and self._new:
            ids = list(self._new)
            here = await asyncio.to_thread(self._standing.here, ids)
            for item_id, is_here in zip(ids, here.tolist(), strict=True):
                if not is_here:
                    self._new.pop(item_id, None)
        self._add({})

    async def _keep_on(self) -> None:
        while True:
            await self._keep_safely()
            await asyncio.sleep(KEEP_EVERY_SECONDS)

    async def _keep_safely(self) -> None:
        try:
            await self.keep()
        except (StoreError, TimeoutError):
            LOG.warning("the store does not answer; the record of new items is kept here until it does")
        # Whatever became of the catalogue's files: pages are shown, and what can be counted is.
        except Exception:
            LOG.exception("new items could not be looked at")


def _compared(standing: Standing, before: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], list[str]]:
    """The hashes of all items of a build, rising, and the ids that were not among those before."""
    hashes: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    later: list[str] = []
    ids = standing.ids()
    while part := list(islice(ids, PART)):
        hashes.append(np.fromiter(map(hash, part), np.int64, len(part)))
        if before is not None:
            at = np.minimum(np.searchsorted(before, hashes[-1]), len(before) - 1)
            is_later = before[at] != hashes[-1] if len(before) else np.ones(len(part), dtype=bool)
            later += [part[place] for place in np.flatnonzero(is_later)[: MOST_NEW - len(later)].tolist()]
    return np.sort(np.concatenate(hashes)), later
