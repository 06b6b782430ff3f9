"""A bench whose trials are a formula, for tests of what happens between trials."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import load_recipe
from tritonrank.search.choices import Sampler
from tritonrank.search.proposals import plan_of, sampler_named
from tritonrank.search.search import Budget, Search
from tritonrank.search.space import Point, read_space
from tritonrank.search.storage import open_storage
from tritonrank.search.study import open_study
from tritonrank.search.trial import Bench
from tritonrank.train.watch import TrainingEndedError, Watch

SMALLEST = "name: small\ndata: {source: sample}\n"
USERS = 10
EVALUATIONS = 4


def formula(point: Point) -> float:
    """Best at a learning rate of 1e-3, and with more epochs."""
    rate = float(point.get("finetune.learning_rate", 1e-3))
    return 0.5 - 0.1 * abs(np.log10(rate) + 3) + 0.01 * float(point.get("finetune.epochs", 1))


@dataclass(frozen=True)
class QuickBench(Bench):
    """Trials without training: four evaluations, and a value by ``formula``."""

    value: Callable[[Point], float] = formula
    seconds: float = 0.0
    ran: list[Point] = field(default_factory=list)
    tested: list[Point] = field(default_factory=list)

    def shared_identity(self) -> str:
        return "shared"

    def has_result(self, point: Point) -> bool:
        return True

    def judge_test_users(self, point: Point) -> NDArray[np.float64]:
        self.tested.append(point)
        return self._values(point)

    def run(self, point: Point, watch: Watch) -> NDArray[np.float64]:
        self.ran.append(point)
        (self.folder / self.folder_name(point)).mkdir(parents=True, exist_ok=True)
        value = self.value(point)
        with (self.folder.parent / "ran.txt").open("a") as log:
            log.write(f"{os.getpid()} {self.folder_name(point)}\n")
        for evaluation in range(1, EVALUATIONS + 1):
            time.sleep(self.seconds / EVALUATIONS)
            if watch(evaluation / EVALUATIONS, value * evaluation / EVALUATIONS):
                raise TrainingEndedError
        return self._values(point)

    def _values(self, point: Point) -> NDArray[np.float64]:
        return self.value(point) + 0.01 * np.arange(USERS)


def quick_bench(folder: Path, *over: str, text: str = SMALLEST, **options: object) -> QuickBench:
    """A bench over a recipe, in a folder of a test's own."""
    recipe = folder / "small.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text, encoding="utf-8")
    space = read_space(recipe, over)
    loaded = load_recipe(recipe)
    shared = Workspace(folder / "artifacts")
    return QuickBench(recipe, (), loaded, space, shared, folder / "trials", **options)  # type: ignore[arg-type]


def open_quick_study(bench: QuickBench, address: str, sampler: BaseSampler | None = None) -> optuna.Study:
    """The study of such a bench; nothing is ended early."""
    sampler = sampler or sampler_named(Sampler.RANDOM, bench.space, 5)
    return open_study(open_storage(address), "small", {}, bench.space, sampler, optuna.pruners.NopPruner())


def search_with(bench: QuickBench, address: str, sampler: Sampler, trials: int | None) -> optuna.Study:
    """Search as the command does; returns the study."""
    plan = plan_of(sampler, bench.space, bench.recipe)
    study = open_quick_study(bench, address, sampler_named(sampler, bench.space, 5, plan))
    Search(bench, study, Budget(trials, None), plan).run()
    return study


def run_worker(
    folder: Path, address: str, sampler: Sampler, over: tuple[str, ...], trials: int | None, seconds: float
) -> None:
    """One worker at a study that others may work at, as a process of its own."""
    bench = quick_bench(folder, *over, seconds=seconds)
    search_with(bench, address, sampler, trials)


def start_worker(*arguments: object) -> multiprocessing.process.BaseProcess:
    """``run_worker`` beside this process."""
    process = multiprocessing.get_context("fork").Process(target=run_worker, args=arguments)
    process.start()
    return process
