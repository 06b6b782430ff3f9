"""A night's version from shadow to live with a real Triton, gateway and controller under load, and back in one command.

What is proved here is that no request fails and that the ledger knows what became of it; whether the ranker is better
is the judge's, with tests of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from learning_shop import TESTS, own_copy, settings, write_hours
from live_rollouts import KEY, PATIENCE_SECONDS, Served, load, rollouts
from tritonrank.artifacts.workspace import Workspace
from tritonrank.learn.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

RULES = """
shadow_share = 1
canary_shares = [0.3, 0.6]
least_minutes = 0.02
least_pairs = 60
least_answers = 20
least_overlap = 0.05        # what was learnt of noise ranks otherwise, and the machine is busy
least_top_ten = 0.02
most_score_difference = 20
most_score_psi = 50
latency_quantile = 0.9
most_latency_ratio = 20
most_not_ranked = 0.5
most_error_excess = 0.05
"""
NIGHT_SECONDS = 400.0


@pytest.fixture(scope="module")
def served(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("learning")
    own = own_copy(workspace, folder / "artifacts" / "tiny")
    with rollouts(own.repository, folder, RULES) as served:
        yield served


def started(served: Served, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TRITONRANK_ADMIN_KEY": KEY, "TRITONRANK_ROLLOUT": served.controller.url}
    command = [sys.executable, "-m", "tritonrank", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def tritonrank(served: Served, *words: str) -> int:
    with started(served, *words) as program:
        written, _ = program.communicate(timeout=NIGHT_SECONDS)
    print(written[-3_000:])
    return program.returncode


def wait_until_published(ledger: Ledger, night: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + NIGHT_SECONDS
    while not any(one.told("publish") for one in ledger.nights()):
        assert night.poll() is None, night.communicate()[0][-3_000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_night_goes_live_without_a_failed_request_and_back_in_one_command(
    served: Served, workspace: Workspace, tiny_base: Path
) -> None:
    log, store = served.folder / "log", f"file://{served.folder}/store"
    now = write_hours(workspace, log, 12) + 300
    overrides = settings(tiny_base, log, f"learn.store={store}", "learn.release=rollout", "learn.wait_minutes=4")
    learn = ["learn", str(TESTS / "tiny.yaml"), "--artifacts", str(served.folder / "artifacts"), "--as-of", str(now)]
    learn += [word for one in overrides for word in ("--set", one)]
    ledger = Ledger(served.folder / "artifacts" / "tiny")

    with started(served, *learn, "--once") as night:
        wait_until_published(ledger, night)  # training alone keeps this machine busy
        with load(served.gateway) as callers:
            written, _ = night.communicate(timeout=NIGHT_SECONDS)
    print(written[-3_000:])
    assert night.returncode == 0
    assert set(callers.by_status) == {"200"}, "a request failed"
    assert len(callers.by_artifact) == 2, "users saw the new version"
    told = json.loads(written.splitlines()[-1])
    assert (told["outcome"], told["decision"]) == ("accepted", "live")
    assert "Next: tritonrank rollout back" in written
    status = served.controller.ask("GET", "/rollout")
    steps = [line["decision"] for line in status["ledger"] if line["decision"] != "hold"]
    assert steps == ["start", "shadow", "promote", "promote", "promote", "done"]
    name = f"night-{told['night'].lower()}"
    assert served.tritons.ask("GET", "/versions")["live"] == name
    assert status["rollout"]["source"] == told["source"], "the store's version, by its digest"

    with load(served.gateway) as callers:
        assert tritonrank(served, "rollout", "back") == 0
        deadline = time.monotonic() + PATIENCE_SECONDS
        while served.controller.ask("GET", "/rollout")["rollout"]["phase"] != "back":
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert set(callers.by_status) == {"200"}, "a request failed"
    assert served.tritons.ask("GET", "/versions")["live"] != name

    assert tritonrank(served, *learn, "--set", "learn.newest_hours=12") == 0
    first, second = ledger.nights()
    assert (first.decision, second.parent) == ("back", ""), "the next night starts from what serves again"
    assert second.outcome == "nothing"
