"""Nights share the hours of a log: none is learnt twice, none left out, and what is judged is not learnt."""

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonrank.data.event_log import EVENT_COLUMNS, KNOWN_AT, LOT_COLUMNS, SHOWN_COLUMNS, LogRows
from tritonrank.errors import DataError
from tritonrank.learn.lists.shown_lists import LIST_AT, SETTLED_AT, settled_events
from tritonrank.learn.lists.windows import Span, Windows, plan_windows
from tritonrank.recipe import LearnSettings

HOUR = 3_600.0
START = 1_795_737_600.0
NIGHTS = st.lists(st.tuples(st.floats(0.1, 60), st.booleans()), min_size=1, max_size=12)
"""Hours since the night before, and whether its model was accepted."""


def nights_of(told: list[tuple[float, bool]], learn: LearnSettings) -> list[tuple[Windows, bool]]:
    """What nights read that know what ``tritonrank learn`` keeps of those before."""
    now, learnt_until, frozen = START, None, None
    found = []
    for hours, is_accepted in told:
        now += hours * HOUR
        windows = plan_windows(learn, now, START, learnt_until=learnt_until, frozen=frozen)
        found.append((windows, is_accepted and not windows.new.is_empty))
        if windows.new.is_empty:
            continue
        frozen = windows.frozen
        if is_accepted:
            learnt_until = windows.learnt_until
    return found


@given(told=NIGHTS, newest=st.integers(1, 30), days=st.integers(60, 90))
@settings(deadline=None, max_examples=100)
def test_no_moment_is_learnt_twice_and_none_left_out(told: list[tuple[float, bool]], newest: int, days: int) -> None:
    nights = nights_of(told, LearnSettings(newest_hours=newest, history_days=days))
    accepted = [windows for windows, is_accepted in nights if is_accepted]
    if not accepted:
        return
    frozen = accepted[0].frozen
    assert all(windows.frozen == frozen for windows in accepted)
    assert accepted[0].new.start == START
    for before, after in pairwise(accepted):
        gap = Span(before.new.end, after.new.start)
        # What lies between two nights' hours, if anything, is the frozen window.
        assert gap.is_empty or (frozen.start <= gap.start and gap.end <= frozen.end)
        assert before.new.end <= after.new.start


@given(told=NIGHTS, newest=st.integers(1, 30), days=st.integers(1, 20))
@settings(deadline=None, max_examples=100)
def test_what_is_judged_comes_after_all_that_is_learnt(told: list[tuple[float, bool]], newest: int, days: int) -> None:
    learnt_until = -1.0
    for windows, is_accepted in nights_of(told, LearnSettings(newest_hours=newest, history_days=days)):
        assert windows.new.end <= windows.newest.start or windows.new.is_empty
        assert windows.newest.start >= learnt_until
        assert windows.replay.end <= windows.new.start
        assert windows.read.start <= min(windows.new.start, windows.frozen.start, windows.replay.start)
        assert windows.read.end % HOUR == 0
        assert windows.newest.end <= windows.read.end or windows.newest.is_empty
        assert Windows.of_json(windows.as_json()) == windows
        if is_accepted:
            learnt_until = windows.learnt_until


def test_an_hour_is_read_a_minute_after_it_is_over() -> None:
    learn = LearnSettings(newest_hours=2)
    assert plan_windows(learn, START + 10 * HOUR + 59, START).read.end == START + 9 * HOUR
    windows = plan_windows(learn, START + 10 * HOUR + 60, START)
    assert windows.read == Span(START, START + 10 * HOUR)
    assert (windows.new, windows.newest) == (Span(START, START + 8 * HOUR), Span(START + 8 * HOUR, START + 10 * HOUR))
    assert windows.frozen == windows.newest
    assert windows.delayed == Span(START + 9 * HOUR, START + 10 * HOUR)


def test_a_frozen_window_stays_until_it_cannot_be_read_any_more() -> None:
    learn = LearnSettings(newest_hours=6, history_days=2)
    first = plan_windows(learn, START + 24.1 * HOUR, START)
    told = {"learnt_until": first.learnt_until, "frozen": first.frozen}
    assert plan_windows(learn, START + 48.1 * HOUR, START, **told).frozen == first.frozen
    later = plan_windows(learn, START + 96.1 * HOUR, START, **told)
    assert later.frozen == later.newest
    rejected_first = plan_windows(learn, START + 48.1 * HOUR, START, frozen=first.frozen)
    assert rejected_first.new.start == START  # nothing of it was learnt
    assert rejected_first.frozen == first.frozen


def test_too_few_hours_are_nothing_new() -> None:
    windows = plan_windows(LearnSettings(newest_hours=6), START + 5 * HOUR, START)
    assert windows.new.is_empty
    assert windows.learnt_until == START


@pytest.mark.parametrize("told", [{"new": {"start": 1}}, {"new": 3}, {}, None])
def test_what_is_no_windows_is_refused(told: object) -> None:
    with pytest.raises(DataError, match="windows of a night"):
        Windows.of_json(told)  # type: ignore[arg-type]


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 9),  # page; 9 is none
        st.floats(0, 4 * HOUR),  # after the page was shown
        st.one_of(st.just(0.0), st.floats(0, 30 * HOUR)),  # on its way to the gateway
        st.one_of(st.floats(0, 10), st.floats(0, 5 * HOUR)),  # until it was written
    ),
    min_size=1,
    max_size=30,
)
PAGES = st.lists(
    st.tuples(st.floats(0, 40 * HOUR), st.one_of(st.floats(0, 10), st.floats(0, 5 * HOUR))), min_size=9, max_size=9
)


def log_rows(
    pages: list[tuple[float, float]], events: list[tuple[int, float, float, float]], until: float = float("inf")
) -> LogRows:
    """What can be read of a log when the hours up to a moment are over."""
    shown, done = [], []
    for number, (at, lag) in enumerate(pages):
        shown_at = START + at
        hour = (shown_at + lag) // HOUR * HOUR
        if hour < until:
            shown.append(
                {
                    "page": f"p{number}",
                    "user_id": f"u{number % 3}",
                    "query": "",
                    "shown_at": shown_at,
                    "item_ids": [f"i{number}", "other"],
                    "positions": [0, 1],
                    KNOWN_AT: max(shown_at, hour),
                }
            )
    for number, (on, after, late, lag) in enumerate(events):
        at = START + (pages[on][0] if on < 9 else 0.0) + after
        hour = (at + late + lag) // HOUR * HOUR
        if hour < until:
            done.append(
                {
                    "event_id": f"e{number}",
                    "user_id": f"u{on % 3}",
                    "item_id": f"i{on}",
                    "type": "click",
                    "query": f"q{number}",  # by which the test knows it again
                    "timestamp": at,
                    "value": None,
                    "page": f"p{on}" if on < 9 else "",
                    "position": 0,
                    "received_at": at + late,
                    KNOWN_AT: max(at + late, hour),
                }
            )
    known: dict[str, pl.DataType] = {KNOWN_AT: pl.Float64()}
    shown_schema = {**SHOWN_COLUMNS, "artifact": pl.String(), **LOT_COLUMNS, **known}
    absent = {name: None for name in shown_schema if name not in (shown[0] if shown else {})}
    return LogRows(
        pl.DataFrame(done, schema=EVENT_COLUMNS | known, orient="row").sort(KNOWN_AT, maintain_order=True),
        pl.DataFrame(
            [row | {name: row.get(name) for name in absent} for row in shown], schema=shown_schema, orient="row"
        ),
        "log",  # type: ignore[arg-type]
    )


@given(
    pages=PAGES,
    events=EVENTS,
    nights=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    delay=st.sampled_from([0.25, 1.0, 6.0]),
)
@settings(deadline=None, max_examples=60)
def test_every_event_is_one_nights_however_late_it_comes(
    pages: list[tuple[float, float]],
    events: list[tuple[int, float, float, float]],
    nights: list[int],
    delay: float,
) -> None:
    """Each night reads the hours that are over by then, and takes what is settled in its own; nobody looks ahead."""
    taken: list[tuple[str, str, float]] = []
    learnt_until, end = -1.0, START
    for hours in [*nights, 24 * 30]:
        end += hours * HOUR
        rows = settled_events(log_rows(pages, events, end), delay)
        new = rows.filter(
            (pl.col("type") == "click") & (pl.col(SETTLED_AT) >= learnt_until) & (pl.col(SETTLED_AT) < end)
        )
        taken += new.select("query", "page", SETTLED_AT).rows()
        learnt_until = end
    assert sorted(name for name, _, _ in taken) == sorted(f"q{number}" for number in range(len(events)))
    for name, token, settled_at in taken:
        on, after, late, _ = events[int(name[1:])]
        if token:  # a page with its click window closed, and everything in it that came in time
            assert settled_at == pytest.approx(START + pages[on][0] + delay * HOUR)
            assert after + late < delay * HOUR
        else:
            assert settled_at >= START + after + late + (pages[on][0] if on < 9 else 0.0) - 1e-3


def test_what_came_too_late_stands_for_itself() -> None:
    pages = [(0.0, 0.0)] * 9
    events = [(0, 100.0, 0.0, 0.0), (0, 2 * HOUR, 0.0, 0.0), (0, 200.0, 3 * HOUR, 0.0), (9, 50.0, 0.0, 0.0)]
    rows = settled_events(log_rows(pages, events), 1.0).filter(pl.col("type") == "click").sort("query")
    assert rows["page"].to_list() == ["p0", "", "", ""]
    assert rows[LIST_AT].to_list() == [START, START + 2 * HOUR, START + 200, START + 50]
    assert rows[SETTLED_AT].to_list() == [START + HOUR, START + 2 * HOUR, START + 200 + 3 * HOUR, START + 50]
