"""Several processes at one study, on one machine or on many: nothing is tried twice, and nobody waits for the dead.

Optuna's storages order trials by number and write each value at once; the rest is agreed on with these two alone, so
that it holds for SQLite, journals and databases alike:

- A worker writes down what its trial tries, waits until those with lower numbers have done so, and looks: where a lower
  one tries the same it withdraws. Of two that draw the same at once, exactly one goes on.
- A worker counts up an attribute of its trial every few seconds. One that another worker has not seen change for
  GRACE_SECONDS of its own clock is dead; clocks need not agree. On the same machine the process table knows at once.
  (Optuna has a heartbeat of its own, for databases and ``Study.optimize`` alone.)
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from tritonrank.search.space import Space
from tritonrank.search.study import BEAT, REPEATS, SURPLUS, WHY, WORKER, Trials
from tritonrank.system.processes import is_alive, pid_of, this_process

BEAT_SECONDS = 10.0
GRACE_SECONDS = 45.0
"""Four beats: a machine that swaps, or a storage that is slow, is not dead yet."""
DECIDING_SECONDS = 10.0
"""How long somebody may take to write down what a trial tries: what takes longer has died in between."""
POLL_SECONDS = 0.1


def host_of(trial: FrozenTrial) -> str:
    """The machine that a trial runs, or ran, on; for people."""
    return str(trial.user_attrs.get(WORKER, "an unknown machine")).partition("/")[0]


@contextmanager
def beating(trial: Trial, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Show the others, while the block runs, that somebody is at this trial."""
    trial.set_user_attr(WORKER, this_process())
    ended = threading.Event()

    def beat() -> None:
        beats = 0
        while not ended.wait(seconds):
            beats += 1
            with suppress(Exception):  # a storage that is away for a moment; who trains is told where it matters
                trial.set_user_attr(BEAT, beats)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def claim(study: optuna.Study, space: Space, trial: Trial, most: int | None) -> str | None:
    """Be the only one who tries this.

    Args:
        study: of the trial.
        space: what is searched.
        trial: just asked for, with all it tries.
        most: trials that the study may have.

    Returns:
        None: go on. Else why not: REPEATS or SURPLUS.
    """
    until = time.monotonic() + DECIDING_SECONDS
    while True:
        trials = Trials.of(study, space)
        undecided = [one for one in trials.running if one.number < trial.number and trials.key(one) is None]
        if not undecided or time.monotonic() > until:
            break
        time.sleep(POLL_SECONDS)
    key = trials.key(next(one for one in trials.all if one.number == trial.number))
    if key is None or trials.same_before(trial.number, key):
        return REPEATS
    earlier = [one for one in trials.counted if one.number < trial.number]
    return SURPLUS if most is not None and len(earlier) >= most else None


def withdraw(study: optuna.Study, trial: Trial, why: str) -> None:
    """End a trial that is not run, and say why."""
    trial.set_user_attr(WHY, why)
    study.tell(trial, state=TrialState.FAIL)


class Watchman:
    """Finds trials whose workers have died.

    Args:
        study, space: whose trials.
        clock: seconds.
    """

    def __init__(self, study: optuna.Study, space: Space, clock: Callable[[], float] = time.monotonic) -> None:
        self._study, self._space, self._clock = study, space, clock
        self._seen: dict[int, tuple[object, float]] = {}
        self._beating: set[int] = set()

    def retire_dead(self) -> list[int]:
        """Fail the trials of dead workers, so that they are tried again.

        Returns:
            Numbers of the trials that were failed just now.
        """
        running = Trials.of(self._study, self._space).running
        return [trial.number for trial in running if self._is_dead(trial) and self._fail(trial.number)]

    def is_unsure(self) -> bool:
        """Whether somebody elsewhere may be dead or not, which only waiting tells."""
        running = Trials.of(self._study, self._space).running
        return any(_alive_here(trial) is None and trial.number not in self._beating for trial in running)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        if (alive := _alive_here(trial)) is not None:
            return not alive
        now, beat = self._clock(), trial.user_attrs.get(BEAT)
        last, since = self._seen.setdefault(trial.number, (beat, now))
        if beat != last:
            self._seen[trial.number] = (beat, now)
            self._beating.add(trial.number)
            return False
        return now - since >= GRACE_SECONDS

    def _fail(self, number: int) -> bool:
        """True where nobody else did it before."""
        try:
            self._study.tell(number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            return False
        return True


def _alive_here(trial: FrozenTrial) -> bool | None:
    """Whether a trial's process runs on this machine; None: it is of another one, or not known yet.

    This process asks between its own trials, so that one of its own that still runs was left behind.
    """
    worker = str(trial.user_attrs.get(WORKER, ""))
    alive = is_alive(worker)
    return False if alive and pid_of(worker) == os.getpid() else alive
