"""Several workers at one study: nothing twice, nothing lost, whoever dies. Trials are a formula here."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import TrialState
from search_bench import QuickBench, formula, open_quick_study, quick_bench, search_with, start_worker
from test_data_databases import postgres  # noqa: F401 - a fixture
from tritonrank.errors import RecipeError, StorageError
from tritonrank.search import workers
from tritonrank.search.choices import Pruner, Sampler
from tritonrank.search.proposals import plan_of, pruner_named, sampler_named
from tritonrank.search.search import Budget, Search
from tritonrank.search.storage import open_storage, shown
from tritonrank.search.study import MOST_DEATHS, WHY, WORKER, Trials, open_study
from tritonrank.search.workers import GRACE_SECONDS, REPEATS, SURPLUS, Watchman, beating, claim
from tritonrank.system.processes import this_process
from valkeys import running

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
RATES = "finetune.learning_rate=1e-6..1e-2:log"
GRID = ("finetune.learning_rate=1e-5,1e-4,1e-3", "finetune.epochs=1,2,3,4")
POINT = {"finetune.learning_rate": 1e-3, "finetune.epochs": 2.0}
ELSEWHERE = "another-machine/1234:77:1700000000"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["study.db", "study.journal"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / request.param)


def run(bench: QuickBench, address: str, trials: int | None, sampler: Sampler = Sampler.RANDOM) -> optuna.Study:
    return search_with(bench, address, sampler, trials)


def ran(folder: Path) -> list[tuple[str, str]]:
    """Process and settings of every trial that was begun."""
    return [(line.split()[0], line.split()[1]) for line in (folder / "ran.txt").read_text().splitlines()]


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_grid_is_exhausted_exactly_once(tmp_path: Path, address: str) -> None:
    bench = quick_bench(tmp_path, *GRID)
    study = run(bench, address, None, Sampler.GRID)
    assert [dict(point) for point in bench.ran] == [dict(point) for point in bench.space.points()]
    assert len(Trials.of(study, bench.space).completed) == 12
    again = quick_bench(tmp_path, *GRID)
    run(again, address, None, Sampler.GRID)
    assert not again.ran


def test_each_changes_one_setting_of_the_recipe_at_a_time(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, "finetune.epochs=1,2,3", "finetune.loss=pairwise,listwise")
    run(bench, str(tmp_path / "study.journal"), None, Sampler.EACH)
    tried = [(point["finetune.epochs"], point["finetune.loss"]) for point in bench.ran]
    assert tried == [(1.0, "listwise"), (2.0, "listwise"), (3.0, "listwise"), (1.0, "pairwise")]
    elsewhere = quick_bench(tmp_path, "finetune.epochs=2,3")
    with pytest.raises(RecipeError, match=r"each: finetune\.epochs is 1\.0 in the recipe, which 2,3 does not hold"):
        run(elsewhere, str(tmp_path / "other.journal"), None, Sampler.EACH)


def test_more_trials_go_on_with_a_study_and_the_first_is_the_recipe(tmp_path: Path, address: str) -> None:
    bench = quick_bench(tmp_path, RATES)
    run(bench, address, 3)
    assert bench.ran[0] == {"finetune.learning_rate": 8e-5}
    study = run(bench, address, 5)
    assert len(bench.ran) == len(Trials.of(study, bench.space).completed) == 5
    assert len({point["finetune.learning_rate"] for point in bench.ran}) == 5


def test_tpe_finds_more_than_chance_would(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, RATES)
    run(bench, str(tmp_path / "study.journal"), 30, Sampler.TPE)
    later = [formula(point) for point in bench.ran[15:]]
    assert sum(later) / len(later) > 0.45  # a draw by lot has 0.4 on average


def test_only_the_best_trials_folder_is_kept(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, *GRID)
    study = run(bench, str(tmp_path / "study.journal"), None, Sampler.GRID)
    best = Trials.of(study, bench.space).best
    assert best is not None
    assert bench.folders() == {bench.folder_name(bench.space.point_of(best.params))}


def test_two_workers_share_a_study_and_try_nothing_twice(tmp_path: Path, address: str) -> None:
    arguments = (tmp_path, address, Sampler.GRID, GRID, None, 0.2)
    both = [start_worker(*arguments), start_worker(*arguments)]
    for worker in both:
        worker.join(90)
        assert worker.exitcode == 0
    begun = ran(tmp_path)
    assert len({settings for _, settings in begun}) == len(begun) == 12
    assert len({process for process, _ in begun}) == 2
    bench = quick_bench(tmp_path, *GRID)
    study = open_quick_study(bench, address)
    assert len(Trials.of(study, bench.space).completed) == 12


@pytest.fixture(params=["postgres", "valkey"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of a test's own."""
    if request.param == "postgres":
        yield request.getfixturevalue("postgres").replace("reader@", "owner@")
        return
    with running(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.mark.slow
def test_two_workers_share_a_study_in_a_database(tmp_path: Path, database: str) -> None:
    arguments = (tmp_path, database, Sampler.GRID, GRID, None, 0.2)
    both = [start_worker(*arguments), start_worker(*arguments)]
    for worker in both:
        worker.join(90)
        assert worker.exitcode == 0
    begun = ran(tmp_path)
    assert len({settings for _, settings in begun}) == len(begun) == 12
    assert len({process for process, _ in begun}) == 2


def test_two_workers_do_not_try_more_than_was_asked_for(tmp_path: Path) -> None:
    arguments = (tmp_path, str(tmp_path / "study.db"), Sampler.RANDOM, (RATES,), 7, 0.05)
    both = [start_worker(*arguments), start_worker(*arguments)]
    for worker in both:
        worker.join(90)
        assert worker.exitcode == 0
    assert len(ran(tmp_path)) == 7


def test_what_a_killed_worker_left_is_tried_again(tmp_path: Path, address: str) -> None:
    worker = start_worker(tmp_path, address, Sampler.GRID, GRID, None, 1.0)
    wait_until(lambda: (tmp_path / "ran.txt").exists() and bool(ran(tmp_path)))  # it is there before its line is
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    ((_, left),) = ran(tmp_path)
    bench = quick_bench(tmp_path, *GRID)
    study = run(bench, address, None, Sampler.GRID)
    trials = Trials.of(study, bench.space)
    assert [bench.folder_name(point) for point in bench.ran].count(left) == 1
    assert len(trials.completed) == len(bench.ran) == 12
    assert not trials.running


def test_of_two_that_try_the_same_the_first_goes_on(tmp_path: Path, address: str) -> None:
    bench = quick_bench(tmp_path, *GRID)
    study = open_quick_study(bench, address, PartialFixedSampler(POINT, RandomSampler()))
    first, second = (study.ask(bench.space.distributions) for _ in range(2))
    assert claim(study, bench.space, second, None) == REPEATS
    assert claim(study, bench.space, first, None) is None


def test_who_has_not_decided_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DECIDING_SECONDS", 0.5)
    bench = quick_bench(tmp_path, *GRID)
    study = open_quick_study(bench, str(tmp_path / "study.db"))
    study.ask()  # dies before it says what it tries
    later = study.ask(bench.space.distributions)
    started = time.monotonic()
    assert claim(study, bench.space, later, None) is None
    assert time.monotonic() - started >= 0.5
    assert claim(study, bench.space, later, 1) == SURPLUS


def test_a_silent_worker_elsewhere_is_dead_after_a_while_and_a_beating_one_is_not(tmp_path: Path, address: str) -> None:
    bench, clock = quick_bench(tmp_path, *GRID), Clock()
    study = open_quick_study(bench, address)
    silent, alive = (study.ask(bench.space.distributions) for _ in range(2))
    for trial in (silent, alive):
        trial.set_user_attr(WORKER, ELSEWHERE)
    watchman = Watchman(study, bench.space, clock)
    assert watchman.retire_dead() == []
    assert watchman.is_unsure()
    clock.now += GRACE_SECONDS - 1
    alive.set_user_attr(workers.BEAT, 1)
    assert watchman.retire_dead() == []
    clock.now += 2
    assert watchman.retire_dead() == [silent.number]
    assert not watchman.is_unsure()
    trials = Trials.of(study, bench.space)
    assert trials.unfinished == [bench.space.point_of(silent.params)]


def test_settings_that_kill_every_worker_are_given_up(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, "finetune.epochs=1,2")
    sampler = PartialFixedSampler({"finetune.epochs": 2.0}, RandomSampler())
    study = open_quick_study(bench, str(tmp_path / "study.db"), sampler)
    watchman = Watchman(study, bench.space)
    for deaths in range(MOST_DEATHS):
        assert len(Trials.of(study, bench.space).unfinished) == min(1, deaths)
        trial = study.ask(bench.space.distributions)
        assert trial.params == {"finetune.epochs": 2.0}
        trial.set_user_attr(WORKER, this_process())  # of this process, which runs none now
        assert watchman.retire_dead() == [trial.number]
    trials = Trials.of(study, bench.space)
    assert not trials.unfinished
    assert len(trials.given_up) == 1
    run(bench, str(tmp_path / "study.db"), None, Sampler.GRID)
    assert bench.ran == [{"finetune.epochs": 1.0}]


def test_a_worker_beats_while_it_works(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, *GRID)
    study = open_quick_study(bench, str(tmp_path / "study.db"))
    trial = study.ask(bench.space.distributions)
    with beating(trial, seconds=0.01):
        wait_until(lambda: study.trials[0].user_attrs.get(workers.BEAT, 0) >= 2)
    assert study.trials[0].user_attrs[WORKER] == this_process()


def test_a_worker_that_was_taken_for_dead_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = str(tmp_path / "study.db")
    bench = quick_bench(tmp_path, "finetune.epochs=1,2")

    def taken_over(point: object) -> float:
        other = optuna.load_study(study_name="small", storage=open_storage(address))
        if len(bench.ran) == 1:
            other.tell(other.trials[-1].number, state=TrialState.FAIL)
        return 0.5

    bench = quick_bench(tmp_path, "finetune.epochs=1,2", value=taken_over)
    study = run(bench, address, None, Sampler.GRID)
    assert "another one took it over" in capsys.readouterr().out
    assert len(Trials.of(study, bench.space).completed) == 2


def test_settings_that_cannot_be_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def value(point: object) -> float:
        if point == {"finetune.epochs": 2.0}:
            raise RecipeError("two is not possible")
        return 0.5

    bench = quick_bench(tmp_path, "finetune.epochs=1,2,3", value=value)
    study = run(bench, str(tmp_path / "study.db"), None, Sampler.GRID)
    trials = Trials.of(study, bench.space)
    assert "two is not possible" in capsys.readouterr().out
    assert [trial.user_attrs[WHY] for trial in trials.faulty] == ["error"]
    assert (len(trials.completed), len(bench.ran)) == (2, 3)


def test_a_full_disk_ends_the_search_and_the_trial_comes_again(tmp_path: Path) -> None:
    def full(point: object) -> float:
        raise StorageError("no space")

    address = str(tmp_path / "study.db")
    with pytest.raises(StorageError, match="no space"):
        run(quick_bench(tmp_path, RATES, value=full), address, 3)
    bench = quick_bench(tmp_path, RATES)
    study = run(bench, address, 3)
    assert bench.ran[0] == {"finetune.learning_rate": 8e-5}
    assert len(Trials.of(study, bench.space).completed) == 3


@pytest.mark.parametrize("pruner", [Pruner.MEDIAN, Pruner.HALVING])
def test_a_training_below_the_others_is_ended_early(tmp_path: Path, pruner: Pruner) -> None:
    rates = "finetune.learning_rate=1e-3,2e-3,5e-4,4e-3,2e-4,1e-6"
    bench = quick_bench(tmp_path, rates)
    storage = open_storage(str(tmp_path / "study.db"))
    plan = plan_of(Sampler.GRID, bench.space, bench.recipe)
    sampler = sampler_named(Sampler.GRID, bench.space, 5, plan)
    study = open_study(storage, "small", {}, bench.space, sampler, pruner_named(pruner))
    Search(bench, study, Budget(None, None), plan).run()
    trials = Trials.of(study, bench.space)
    last = study.trials[-1]
    assert last.params["finetune.learning_rate"] == 1e-6
    assert last.state is TrialState.PRUNED
    assert max(last.intermediate_values) < 4
    assert trials.best is not None
    assert trials.best.params["finetune.learning_rate"] == 1e-3
    assert bench.folder_name(bench.space.point_of(last.params)) not in bench.folders()


def test_time_ends_a_training_which_comes_first_next_time(tmp_path: Path) -> None:
    clock = Clock()

    def slow(point: object) -> float:
        clock.now += 100.0
        return 0.5

    bench = quick_bench(tmp_path, RATES, value=slow)
    study = open_quick_study(bench, str(tmp_path / "study.db"))
    Search(bench, study, Budget(5, 60.0, clock)).run()
    trials = Trials.of(study, bench.space)
    assert (len(trials.completed), trials.unfinished) == (0, bench.ran)
    assert bench.folders() == {bench.folder_name(bench.ran[0])}  # its checkpoints
    Search(bench, study, Budget(1, None, clock)).run()
    assert bench.ran[1] == bench.ran[0]


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    bench = quick_bench(tmp_path, RATES)
    storage = open_storage(str(tmp_path / "study.db"))
    sampler, pruner = sampler_named(Sampler.TPE, bench.space, 1), pruner_named(Pruner.NONE)
    open_study(storage, "mine", {"dataset": "a", "text": 1}, bench.space, sampler, pruner)
    open_study(storage, "mine", {"dataset": "a", "text": 1}, bench.space, sampler, pruner)
    with pytest.raises(RecipeError, match="mine was begun with another dataset"):
        open_study(storage, "mine", {"dataset": "b", "text": 1}, bench.space, sampler, pruner)
    other = quick_bench(tmp_path, "finetune.epochs=1,2")
    with pytest.raises(RecipeError, match="another --over"):
        open_study(storage, "mine", {"dataset": "a", "text": 1}, other.space, sampler, pruner)


def test_no_password_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_PASSWORD", "hunter3")
    for address, secret in (
        ("postgresql://me:hunter2@127.0.0.1:1/studies", "hunter2"),
        ("postgresql://me:${STUDY_PASSWORD}@127.0.0.1:1/studies", "hunter3"),
        ("oracle://me:hunter2@db/studies", "hunter2"),
        ("redis://me:hunter2@127.0.0.1:1/0", "hunter2"),
    ):
        with pytest.raises(StorageError) as raised:
            open_quick_study(quick_bench(tmp_path, RATES), address)
        assert secret not in str(raised.value)
        assert shown(address) in str(raised.value)
        assert secret not in shown(address)
    with pytest.raises(StorageError, match="NOT_SET is not set"):
        open_storage("postgresql://me:${NOT_SET}@127.0.0.1:1/studies")
    with pytest.raises(StorageError, match=r"is a folder.*study\.db"):
        open_storage(str(tmp_path))
