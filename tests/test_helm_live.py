"""The chart's pods as processes of this machine: the very commands, variables, probes and order, short of a cluster."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from charts import container_of, containers_of, template_of, workload_of
from one_node import Node, Running
from test_server import wait_until
from tritonrank.artifacts.builds import recorded_builds
from tritonrank.artifacts.store.index import Index
from tritonrank.artifacts.store.objects import open_objects
from tritonrank.artifacts.store.push import artifact_of, describe, push_version
from tritonrank.artifacts.store.signing import make_keys
from tritonrank.artifacts.workspace import Workspace

from deploy.helm.chart import VALUES, render

pytestmark = pytest.mark.slow

KEY, ADMIN_KEY = "a-key-of-the-shop-page", "a-key-that-changes-things"
ITEMS = ["Tent for two", "Desk lamp", "Oak chair"]
DRAIN_SECONDS = 3
MODE_OF_SECRETS = 0o440
"""As Kubernetes mounts them for the group of the pod."""
PATIENCE_SECONDS = 60.0


@pytest.fixture
def node(workspace: Workspace, tmp_path: Path) -> Iterator[Node]:
    """A node, a model in a store, a claim with artifacts, and the secrets and files that the chart names."""
    (build,) = recorded_builds(workspace.root)
    folder, name = artifact_of(build.folder)
    store = f"file://{tmp_path}/store"
    push_version(Index(open_objects(store, make=True)), folder, describe(folder, name))
    nightly = {"enabled": True, "name": "tiny", "claim": "training", "pushUrl": store, "recipePath": "tiny.yaml"}
    sets: dict[str, Any] = {f"nightly.{key}": value for key, value in nightly.items()}
    sets |= {"nightly.signingSecret": "signing", "store.trustedKeys": ""}
    sets |= {"model.url": f"{store}@latest", "model.cacheClaim": ""}
    for part in ("triton", "gateway"):
        sets |= {f"{part}.preStopSeconds": 0, f"{part}.drainSeconds": DRAIN_SECONDS}
    made = Node(tmp_path, render([VALUES / "canary.yaml"], sets), {"tritonrank-admin/admin-key": ADMIN_KEY})
    maps = [one["data"] for one in made.objects if one["kind"] == "ConfigMap"]
    (rules,) = [data["rules.toml"] for data in maps if "rules.toml" in data]
    mounted = tmp_path / "etc" / "tritonrank"
    for file, text in {
        "keys/keys.toml": f'[keys.shop]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n',
        "rollout/rules.toml": rules,
    }.items():
        (mounted / file).parent.mkdir(parents=True)
        (mounted / file).write_text(text, "utf-8")
    (mounted / "signing").mkdir()
    private, _, _ = make_keys(tmp_path / "shop")
    private.rename(mounted / "signing" / "signing-key")
    (mounted / "signing" / "signing-key").chmod(MODE_OF_SECRETS)
    (tmp_path / "work" / "artifacts").mkdir(parents=True)
    (tmp_path / "work" / "artifacts" / "tiny").symlink_to(workspace.root)
    yield made
    made.close()


def pod(node: Node, part: str) -> Running:
    """Start the pod of a part: what comes before, then the container that stays."""
    workload = workload_of(node.objects, part)
    for before in template_of(workload)["spec"].get("initContainers", []):
        node.run(before, part)
    return node.start(container_of(workload))


def rank(node: Node, key: str = KEY) -> httpx.Response:
    url = f"http://127.0.0.1:{node.ports['8080']}/v1/rank"
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(url, json={"query": "tent", "items": ITEMS}, headers=headers, timeout=30)


def status_page(node: Node) -> str:
    return f"http://127.0.0.1:{node.ports['8004']}/rollout"


def told(node: Node) -> Any:
    """What the rollout says of itself."""
    return httpx.get(status_page(node), headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=30).json()


def ends_in_order(node: Node, one: Running, part: str) -> None:
    """It is not ready any more and answers all the same, and it ends by itself well within its grace."""
    started = time.monotonic()
    node.end(one)
    wait_until(lambda: not node.passes(one, "readinessProbe"), DRAIN_SECONDS, lambda: "it stays ready")
    answer = rank(node)
    assert time.monotonic() - started < DRAIN_SECONDS + 1, "too late to say"
    assert answer.status_code == 200
    grace = template_of(workload_of(node.objects, part))["spec"]["terminationGracePeriodSeconds"]
    assert one.process.wait(grace) == 0
    assert time.monotonic() - started >= DRAIN_SECONDS


def test_the_pods_run_as_they_are_rendered(node: Node) -> None:
    gateway = pod(node, "gateway")
    node.wait(gateway, "startupProbe")
    assert node.passes(gateway, "livenessProbe")
    assert not node.passes(gateway, "readinessProbe"), "there is no Triton yet"
    triton = pod(node, "triton")
    assert not node.passes(triton, "readinessProbe"), "its models load"
    node.wait(triton, "startupProbe")
    assert node.passes(triton, "readinessProbe")
    assert node.passes(triton, "livenessProbe")
    wait_until(lambda: node.passes(gateway, "readinessProbe"), PATIENCE_SECONDS, lambda: "the gateway sees no Triton")
    assert rank(node).json()["ranking"][0]["index"] in range(len(ITEMS))
    assert rank(node, "a-key-of-somebody-else").status_code == 401
    rollout = pod(node, "rollout")
    node.wait(rollout, "startupProbe")
    assert httpx.get(status_page(node)).status_code == 401
    _, push, start = containers_of(workload_of(node.objects, "nightly"))  # the build itself takes longer
    node.run(push, "nightly")
    node.run(start, "nightly")
    wait_until(
        lambda: any(one["shadow"] for one in told(node)["gateways"]),
        PATIENCE_SECONDS,
        lambda: f"it is not there: {told(node)}",
    )
    said = told(node)
    assert said["rollout"]["phase"] == "shadow"
    store, _, digest = said["rollout"]["source"].rpartition("@")  # a tag may move; the rollout keeps to what it found
    assert store == start["args"][3].rpartition("@")[0]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert said["tritons"][0]["versions"][said["rollout"]["name"]] == "ready"
    assert rank(node).status_code == 200
    node.end(rollout)
    assert rollout.process.wait(PATIENCE_SECONDS) == 0
    ends_in_order(node, triton, "triton")
    node.end(gateway)
    assert gateway.process.wait(PATIENCE_SECONDS) == 0
