"""Progress: one line of the whole at a terminal, plain lines where there is none."""

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tritonrank.system.progress import HEARTBEAT_VARIABLE, Board, Step, Whole

STAGES = ["prepare", "finetune", "export"]
EXPECTED = {"prepare": 10.0, "finetune": 100.0, "export": 20.0}


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def board(clock: Clock, out: io.StringIO, interval: float = 60.0) -> Board:
    return Board(Console(file=out, width=80), bars=False, clock=clock, interval=interval)


def test_a_line_says_what_runs_how_far_it_is_and_how_long_it_goes_on(clock: Clock) -> None:
    one = board(clock, io.StringIO())
    with one.step("judging INT8", total=200) as bar:
        assert one.line() == "  judging INT8 0% (0 of 200); 5 s gone"
        clock.now += 120
        bar.update(completed=50, note="loss 0.1")
        assert one.line() == "  judging INT8 25% (50 of 200), loss 0.1; 2 min gone, about 6 min left"


def test_the_whole_learns_from_what_its_stages_took(clock: Clock) -> None:
    one = board(clock, io.StringIO())
    with one.whole(STAGES, EXPECTED):
        with one.stage("prepare"):
            assert one.line() == "  stage 1 of 3, prepare; 5 s gone, about 2 min left"
            clock.now += 20  # twice as long as expected
        with one.stage("finetune"):
            assert one.line().endswith("about 4 min left"), "2 * (100 + 20)"
            with one.step("finetune", total=100) as bar:
                clock.now += 100
                bar.update(completed=10)
                assert one.line() == ("  stage 2 of 3, finetune 10% (10 of 100); 2 min gone, about 16 min left"), (
                    "900 s of the step by its own speed, 40 s of the export"
                )


def test_without_an_estimate_no_time_is_promised(clock: Clock) -> None:
    one = board(clock, io.StringIO())
    with one.whole(STAGES, {"prepare": 1.0}), one.stage("prepare"):
        clock.now += 90
        assert one.line() == "  stage 1 of 3, prepare; 1.5 min gone"


def test_a_resumed_step_is_not_faster_for_what_was_done_before(clock: Clock) -> None:
    step = Step("training", 100.0, clock())
    step.resume(50)
    assert step.seconds_left(clock() + 10) is None
    step.update(completed=60)
    assert step.seconds_left(clock() + 10) == pytest.approx(40)


def test_a_stage_that_overruns_has_nothing_left_and_not_less() -> None:
    whole = Whole(["export"], {"export": 10.0}, 0.0)
    whole.begin("export", 0.0)
    assert whole.seconds_left(60.0, None) == 0.0


def test_a_stage_of_something_else_is_not_told_of(clock: Clock) -> None:
    one = board(clock, io.StringIO())
    with one.stage("compile"), one.whole(STAGES, EXPECTED), one.stage("compile"), one.step("phase") as bar:
        bar.advance()
        assert one.line() == "  phase; 5 s gone"


def test_a_log_gets_a_line_each_interval_and_none_of_what_is_short(clock: Clock) -> None:
    out = io.StringIO()
    deadline = time.monotonic() + 30
    with board(clock, out, interval=0.05).step("long", total=10):
        while out.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(out.getvalue().splitlines()) >= 2
    assert set(out.getvalue().splitlines()) == {"  long 0% (0 of 10); 5 s gone"}
    out = io.StringIO()
    with board(clock, out).step("short", total=10):
        pass
    assert out.getvalue() == ""


SCRIPT = """
import time
from tritonrank.system.progress import stage, track, whole
with whole(["first", "second"], {"first": 0.5, "second": 0.5}):
    for name in ("first", "second"):
        with stage(name):
            for _ in track(range(5), "counting"):
                time.sleep(0.1)
            print("done with", name)
"""


def test_a_pipe_gets_lines_and_no_blank_ones() -> None:
    environment = os.environ | {HEARTBEAT_VARIABLE: "0.2", "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert all(line.strip() for line in lines)
    assert "\x1b" not in done.stdout, "nothing is redrawn in a log, whatever its colours"
    assert any(line.startswith("  stage 2 of 2, second: counting") for line in lines)
    assert [line for line in lines if line.startswith("done")] == ["done with first", "done with second"]


def test_a_terminal_gets_one_line_of_the_whole_that_is_redrawn(tmp_path: Path) -> None:
    main, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "20"}
    started = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while started.poll() is None or shown[-1:] != b"":
        try:
            chunk = os.read(main, 65_536)
        except OSError:  # the other end is closed
            break
        shown += chunk
    os.close(main)
    assert started.wait(timeout=60) == 0
    text = shown.decode()
    assert "stage 1 of 2, first" in text
    assert "stage 2 of 2, second" in text
    assert "5 s gone" in text
    assert "counting" in text
    assert "\x1b[" in text
    assert "done with first" in text
