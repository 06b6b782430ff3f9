"""Each part of the whole service is attacked in turn under load, and the ledger has no request or event missing.

All attacks, and for longer, by hand: python -m loadtests chaos ARTIFACTS --store valkey --seconds 10
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_catalogue import tiny_catalogue
from tritonrank.artifacts import write_artifact
from tritonrank.artifacts.workspace import Workspace
from tritonrank.recipe import Recipe
from tritonrank.serve.models import write_golden_cases, write_models
from tritonrank_runtime.cores import available_cores
from typer.testing import CliRunner

from loadtests.__main__ import app
from loadtests.chaos.ledger import Became, became
from loadtests.chaos.system import StoreKind, System
from loadtests.chaos.verb import Ledger, Outcome, attack_each, show
from loadtests.checks import GOLDEN_FILE

RATE = 16.0
SECONDS = 1.5
IN_ONE = (
    "kill -9 ranker",
    "kill -9 gateway",
    "network to ranker forgotten",
    "network to ranker corrupt",
    "store locked",
    "disk full",
    "clock of callers steps",
)
IN_STEPS = ("kill -9 score", "SIGSTOP select", "slow tokenize", "kill -9 store", "network to store forgotten")


def attacked(artifacts: Path, folder: Path, store: StoreKind, attacks: tuple[str, ...]) -> Ledger:
    with System(artifacts, folder, store) as system:
        ledger = attack_each(system, list(attacks), seconds=SECONDS, rate=RATE)
    show(ledger)
    return ledger


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.patient
@pytest.mark.timeout(400)
def test_a_service_with_a_file_as_its_store_stands_its_attacks(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.repository, tmp_path / "tiny" / "repository")
    tiny_catalogue(tmp_path / "tiny" / "catalogue")
    ledger = attacked(tmp_path / "tiny", tmp_path / "system", "sqlite", IN_ONE)
    assert ledger.passed, ledger
    found = {one.attack: one for one in ledger.outcomes}
    assert set(found) == set(IN_ONE)
    assert found["kill -9 ranker"].server_restarts == 1
    assert found["kill -9 gateway"].gateway_starts == 1
    assert ledger.acknowledged > 100


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.patient
@pytest.mark.timeout(400)
def test_a_service_with_a_model_for_each_step_and_valkey_stands_its_attacks(
    workspace: Workspace, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    repository = tmp_path / "tiny" / "repository"
    with write_artifact(repository, "assemble", {}, {}) as draft:
        write_models(tiny_recipe.serve, workspace.int8, draft.folder, available_cores(), in_one=False)
        golden = json.loads((workspace.repository / GOLDEN_FILE).read_text(encoding="utf-8"))
        identity = {"artifact": golden["artifact"], "recipe": "tiny", "stage": "quantize"}
        write_golden_cases(identity, golden["cases"], draft.folder, golden["tolerance"])
    tiny_catalogue(tmp_path / "tiny" / "catalogue")
    ledger = attacked(tmp_path / "tiny", tmp_path / "system", "valkey", IN_STEPS)
    assert ledger.passed, ledger
    assert {one.attack for one in ledger.outcomes} == set(IN_STEPS)
    assert ledger.acknowledged > 100


GOOD = Outcome("kill -9 score", {"answered": 40, "refused": 5}, 2.0, 0.5, 1, 0, [])


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"back_seconds": None}, False),
        ({"not_allowed": ["failed after 0.10 s: 500: ..."]}, False),
        ({"counts": {"answered": 0, "refused": 45}}, False),
    ],
)
def test_a_ledger_passes_only_where_all_holds(change: dict[str, Any], passed: bool) -> None:
    outcome = replace(GOOD, **change)
    assert outcome.passed == passed
    assert Ledger([outcome], 10, 0, [], []).passed == passed


@pytest.mark.parametrize(
    "change",
    [{"acknowledged": 0}, {"given_up": 1}, {"lost": ["u: event 1"]}, {"twice": ["u: event 1"]}, {"outcomes": []}],
)
def test_a_ledger_without_all_events_does_not_pass(change: dict[str, Any]) -> None:
    assert Ledger([GOOD], 10, 0, [], []).passed
    assert not replace(Ledger([GOOD], 10, 0, [], []), **change).passed


RANKED = '{"ranking": [{"index": 1, "logit": 2.0}, {"index": 0, "logit": 1.0}]}'


@pytest.mark.parametrize(
    ("status", "text", "scores", "expected"),
    [
        (200, RANKED, [1.0, 2.0], "answered"),
        (200, RANKED, [1.0, 2.1], "wrong"),
        (200, RANKED, [1.0, 2.0, 3.0], "wrong"),
        (200, "{", [1.0], "wrong"),
        (200, '{"items": [1]}', None, "answered"),
        (200, '{"items": [1], "degraded": true}', None, "degraded"),
        (200, '{"items": []}', None, "wrong"),
        (503, "{}", None, "refused"),
        (429, "{}", [1.0], "refused"),
        (500, "{}", None, "failed"),
        (422, "{}", None, "failed"),
        (503, '{"error": "Traceback (most recent call last)"}', None, "wrong"),
    ],
)
def test_what_an_answer_means(status: int, text: str, scores: list[float] | None, expected: Became) -> None:
    assert became(status, text, scores)[0] == expected


def test_what_cannot_be_attacked_is_told_in_one_message(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["chaos", str(tmp_path)])
    assert done.exit_code == 2
    assert "tritonrank build" in done.output
