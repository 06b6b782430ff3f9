"""What a study of simulated shoppers is made of: its clock, its measures, estimates against the truth, its page."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tritonrank.learn.clicks.click_estimates import ShownItems
from tritonrank.learn.lists.shown_lists import ShownPages
from tritonrank.recipe import load_recipe
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.processes import child_environment
from loadtests.shoppers.clock import SimulatedClock
from loadtests.shoppers.estimates import check_estimates
from loadtests.shoppers.measures import ShownPage, gain, measured
from loadtests.shoppers.page import render
from loadtests.shoppers.played import START, DayLog, known_in_part, play
from loadtests.shoppers.study import FIRST, FROZEN, NightRun, Study, StudySettings, write_study
from loadtests.shoppers.system import as_sent, write_items, write_recipe
from loadtests.shoppers.visits import Step, clicked_when_looked_at, liked_in, steps_of
from loadtests.shoppers.world import World, WorldSettings

SMALL = WorldSettings(seed=3, users=20, items=60, before=4, days=6, arriving=3)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


def test_a_process_lives_by_the_simulated_clock_and_others_do_not(tmp_path: Path) -> None:
    clock = SimulatedClock(tmp_path / "clock", START)
    script = """
import time
print(time.time(), time.time_ns(), time.strftime("%Y", time.gmtime()), time.localtime().tm_year, flush=True)
input()
print(time.time())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=child_environment() | dict(clock.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        told, nanoseconds, *years = map(float, process.stdout.readline().split())
        assert years == [2025, 2025]
        assert told == pytest.approx(clock.now, abs=30)
        assert nanoseconds / 1e9 == pytest.approx(told, abs=1)
        clock.move_to(START + 5_000_000)
        clock.move_to(START)  # never back
        process.stdin.write("\n")
        process.stdin.flush()
        assert float(process.stdout.readline()) == pytest.approx(START + 5_000_000, abs=30)
    assert time.time() > START + 6_000_000


def test_grpc_reckons_its_deadlines_by_the_real_clock(tmp_path: Path) -> None:
    clock = SimulatedClock(tmp_path / "clock", START)
    script = "from grpc._channel import _deadline; from grpc.aio._utils import _timeout_to_deadline as other; "
    done = subprocess.run(
        [sys.executable, "-c", f"{script} print(_deadline(5), other(5))"],
        env=child_environment() | dict(clock.environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert all(float(told) == pytest.approx(time.time() + 5, abs=60) for told in done.stdout.split())


def test_pages_are_worth_what_people_like(world: World) -> None:
    step = Step(0, 0, 0, 40_000.0)
    liked = liked_in(world, step)
    order = [world.items[place].item_id for place in np.argsort(-liked)]
    best, worst = (measured(world, step, items[:10], liked) for items in (order, order[::-1]))
    assert best.ndcg == pytest.approx(1.0)
    assert best.regret == pytest.approx(0.0)
    assert worst.ndcg < 0.1
    assert worst.clicks + worst.regret == pytest.approx(best.clicks)
    assert measured(world, step, order[1:11], liked).ndcg < 1


def pages_worth(world: World, days: int, more: float) -> list[ShownPage]:
    random = np.random.default_rng(5)
    return [
        ShownPage(world.users[step.user], day, step.query, (), float(random.random()) + more * day, 1.0, 0.5, "r1")
        for day in range(days)
        for step in steps_of(world, day)
    ]


def test_a_gain_is_paired_by_user_and_its_interval_holds_what_was_put_in(world: World) -> None:
    pages = pages_worth(world, 4, 0.0)
    better = [replace(page, ndcg=page.ndcg + 0.02) for page in pages]
    found = gain(better, pages)
    assert found.ndcg.mean == pytest.approx(0.02)  # far less than users differ by
    assert found.ndcg.low == pytest.approx(0.02)
    assert found.clicks.mean == 0
    assert found.users == len({page.user for page in pages})
    with pytest.raises(ValueError, match="no user"):
        gain(pages, [])


def shown_pages_of(days: list[DayLog], world: World) -> tuple[ShownPages, dict[str, dict[str, float]]]:
    """As the log's reader gives them; and the truth, for whoever has bought nothing yet."""
    rows, chances = [], {}
    steps = {(world.users[step.user], step.day, step.number): step for day in days for step in steps_of(world, day.day)}
    for day in days:
        for page in day.impressions:
            number = 1 if page.query else 0
            liked = clicked_when_looked_at(liked_in(world, steps[page.user_id, day.day, number]))
            chances[page.page] = {item: float(liked[world.place[item]]) for item in page.item_ids}
            rows += [
                (page.page, page.user_id, item, *told)
                for item, *told in zip(
                    page.item_ids, page.positions, page.policy_positions, page.move_up, page.move_down, strict=True
                )
            ]
    frame = pl.DataFrame(rows, schema=["page", "user_id", "item_id", "position", "policy", "up", "down"], orient="row")
    numbers = {
        name: frame.select(pl.col(name).rank("dense") - 1).to_series().to_numpy().astype(np.int64)
        for name in ("user_id", "page")
    }
    shown = ShownItems(
        user=numbers["user_id"],
        page=numbers["page"],
        policy_position=frame["policy"].to_numpy().astype(np.int64),
        position=frame["position"].to_numpy().astype(np.int64),
        move_up=frame["up"].to_numpy(),
        move_down=frame["down"].to_numpy(),
        clicked=np.zeros(frame.height),
    )
    return ShownPages(frame, shown), chances


@pytest.mark.slow  # test_click_estimates.py shows it in part
def test_estimates_hold_the_truth_of_simulated_shoppers() -> None:
    """By lots of the gateway's own code; docs/shoppers.md has the same by the log of a real gateway."""
    crowd = World(WorldSettings(seed=1, users=150, items=60, before=2, days=4))
    days = play(crowd, range(4), known_in_part(), swap=0.5)
    pages, chances = shown_pages_of(list(days.values()), crowd)
    assert (pages.shown.position != pages.shown.policy_position).mean() > 0.1
    for held in check_estimates(pages, chances, runs=20):
        print(held)
        assert held.held >= 0.9 * held.runs, held
        assert held.width < held.truth or held.order == "best less ranker"


def test_the_page_and_the_file_tell_what_was_found(world: World, tmp_path: Path) -> None:
    study = Study(StudySettings(Path("shop.yaml"), SMALL), nights=[NightRun(0, 12.0, 0, True, "<b>served</b>")])
    study.pages = {FIRST: pages_worth(world, 6, 0.02), FROZEN: pages_worth(world, 6, 0.0)}
    write_study(tmp_path / "found.json", study)
    told = json.loads((tmp_path / "found.json").read_text())
    assert [row["day"] for row in told["by_day"]] == list(range(6))
    assert told["gain"]["ndcg"]["mean"] == pytest.approx(study.gain().ndcg.mean)
    assert told["by_day"][5]["gain"]["ndcg"]["mean"] == pytest.approx(0.1)
    assert pl.read_parquet(tmp_path / "found.parquet").height == 2 * len(study.pages[FROZEN])
    page = render(study, world)
    assert "<b>served" not in page
    assert page.count("<svg") == 5


def test_events_are_sent_without_what_is_empty(world: World) -> None:
    day = play(world, [0], known_in_part())[0]
    told = [as_sent(event) for event in day.events]
    assert all("" not in one.values() and "received_at" not in one for one in told)
    assert {"event_id", "user_id", "type", "timestamp"} <= set(told[0])
    assert any(one.get("position") == 0 for one in told)


def test_a_system_has_its_own_recipe_and_table_of_items(world: World, tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text("name: shop\ntext: {item_template: '{brand} {category}'}\n")
    write_items(tmp_path / "items.csv", world, 2)
    recipe = load_recipe(write_recipe(given, tmp_path, tmp_path / "encoder"), [])
    assert recipe.model.base == str(tmp_path / "encoder")
    table = pl.read_csv(tmp_path / "items.csv")
    assert table["in_stock"].sum() == SMALL.items
    assert table.height == sum(item.first_day <= 2 for item in world.items)
    told = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert told["data"]["events"] == str(tmp_path / "artifacts" / "shop" / "events")


def test_what_cannot_be_played_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["shoppers", str(tmp_path / "no.yaml")])
    assert done.exit_code == 2
    assert "no such recipe" in done.output
    done = CliRunner().invoke(app, ["shoppers", "--folder", str(tmp_path)])
    assert done.exit_code == 2
    assert "Name a new folder" in done.output
    with pytest.raises(ValueError, match="users"):
        WorldSettings(users=0)
