"""Search for serving settings that suit this machine: which can do the most while the objectives are met?

Optuna proposes settings of the recipe's ``serve`` section, each trial is a repository of its own behind a server of
its own, and the objectives judge (tune_trial.py). The first trial is the recipe as it is. At the end that and the best
found are measured again, by turns, because the best of many noisy figures is partly luck: only a gain that exceeds what
equal settings differ by is called one. Trials are kept in a journal, so a search that was interrupted goes on; a study
is for one combination of recipe, what was built from it, machine, workload and objectives; another begins its own.

What is found goes to a file that the pipeline takes as it is: ``tritonrank assemble RECIPE --set @best.yaml``.
"""

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import optuna
import typer
import yaml
from optuna.distributions import CategoricalChoiceType
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tritonrank.rankers.architectures import architecture_of_files
from tritonrank_runtime.cores import available_cores
from tritonrank_runtime.repository import model_folders

from loadtests.console import fail
from loadtests.generator import GeneratorError
from loadtests.machine import describe_machine
from loadtests.objectives import ObjectivesError
from loadtests.results import RunFileError, write_whole
from loadtests.runs import sha256_file
from loadtests.session import SLO, ProtocolOption, SloOption, objectives_or_exit
from loadtests.target import TargetError
from loadtests.tune_trial import REPOSITORY, Bench, Choices, Measurement, TrialError, set_options
from loadtests.workload import WorkloadError, read_workload

AS_IT_IS = "as it is"
"""Choice of every setting: what the recipe has."""
TURNS = 3
"""How often the recipe as it is and the best are measured again at the end, by turns."""
FEWEST_GAIN = 0.03
"""Smaller gains are not called one, however well they repeat."""
REPEATS_BEFORE_END = 25
"""Proposals that were all measured before: the space is used up."""
SEED = 17

MeasureCall = Callable[[Choices], Measurement]
Tell = Callable[[str], None]
Space = Mapping[str, Sequence[CategoricalChoiceType]]
TRIAL_FAULTS = (TrialError, TargetError, GeneratorError, RunFileError, ObjectivesError)

console = Console(stderr=True, emoji=False)


@dataclass(frozen=True)
class Outcome:
    """What a search came to."""

    best: dict[str, object]
    """settings that differ from the recipe's; empty: nothing better was found"""
    candidate: dict[str, object]
    """the best of the trials, whether or not it stood the second look"""
    before: list[Measurement]
    """of the recipe as it is, measured again at the end"""
    after: list[Measurement]
    """of the candidate"""
    noise: float
    """largest difference, as a share, between measurements of equal settings"""
    trials: int
    failed: dict[str, str] = field(default_factory=dict)
    """settings that could not be measured, and why"""

    @property
    def gain(self) -> float:
        """Answered per second of the candidate by those of the recipe as it is, from the same run; 1 without one."""
        if not self.before or not self.after:
            return 1.0
        before = statistics.fmean(one.answered_per_second for one in self.before)
        return statistics.fmean(one.answered_per_second for one in self.after) / before if before else 1.0


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe that was built")],
    artifacts: Annotated[Path, typer.Option(help="Folder that holds one folder per recipe")] = Path("artifacts"),
    workload: Annotated[
        Path | None, typer.Option(help="What `tritonrank workload` wrote; default: workload.jsonl of the artifacts")
    ] = None,
    slo: SloOption = SLO,
    minutes: Annotated[float, typer.Option(min=0.1, help="All of it, the second look at the end included")] = 30.0,
    trial_seconds: Annotated[float, typer.Option(min=2, help="Of each of a trial's two loads")] = 15.0,
    clients: Annotated[int, typer.Option(min=1, help="That wait for their answers, to see what is possible")] = 4,
    protocol: ProtocolOption = "grpc",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For all trials alike, such as a data.path")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the journal and the result; default: ARTIFACTS/tune")
    ] = None,
) -> None:
    """Search for better serving settings within a time budget; resumes where it was interrupted."""
    objectives = objectives_or_exit(slo)
    try:
        folder = artifacts / _name_of(recipe)
        requests = workload or folder / "workload.jsonl"
        read_workload(requests)
        bench = Bench(recipe, tuple(overrides or ()), folder, requests, objectives, trial_seconds, clients, protocol)
        space = search_space(folder, available_cores())
        place = out or folder / "tune"
        study = open_study(place / "journal.log", identity_of(bench, space))
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
        ) as progress:
            task = progress.add_task("tuning", total=60 * minutes)

            def tell(what: str) -> None:
                progress.console.print(what, markup=False, highlight=False)

            def measure(choices: Choices) -> Measurement:
                progress.update(task, description=", ".join(set_options(choices)) or AS_IT_IS)
                started = time.monotonic()
                try:
                    return bench.measure(choices)
                finally:
                    progress.advance(task, time.monotonic() - started)

            outcome = search(study, space, measure, 60 * minutes, tell)
    except (WorkloadError, *TRIAL_FAULTS) as error:
        fail(str(error))
    shutil.rmtree(bench.work, ignore_errors=True)  # links, and the last trial's repository
    path = write_outcome(outcome, place, bench)
    show(outcome, path, recipe)
    raise typer.Exit(0)


def search_space(artifacts: Path, cores: int) -> Space:
    """Settings of the serve section that decide speed, with the values to try; the first is what the recipe has.

    Args:
        artifacts: artifacts/<recipe>, whose model decides which settings mean anything.
        cores: of this machine.

    Raises:
        TrialError: nothing was built.
    """
    model = model_folders(artifacts / REPOSITORY).scorer
    if not model.is_dir():
        raise TrialError(f"{model}: no such folder. Build it first: tritonrank build RECIPE")
    architecture = architecture_of_files(path.name for path in model.iterdir())
    some_cores = sorted({1, max(1, cores // 2), cores})
    choices: dict[str, Sequence[CategoricalChoiceType]] = {
        "serve.instances": sorted({1, 2, max(1, cores // 2), cores}),
        "serve.threads": some_cores,
        **architecture.speed_settings,
    }
    return {key: [AS_IT_IS, *values] for key, values in choices.items()}


def identity_of(bench: Bench, space: Space) -> str:
    """Trials can be compared where all of this is the same, what was built from the recipe included."""
    parts = {
        "recipe": bench.recipe.read_text(encoding="utf-8"),
        "artifacts": {path.parent.name: sha256_file(path) for path in bench.artifacts.glob("*/manifest.json")},
        "overrides": bench.overrides,
        "workload": sha256_file(bench.workload),
        "objectives": bench.objectives.model_dump(),
        "seconds": bench.seconds,
        "clients": bench.clients,
        "protocol": bench.protocol,
        "machine": [describe_machine().processor, available_cores()],
        "space": {key: list(values) for key, values in space.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def open_study(journal: Path, identity: str) -> optuna.Study:
    """The study of this name in a journal; trials that an interrupted search left running count as failed."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=identity,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=SEED, multivariate=False),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def search(study: optuna.Study, space: Space, measure: MeasureCall, seconds: float, tell: Tell) -> Outcome:
    """Trials until the time is nearly up, then the recipe as it is and the best once more, by turns.

    Args:
        study: may hold trials of an earlier search.
        space: values of each setting.
        measure: one trial.
        seconds: for everything.
        tell: takes a line of progress.

    Raises:
        TrialError, TargetError, GeneratorError: the recipe as it is cannot be measured.
    """
    started = time.monotonic()
    failed: dict[str, str] = {}
    known = {_key(_choices(trial.params)): trial for trial in _completed(study)}
    if _key({}) not in known:
        study.enqueue_trial(dict.fromkeys(space, AS_IT_IS))
    longest = repeats = 0.0
    while repeats < REPEATS_BEFORE_END and (
        time.monotonic() - started + (2 * TURNS + 1) * longest < seconds or _key({}) not in known
    ):
        trial = study.ask()
        choices = _choices({key: trial.suggest_categorical(key, values) for key, values in space.items()})
        if (same := known.get(_key(choices))) is not None:
            # Not a second measurement: the study would take luck for certainty.
            trial.set_user_attr("repeats", same.number)
            study.tell(trial, same.value)
            repeats += 1
            continue
        repeats = 0
        begun = time.monotonic()
        try:
            found = measure(choices)
        except TRIAL_FAULTS as error:
            study.tell(trial, state=TrialState.FAIL)
            if not choices:
                raise
            failed[_key(choices)] = str(error)
            tell(f"trial {trial.number}: {_key(choices)}: {str(error).splitlines()[0]}")
            continue
        trial.set_user_attr("measurement", asdict(found))
        study.tell(trial, found.value)
        known[_key(choices)] = study.trials[trial.number]
        longest = max(longest, time.monotonic() - begun)
        tell(f"trial {trial.number}: {_key(choices)}: {_in_words(found)}")
    return _second_look(study, measure, failed, tell)


def is_gain(before: Sequence[Measurement], after: Sequence[Measurement]) -> bool:
    """Whether equal settings would hardly look like this.

    Every measurement of the candidate has to be better than every one of the recipe as it is (three of each are so in
    one of twenty cases if they are really equal), their mean by FEWEST_GAIN; and no objective may be missed, unless
    the recipe as it is misses some each time, too.
    """
    if len(before) < TURNS or len(after) < TURNS:
        return False
    if any(one.missed for one in after) and not all(one.missed for one in before):
        return False
    values = [[one.answered_per_second for one in measurements] for measurements in (before, after)]
    return min(values[1]) > max(values[0]) and sum(values[1]) > (1 + FEWEST_GAIN) * sum(values[0])


def write_outcome(outcome: Outcome, folder: Path, bench: Bench) -> Path:
    """``best.yaml``, for --set @FILE, and ``tune.json`` with everything that was measured; whole or not at all.

    Returns:
        The path of best.yaml; it is removed where nothing better was found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = folder / "best.yaml"
    everything = {
        "recipe": str(bench.recipe),
        "machine": describe_machine().model_dump(),
        "workload_sha256": sha256_file(bench.workload),
        "objectives": bench.objectives.model_dump(),
        "gain": round(outcome.gain, 4),
        **asdict(outcome),
    }
    write_whole(folder / "tune.json", json.dumps(everything, indent=1) + "\n")
    if outcome.best:
        settings: dict[str, dict[str, object]] = {}
        for key, value in outcome.best.items():
            section, _, name = key.partition(".")
            settings.setdefault(section, {})[name] = value
        head = f"# Found by `python -m loadtests tune {bench.recipe}`: {outcome.gain:.2f} times the recipe as it is.\n"
        use = f"# Use: tritonrank assemble {bench.recipe} --set @{best}, or copy into the recipe.\n"
        write_whole(best, head + use + yaml.safe_dump(settings, sort_keys=False))
    else:
        best.unlink(missing_ok=True)
    return best


def show(outcome: Outcome, path: Path, recipe: Path) -> None:
    """The verdict for people, and a line of JSON."""
    table = Table("settings", "answered/s", "p50 ms", "p99 ms", "objectives")
    for name, measurements in ((AS_IT_IS, outcome.before), (_key(outcome.candidate), outcome.after)):
        for one in measurements:
            missed = "missed: " + ", ".join(one.missed) if one.missed else "met"
            table.add_row(name, f"{one.answered_per_second:.2f}", f"{one.p50_ms:.0f}", f"{one.p99_ms:.0f}", missed)
    stdout = Console(emoji=False)
    stdout.print(table)
    if outcome.best:
        use = f"tritonrank assemble {recipe} --set @{path}"
        told = f"{outcome.gain:.2f} times what the recipe as it is does (equal settings differ by {outcome.noise:.0%})."
        stdout.print(f"{told}\nUse it: {use}", markup=False, highlight=False, soft_wrap=True)
    else:
        told = f"Nothing better than the recipe as it is was found in {outcome.trials} trial(s)"
        why = f": measured again, the best came to {outcome.gain:.2f} times as much; equal settings differ by "
        stdout.print(told + (f"{why}{outcome.noise:.0%}." if outcome.candidate else "."), markup=False, highlight=False)
    print(json.dumps({"best": outcome.best, "gain": round(outcome.gain, 4), "noise": round(outcome.noise, 4)}))


def _second_look(study: optuna.Study, measure: MeasureCall, failed: dict[str, str], tell: Tell) -> Outcome:
    trials = _completed(study)
    candidate = _choices(max(trials, key=lambda trial: trial.value or 0.0).params)
    before: list[Measurement] = []
    after: list[Measurement] = []
    for _ in range(TURNS if candidate else 0):
        for choices, measurements in (({}, before), (candidate, after)):
            try:
                measurements.append(measure(choices))
            except TRIAL_FAULTS as error:
                failed[f"second look: {_key(choices)}"] = str(error)
                tell(f"second look: {_key(choices)}: {str(error).splitlines()[0]}")
            else:
                tell(f"second look: {_key(choices)}: {_in_words(measurements[-1])}")
    noise = max(map(_spread, (before, after)))
    outcome = Outcome({}, candidate, before, after, noise, len(trials), failed)
    return replace(outcome, best=candidate) if is_gain(before, after) else outcome


def _spread(measurements: Sequence[Measurement]) -> float:
    values = [one.answered_per_second for one in measurements]
    return max(values) / min(values) - 1 if values and min(values) > 0 else 0.0


def _completed(study: optuna.Study) -> list[FrozenTrial]:
    """Those that were really measured."""
    return [one for one in study.get_trials(states=(TrialState.COMPLETE,)) if "measurement" in one.user_attrs]


def _choices(params: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in params.items() if value != AS_IT_IS}


def _key(choices: Choices) -> str:
    return ", ".join(sorted(set_options(choices))) or AS_IT_IS


def _in_words(found: Measurement) -> str:
    missed = f", missed {', '.join(found.missed)}" if found.missed else ""
    return f"{found.answered_per_second:.2f} answered/s, p99 {found.p99_ms:.0f} ms at the objectives' rate{missed}"


def _name_of(recipe: Path) -> str:
    """The recipe's name. Everything else in it is the pipeline's to read.

    Raises:
        TrialError: no such file, or no name in it.
    """
    try:
        return str(yaml.safe_load(recipe.read_text(encoding="utf-8"))["name"])
    except OSError as error:
        raise TrialError(
            f"{recipe}: {error.strerror}. The ones that come with tritonrank: build/recipes/*.yaml"
        ) from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise TrialError(f"{recipe}: not a recipe: {error}") from None
