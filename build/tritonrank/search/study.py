"""A study: what its trials have in common, and which of them count.

A trial that failed says why, in its attribute ``why``: it is the same as another one's (``repeats``), one too many
(``surplus``), its settings cannot be (``error``), or it was ended to go on later (``interrupted``). One that failed
without a word was left by a process that died. The last two kinds are tried again, by a trial of their own; after
MOST_DEATHS deaths over the same settings these are given up.

What waits to be tried follows from the trials alone. Optuna's queue is not used: in SQLite two processes may take the
same entry.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from tritonrank.errors import RecipeError
from tritonrank.search.space import Point, Space, key_of

MOST_DEATHS = 3
"""Workers that may die over the same settings (for lack of memory, say) until they are given up."""
WHY, ERROR, SPACE, ABOUT = "why", "error", "space", "about"
REPEATS, SURPLUS, FAULTY, INTERRUPTED = "repeats", "surplus", "error", "interrupted"
SECONDS, VALUES, WORKER, BEAT = "seconds", "values", "worker", "beat"
NAME_HASH = 8


def name_of_study(recipe_name: str, about: Mapping[str, Any]) -> str:
    """The same for whoever searches the same, so that a second process joins and a later one goes on."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"{recipe_name}-{digest[:NAME_HASH]}"


def open_study(
    storage: BaseStorage, name: str, about: Mapping[str, Any], space: Space, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    """Begin a study, or go on with one.

    Args:
        storage: where it is kept.
        name: of the study.
        about: what its trials depend on beside the space; kept with the study, and compared.
        space: what is searched.
        sampler, pruner: of this process.

    Raises:
        RecipeError: there is a study of this name about something else; the message says what differs.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", sampler=sampler, pruner=pruner, load_if_exists=True
    )
    told = json.loads(json.dumps({ABOUT: about, SPACE: space.written}))
    known = study.user_attrs
    differing = [key for key in told[ABOUT] if ABOUT in known and known[ABOUT].get(key) != told[ABOUT][key]]
    differing += ["--over"] if SPACE in known and known[SPACE] != told[SPACE] else []
    if differing:
        raise RecipeError(
            f"the study {name} was begun with another {', '.join(differing)}: its trials cannot be compared with new "
            "ones. Leave --study out, and this search gets a study of its own; or name another one"
        )
    for key, value in told.items():
        if key not in known:
            study.set_user_attr(key, value)
    return study


def space_of_study(storage: BaseStorage, name: str) -> list[str]:
    """What ``--over`` said when a study was begun.

    Raises:
        RecipeError: there is no such study.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        listed = ", ".join(sorted(names)) or "none"
        raise RecipeError(f"there is no study {name} there, so say what is searched: --over. Studies there: {listed}")
    written = optuna.load_study(study_name=name, storage=storage).user_attrs.get(SPACE, {})
    return [f"{key}={values}" for key, values in written.items()]


@dataclass(frozen=True)
class Trials:
    """All trials of a study, as they stand at one moment."""

    space: Space
    all: tuple[FrozenTrial, ...]

    @classmethod
    def of(cls, study: optuna.Study, space: Space) -> "Trials":
        return cls(space, tuple(study.get_trials(deepcopy=False)))

    def key(self, trial: FrozenTrial) -> str | None:
        """Of its settings; None while it is not decided what it tries, or of a trial of another space."""
        point = self.point(trial)
        return None if point is None else key_of(point)

    def point(self, trial: FrozenTrial) -> Point | None:
        """Its settings, or None, as of ``key``."""
        try:
            return self.space.point_of(trial.params)
        except (KeyError, StopIteration):
            return None

    @property
    def completed(self) -> list[FrozenTrial]:
        return self._in(TrialState.COMPLETE)

    @property
    def pruned(self) -> list[FrozenTrial]:
        return self._in(TrialState.PRUNED)

    @property
    def faulty(self) -> list[FrozenTrial]:
        """Whose settings cannot be, with what happened in their attribute ``error``."""
        return [trial for trial in self._in(TrialState.FAIL) if trial.user_attrs.get(WHY) == FAULTY]

    @property
    def running(self) -> list[FrozenTrial]:
        return self._in(TrialState.RUNNING)

    @property
    def counted(self) -> list[FrozenTrial]:
        """Those that are done, or are being done: what ``--trials`` bounds."""
        return sorted(
            [*self.completed, *self.pruned, *self.faulty, *self.running, *self.given_up], key=lambda one: one.number
        )

    @property
    def dead(self) -> list[FrozenTrial]:
        """Those that a process which died left behind."""
        return [trial for trial in self._in(TrialState.FAIL) if WHY not in trial.user_attrs]

    @property
    def deaths(self) -> Counter[str]:
        """How many workers died over which settings."""
        return Counter(key for trial in self.dead if (key := self.key(trial)) is not None)

    @property
    def given_up(self) -> list[FrozenTrial]:
        """The last trial of settings that too many workers died over."""
        lost = {key for key, times in self.deaths.items() if times >= MOST_DEATHS}
        return list({key: trial for trial in self.dead if (key := self.key(trial)) in lost}.values())

    @property
    def tried(self) -> set[str]:
        """Settings that are done, or are being done."""
        return {key for trial in self.counted if (key := self.key(trial)) is not None}

    @property
    def unfinished(self) -> list[Point]:
        """Settings that were begun and that nobody has taken up again, earliest first."""
        interrupted = [one for one in self._in(TrialState.FAIL) if one.user_attrs.get(WHY) == INTERRUPTED]
        begun = sorted([*self.dead, *interrupted], key=lambda trial: trial.number)
        tried, found = self.tried, {}
        for trial in begun:
            point = self.point(trial)
            if point is not None and key_of(point) not in tried:
                found[key_of(point)] = point
        return list(found.values())

    @property
    def best(self) -> FrozenTrial | None:
        """The one with the highest validation NDCG@10; of equals the first."""
        return max(self.completed, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    def of_key(self, key: str) -> FrozenTrial | None:
        """The completed trial of some settings."""
        return next((trial for trial in self.completed if self.key(trial) == key), None)

    def same_before(self, number: int, key: str) -> FrozenTrial | None:
        """An earlier trial that is counted and tries the same."""
        return next((one for one in self.counted if one.number < number and self.key(one) == key), None)

    def _in(self, *states: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.all if trial.state in states]


def values_of(trial: FrozenTrial) -> Sequence[float]:
    """NDCG@10 of a completed trial, one per validation user, all trials in the same order."""
    values: Iterable[float] = trial.user_attrs.get(VALUES, ())
    return list(values)
