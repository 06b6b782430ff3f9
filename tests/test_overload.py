"""Three times as much as a real server can do: it refuses the rest quickly, loses nothing, and recovers at once."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import ServeSettings
from tritonrank.serve.models import engine_inputs
from tritonrank.serve.server import LocalTriton
from tritonrank.serve.triton_config import as_text, model_configs
from tritonrank_runtime.cores import available_cores

from loadtests.objectives import Objectives, judged
from loadtests.results import Run
from loadtests.session import Session
from loadtests.settings import LoadSettings
from loadtests.shapes import plan_of
from loadtests.target import LiveServer

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # three times what the server can do, in real time

CANDIDATES = 60
DEADLINE_MS = 1_000
ATTEMPTS = 3  # on a crowded machine the generator itself may come too late, and says so
CATALOGUE = 200
"""Items that are offered again and again, as a shop's are: the server knows their token ids soon."""
WORDS = ("desk", "lamp", "oak", "steel", "blue", "grey", "bottle", "bag", "tent", "led", "warm", "light")
PAUSE_SECONDS = 0.05
SATURATION = 0.8 * 2 / PAUSE_SECONDS
"""Requests per second: two lanes, and a fifth for everything else."""
SLOWER = """
import time

at_once = TritonPythonModel.initialize


def initialize(self, args):
    at_once(self, args)
    run = self.engine.run

    def after_a_pause(tensors, **options):
        time.sleep(PAUSE_SECONDS * len(tensors))
        return run(tensors, **options)

    self.engine.run = after_a_pause


TritonPythonModel.initialize = initialize
"""
OBJECTIVES = Objectives.model_validate(
    {
        "load": {"rate": 1, "candidates": CANDIDATES, "deadline_ms": DEADLINE_MS},
        "overload": {
            "goodput_of_peak": 0.85,
            "p99_of_saturation": 3,  # of so few requests p99 is the slowest, on a machine with other work
            "rejection_ms": DEADLINE_MS / 2,
            "memory_growth": 0.1,  # one small process, in which caches still fill
            "recovery_seconds": 2,
        },
    }
)


@pytest.fixture(scope="module")
def triton(joint_workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """The tiny ranker with a pause for what a real one would compute, and with recipes' own queue.

    Without it tokenizing and sending texts would cost more than scoring them, and the load's own processes would starve
    the server that they measure.
    """
    repository = tmp_path_factory.mktemp("overload") / "repository"
    shutil.copytree(joint_workspace.repository, repository)
    settings = ServeSettings(deadline_ms=2 * DEADLINE_MS, max_candidates=CANDIDATES)
    inputs = engine_inputs(repository / "ranker" / "1")
    for name, config in model_configs(settings, inputs, available_cores()).items():
        (repository / name / "config.pbtxt").write_text(as_text(config), encoding="utf-8")
    with (repository / "ranker" / "1" / "model.py").open("a", encoding="utf-8") as file:
        file.write(SLOWER.replace("PAUSE_SECONDS", str(PAUSE_SECONDS)))
    with LocalTriton(repository) as triton:
        yield triton


@pytest.fixture(scope="module")
def overloaded(triton: LocalTriton, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("workload") / "workload.jsonl"
    write_workload(path)
    server = LiveServer(triton.grpc_url, triton.http_url, triton.metrics_url, triton.pid)
    settings = LoadSettings(path, plan_of("closed", rate=1, seconds=1), deadline_seconds=DEADLINE_MS / 1_000)
    plan = plan_of("overload", rate=SATURATION, seconds=10, warm_up_seconds=1)
    for _ in range(ATTEMPTS):
        run = judged(Session(server, "grpc", settings).send(plan), OBJECTIVES)
        if run.client.valid:
            break
    return run


def write_workload(path: Path) -> None:
    draw = random.Random(3)
    catalogue = [" ".join(draw.choices(WORDS, k=10)) + f" {place}" for place in range(CATALOGUE)]
    with path.open("w", encoding="utf-8") as file:
        at_seconds = 0.0
        for number in range(100):
            at_seconds += draw.expovariate(1.0)
            line = {
                "number": number,
                "at_seconds": at_seconds,
                "user_id": f"u{number}",
                "query": "desk",
                "history": [" ".join(draw.choices(WORDS, k=12)) for _ in range(4)],
                "items": draw.sample(catalogue, CANDIDATES),
                "item_ids": [str(place) for place in range(CANDIDATES)],
                "labels": None,
            }
            file.write(json.dumps(line) + "\n")


def test_the_objectives_of_an_overload_are_met(overloaded: Run) -> None:
    assert overloaded.client.valid, overloaded.client.why
    missed = [verdict for verdict in overloaded.verdicts if not verdict.met]
    assert missed == [], [phase.model_dump() for phase in overloaded.phases]


def test_most_of_an_overload_is_refused_and_hardly_anything_expires(overloaded: Run) -> None:
    phase = overloaded.phase("overload")
    assert phase is not None
    totals = phase.totals
    assert totals.failed["rejected"] > 0.4 * totals.offered
    assert set(totals.failed) <= {"rejected", "expired"}
    assert totals.failed.get("expired", 0) < 0.05 * totals.offered
    assert totals.latency.p99 is not None
    assert totals.latency.p99 < DEADLINE_MS


def test_what_is_refused_or_expired_is_never_computed(overloaded: Run) -> None:
    """The scorer ran once for each answer, and for the few whose client had gone meanwhile."""
    computed = sum(second.counters.get("tritonrank_requests_scored_total", 0) for second in overloaded.server)
    totals = [phase.totals for phase in overloaded.phases]
    answered = sum(one.answered for one in totals)
    expired = sum(one.failed.get("expired", 0) for one in totals)
    assert answered - 5 <= computed <= answered + expired + 5
