"""What the chart closes: pods without rights, secrets by name, and a network that lets only what is needed through.

The network is asked as Kubernetes decides it: a connection is there when the caller's policies let it out and the
called one's let it in; a pod that no policy names is open.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from charts import SETS, containers_of, of_kind, part_of, rendered, selects, template_of, workloads

from deploy.helm.chart import Object, key_of

WRITABLE = {"/tmp", "/dev/shm", "/data", "/run/valkey", "/log", "/models", "/state", "/work"}
"""Places that anything may be written to; all else of a container is read-only."""
Rule = Mapping[str, Any]
NEEDED = {
    ("gateway", "triton", "grpc"),
    ("callers", "gateway", "http"),
    ("monitoring", "gateway", "metrics"),
    ("monitoring", "triton", "metrics"),
}
"""Who talks to whom, at which port, in every installation."""
ROLLOUT = {
    ("rollout", "gateway", "metrics"),
    ("rollout", "triton", "admin"),
    ("monitoring", "rollout", "metrics"),
}
MORE = {
    "recommend": {("gateway", "valkey", "redis")},
    "canary": ROLLOUT,
    "nightly": ROLLOUT | {("gateway", "valkey", "redis"), ("nightly", "rollout", "admin")},
}


@pytest.mark.parametrize("values", SETS)
def test_pods_have_no_rights(values: str) -> None:
    """What Kubernetes calls the profile `restricted`, and more."""
    for one in workloads(values):
        spec = template_of(one)["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == 1000, "the user of the images"
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"))
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
        for made in containers_of(one):
            assert made["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= made["resources"]["requests"].keys()
            assert made["resources"]["limits"]["memory"] == made["resources"]["requests"]["memory"], (
                "never overcommitted"
            )
            written = {mount["mountPath"] for mount in made["volumeMounts"] if not mount.get("readOnly")}
            assert written <= WRITABLE, (key_of(one), written)


@pytest.mark.parametrize("values", SETS)
def test_memory_that_is_written_to_is_bounded(values: str) -> None:
    for one in workloads(values):
        for volume in template_of(one)["spec"]["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], (key_of(one), volume["name"])


@pytest.mark.parametrize("values", SETS)
def test_secrets_are_named_and_never_made_or_written_down(values: str) -> None:
    assert not of_kind(values, "Secret")
    for one in workloads(values):
        for made in containers_of(one):
            for variable in made.get("env", []):
                is_file = variable.get("value", "").startswith("/etc/tritonrank/")
                if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "KEY", "TOKEN")) and not is_file:
                    assert "secretKeyRef" in variable.get("valueFrom", {}), (key_of(one), variable["name"])
        for volume in template_of(one)["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440, "for the group of the pod alone"
    accounts = of_kind(values, "ServiceAccount")
    assert all(one["automountServiceAccountToken"] is False for one in accounts)
    assert not of_kind(values, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


@pytest.mark.parametrize("values", SETS)
def test_nodes_may_be_drained_and_zones_lost(values: str) -> None:
    for one in of_kind(values, "Deployment"):
        spread = template_of(one)["spec"]["topologySpreadConstraints"]
        assert {rule["topologyKey"] for rule in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for rule in spread:
            assert selects(rule["labelSelector"]["matchLabels"], one)
        (budget,) = [
            budget
            for budget in of_kind(values, "PodDisruptionBudget")
            if selects(budget["spec"]["selector"]["matchLabels"], one)
        ]
        assert budget["spec"]["maxUnavailable"] == 1
        surge, away = (one["spec"]["strategy"]["rollingUpdate"][name] for name in ("maxSurge", "maxUnavailable"))
        assert (surge, away) != (0, 0), "nothing could ever be replaced"


# The network


def policies_of(values: str, workload: Object) -> list[Mapping[str, Any]]:
    found = of_kind(values, "NetworkPolicy")
    return [one["spec"] for one in found if selects(one["spec"]["podSelector"]["matchLabels"], workload)]


def passes(
    rules: Sequence[Mapping[str, Any]], side: str, peer: Object | str, ports: Mapping[str, int], port: str
) -> bool:
    """Whether any rule lets a port to or from a peer through.

    Args:
        rules: of all policies of a pod, in one direction.
        side: "from" or "to".
        peer: a workload, or a word for somebody outside.
        ports: of the called pod, by name.
        port: that is asked for.
    """
    for rule in rules:
        wanted = {one["port"] for one in rule.get("ports", [])}
        if wanted and not wanted & {port, ports.get(port)}:
            continue
        if side not in rule or any(is_meant(one, peer) for one in rule[side]):
            return True
    return False


def is_meant(one: Mapping[str, Any], peer: Object | str) -> bool:
    """Whether a peer of a policy is this workload, or this somebody outside."""
    if isinstance(peer, str):
        told = str(one)
        known = {"callers": "shop-web", "monitoring": "monitoring"}
        return known.get(peer, peer) in told or (peer == "callers" and one == {"podSelector": {}})
    return "namespaceSelector" not in one and selects(one.get("podSelector", {}).get("matchLabels", {}), peer)


def connections(values: str) -> Iterator[tuple[str, str, str]]:
    """Everything that can be reached: (caller, called, port)."""
    made = workloads(values)
    for called in made:
        inward = [rule for policy in policies_of(values, called) for rule in policy.get("ingress", [])]
        is_closed = bool(policies_of(values, called))
        ports = {
            port["name"]: port["containerPort"] for one in containers_of(called) for port in one.get("ports", [])
        } | {"anything else": 9}
        for caller, port in itertools.product([*made, "callers", "monitoring"], ports):
            if caller is called:
                continue
            outward = [] if isinstance(caller, str) else policies_of(values, caller)
            lets_out = not outward or passes(
                [r for p in outward for r in p.get("egress", [])], "to", called, ports, port
            )
            lets_in = not is_closed or passes(inward, "from", caller, ports, port)
            if lets_out and lets_in:
                yield (caller if isinstance(caller, str) else part_of(caller), part_of(called), port)


@pytest.mark.parametrize("values", SETS)
def test_the_network_lets_exactly_what_is_needed_through(values: str) -> None:
    assert set(connections(values)) == NEEDED | MORE.get(values, set())


@pytest.mark.parametrize("values", SETS)
def test_packets_leave_only_for_names_and_the_store(values: str) -> None:
    for one in workloads(values):
        for policy in policies_of(values, one):
            assert policy["policyTypes"] == ["Ingress", "Egress"]
            everywhere = [rule for rule in policy.get("egress", []) if "to" not in rule]
            ports = {port["port"] for rule in everywhere for port in rule["ports"]}
            assert ports <= {443}
            pulls = any("store" in str(made) or "pull" in str(made) for made in containers_of(one))
            assert pulls or not everywhere


def test_without_policies_all_is_open_and_the_question_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tuple(one for one in rendered("cpu") if one["kind"] != "NetworkPolicy")
    monkeypatch.setattr("charts.rendered", lambda _values: kept)
    assert ("triton", "gateway", "metrics") in set(connections("cpu"))
