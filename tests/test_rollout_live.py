"""Rollouts with a real Triton and a real gateway under load: a good version, one with shuffled scores, a slow one."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateways import RunningGateway, running_gateway
from test_supervisor import serve_command
from tritonrank.artifacts import sha256_file
from tritonrank.artifacts.workspace import Workspace
from tritonrank.serve.versions.admin_client import PrivateApi

pytestmark = pytest.mark.slow

KEY = "an-admin-key-for-tests"
CALLERS, PAUSE_SECONDS = 3, 0.005
PATIENCE_SECONDS = 150.0
COLOURS, THINGS = ("oak", "pine", "glass", "steel", "red", "blue"), ("desk", "lamp", "chair", "shelf", "sofa")
ITEMS = [f"{colour} {thing} number {place}" for place, colour in enumerate(COLOURS) for thing in THINGS]
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


@dataclass
class Callers:
    """What callers saw that go on to call."""

    by_status: Counter[str] = field(default_factory=Counter)
    by_artifact: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Served:
    """Everything that runs."""

    gateway: RunningGateway
    controller: PrivateApi
    tritons: PrivateApi
    folder: Path


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


@contextmanager
def load(gateway: RunningGateway) -> Iterator[Callers]:
    """Call again and again, as many users."""
    callers, stop = Callers(), threading.Event()

    def call(first: int) -> None:
        number = first
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            while not stop.wait(PAUSE_SECONDS):
                number += CALLERS
                asked = {
                    "query": f"a {COLOURS[number % 6]} desk {number % 17}",
                    "items": ITEMS,
                    "user": f"u{number % 200}",
                }
                try:
                    answer = http.post("/v1/rank", json=asked)
                    callers.by_status[str(answer.status_code)] += 1
                    callers.by_artifact[answer.headers.get("x-artifact", "")] += 1
                except httpx.HTTPError as error:
                    callers.by_status[repr(error)] += 1

    threads = [threading.Thread(target=call, args=(first,)) for first in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def served(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("rollout")
    (folder / "rules.toml").write_text(RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITONRANK_ADMIN_KEY", KEY)
        with serve_command(workspace.repository, folder, "--admin-port", "0") as triton:
            assert triton.program.stdout is not None
            admin = triton.program.stdout.readline().split()[-1]
            flags = ("--no-access-log", "--golden", str(workspace.repository / "golden.json"))
            with running_gateway(triton.urls["gRPC"], folder / "gateway", *flags) as gateway:
                command = [sys.executable, "-m", "tritonrank", "rollout", "run", "--gateway", gateway.metrics_url]
                command += ["--triton-admin", admin, "--state", str(folder / "state"), "--port", "0"]
                command += ["--metrics-port", "0", "--rules", str(folder / "rules.toml")]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as controller:
                    try:
                        assert controller.stdout is not None
                        url = json.loads(controller.stdout.readline())["url"]
                        yield Served(gateway, PrivateApi(url, KEY), PrivateApi(admin, KEY), folder)
                    finally:
                        controller.terminate()


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
