"""One trial of tuning: assemble the repository with other settings, start its server, send two loads, stop it.

The loads are the objectives' own (their rate, candidates and deadline, as arrivals that do not wait), and a few clients
that do wait, which finds what the server can do at the most. A setting is worth what it can do at the most, provided
that the objectives are met at their rate; a setting that misses them is worth less than any that does not.

The user's artifacts are not touched: a folder of links takes their place, in which only the repository is new.
"""

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from loadtests.objectives import Objectives, judged
from loadtests.processes import child_environment
from loadtests.session import Session
from loadtests.settings import LoadSettings
from loadtests.shapes import plan_of
from loadtests.target import Protocol, open_target

REPOSITORY, WORK = "repository", "work"
ASSEMBLE_SECONDS = 300.0
STAGES_BEFORE = ("prepare", "finetune", "prune", "distill", "export", "quantize")
OUTPUT_LINES = 8

Choices = Mapping[str, object]
"""Settings by key, such as serve.instances; an empty mapping is the recipe as it is."""


class TrialError(RuntimeError):
    """A setting could not be measured; the message says at which step, with the last lines of its output."""


@dataclass(frozen=True)
class Measurement:
    """What a setting achieved."""

    answered_per_second: float
    """by a few clients that wait for their answers"""
    p50_ms: float
    p99_ms: float
    """both at the objectives' rate"""
    missed: tuple[str, ...] = ()
    """objectives"""
    excess: float = 0.0
    """how far they were missed, the worst one as a share of its limit"""

    @property
    def value(self) -> float:
        """To be maximised: requests per second if every objective is met, else negative, the further the lower."""
        return -1.0 - self.excess if self.missed else self.answered_per_second


@dataclass(frozen=True)
class Bench:
    """Where and how settings are measured.

    Attributes:
        recipe: its file.
        overrides: for all trials alike, as key=value.
        artifacts: artifacts/<recipe>, built.
        workload: requests.
        objectives: whose steady part is judged.
        seconds: of each load.
        clients: that wait for their answers, in the second load.
        protocol: of the clients.
    """

    recipe: Path
    overrides: tuple[str, ...]
    artifacts: Path
    workload: Path
    objectives: Objectives
    seconds: float = 20.0
    clients: int = 4
    protocol: Protocol = "grpc"

    @property
    def work(self) -> Path:
        """Stands in for the artifacts' folder."""
        return self.artifacts / "tune" / WORK / self.artifacts.name

    def measure(self, choices: Choices) -> Measurement:
        """Run one trial.

        Raises:
            TrialError: the repository could not be assembled with these settings.
            TargetError: its server did not start.
            GeneratorError: the load could not be made.
        """
        assemble(self, choices)
        load = self.objectives.load
        with open_target(str(self.work / REPOSITORY)) as server:
            steady = plan_of("steady", rate=load.rate, seconds=self.seconds, warm_up_seconds=self.seconds / 5)
            settings = LoadSettings(self.workload, steady, load.deadline_ms / 1_000, load.candidates)
            session = Session(server, self.protocol, settings)
            at_rate = judged(session.send(steady), self.objectives)
            closed = plan_of("closed", rate=1, seconds=self.seconds, clients=self.clients)
            at_most = session.send(closed)
        for run in (at_rate, at_most):
            if not run.totals.answered:
                raise TrialError("\n".join([f"{run.shape.name}: {run.shortcomings[0]}", *run.failures]))
        if not at_rate.client.valid:
            raise TrialError(f"the load generator fell behind: {at_rate.client.why}")
        phase = at_rate.phase("steady")
        latency = phase.totals.latency if phase else at_rate.totals.latency
        missed = [verdict for verdict in at_rate.verdicts if not verdict.met]
        excesses = [abs(v.found / v.limit - 1) for v in missed if v.found is not None and v.limit]
        return Measurement(
            answered_per_second=at_most.totals.goodput_per_second,
            p50_ms=latency.p50 or 0.0,
            p99_ms=latency.p99 or 0.0,
            missed=tuple(f"{verdict.objective} {verdict.wanted}" for verdict in missed),
            excess=max(excesses, default=1.0) if missed else 0.0,
        )


def assemble(bench: Bench, choices: Choices) -> None:
    """``tritonrank assemble`` into the folder of links.

    Raises:
        TrialError: it failed, took too long, or wanted to train: the artifacts are not those of this recipe.
    """
    link_artifacts(bench.artifacts, bench.work)
    command = [sys.executable, "-m", "tritonrank", "assemble", str(bench.recipe), "--artifacts", str(bench.work.parent)]
    for setting in (*bench.overrides, *set_options(choices)):
        command += ["--set", setting]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=child_environment()
    )
    assert process.stdout is not None
    lines: list[str] = []
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        process.kill()

    # Its output has no end as long as it hangs, so reading it cannot be what watches the clock.
    timer = threading.Timer(ASSEMBLE_SECONDS, give_up)
    timer.start()
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.split()[1:2] == ["->"] and line.split()[0] in STAGES_BEFORE:
                raise TrialError(
                    f"{bench.artifacts}: not what {bench.recipe} builds ({line.split()[0]} would run again). "
                    f"Build it first: tritonrank build {bench.recipe}"
                )
        failed = process.wait() != 0
        if is_late.is_set() or failed:
            what = f"has not ended after {ASSEMBLE_SECONDS:g} s" if is_late.is_set() else "failed"
            raise TrialError(f"assemble {what}:\n" + "\n".join(lines[-OUTPUT_LINES:]))
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def link_artifacts(artifacts: Path, work: Path) -> None:
    """A folder with links to all stages but the repository, so that assembling there changes nothing elsewhere.

    Raises:
        TrialError: nothing was built in ``artifacts``.
    """
    stages = [path for path in sorted(artifacts.glob("*")) if (path / "manifest.json").is_file()]
    stages += [path for path in (artifacts / "judgements",) if path.is_dir()]
    if not any(path.name == REPOSITORY for path in stages):
        raise TrialError(f"{artifacts}: no repository there. Build it first: tritonrank build RECIPE")
    work.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        link = work / stage.name
        if stage.name != REPOSITORY and not link.is_symlink():
            link.symlink_to(stage.resolve(), target_is_directory=True)


def set_options(choices: Choices) -> Sequence[str]:
    """For ``--set``: key=value, the value in YAML."""
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in choices.items()
    ]
