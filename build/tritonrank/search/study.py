"""A study: what its trials have in common, and which of them count.

A trial that failed says why, in its attribute ``why``: it is the same as another one's (``repeats``), one too many
(``surplus``), or its settings cannot be (``error``). One that failed without a word was left by a process that died;
it is tried again, up to MOST_DEATHS times.
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
from tritonrank.search.space import Space, key_of

MOST_DEATHS = 3
"""Workers that may die over the same settings (for lack of memory, say) until they are given up."""
WHY, ERROR, SPACE, ABOUT = "why", "error", "space", "about"
REPEATS, SURPLUS, FAULTY = "repeats", "surplus", "error"
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
        drawn = trial.params or trial.system_attrs.get("fixed_params", {})
        try:
            return key_of(self.space.point_of(drawn))
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
    def waiting(self) -> list[FrozenTrial]:
        return self._in(TrialState.WAITING)

    @property
    def counted(self) -> list[FrozenTrial]:
        """Those that are done, or are being done: what ``--trials`` bounds."""
        return sorted(
            [*self.completed, *self.pruned, *self.faulty, *self.running, *self.given_up], key=lambda one: one.number
        )

    @property
    def deaths(self) -> Counter[str]:
        """How many workers died over which settings."""
        dead = [trial for trial in self._in(TrialState.FAIL) if WHY not in trial.user_attrs]
        return Counter(key for trial in dead if (key := self.key(trial)) is not None)

    @property
    def given_up(self) -> list[FrozenTrial]:
        """The last trial of settings that too many workers died over."""
        lost = {key for key, times in self.deaths.items() if times >= MOST_DEATHS}
        dead = [trial for trial in self._in(TrialState.FAIL) if WHY not in trial.user_attrs]
        return list({key: trial for trial in dead if (key := self.key(trial)) in lost}.values())

    @property
    def tried(self) -> set[str]:
        """Settings that are done, are being done, or wait for somebody to do them."""
        return {key for trial in (*self.counted, *self.waiting) if (key := self.key(trial)) is not None}

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
