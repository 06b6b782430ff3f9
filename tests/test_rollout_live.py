"""Rollouts with a real Triton and a real gateway under load: a good version, one with shuffled scores, a slow one."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_rollouts import PATIENCE_SECONDS, Callers, Served, load, rollouts
from tritonrank.artifacts import sha256_file
from tritonrank.artifacts.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long]

SCORED = "        order = best_first(scores, read.item_ids, read.top_k)\n"
VARIANTS = {
    "good": ("", 1.0),
    "shuffled": ("        scores = np.roll(scores, 7)\n", 7),
    "slow": ("        time.sleep(0.15)\n", 1.0),
}
RULES = """
shadow_share = 1
canary_shares = [0.3, 0.6]
least_minutes = 0.02
least_pairs = 100
least_answers = 30
latency_quantile = 0.9
most_latency_ratio = 4      # the machine is busy, and both versions share it
most_not_ranked = 0.3
most_error_excess = 0.01
"""


def variant(repository: Path, kind: str, folder: Path) -> str:
    """A copy of a repository that ranks as ``kind`` says, with an artifact and golden scores of its own."""
    copy = folder / kind
    shutil.copytree(repository, copy)
    code, moved = VARIANTS[kind]
    model, artifact, golden = copy / "ranker/1/model.py", copy / "ranker/1/artifact.json", copy / "golden.json"
    name = f"{len(kind):016x}"
    text = model.read_text()
    assert text.count(SCORED) == 1
    told = json.loads(golden.read_text())
    told["artifact"] = name
    if kind == "shuffled":
        for case in told["cases"]:
            places = len(case["scores"])
            case["scores"] = [case["scores"][(place - int(moved)) % places] for place in range(places)]
    replaced = {
        model: text.replace(SCORED, code + SCORED),
        artifact: json.dumps(json.loads(artifact.read_text()) | {"artifact": name}),
        golden: json.dumps(told),
    }
    manifest = json.loads((copy / "manifest.json").read_text())
    for path, new in replaced.items():
        path.unlink()  # what was copied may be a link
        path.write_text(new)
        manifest["files"][path.relative_to(copy).as_posix()] = sha256_file(path)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return str(copy)


@pytest.fixture(scope="module")
def served(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with rollouts(workspace.repository, tmp_path_factory.mktemp("rollout"), RULES) as served:
        yield served


def roll(served: Served, repository: Path, kind: str) -> tuple[dict[str, Any], Callers]:
    """Roll a version out under load until it has come to its end; the ledger is printed."""
    source = variant(repository, kind, served.folder)
    with load(served.gateway) as callers:
        served.controller.ask("POST", "/rollout", {"source": source, "name": kind})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := served.controller.ask("GET", "/rollout"))["rollout"]["is_under_way"]:
            assert time.monotonic() < deadline, json.dumps(status, indent=1)
            time.sleep(0.2)
    for line in status["ledger"]:
        print(
            line["time"], line["decision"], line["by"], line["share"], line["pairs"], line["reason"], line["exposure"]
        )
    print(dict(callers.by_status), dict(callers.by_artifact))
    assert set(callers.by_status) == {"200"}, "a request failed"
    return status, callers


@pytest.mark.parametrize(("kind", "rule"), [("shuffled", "least_overlap"), ("slow", "most_latency_ratio")])
def test_a_bad_version_is_taken_back_before_a_user_saw_it(
    served: Served, workspace: Workspace, kind: str, rule: str
) -> None:
    status, callers = roll(served, workspace.repository, kind)
    assert status["rollout"]["phase"] == "back"
    (back,) = [line for line in status["ledger"] if line["decision"] == "back"]
    assert back["rule"] == rule
    assert status["exposure"]["by_version"] == 0
    assert len(callers.by_artifact) == 1
    assert kind not in {one["name"] for one in served.tritons.ask("GET", "/versions")["versions"]}
    assert [(one["shadow"], one["canary"]) for one in status["gateways"]] == [("", "")]


def test_a_good_version_promotes_itself_and_can_be_taken_back(served: Served, workspace: Workspace) -> None:
    status, callers = roll(served, workspace.repository, "good")
    assert status["rollout"]["phase"] == "done"
    steps = [line["decision"] for line in status["ledger"] if line["decision"] != "hold"]
    assert steps == ["start", "shadow", "promote", "promote", "promote", "done"]
    assert {line["by"] for line in status["ledger"] if line["decision"] == "promote"} == {"rules"}
    assert len(callers.by_artifact) == 2
    assert served.tritons.ask("GET", "/versions")["live"] == "good"
    with load(served.gateway) as callers:
        served.controller.ask("POST", "/rollout/back")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := served.controller.ask("GET", "/rollout"))["rollout"]["phase"] != "back":
            assert time.monotonic() < deadline, json.dumps(status, indent=1)
            time.sleep(0.2)
    assert set(callers.by_status) == {"200"}
    assert status["gateways"][0]["live"].startswith("first")
    assert {one["name"] for one in served.tritons.ask("GET", "/versions")["versions"]}.isdisjoint({"good"})
