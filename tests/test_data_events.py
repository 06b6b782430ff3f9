"""``data.source: events``: a gateway's log becomes the lists that a ranker learns from."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from stage_runs import prepared as prepared_in
from stage_runs import run_verb
from tiny_catalogue import ITEMS as CATALOGUE_ITEMS
from tiny_catalogue import tiny_catalogue
from tritonrank import cli
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data.dataset import Dataset
from tritonrank.data.loading import Tables, load_tables, source_fingerprints
from tritonrank.errors import DataError
from tritonrank.recipe import EventsData, Recipe
from tritonrank.recipe.data import EVENT_WEIGHTS
from tritonrank_recommend.events import Event
from tritonrank_recommend.log import layout, upkeep
from tritonrank_recommend.log.event_log import EventLog
from tritonrank_recommend.log.impression import Impression
from tritonrank_recommend.stores import open_store
from typer.testing import CliRunner

START = 1_764_000_000.0
ITEMS = 60


def write_items(folder: Path) -> Path:
    path = folder / "items.csv"
    rows = {"item_id": [f"i{n}" for n in range(ITEMS)], "title": [f"Item number {n}" for n in range(ITEMS)]}
    pl.DataFrame(rows).write_csv(path)
    return path


def write_log(folder: Path, events: Sequence[Event], shown: Sequence[Impression] = (), erased: str = "") -> Path:
    """The log of a gateway that took these events and showed these lists, and then ended."""

    async def serve() -> None:
        store = open_store("sqlite::memory:")
        log = EventLog(folder / "log", store, clock=lambda: START + 10_000)
        for place in range(0, len(events), 100):
            await store.add_events(events[place : place + 100])
            await log.step()
        for one in shown:
            log.log_impression(one)
        await log.close()
        await store.close()
        if erased:
            layout.add_tombstones(folder / "log", {erased: START + 20_000})

    asyncio.run(serve())
    return folder / "log"


def settings(folder: Path, **changes: Any) -> EventsData:
    home = {"source": "events", "events": folder / "log", "items": write_items(folder), "text_fields": ["title"]}
    return EventsData.model_validate(home | changes)


def read(folder: Path, **changes: Any) -> Tables:
    return load_tables(settings(folder, **changes), seed=1)


def event(number: int, kind: str = "click", user: str = "ann", item: str = "i1", **more: Any) -> Event:
    at = more.pop("at", START + number)
    return Event(event_id=f"e{number}", user_id=user, type=kind, timestamp=at, item_id=item, received_at=at, **more)  # type: ignore[arg-type]


def page(token: str, *items: str, user: str = "ann", query: str = "", at: float = START) -> Impression:
    places = tuple(range(len(items)))
    return Impression(
        token, user, query, at, "artifact", items, places, places, (0.0,) * len(items), (0.0,) * len(items)
    )


def test_each_type_has_its_gain_and_times_their_order(tmp_path: Path) -> None:
    told = [
        event(1, "view", item="i1", at=START + 9.5),
        event(2, "purchase", item="i2", at=START + 9.2),
        event(3, "cart", item="i3", at=START + 9.1),
        event(4, "click", item="i4", at=START),
        event(5, "rating", item="i5", value=4.0, at=START + 20),
        event(6, "rating", item="i6", value=3.5, at=START + 21),
        event(7, "skip", item="i7", at=START + 22),
        event(8, "search", item="", query="lamp", at=START + 23),
    ]
    write_log(tmp_path, told)
    tables = read(tmp_path, label={"purchase": 5})
    assert tables.events.select("item_id", "gain", "label").rows() == [
        ("i4", 1, 1), ("i3", 2, 1), ("i2", 5, 1), ("i1", 0, 0), ("i5", 2, 1), ("i6", 0, 0), ("i7", 0, 0),
    ]  # fmt: skip
    assert tables.events["timestamp"].to_list() == [START + n for n in (0, 9, 9, 9, 20, 21, 22)]
    assert tables.dropped == ()


def test_a_page_gives_its_query_and_what_was_passed_over(tmp_path: Path) -> None:
    shown = [
        page("lamps", "i1", "i2", "i3", query="lamp", user=""),  # before ann said who she is
        page("idle", "i8", "i9"),
        page("idle of nobody", "i8", "i9", user=""),
    ]
    told = [
        event(1, item="i2", page="lamps", position=1),
        event(2, "search", item="", query="chair", page="chairs"),
        event(3, item="i4", page="chairs", position=0),
        event(4, item="i5", page="chairs", position=1, query="its own"),
        event(5, item="i6"),
    ]
    write_log(tmp_path, told, shown)
    rows = read(tmp_path).events.select("item_id", "query", "gain", "impression", "shown_at").rows()
    assert rows == [
        ("i1", "lamp", 0, "lamps", 0),
        ("i2", "lamp", 0, "lamps", 1),
        ("i3", "lamp", 0, "lamps", 2),
        ("i2", "lamp", 1, "lamps", 1),
        ("i4", "chair", 1, "chairs", 0),
        ("i5", "its own", 1, "chairs", 1),
        ("i6", "", 1, None, None),
    ]
    every = read(tmp_path, impressions={"id": "page", "position": "position", "propensity": True}).events
    assert every.filter(pl.col("impression") == "idle").height == 2
    assert every["user_id"].unique().to_list() == ["ann"]


def test_copies_and_erased_users_are_left_out_and_counted(tmp_path: Path) -> None:
    told = [event(number, user=user, item=f"i{number}") for number, user in enumerate(["ann", "bob", "ann", "cid"])]
    log = write_log(tmp_path, told, [page("p", "i1", "i2", user="bob")], erased="bob")
    (hour,) = layout.hour_folders(log, layout.EVENTS)
    (part,) = layout.files_of(hour)
    (hour / layout.file_name("part", 1, 4)).write_bytes(part.read_bytes())  # a store that was put back from a copy
    tables = read(tmp_path, tolerate=1)
    assert tables.events["user_id"].to_list() == ["ann", "ann", "cid"]
    assert [(one.kind, one.count) for one in tables.dropped] == [("events with an id that came before", 3)]
    assert [note for note in tables.notes if "2 events of users who were erased" in note] == list(tables.notes)
    with pytest.raises(DataError, match=r"data\.tolerate"):
        read(tmp_path)


def test_joining_changes_nothing_that_is_read(tmp_path: Path) -> None:
    told = [event(number, item=f"i{number % 9}") for number in range(250)]
    log = write_log(tmp_path, told, [page("p", "i1")])
    before = read(tmp_path).events
    (hour,) = layout.hour_folders(log, layout.EVENTS)
    parts = {file: file.read_bytes() for file in layout.files_of(hour)}
    assert len(parts) == 3
    assert upkeep.join_parts(log, START + 100_000) == 1
    assert read(tmp_path).events.equals(before)
    for file, content in parts.items():  # as after a kill before they were removed
        file.write_bytes(content)
    tables = read(tmp_path)
    assert (tables.events.equals(before), tables.dropped) == (True, ())


def test_several_logs_are_one_table_and_tombstones_are_part_of_the_key(tmp_path: Path) -> None:
    for name, user in (("a", "ann"), ("b", "bob")):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name, [event(number, user=user) for number in range(3)])
    both = settings(tmp_path, events=tmp_path / "logs-*")
    for name in "ab":
        (tmp_path / name / "log").rename(tmp_path / f"logs-{name}")
    assert load_tables(both, seed=1).events.height == 6
    before = source_fingerprints(both)
    layout.add_tombstones(tmp_path / "logs-a", {"ann": START + 100})
    assert load_tables(both, seed=1).events["user_id"].to_list() == ["bob"] * 3
    after = source_fingerprints(both)
    assert before is not None
    assert before != after


def test_the_items_may_be_those_of_a_catalogue(tmp_path: Path) -> None:
    write_log(tmp_path, [event(number, item=f"item-{number:02}") for number in range(5)])
    catalogue = tiny_catalogue(tmp_path / "catalogue")
    fields = {"items": catalogue, "text_fields": {"name": "title", "tags": "tags", "price": "price", "id": "item_id"}}
    of_catalogue = settings(tmp_path, **fields)
    tables = load_tables(of_catalogue, seed=1)
    assert tables.items["item_id"].to_list() == [item["item_id"] for item in CATALOGUE_ITEMS]
    assert tables.items.row(5, named=True) == {
        "item_id": "item-05", "name": "Corvid red chair", "tags": "red, sale", "price": "17.5", "id": "item-05",
    }  # fmt: skip
    assert tables.events.height == 5
    found = source_fingerprints(of_catalogue)
    assert found is not None
    assert not any("vectors" in name for name in found)
    with pytest.raises(DataError, match="no field 'colour'"):
        read(tmp_path, items=catalogue, text_fields=["colour"])


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(DataError) as told:
        read(tmp_path)
    assert f"{tmp_path / 'log'}: no log of events" in str(told.value)
    assert "--events-log" in str(told.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path, [event(1)])
    (hour,) = layout.hour_folders(log, layout.EVENTS)
    broken = hour / layout.file_name("part", 7, 9)
    broken.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError) as told:
        read(tmp_path)
    assert str(broken) in str(told.value)


def test_erased_users_are_swept_out_of_all_files(tmp_path: Path) -> None:
    told = [event(number, user=user, item=f"i{number}") for number, user in enumerate(["ann", "bob", "ann"])]
    log = write_log(tmp_path, told, [page("p", "i1", "i2", user="bob")], erased="bob")
    before = read(tmp_path, tolerate=1).events
    swept = CliRunner().invoke(cli.app, ["sweep-log", str(log)])
    assert (swept.exit_code, "so far: 1;" in swept.output, "do: 2\n" in swept.output) == (0, True, True), swept.output
    assert all(b"bob" not in file.read_bytes() for file in log.rglob("*") if file.is_file())
    tables = read(tmp_path, tolerate=1)
    assert (tables.events.equals(before), tables.notes) == (True, ())
    wrong = CliRunner().invoke(cli.app, ["sweep-log", str(tmp_path)])
    assert "--events-log" in str(wrong.exception)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": {"clack": 1}}, "'clack' is no event type"),
        ({"label": dict.fromkeys(EVENT_WEIGHTS, 0)}, "no event type has a weight"),
        ({"label": "type"}, "expected event types"),
        ({"label": {"click": -1}}, "the weight of 'click'"),
        ({"user_id": "who"}, "data.user_id"),
        ({"impressions": {"id": "list"}}, "{id: page, position: position}"),
    ],
    ids=["stranger", "nothing", "column", "negative", "columns", "impressions"],
)
def test_a_recipe_says_nothing_that_the_log_knows(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as told:
        settings(tmp_path, **changes)
    assert said in str(told.value)
    again = settings(tmp_path).model_dump(mode="json")
    assert EventsData.model_validate(again) == settings(tmp_path)


def write_busy_log(folder: Path, users: int = 80) -> Path:
    """Users who like items of one of three kinds, and click these among eight that they are shown."""
    random = np.random.default_rng(5)
    told: list[Event] = []
    shown: list[Impression] = []
    for user in range(users):
        for turn in range(6):
            at = START + 1_000 * turn + user
            items = [f"i{n}" for n in random.choice(ITEMS, 8, replace=False)]
            token = f"u{user}-{turn}"
            shown.append(page(token, *items, user=f"u{user}", query="number" if turn % 2 else "", at=at))
            liked = next((place for place, item in enumerate(items) if int(item[1:]) % 3 == user % 3), 0)
            number = 10 * (user * 6 + turn)
            told.append(event(number, user=f"u{user}", item=items[liked], page=token, position=liked, at=at + 1))
            if turn % 3 == 0:
                told.append(event(number + 1, "purchase", f"u{user}", items[liked], page=token, at=at + 2))
    return write_log(folder, told, shown)


def recipe_of(folder: Path, base: str) -> Recipe:
    data = settings(folder, impressions={"id": "page", "position": "position", "propensity": True})
    values = {
        "name": "test",
        "data": data.model_dump(mode="json"),
        "model": {"base": base},
        "text": {"item_template": "{title}", "query_tokens": 8, "history_items": 4, "history_tokens": 40},
        "examples": {
            "training_examples": 200, "training_negatives": 5, "judged_negatives": 20,
            "validation_users": 20, "test_users": 40,
        },
        "finetune": {"evaluations": 1, "epochs": 1},
    }  # fmt: skip
    return Recipe.model_validate(values)


def test_lists_are_what_was_shown(tmp_path: Path, tiny_base: Path) -> None:
    write_busy_log(tmp_path)
    prepared_in(recipe_of(tmp_path, str(tiny_base)), tmp_path / "dataset")
    dataset = Dataset.read(tmp_path / "dataset")
    assert {example.query for example in dataset.training} == {"", "number"}
    assert all(len(example.candidates) == 6 for example in dataset.training)
    assert any(3.0 in example.labels for example in dataset.training)
    assert any(weight > 1 for example in dataset.training for weight in example.weights)


@pytest.mark.slow
def test_a_log_becomes_a_trained_ranker(tmp_path: Path, tiny_base: Path) -> None:
    write_busy_log(tmp_path)
    recipe, workspace = recipe_of(tmp_path, str(tiny_base)), Workspace(tmp_path / "build")
    for verb in ("prepare", "finetune"):
        manifest = run_verb(verb, recipe, workspace)
    assert manifest.metrics


def test_days_that_are_kept_no_longer_are_removed(tmp_path: Path) -> None:
    log = write_log(tmp_path, [event(number, item=f"i{number}") for number in range(3)], [page("p", "i1", "i2")])
    now = time.time()
    for kind in layout.KINDS:  # the same was written 40 days, and 29 days ago
        (hour,) = layout.hour_folders(log, kind)
        for days in (40, 29):
            shutil.copytree(hour, layout.hour_folder(log, kind, now - days * 86_400), dirs_exist_ok=True)
    held = {hour: len(layout.files_of(hour)) for kind in layout.KINDS for hour in layout.hour_folders(log, kind)}
    foreign = layout.hour_folder(log, layout.EVENTS, now - 40 * 86_400) / "note.txt"
    foreign.write_text("not the log's")
    swept = CliRunner().invoke(cli.app, ["sweep-log", str(log), "--keep-days", "30"])
    old = [hour for hour in held if hour.parent.name < layout.hour_folder(log, "", now - 30 * 86_400).parent.name]
    assert len(old) >= 2
    assert f"removed: {sum(held[hour] for hour in old)}\n" in swept.output, swept.output
    assert not any(layout.files_of(hour) for hour in old)
    assert foreign.is_file()
    assert all(len(layout.files_of(hour)) == held[hour] for hour in held if hour not in old)
