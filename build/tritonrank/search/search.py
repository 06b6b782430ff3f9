"""The whole search: what is shared is made, trials are run until the budget is spent, the best becomes a recipe."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial, TrialState
from rich.console import Console

from tritonrank.errors import RecipeError, StorageError, TritonRankError
from tritonrank.judge.metrics import interval
from tritonrank.search.proposals import UnfinishedFirst, UnvisitedPoints, first_unvisited
from tritonrank.search.space import MOST_POINTS, Point, in_words
from tritonrank.search.study import ERROR, FAULTY, INTERRUPTED, REPEATS, SECONDS, VALUES, WHY, Trials
from tritonrank.search.trial import Bench
from tritonrank.search.winner import Winner, write_winner
from tritonrank.search.workers import Watchman, beating, claim, withdraw
from tritonrank.system import progress
from tritonrank.train.watch import TrainingEndedError

TEST = "test:"
"""Begins the study's attributes that hold NDCG@10 of the test users, by the number of a trial."""
MOST_REPEATS = 25
"""Proposals in a row that were all tried before: the space is used up."""
REPEATS_BEFORE_ANY = 3
"""After so many, whatever was not tried yet is proposed."""
VALUE_DIGITS = 5
MOST_VALUES, MOST_LETTERS = 5_000, 5_000
"""Users whose single values, and letters of an error that, are kept in the study."""
POLL_SECONDS = 1.0
FEW_SETTINGS = 3
"""Of more, only those that differ from the recipe's are told."""

console = Console()


@dataclass
class Budget:
    """How much may be tried."""

    trials: int | None
    """of the whole study, whoever runs them; None: any number, or all points of a grid"""
    seconds: float | None
    """of this process"""
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds_left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - (self.clock() - self.started)


class Search:
    """One worker at a study.

    Args:
        bench: what a trial is.
        study: may hold trials already, and be worked at by others.
        budget: how much may be tried.
        plan: all that is to be tried, each once; None: what the study's sampler proposes.
    """

    def __init__(self, bench: Bench, study: optuna.Study, budget: Budget, plan: Sequence[Point] | None = None) -> None:
        self._bench, self._study, self._budget, self._plan = bench, study, budget, plan
        self._watchman = Watchman(study, bench.space)
        self._proposing: BaseSampler = study.sampler
        self._identity = bench.shared_identity()

    def run(self) -> None:
        """Try until nothing is left to try, the budget is spent, or the space is used up.

        Raises:
            RecipeError: what trials start from was made anew meanwhile.
            StorageError: the study, or a trial's folder, cannot be written.
        """
        self._say_if_recipe_is_outside()
        repeats = 0
        with progress.step("search", total=self._target()) as bar:
            while repeats < MOST_REPEATS:
                for number in self._watchman.retire_dead():
                    _say(f"  trial {number}: its worker is gone; it is tried again")
                trials = self._trials()
                bar.update(completed=len(trials.counted) - len(trials.running), note=_best_in_words(trials))
                if self._is_spent(trials):
                    if not (self._watchman.is_unsure() and self._budget.seconds_left > 0):
                        break
                    time.sleep(POLL_SECONDS)  # a worker elsewhere may have died with what is left
                    continue
                self._require_same_start()
                self._sweep()
                repeats = repeats + 1 if self._try_one(repeats) == REPEATS else 0
        self._sweep()

    def judge_best_on_test_users(self) -> None:
        """Judge the best trial on users whom no trial was chosen by, where its artifacts are here."""
        best = self._trials().best
        if best is None or f"{TEST}{best.number}" in self._study.user_attrs:
            return
        point = self._bench.space.point_of(best.params)
        if self._bench.has_result(point):
            self._judge_on_test_users(best.number, point)

    def winner(self, out: Path, artifacts: Path) -> Winner | None:
        """Write the best trial as a recipe; None where no trial came to its end.

        Args:
            out: the file.
            artifacts: folder that holds one folder per recipe.
        """
        best = self._trials().best
        return None if best is None else write_winner(self._bench, self._study.study_name, best, out, artifacts)

    def point_of_recipe(self) -> Point | None:
        """The recipe as it is, if that is in the space."""
        point = self._bench.space.point_of_recipe(self._bench.recipe)
        try:
            self._bench.space.drawn_for(point)
        except ValueError:
            return None
        return point

    def _say_if_recipe_is_outside(self) -> None:
        try:
            self._bench.space.drawn_for(self._bench.space.point_of_recipe(self._bench.recipe))
        except ValueError as error:
            if not self._trials().all:
                _say(f"  {error}: the recipe as it is will not be tried. Widen the space to hold trials against it")

    def _target(self) -> int | None:
        if self._plan is not None:
            return min(len(self._plan), self._budget.trials or len(self._plan))
        return self._budget.trials

    def _is_spent(self, trials: Trials) -> bool:
        """Whether nothing more is begun."""
        seconds = [trial.user_attrs[SECONDS] for trial in trials.completed if SECONDS in trial.user_attrs]
        if self._budget.seconds_left <= (statistics.median(seconds) if seconds else 0.0):
            return True
        if self._budget.trials is not None and len(trials.counted) >= self._budget.trials:
            return True
        points = self._countable()
        return points is not None and first_unvisited(points, trials) is None

    def _countable(self) -> Sequence[Point] | None:
        """All that can be tried, if that has an end."""
        if self._plan is not None:
            return self._plan
        return list(self._bench.space.points()) if (self._bench.space.size or MOST_POINTS) < MOST_POINTS else None

    def _try_one(self, repeats: int) -> str | None:
        """Propose and run one trial; says why it was not run."""
        space = self._bench.space
        if repeats >= REPEATS_BEFORE_ANY:
            points = self._countable()
            self._study.sampler = RandomSampler() if points is None else UnvisitedPoints(space, points)
        else:
            first = self.point_of_recipe() if self._plan is None else None  # the others are held against it
            self._study.sampler = UnfinishedFirst(space, self._proposing, first)
        trial = self._study.ask(space.distributions)
        with beating(trial):
            if (why := claim(self._study, space, trial, self._budget.trials)) is not None:
                withdraw(self._study, trial, why)
                self._proposing.reseed_rng()  # two that began at once draw alike
                return why
            try:
                self._run(trial, space.point_of(trial.params))
            except KeyboardInterrupt:
                self._give_back(trial)
                _say(f"  trial {trial.number}: interrupted; the same command goes on with it")
                raise
        return None

    def _run(self, trial: Trial, point: Point) -> None:
        """Run a trial and tell the study what came of it."""
        beside = self._bench.space.point_of_recipe(self._bench.recipe) if len(point) > FEW_SETTINGS else None
        _say(f"trial {trial.number}: {in_words(point, beside)}")
        watch = _TrainingWatch(trial, self._bench.recipe.finetune.evaluations, self._budget)
        started = time.monotonic()
        try:
            values = self._bench.run(point, watch)
        except TrainingEndedError:
            if watch.is_pruned:
                seconds = round(time.monotonic() - started, 1)
                if self._tell(trial, TrialState.PRUNED, attributes={SECONDS: seconds}):
                    _say(f"  trial {trial.number}: ended early at NDCG@10 {watch.last:.4f}")
            else:
                self._give_back(trial)
                _say(f"  trial {trial.number}: the time is up; it goes on from here when the search does")
            return
        except StorageError:
            self._give_back(trial)
            raise
        except (TritonRankError, torch.OutOfMemoryError) as error:
            why = {WHY: FAULTY, ERROR: str(error)[:MOST_LETTERS]}
            if self._tell(trial, TrialState.FAIL, attributes=why):
                _say(f"  trial {trial.number}: cannot be: {error}")
            return
        seconds = time.monotonic() - started
        if point == self.point_of_recipe():
            self._judge_on_test_users(trial.number, point)  # before its artifacts make room for better ones
        best, value = self._trials().best, float(np.mean(values))
        kept = [round(float(one), VALUE_DIGITS) for one in values[:MOST_VALUES]]
        if self._tell(trial, value=value, attributes={SECONDS: round(seconds, 1), VALUES: kept}):
            better = ", the best so far" if best is None or value > (best.value or 0.0) else ""
            _say(f"  trial {trial.number}: NDCG@10 {interval(values)}, {progress.in_words(seconds)}{better}")

    def _judge_on_test_users(self, number: int, point: Point) -> None:
        values = self._bench.judge_test_users(point)[:MOST_VALUES]
        self._study.set_user_attr(f"{TEST}{number}", [round(float(value), VALUE_DIGITS) for value in values])

    def _tell(
        self,
        trial: Trial,
        state: TrialState | None = None,
        *,
        value: float | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a trial; False where others had taken this worker for dead."""
        try:
            for name, one in (attributes or {}).items():
                trial.set_user_attr(name, one)
            self._study.tell(trial, value, state)
        except (ValueError, UpdateFinishedTrialError):
            _say(f"  trial {trial.number}: this process was silent for so long that another one took it over")
            return False
        return True

    def _give_back(self, trial: Trial) -> None:
        """End a trial that was interrupted; the next one goes on with it, from its last evaluation."""
        self._tell(trial, TrialState.FAIL, attributes={WHY: INTERRUPTED})

    def _require_same_start(self) -> None:
        if self._bench.shared_identity() != self._identity:
            raise RecipeError(
                f"{self._bench.shared.root}: the dataset or another artifact that all trials start from was made anew "
                "meanwhile, so that further trials could not be compared. Run the command again: it begins a new study"
            )

    def _sweep(self) -> None:
        """Remove the folders of all trials but the best and those that go on. The folders are looked at first: one
        that appears later is of a trial that runs."""
        there = self._bench.folders()
        trials = self._trials()
        kept = [trials.point(trial) for trial in (*trials.running, *([trials.best] if trials.best else []))]
        names = {self._bench.folder_name(point) for point in (*kept, *trials.unfinished) if point is not None}
        self._bench.remove(there - names)

    def _trials(self) -> Trials:
        return Trials.of(self._study, self._bench.space)


class _TrainingWatch:
    """Reports every evaluation of a training, and ends it where the pruner says so or the time is up."""

    def __init__(self, trial: Trial, evaluations: int, budget: Budget) -> None:
        self._trial, self._evaluations, self._budget = trial, evaluations, budget
        self._reported: set[int] = set()
        self.last = 0.0
        self.is_pruned = False

    def __call__(self, share: float, ndcg: float) -> bool:
        # Trials of other batch sizes have other steps: the evaluation is what they have in common.
        number, self.last = max(1, round(share * self._evaluations)), ndcg
        try:
            if number not in self._reported:
                self._trial.report(ndcg, number)
                self._reported.add(number)
        except UpdateFinishedTrialError:  # others took this worker for dead
            return True
        if share >= 1.0:
            return False
        self.is_pruned = self._trial.should_prune()
        return self.is_pruned or self._budget.seconds_left <= 0


def _best_in_words(trials: Trials) -> str:
    return f"best {trials.best.value:.4f}" if trials.best and trials.best.value is not None else ""


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
