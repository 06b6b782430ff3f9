"""A night whose process is killed within every step, and again between a step's end and its line in the ledger.

    python killed_nights.py ROOT LOG BASE STORE NOW

Each process is a child of its own, which takes the steps that are left and gets SIGKILL from itself: real processes and
a real signal, without the seconds that imports take each time. This process computes nothing, so that children can be
forked. Prints a line of JSON for each child: which step was to be killed, where, and how it ended.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from learning_shop import learning_recipe
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.workspace import Workspace
from tritonrank.data import event_log
from tritonrank.learn import steps as night_steps
from tritonrank.learn.ledger import STEPS, StepName
from tritonrank.learn.night import Step, run_night
from tritonrank.learn.run import Run
from tritonrank.train.further import train_further  # noqa: F401 - imported here, so that children need not
from tritonrank.train.time_limit import TimeLimit

WITHIN, AFTER = "within", "after"
RENAMES = {"inspect": 1, "examples": 1, "judge": 1, "build": 6, "release": 1}
"""The renames of a step before which it is killed: something is whole then and has not appeared yet. Of a build some
stages are done."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before(owner: Any, name: str, times: int = 1) -> None:
    """Let the process be killed when something is called for the n-th time."""
    original = getattr(owner, name)
    left = [times]

    def killing(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            kill()
        return original(*arguments, **named)

    setattr(owner, name, killing)


def plant(step: StepName) -> None:
    """Be killed in the middle of a step, where the most is half done."""
    match step:
        case "collect":
            killed_before(night_steps, "read_rows")
        case "finetune":
            killed_before(TimeLimit, "on_save", 2)  # one checkpoint is whole, another one was just written
        case "publish":
            killed_before(Index, "add")  # all parts are there, and nothing describes them
        case _:
            left = [RENAMES[step]]
            for name in ("rename", "replace"):
                _count(Path, name, left)


def _count(owner: Any, name: str, left: list[int]) -> None:
    original = getattr(owner, name)

    def counting(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            kill()
        return original(*arguments)

    setattr(owner, name, counting)


def wrapped(name: StepName, step: Step, calls: Path, moment: str | None) -> Step:
    def act(run: Run) -> Mapping[str, Any]:
        with calls.open("a") as file:
            file.write(f"{name}\n")
        if moment == WITHIN:
            plant(name)
        told = step(run)
        if moment:
            kill()
        return told

    return act


def child(work: Callable[[], Any]) -> int:
    """How a forked process ended; below 0: by this signal."""
    if (pid := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - told, and the parent's to judge
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root: str, log: str, base: str, store: str, now: str) -> None:
    event_log.first_hour(Path(log))
    recipe = learning_recipe(Path(base), Path(log), f"learn.store={store}", "learn.release=promote")
    calls = Path(root) / "calls.txt"

    def night(broken: StepName | None, moment: str | None) -> None:
        steps = {
            name: wrapped(name, step, calls, moment if name == broken else None)
            for name, step in night_steps.ALL.items()
        }
        run_night(recipe, Workspace(Path(root)), steps, controller="http://127.0.0.1:9", now=float(now))

    for step in STEPS:
        for moment in (WITHIN, AFTER):
            ended = child(lambda step=step, moment=moment: night(step, moment))  # type: ignore[misc]
            print(json.dumps({"step": step, "moment": moment, "ended": ended}), flush=True)
    print(json.dumps({"step": "", "moment": "", "ended": child(lambda: night(None, None))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
