"""One whole system that simulated people shop at: `tritonrank up` on a build of its own, with a clock of its own.

    ROOT/recipe.yaml             the recipe, with this system's own data: every command can be typed again by hand
    ROOT/items.csv               the shop's table of items, written anew each evening
    ROOT/artifacts/NAME/         what was built, the store and the training log (events/), as `up` has them
    ROOT/up.log, clock           what the servers said; the simulated time

Items are never removed: of what is no longer sold the table says so, and a rule of the shop keeps it from pages, so
that what people liked before keeps its text.
"""

import csv
import json
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import yaml
from msgspec import structs
from tritonrank.artifacts.named import REPOSITORY
from tritonrank.recipe import load_recipe
from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout

from loadtests.processes import Process, SystemFaultError
from loadtests.shoppers.clock import SimulatedClock
from loadtests.shoppers.measures import ShownPage, measured
from loadtests.shoppers.visits import Step, liked_in, react, second_of, settled_by, steps_of
from loadtests.shoppers.world import DAY_SECONDS, Item, World

ITEM_FIELDS = ("title", "brand", "category", "attributes", "price")
IN_STOCK = "in_stock"
"""Field of items: 1 while an item is sold, else 0."""
PAGE_SIZE = 10
ANSWER_SECONDS = 60.0
"""For a request on a crowded machine; a page that is late is a degraded page, and counts as it was shown."""
LOG_SECONDS = 120.0
SWAP_SECONDS = 180.0
POLL_SECONDS = 0.3
MORNING = 6 * 3_600
"""Seconds of the day: when new items come."""
RULES = """\
[filters]
{stock} = 1
"""
EXPLORE = """
[explore]
swap = {swap}
first = {first}
"""


class System:
    """A gateway before a Triton, a store and a log, to which simulated people go day by day; use it as a context.

    Args:
        name: of the system, for messages.
        root: its folder.
        recipe: that was written there by ``write_recipe`` and built.
        world: the truth.
        clock: of its processes.
        start: unix seconds at which day 0 begins.
        swap: probability with which pairs of neighbours change places (docs/recommend.md, Exploring); 0: none do.
        candidates: that are ranked for a page.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        recipe: Path,
        world: World,
        clock: SimulatedClock,
        start: float,
        swap: float = 0.0,
        candidates: int = 100,
    ) -> None:
        self.name, self.root, self.recipe, self.world, self.clock = name, root, recipe, world, clock
        self.settled: defaultdict[str, set[str]] = defaultdict(set)
        """by user, what is wanted no more"""
        self._start, self._swap, self._candidates = start, swap, candidates
        self._process: Process | None = None
        self._http = httpx.Client(timeout=ANSWER_SECONDS)
        self._sent: set[str] = set()
        self._shown: set[str] = set()

    @property
    def artifacts(self) -> Path:
        """What was built, and what serves."""
        return self.root / "artifacts" / load_recipe(self.recipe, []).name

    @property
    def log(self) -> Path:
        """The training log."""
        return self.artifacts / "events"

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of everything that belongs to the system."""
        gateway = {"RECOMMEND_DEADLINE_S": str(ANSWER_SECONDS / 2), "CANDIDATES": str(self._candidates)}
        told = {f"TRITONRANK_GATEWAY_{name}": value for name, value in gateway.items()}
        return {**self.clock.environment, **told, "COLUMNS": "200"}

    def __enter__(self) -> "System":
        rules = RULES.format(stock=IN_STOCK) + (EXPLORE.format(swap=self._swap, first=PAGE_SIZE) if self._swap else "")
        (self.artifacts / "rules.toml").write_text(rules, encoding="utf-8")
        (self.root / "up.log").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tritonrank", "up", str(self.artifacts), "--port", "0"]
        self._process = Process(command, self.root / "up.log", environment=self.environment)
        try:
            self._process.wait_until(lambda: self.url != "", f"{self.name}: tritonrank up {self.artifacts}")
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        if self._process is not None:
            self._process.stop()

    @property
    def url(self) -> str:
        """Of the gateway; empty before it takes requests."""
        found = re.search(r"(http://127\.0\.0\.1:\d+)/v1/recommend", (self.root / "up.log").read_text(encoding="utf-8"))
        return found[1] if found else ""

    def play(self, day: int) -> list[ShownPage]:
        """A day: items come and go, people visit, and in the evening all that happened is in the log.

        Raises:
            SystemFaultError: the system refused something, or did not write its log in time.
        """
        self.clock.move_to(self._start + day * DAY_SECONDS + MORNING)
        self._change_items(day)
        pages = [self._visit(step) for step in steps_of(self.world, day)]
        # With the clock where the last visit was: what is written later than it could be is late for its page.
        self._wait_for_log(day)
        write_items(self.root / "items.csv", self.world, day + 1)
        return pages

    @property
    def served(self) -> str:
        """The artifact that serves according to the recipe's folder."""
        told = json.loads((self.artifacts / "served" / REPOSITORY / "ranker" / "1" / "artifact.json").read_text())
        return str(told["artifact"])

    def remember(self, events: Iterable[Event]) -> None:
        """What people bought and turned down before day 0."""
        for event in events:
            self.settled[event.user_id] |= settled_by([event])

    def wait_for_served(self) -> None:
        """Until pages are ranked by what is served according to the recipe's folder.

        Raises:
            SystemFaultError: they are not in time.
        """
        wanted, deadline = self.served, time.monotonic() + SWAP_SECONDS
        while (found := self._ask("POST", "/v1/recommend", {"size": 1})["artifacts"].get("ranker")) != wanted:
            if time.monotonic() > deadline:
                raise SystemFaultError(f"{self.name}: {found} still ranks, and {wanted} is served\n{self._tail}")
            time.sleep(POLL_SECONDS)

    def _visit(self, step: Step) -> ShownPage:
        user = self.world.users[step.user]
        settled = self.settled[user]
        self.clock.move_to(second_of(self._start, step))
        at = self.clock.now
        answer = self._ask("POST", "/v1/recommend", {"user_id": user, "query": step.query, "size": PAGE_SIZE})
        items = [str(item["item_id"]) for item in answer["items"]]
        positions = [int(item["position"]) for item in answer["items"]]
        page = measured(
            self.world,
            step,
            items,
            liked_in(self.world, step, settled),
            page=str(answer["page"]),
            ranker=str(answer.get("artifacts", {}).get("ranker", "")),
            degraded=", ".join(answer.get("degraded_reasons", [])),
        )
        self._shown.add(str(answer["page"]))
        did = react(self.world, step, str(answer["page"]), items, settled, at=at, positions=positions)
        if did:
            told = self._ask("POST", "/v1/events", {"events": [as_sent(event) for event in did]})
            if told.get("accepted") != len(did):
                raise SystemFaultError(f"{self.name}: {len(did)} new events were sent, and {told} was answered")
        self._sent |= {event.event_id for event in did}
        settled |= settled_by(did)
        return page

    def _change_items(self, day: int) -> None:
        """Tell what is sold from this day on, and what no longer is."""
        changed = [(item, 1) for item in self.world.arriving(day)] + [(item, 0) for item in self.world.leaving(day)]
        items = [{"item_id": item.item_id, "fields": {**item.fields, IN_STOCK: stock}} for item, stock in changed]
        if items:
            self._ask("PUT", "/v1/items", {"items": items})

    def _wait_for_log(self, day: int) -> None:
        """Until every page and event of the day is in the files."""
        deadline = time.monotonic() + LOG_SECONDS
        date = time.strftime("date=%Y-%m-%d", time.gmtime(self._start + day * DAY_SECONDS))
        while True:
            missing = self._sent - self._logged(layout.EVENTS, "event_id", date)
            hidden = self._shown - self._logged(layout.IMPRESSIONS, "page", date)
            if not missing and not hidden:
                break
            if time.monotonic() > deadline:
                raise SystemFaultError(
                    f"{self.name}: {len(missing)} events and {len(hidden)} pages of day {day} are not in {self.log} "
                    f"under {date} after {LOG_SECONDS:g} s\n{self._tail}"
                )
            time.sleep(POLL_SECONDS)
        self._sent, self._shown = set(), set()

    def _logged(self, kind: str, column: str, date: str) -> set[str]:
        hours = [hour for hour in layout.hour_folders(self.log, kind) if hour.parent.name == date]
        found: set[str] = set()
        for file in (file for hour in hours for file in layout.files_of(hour)):
            try:
                found |= set(pq.read_table(file, columns=[column], partitioning=None)[column].to_pylist())
            except FileNotFoundError:
                continue  # joined with others; they are read the next time
        return found

    def _ask(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        for attempt in range(3):
            try:
                answer = self._http.request(method, f"{self.url}{path}", json=body)
            except httpx.TransportError as error:  # a gateway that has handed over closes kept connections
                if attempt == 2:
                    raise SystemFaultError(f"{self.name}: {method} {path}: {error!r}\n{self._tail}") from error
                continue
            if answer.status_code == httpx.codes.OK:
                told: dict[str, Any] = answer.json()
                return told
            break
        raise SystemFaultError(f"{self.name}: {method} {path}: {answer.status_code} {answer.text[:300]}\n{self._tail}")

    @property
    def _tail(self) -> str:
        return self._process.log_tail() if self._process is not None else ""


def as_sent(event: Event) -> dict[str, Any]:
    """An event as ``POST /v1/events`` takes it: without what is empty, and without when a gateway received it."""
    told = structs.asdict(event)
    return {name: value for name, value in told.items() if name != "received_at" and value not in ("", None)}


def write_items(file: Path, world: World, day: int) -> None:
    """The shop's table of items as it is on a day: all that ever were there, and whether each is sold."""
    draft = file.with_name(f".{file.name}.tmp")
    known: Sequence[Item] = [item for item in world.items if item.first_day <= day]
    with draft.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["item_id", *ITEM_FIELDS, IN_STOCK])
        for item in known:
            writer.writerow([item.item_id, *item.product.texts, int(day < item.end_day)])
    draft.replace(file)


def write_recipe(given: Path, root: Path, encoder: Path) -> Path:
    """The recipe with a system's own data, where its artifacts are to lie.

    Args:
        given: a recipe without data: the simulator's are put in.
        root: of the system.
        encoder: that training starts from where the recipe names no model.

    Returns:
        The file.
    """
    told: dict[str, Any] = yaml.safe_load(given.read_text(encoding="utf-8")) or {}
    told["data"] = {
        "source": "events",
        "events": str(root.resolve() / "artifacts" / str(told.get("name", given.stem)) / "events"),
        "items": str(root.resolve() / "items.csv"),
        "text_fields": ["title", "brand", "category", "attributes"],
        "fields": ["price", IN_STOCK],
        **told.get("data", {}),
    }
    told.setdefault("model", {}).setdefault("base", str(encoder.resolve()))
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return file


def copy_system(built: Path, root: Path) -> None:
    """The same build, items and past for another system."""
    shutil.copytree(built, root, symlinks=True)


def run_verb(root: Path, log: str, environment: Mapping[str, str], *words: str, seconds: float) -> tuple[int, str]:
    """A verb of ``tritonrank``, to its end.

    Args:
        root: where its output goes.
        log: name of that file.
        environment: more variables.
        words: of the command line.
        seconds: it may take.

    Returns:
        Its exit code, and the last lines that it said.

    Raises:
        SystemFaultError: it took longer.
    """
    process = Process([sys.executable, "-m", "tritonrank", *words], root / log, environment=os.environ | environment)
    try:
        deadline = time.monotonic() + seconds
        while (code := process.exit_code()) is None:
            if time.monotonic() > deadline:
                raise SystemFaultError(
                    f"tritonrank {' '.join(words)}: not done after {seconds:g} s\n{process.log_tail()}"
                )
            time.sleep(POLL_SECONDS)
        return code, process.log_tail()
    finally:
        process.stop()
