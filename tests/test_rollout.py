"""A rollout from its start to live and back, against gateways and Tritons that say what a test wants."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_builds import make_stages
from rollout_stand_ins import FIRST, KEY, StandInGateway, StandInTriton, running
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.push import describe, push_version
from tritonrank.errors import ServerError
from tritonrank.serve.rollout.book import NotNowError
from tritonrank.serve.rollout.controller import Controller, Running
from tritonrank.serve.rollout.gateways import Gateways
from tritonrank.serve.rollout.places import pinned
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.rollout.state import LEDGER_FILE, STATE_FILE
from tritonrank.serve.rollout.tritons import Tritons

RULES = Rules(canary_shares=(0.01, 0.5), least_minutes=0.5, most_minutes=10)
STEP_SECONDS = 31.0


@dataclass
class World:
    """Two gateways, a Triton and a controller, with a clock of their own."""

    folder: Path
    gateways: tuple[StandInGateway, ...] = field(default_factory=lambda: (StandInGateway(), StandInGateway()))
    triton: StandInTriton = field(default_factory=StandInTriton)
    now: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        self.controller = self.another()

    def another(self) -> Controller:
        places = [gateway.url for gateway in self.gateways]
        tritons = Tritons([self.triton.url], KEY)
        return Controller(Gateways(places, KEY), tritons, self.folder, RULES, lambda: self.now)

    def killed(self) -> None:
        """The controller ends, and another one begins with what the first has written."""
        self.controller.close()
        self.controller = self.another()

    def look(self, times: int = 1, seconds: float = 1.0) -> None:
        for _ in range(times):
            self.now += seconds
            self.controller.look()
            assert self.controller.problem == ""

    def until(self, phase: str, **feed: Any) -> None:
        """Feed the gateways and look, until a phase is reached."""
        for _ in range(40):
            if self.phase == phase:
                return
            for gateway in self.gateways:
                gateway.feed(150, **feed)
            self.look(seconds=STEP_SECONDS / 2)
        raise AssertionError(f"{self.phase} and not {phase}: {self.decisions}")

    @property
    def phase(self) -> str:
        assert self.controller.book.rollout is not None
        return self.controller.book.rollout.phase

    @property
    def decisions(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in (self.folder / LEDGER_FILE).read_text().splitlines()]
        assert [line["number"] for line in lines] == list(range(1, 1 + len(lines)))
        return [(line["decision"], line["reason"]) for line in lines]

    @property
    def steps(self) -> list[str]:
        """The decisions but those to wait."""
        return [decision for decision, _ in self.decisions if decision != "hold"]

    def everywhere(self, role: str) -> set[str]:
        return {(gateway.roles[role] or {"name": ""})["name"] for gateway in self.gateways}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "rollout")
    with running(*world.gateways, world.triton):
        yield world
    world.controller.close()


def test_a_good_version_promotes_itself(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("done")
    assert world.steps == ["start", "shadow", "promote", "promote", "promote", "done"]
    for gateway in world.gateways:
        assert gateway.roles["live"] == FIRST | {"name": "new", "model": "rank-new"}
        assert gateway.roles["shadow"] is gateway.roles["canary"] is None
    assert world.triton.live == "new"
    assert {*world.triton.versions} == {"base", "new"}, "the one before stays for a while"
    world.look(seconds=60 * RULES.keep_minutes + 1)
    assert {*world.triton.versions} == {"new"}


def test_the_ledger_says_by_which_figures(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("canary")
    line = world.controller.status()["ledger"][-1]
    assert line["decision"] == "promote"
    assert line["by"] == "rules"
    assert line["pairs"] >= RULES.least_pairs
    overlap = next(one for one in line["readings"] if one["rule"] == "least_overlap")
    assert overlap["verdict"] == "good"
    assert overlap["low"] <= overlap["value"] <= overlap["high"]
    assert overlap["value"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("feed", "rule"),
    [({"rbo": 0.2}, "least_overlap"), ({"slower": 3.0}, "most_latency_ratio"), ({"lost": 60}, "most_not_ranked")],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_bad_version_is_taken_back_before_a_user_saw_it(world: World, feed: dict[str, Any], rule: str) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("back", **feed)
    assert world.steps == ["start", "shadow", "back", "returned"]
    assert next(reason for decision, reason in world.decisions if decision == "back").startswith(rule)
    assert world.everywhere("shadow") == world.everywhere("canary") == {""}
    assert world.everywhere("live") == {"first"}
    assert {*world.triton.versions} == {"base"}
    assert world.controller.status()["exposure"] == {"by_version": 0, "in_all": 0}
    assert not [one for gateway in world.gateways for one in gateway.asked if "live" in one[1]]


def test_a_version_that_grows_slow_with_users_is_taken_back_from_the_canary(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("canary")
    world.look()  # they have it
    for gateway in world.gateways:
        gateway.feed(100)
    world.until("back", slower=3.0)
    exposure = world.controller.status()["exposure"]
    assert 0 < exposure["by_version"] < 0.02 * exposure["in_all"]


def test_back_after_live_brings_the_one_before(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("done")
    world.controller.back()
    world.until("back")
    assert world.everywhere("live") == {"first"}
    assert world.triton.live == "base"
    assert {*world.triton.versions} == {"base"}
    with pytest.raises(NotNowError, match="no version to take back"):
        world.controller.back()


def test_the_one_before_is_loaded_again_where_it_was_unloaded(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("done")
    world.look(seconds=60 * RULES.keep_minutes + 1)
    assert "base" not in world.triton.versions
    world.controller.back()
    world.until("back")
    assert world.triton.live == "base"
    assert world.triton.versions["base"]["source"] == "artifacts/base"


def test_a_gateway_that_is_started_again_gets_its_versions_again(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("canary")
    counted = world.controller.book.figures(world.controller.book.under_way()).shadow["pairs"]["count"]
    world.gateways[0].restart()
    world.look(2)
    assert world.everywhere("canary") == world.everywhere("shadow") == {"new"}
    now = world.controller.book.figures(world.controller.book.under_way()).shadow["pairs"]["count"]
    assert now == counted, "what it had counted is not lost"
    world.until("done")
    world.gateways[1].restart()
    world.look()
    assert world.everywhere("live") == {"new"}


def test_a_triton_that_is_started_later_gets_what_is_live(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("done")
    world.triton.live, world.triton.versions = "base", {"base": world.triton.versions["base"]}
    world.triton.becomes = "loading"
    world.look(2)
    assert world.triton.live == "base"
    world.triton.versions["new"]["state"] = "ready"
    world.look()
    assert world.triton.live == "new"
    assert world.phase == "done"


def test_a_tag_is_what_it_leads_to_when_the_rollout_begins(world: World, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    index = Index(open_objects(url, make=True))
    digests = []
    for weights in ("first", "second"):
        make_stages(tmp_path / weights, weights)
        folder = tmp_path / weights / "repository"
        digests.append(push_version(index, folder, describe(folder, "shop")).version.digest)
        if len(digests) == 1:
            assert world.controller.start(f"{url}@latest", "new").source == f"{url}@{digests[0]}"
    world.until("done")
    world.triton.live, world.triton.versions = "base", {"base": world.triton.versions["base"]}
    world.look(2)
    assert world.triton.versions["new"]["source"] == f"{url}@{digests[0]}"
    assert pinned(f"{url}@latest") == f"{url}@{digests[1]}"
    assert pinned(pinned(f"{url}@latest")) == f"{url}@{digests[1]}"
    assert pinned("artifacts/shop") == "artifacts/shop"


def test_a_controller_that_is_killed_goes_on(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    for phase in ("shadow", "canary", "promoting", "done"):
        world.until(phase)
        world.killed()
        assert world.phase == phase
    assert world.steps == ["start", "shadow", "promote", "promote", "promote", "done"]


def test_a_controller_that_is_killed_between_state_and_ledger_writes_the_line_once(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("canary")
    told, ledger = world.steps, world.folder / LEDGER_FILE
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]) + lines[-1][:20])
    world.killed()
    assert json.loads(ledger.read_text().splitlines()[-1]) == json.loads(lines[-1])
    ledger.write_text("".join(lines))
    world.killed()
    assert world.steps == told


def test_a_version_that_cannot_be_loaded_is_taken_back_with_the_reason(world: World) -> None:
    world.triton.becomes, world.triton.reason = "failed", "golden request 1 differs by 0.3"
    world.controller.start("artifacts/new", "new")
    world.until("back")
    assert any("golden request 1 differs by 0.3" in reason for _, reason in world.decisions)
    assert not [one for gateway in world.gateways for one in gateway.asked]


def test_a_triton_that_lost_it_loads_it_again_and_nothing_is_promoted_meanwhile(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("shadow")
    del world.triton.versions["new"]
    world.triton.becomes = "loading"
    for gateway in world.gateways:
        gateway.feed(1_000)
    world.look(3, STEP_SECONDS)
    assert world.phase == "shadow"
    world.triton.versions["new"]["state"] = "ready"
    world.until("canary")


def test_a_gateway_that_does_not_take_it_takes_it_back(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("shadow")
    world.gateways[1].restart()
    world.gateways[1].refuses = 422, "golden: no such file"
    world.until("returning")
    assert any("golden: no such file" in reason for decision, reason in world.decisions if decision == "back")


def test_a_gateway_that_is_away_is_waited_for(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("shadow")
    world.gateways[1].refuses = 401, "no key"
    world.gateways[1].restart()
    for gateway in world.gateways:
        gateway.feed(1_000)
    world.look(15, STEP_SECONDS)
    assert world.phase == "shadow"
    assert world.controller.status()["gateways"][1]["problem"].endswith("no key")
    world.gateways[1].refuses = None
    world.until("canary")


def test_a_triton_that_is_away_does_not_keep_a_version_from_being_taken_back(world: World) -> None:
    world.controller.start("artifacts/new", "new")
    world.until("shadow")
    world.triton.refuses = 500, "broken"
    world.controller.back()
    world.look(2)
    assert world.phase == "returning"
    assert world.everywhere("shadow") == {""}
    world.look(2, 61)
    assert world.phase == "back"
    assert "new" in world.triton.versions
    world.triton.refuses = None
    world.look(2)
    assert "new" not in world.triton.versions


def test_held_promoted_and_taken_back_by_a_person(world: World) -> None:
    with pytest.raises(NotNowError, match="rollout start"):
        world.controller.promote()
    world.controller.start("artifacts/new", "new")
    with pytest.raises(NotNowError, match="is loading"):
        world.controller.promote()
    with pytest.raises(NotNowError, match="under way"):
        world.controller.start("artifacts/newer")
    world.until("shadow")
    world.controller.hold()
    for gateway in world.gateways:
        gateway.feed(1_000)
    world.look(3, STEP_SECONDS)
    assert world.phase == "shadow"
    world.controller.promote()
    world.look()
    assert {gateway.roles["canary"]["share"] for gateway in world.gateways} == {0.01}
    world.controller.promote(to_live=True)
    world.until("done")
    assert {"asked for", "to live: asked for"} & {reason for _, reason in world.decisions}


@pytest.mark.parametrize("undecided", ["hold", "back"])
def test_one_that_nothing_is_known_of_waits_or_goes_back_as_the_rules_say(world: World, undecided: str) -> None:
    world.controller.start("artifacts/new", "new", {"when_undecided": undecided})
    world.look(20, 61)
    assert world.phase == ("shadow" if undecided == "hold" else "back")
    assert any(reason.startswith("undecided after") for _, reason in world.decisions)


def test_a_version_that_runs_already_is_not_loaded(world: World) -> None:
    world.controller.start("", "new", running=Running(["10.0.0.9:8001"], "rank"))
    world.until("done")
    assert {tuple(gateway.roles["live"]["triton"]) for gateway in world.gateways} == {("10.0.0.9:8001",)}
    assert world.triton.asked == []
    world.controller.back()
    world.until("back")
    assert world.everywhere("live") == {"first"}


def test_what_others_show_as_a_shadow_is_left_alone(world: World) -> None:
    world.gateways[0].answer("PUT", "/versions/shadow", FIRST | {"name": "by-hand", "share": 0.1})
    world.look(3)
    assert world.everywhere("shadow") == {"by-hand", ""}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda one: one.start("a", "Not a name"), "expected a to z"),
        (lambda one: one.start("a", rules={"least_overlop": 1}), "least_overlap is"),
        (lambda one: one.start("a", running=Running(["x:1"])), "--triton"),
        (lambda one: one.start(""), "--triton"),
    ],
    ids=["name", "rule", "both", "neither"],
)
def test_what_cannot_be_started_is_refused(world: World, ask: Callable[[Controller], Any], said: str) -> None:
    with pytest.raises(ServerError, match=said):
        ask(world.controller)
    assert not (world.folder / LEDGER_FILE).exists()


def test_a_state_that_cannot_be_read_is_named(world: World) -> None:
    world.controller.close()
    (world.folder / STATE_FILE).write_text('{"rollout": 1}')
    with pytest.raises(ServerError, match=rf"{STATE_FILE}.*Move it away"):
        world.another()
    (world.folder / STATE_FILE).unlink()
    world.controller = world.another()
