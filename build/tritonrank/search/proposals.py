"""What is tried next, and which trainings are ended early."""

import random
import time
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from tritonrank.errors import RecipeError
from tritonrank.recipe import Recipe
from tritonrank.search.choices import Pruner, Sampler
from tritonrank.search.space import MOST_POINTS, Point, Space, key_of
from tritonrank.search.study import Trials
from tritonrank.system.processes import this_process

UNDIRECTED_TRIALS = 8
"""Random trials before TPE looks at what they gave (Bergstra et al. 2011 take 20 of hundreds; trainings are dearer)."""
TRIALS_TO_COMPARE = 4
"""Completed trials before one is ended for being below their median."""
FIRST_PRUNED_EVALUATION = 2
"""The learning rate still rises before the first evaluation, which says little."""


class UnfinishedFirst(BaseSampler):
    """Proposes what was begun and not ended, then what another sampler does.

    Args:
        space: what is searched.
        then: the other sampler.
        first: where a study begins; None: where the other sampler says.
    """

    def __init__(self, space: Space, then: BaseSampler, first: Point | None) -> None:
        self._space, self._then, self._first = space, then, first
        self._chosen: Point | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All settings, where it is known what they should be."""
        trials = Trials.of(study, self._space)
        begin = [self._first] if self._first is not None and key_of(self._first) not in trials.tried else []
        self._chosen = next(iter([*trials.unfinished, *begin]), None)
        if self._chosen is None:
            return self._then.infer_relative_search_space(study, trial)
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What was chosen just now, or what the other sampler says."""
        if self._chosen is None:
            return self._then.sample_relative(study, trial, search_space)
        return self._space.drawn_for(self._chosen)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What the other sampler says."""
        return self._then.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Let the other sampler draw differently from now on."""
        self._then.reseed_rng()


class UnvisitedPoints(BaseSampler):
    """Proposes points one after the other, each until somebody has taken it.

    Optuna's own grid draws by lot and calls a failed point done; here what a dead worker left comes again, and of
    workers that draw the same at once ``workers.claim`` lets one through.
    """

    def __init__(self, space: Space, points: Sequence[Point]) -> None:
        self._space, self._points = space, points

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All settings: they are proposed together."""
        return self._space.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first point that nobody has taken; where there is none, the first of all, which will be withdrawn."""
        left = first_unvisited(self._points, Trials.of(study, self._space))
        return self._space.drawn_for(left or self._points[0])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One setting alone, of a trial whose others were given."""
        return self.sample_relative(study, trial, self._space.distributions)[param_name]


def first_unvisited(points: Sequence[Point], trials: Trials) -> Point | None:
    """The first point that no trial is about; None where all are taken."""
    taken = trials.tried
    return next((point for point in points if key_of(point) not in taken), None)


def plan_of(name: Sampler, space: Space, recipe: Recipe) -> Sequence[Point] | None:
    """All that will be tried, where that is known before anything is; None: the sampler finds its way.

    Args:
        name: of the sampler.
        space: what is searched.
        recipe: as it is.

    Raises:
        RecipeError: the space has no end, too many points, or not those of the recipe.
    """
    if name not in (Sampler.GRID, Sampler.EACH):
        return None
    endless = [setting for setting in space.settings if setting.values is None]
    if endless:
        one = endless[0]
        raise RecipeError(
            f"--sampler {name}: {one.key}={one.written} has no end; name its values, or say how many: "
            f"{one.key}={one.written}:points=5"
        )
    if name is Sampler.EACH:
        start = space.point_of_recipe(recipe)
        try:
            space.drawn_for(start)
        except ValueError as error:
            raise RecipeError(f"--sampler each: {error}: it changes one setting of the recipe at a time") from None
        others = [{**start, one.key: value} for one in space.settings for value in one.values or ()]
        return [start, *(point for point in others if point != start)]
    if (space.size or 0) > MOST_POINTS:
        raise RecipeError(f"--sampler grid: {space.size:,} points are more than anybody trains; name fewer values")
    return list(space.points())


def sampler_named(name: Sampler, space: Space, seed: int, plan: Sequence[Point] | None = None) -> BaseSampler:
    """A sampler for this process.

    Args:
        name: which.
        space: what is searched.
        seed: of the recipe; a process alone proposes the same again, several never propose alike.
        plan: as ``plan_of`` gives it.
    """
    if plan is not None:
        return UnvisitedPoints(space, plan)
    if name is Sampler.RANDOM:
        return RandomSampler(seed)
    return TPESampler(seed=seed, n_startup_trials=UNDIRECTED_TRIALS, multivariate=True, constant_liar=True)


def seed_of_worker(seed: int, trials: int) -> int:
    """The first process at a study draws by the recipe's seed; one that joins or goes on draws otherwise.

    Args:
        seed: of the recipe.
        trials: that the study has already.
    """
    return seed if trials == 0 else random.Random(f"{seed}:{trials}:{this_process()}:{time.time_ns()}").getrandbits(32)


def pruner_named(name: Pruner) -> BasePruner:
    """A pruner over the evaluations of a training, the first of which is 1."""
    if name is Pruner.MEDIAN:
        return MedianPruner(TRIALS_TO_COMPARE, n_warmup_steps=FIRST_PRUNED_EVALUATION)
    if name is Pruner.HALVING:
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return NopPruner()
