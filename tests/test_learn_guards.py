"""Days with a poison are refused or bounded, sound ones are not; each poison is planted, at the dose that docs/learn.md
says it is found from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shop_days
from shop_days import DAY, START, Poison, sound_baseline, sound_day
from tritonrank.data.event_log import KNOWN_AT, LogRows
from tritonrank.errors import ArtifactError
from tritonrank.learn.guards.baseline import REMEMBERED_NIGHTS, Baseline, Measure
from tritonrank.learn.guards.day import Day
from tritonrank.learn.guards.farms import users_of
from tritonrank.learn.guards.findings import Inspection, NightInspection
from tritonrank.learn.guards.inspection import inspect, inspect_night
from tritonrank.learn.lists.left_out import LeftOut, without_left_out
from tritonrank.learn.lists.windows import Span
from tritonrank.recipe.data import EVENT_WEIGHTS
from tritonrank.recipe.guarding import GuardSettings

SETTINGS = GuardSettings()
NIGHTS = 12


@cache
def day() -> Day:
    return sound_day(NIGHTS)


def looked(poisoned: Day, settings: GuardSettings = SETTINGS) -> Inspection:
    return inspect(poisoned, sound_baseline(NIGHTS), settings)


def planted(poison: Poison, dose: float) -> Day:
    return poison(day(), dose, np.random.default_rng(3))


def learnt(poisoned: Day, found: Inspection) -> pl.DataFrame:
    """The events that a night learns."""
    return without_left_out(LogRows(poisoned.events, poisoned.shown, Path()), found.left_out).events


def sums(events: pl.DataFrame) -> list[tuple[str, str, str]]:
    """What was done, whatever its id and time."""
    rows = events.unique(["user_id", "event_id"]).filter(pl.col("item_id") != "gone")
    return sorted(rows.select("user_id", "item_id", "type").rows())


def test_sound_days_are_learnt_whole_and_never_refused() -> None:
    """Of sound days one in a hundred may be refused; of these, none is, and hardly an event is lost."""
    baseline, events, lost = Baseline(), 0, 0
    for number in range(16):
        found = inspect(sound_day(number, seed=5), baseline, SETTINGS)
        assert not found.refuses, found.findings
        baseline = found.baseline
        events += found.events
        lost += sum(one.left_out for one in found.findings if one.check not in ("copies", "unknown items"))
    assert lost <= 0.002 * events
    assert found.checked == [
        "volume", "pages", "like rate", "dislike rate", "order", "liking", "skips", "unknown items", "clock",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("poison", "dose", "check"),
    [
        (shop_days.flipped, 0.15, "order"),
        (shop_days.flipped, 0.5, "like rate"),
        (shop_days.mirrored, 0.15, "order"),
        (shop_days.mirrored, 1.0, "liking"),
        (shop_days.by_lot, 0.3, "order"),
        (shop_days.turned, 0.15, "skips"),
        (shop_days.strange, 0.2, "unknown items"),
        (shop_days.wrong_clock, 0.3, "clock"),
        (shop_days.fallen, 0.75, "volume"),
        (shop_days.risen, 4, "volume"),
    ],
)
def test_a_poisoned_day_is_refused_with_the_reason(poison: Poison, dose: float, check: str) -> None:
    found = looked(planted(poison, dose))
    reasons = {one.check: one.reason for one in found.findings if one.refuses}
    assert check in reasons
    assert "accepted nights" in reasons[check]
    assert f"--set 'learn.guards.allow=[\"{check}\"]'" in reasons[check]
    assert learnt(day(), found).is_empty()
    assert found.baseline is sound_baseline(NIGHTS), "what is refused is no measure for the next day"


@pytest.mark.parametrize("poison", [shop_days.even_bot, shop_days.patient_bot, shop_days.hasty_bot])
def test_a_bot_is_left_out_and_nobody_else(poison: Poison) -> None:
    poisoned = planted(poison, 1_000)
    found = looked(poisoned)
    assert not found.refuses
    bots = [one for one in found.findings if one.check == "bot user"]
    assert len(bots) == 1
    assert bots[0].left_out == pytest.approx(1_000, abs=5), "a few are copies by chance"
    assert "is a bot" in bots[0].reason
    assert "robot" not in bots[0].reason, "messages name nobody"
    assert learnt(poisoned, found).equals(learnt(day(), looked(day())))


def test_a_small_even_bot_is_left_out_and_a_small_hasty_one_is_bounded() -> None:
    assert "bot user" in {one.check for one in looked(planted(shop_days.even_bot, 40)).findings}
    found = looked(poisoned := planted(shop_days.hasty_bot, 190))
    assert learnt(poisoned, found).filter(pl.col("user_id") == "robot").height <= 110


def test_whoever_does_much_counts_up_to_a_bound_and_later_pages_do_not_teach_dislike() -> None:
    poisoned = planted(shop_days.hasty_bot, 130)
    last = poisoned.events.filter(pl.col("user_id") == "robot")["timestamp"].max()
    page = poisoned.shown.head(1).with_columns(pl.lit("robot").alias("user_id"), pl.lit(last).alias(KNOWN_AT))
    poisoned = replace(poisoned, shown=pl.concat([poisoned.shown, page]))
    found = looked(poisoned)
    bound = next(one for one in found.findings if one.check == "busy user")
    kept = without_left_out(LogRows(poisoned.events, poisoned.shown, Path()), found.left_out)
    assert kept.events.filter(pl.col("user_id") == "robot").height == bound.figures["cap"] == 130 - bound.left_out
    assert "robot" not in kept.shown["user_id"]


@pytest.mark.parametrize(
    ("poison", "dose"), [(shop_days.copied, 1.0), (shop_days.same_again, 1.0), (shop_days.sent_twice, 0.1)]
)
def test_copies_are_learnt_once(poison: Poison, dose: float) -> None:
    poisoned = planted(poison, dose)
    found = looked(poisoned)
    assert not found.refuses
    assert learnt(poisoned, found).height < poisoned.events.height or poison is shop_days.same_again
    once, sound = Counter(sums(learnt(poisoned, found))), Counter(sums(learnt(day(), looked(day()))))
    assert not once - sound
    # Something that is done again three seconds later is one of a chain of copies now.
    assert (sound - once).total() <= 3
    assert found.baseline.nights[-1]["volume"].value == pytest.approx(looked(day()).measured["volume"], abs=0.01)


def test_who_comes_back_to_an_item_is_no_batch_that_was_sent_again() -> None:
    generator = np.random.default_rng(4)
    again = day().events.filter(pl.col("type") == "click").sample(fraction=0.3, seed=2)
    later = again.with_columns(pl.col("timestamp") + pl.Series(generator.exponential(7_000, again.height) + 5))
    returned = replace(
        day(), events=pl.concat([day().events, later.with_columns(("again-" + pl.col("event_id")).alias("event_id"))])
    )
    assert "sent again" not in {one.check for one in looked(returned).findings}


def test_accounts_that_promote_an_item_are_left_out_and_news_is_not() -> None:
    poisoned = planted(shop_days.farm, 30)
    found = looked(poisoned)
    assert not found.refuses
    farm = next(one for one in found.findings if one.check == "click farm")
    assert (farm.where, farm.left_out) == ("item i7", 30)
    assert learnt(poisoned, found).equals(learnt(day(), looked(day())))
    news = planted(shop_days.news, 200)
    assert learnt(news, looked(news)).height == learnt(day(), looked(day())).height + 200


def test_a_day_of_which_a_fifth_of_the_users_is_no_people_is_refused() -> None:
    found = looked(planted(shop_days.farm, 200))
    assert [one.check for one in found.findings if one.refuses] == ["left out"]


def test_before_there_are_nights_only_what_no_sound_day_does_is_refused() -> None:
    turned = inspect(planted(shop_days.mirrored, 1.0), Baseline(), SETTINGS)
    assert "certainly below 0.5" in "".join(one.reason for one in turned.findings if one.refuses)
    assert not inspect(planted(shop_days.mirrored, 0.2), Baseline(), SETTINGS).refuses
    assert not inspect(planted(shop_days.risen, 4), Baseline(), SETTINGS).refuses


def test_a_day_without_likes_or_without_pages_is_refused() -> None:
    nothing = replace(day(), events=day().events.filter(pl.col("type") == "view"))
    assert "empty" in {one.check for one in looked(nothing).findings if one.refuses}
    no_pages = replace(day(), shown=day().shown.clear())
    assert {"pages", "order"} <= {one.check for one in looked(no_pages).findings if one.refuses}
    assert inspect(replace(day(), events=day().events.clear(), shown=day().shown.clear()), Baseline(), SETTINGS).refuses


def test_an_allowed_check_warns() -> None:
    allowed = GuardSettings(allow=["volume", "pages"])
    found = looked(planted(shop_days.fallen, 0.75), allowed)
    assert not found.refuses
    assert "(allowed)" in next(one.reason for one in found.findings if one.check == "volume")
    assert found.baseline is not sound_baseline(NIGHTS)


def test_a_rarer_false_alarm_takes_a_larger_poison() -> None:
    assert looked(planted(shop_days.mirrored, 0.1)).refuses
    assert not looked(planted(shop_days.mirrored, 0.1), GuardSettings(least_order_change=0.2)).refuses
    assert not looked(planted(shop_days.mirrored, 0.1), GuardSettings(false_alarms=1e-9)).refuses


def test_a_prediction_interval_misses_as_seldom_as_it_says() -> None:
    generator = np.random.default_rng(1)
    beyond = 0
    for _ in range(1_500):
        values = generator.normal(3, 2, 8)
        known = Baseline(tuple({"volume": Measure(one)} for one in values[:-1]))
        usual = known.usual("volume", 0.0, 0.05, 3)
        assert usual is not None
        beyond += values[-1] < usual.low
    assert beyond / 1_500 == pytest.approx(0.05, abs=0.017)


def test_a_day_of_few_users_may_be_further_out() -> None:
    known = Baseline(tuple({"order": Measure(0.8 + 0.001 * one, 0.01)} for one in range(8)))
    wide, narrow = (known.usual("order", error, 0.001, 5) for error in (0.05, 0.01))
    assert wide is not None
    assert narrow is not None
    assert wide.spread > 3 * narrow.spread
    assert known.usual("order", 0.01, 0.001, 9) is None


def test_a_baseline_survives_its_files_and_forgets(tmp_path: Path) -> None:
    baseline = sound_baseline(NIGHTS)
    baseline.write(tmp_path / "baseline")
    read = Baseline.read(tmp_path / "baseline")
    assert read.nights == baseline.nights
    assert read.items.equals(baseline.items)
    assert read.users.equals(baseline.users)
    assert "u3" not in read.users["user"], "the files name nobody"
    assert Baseline.read(tmp_path / "none").nights == ()
    end = START + 200 * DAY
    later = baseline
    for _ in range(REMEMBERED_NIGHTS):
        later = later.after({"volume": Measure(1.0)}, baseline.items.clear(), users_of(day().events.head(1), end), end)
    assert [set(night) for night in later.nights] == [{"volume"}] * REMEMBERED_NIGHTS
    assert later.users.height == 1
    assert later.items["likes"].sum() == pytest.approx(baseline.items["likes"].sum() * 0.9**REMEMBERED_NIGHTS)
    (tmp_path / "baseline" / "baseline.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="what accepted nights were like cannot be read"):
        Baseline.read(tmp_path / "baseline")


def test_days_of_a_backlog_are_looked_through_one_by_one() -> None:
    days = [sound_day(NIGHTS), shop_days.mirrored(sound_day(NIGHTS + 1), 1.0, np.random.default_rng(1))]
    rows = LogRows(pl.concat([one.events for one in days]), pl.concat([one.shown for one in days]), Path())
    found = inspect_night(
        rows, Span(days[0].start, days[1].end), days[0].items, EVENT_WEIGHTS, sound_baseline(NIGHTS), SETTINGS
    )
    assert [one.refuses for one in found.days] == [False, True]
    assert "order" in {one["check"] for one in found.as_json()["days"][1]["findings"]}
    assert found.refused
    kept = without_left_out(rows, found.left_out)
    assert kept.events[KNOWN_AT].max() < days[1].start
    assert kept.events.equals(learnt(days[0], found.days[0]))
    assert len(found.baseline.nights) == NIGHTS + 1


def quiet(number: int, users: int) -> Day:
    """A sound day of so few users."""
    whole = sound_day(NIGHTS + number)
    there = pl.col("user_id").is_in([f"u{one}" for one in range(number * users, (number + 1) * users)])
    return replace(whole, events=whole.events.filter(there), shown=whole.shown.filter(there))


def inspected(days: Sequence[Day], settings: GuardSettings = SETTINGS) -> NightInspection:
    rows = LogRows(pl.concat([one.events for one in days]), pl.concat([one.shown for one in days]), Path())
    span = Span(days[0].start, days[-1].end)
    return inspect_night(rows, span, days[0].items, EVENT_WEIGHTS, sound_baseline(NIGHTS), settings)


def test_quiet_days_are_told_together_and_not_refused() -> None:
    """Of too few people nothing can be told, which is nobody's fault: the next night tells them with its own."""
    settings = GuardSettings(allow=["volume", "pages"])
    alone = inspected([quiet(0, 30)], settings)
    assert not alone.refused
    assert "can be told from 30 on" in alone.waits_for
    together = inspected([quiet(0, 30), quiet(1, 30), quiet(2, 30)], settings)
    assert len(together.days) < 3
    assert all("order" in one.checked for one in together.days)
    assert not together.waits_for
    assert not together.refused
    assert len(inspected([sound_day(NIGHTS), sound_day(NIGHTS + 1)]).days) == 2, "days that tell something are apart"


def test_quiet_days_with_turned_likes_are_refused_together() -> None:
    settings = GuardSettings(allow=["volume", "pages"])
    generator = np.random.default_rng(4)
    turned = [shop_days.mirrored(quiet(number, 40), 1.0, generator) for number in range(4)]
    assert "stood above" in inspected(turned, settings).refused


def test_a_quiet_day_that_is_refused_for_another_reason_does_not_wait() -> None:
    fallen = inspected([quiet(0, 30)])
    assert fallen.refused, "a thirtieth of the usual events"
    assert not fallen.waits_for


def test_what_is_left_out_survives_its_file() -> None:
    found = looked(planted(shop_days.hasty_bot, 1_000)).left_out
    assert found
    for one in found:
        assert LeftOut.of_json(one.as_json()) == one
        assert "robot" not in json.dumps(one.as_json()["users"]), "a user who is erased would live on in it"
