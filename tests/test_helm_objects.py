"""The chart's objects: Kubernetes takes them, and what they name exists in the programs that they start."""

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import kubernetes_validate
import promql_parser
import pytest
import typer
import yaml
from charts import (
    SETS,
    container,
    containers_of,
    of_kind,
    one_of,
    part_of,
    rendered,
    selects,
    template_of,
    validate,
    workload_of,
    workloads,
)
from image_files import DOCKERFILE, command_of
from test_dashboards import known_metrics, metrics_of
from tritonrank.cli import app as tritonrank_app
from tritonrank.errors import GateError
from tritonrank.recipe.loading import load_recipe
from tritonrank.report.answer import LOST_EXIT_CODE
from tritonrank.serve.rollout.rules import Rules
from tritonrank.serve.server import STOP_MARGIN_SECONDS
from tritonrank_gateway.app import create_metrics_app
from tritonrank_gateway.serve import GRACE_SECONDS
from tritonrank_gateway.settings import GatewaySettings, read_settings

from deploy.helm.chart import CHART, Object, helm, key_of, render

ROOT = Path(__file__).parents[1]
CUSTOM = {
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}
"""Kinds that Kubernetes' own schemas do not know."""
EXIT_SECONDS = 10
"""For requests in flight when Triton ends: the default of LocalTriton."""


@pytest.mark.parametrize("values", SETS)
def test_helm_has_nothing_to_say(values: str) -> None:
    said = helm("lint", "--strict", CHART, "--values", CHART.parent / "values" / f"{values}.yaml")
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize("values", SETS)
def test_kubernetes_takes_every_object(values: str) -> None:
    assert len({key_of(one) for one in rendered(values)}) == len(rendered(values))
    for one in rendered(values):
        if one["kind"] in CUSTOM:
            assert one["apiVersion"] == CUSTOM[one["kind"]]
        else:
            validate(one)


def test_a_field_that_kubernetes_does_not_know_is_seen() -> None:
    wrong = {**one_of("cpu", "Service", "gateway"), "spec": {"ports": [{"prot": 80}]}}
    with pytest.raises(kubernetes_validate.ValidationError, match="prot"):
        validate(wrong)


# What the containers are started with


def settings_of(values: str, tmp_path: Path) -> GatewaySettings:
    """The gateway's own reading of its arguments and variables; files that are mounted there are made here."""
    made = container(values, "gateway")
    assert made["args"][:3] == ["python", "-m", "tritonrank_gateway"]
    arguments = []
    for argument in made["args"][3:]:
        flag, _, value = argument.partition("=")
        if value.startswith("/") and "." in value:
            file = tmp_path / value.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            value = str(file)
        if flag == "--triton-tls":
            value = str(tmp_path / value.lstrip("/"))
            Path(value).mkdir(parents=True, exist_ok=True)
            for name in ("ca.crt", "tls.crt", "tls.key"):
                Path(value, name).touch()
        arguments.append(f"{flag}={value}")
    return read_settings(arguments, {one["name"]: one.get("value", "") for one in made.get("env", [])})


@pytest.mark.parametrize("values", SETS)
def test_the_gateway_reads_its_flags_and_variables(values: str, tmp_path: Path) -> None:
    settings = settings_of(values, tmp_path)
    service = one_of(values, "Service", "triton")
    assert settings.triton == (f"dns:{service['metadata']['name']}:{service['spec']['ports'][0]['port']}",)
    assert service["spec"]["clusterIP"] == "None", "dns: shows every pod only without an address of the Service"
    wanted = yaml.safe_load((CHART.parent / "values" / f"{values}.yaml").read_text("utf-8"))["gateway"]
    for name, value in wanted.get("settings", {}).items():
        assert getattr(settings, name) == value


@pytest.mark.parametrize("values", SETS)
def test_triton_is_started_as_the_command_line_allows(values: str) -> None:
    context = options_of(container(values, "triton")["args"])
    assert context["host"] == "0.0.0.0"
    assert context["ready_file"] == Path(command_file())
    for one in workloads(values):
        for made in containers_of(one):
            words = [*made.get("command", []), *made.get("args", [])]
            if words[:1] == ["tritonrank"]:
                options_of(words)


def options_of(words: list[str]) -> Mapping[str, Any]:
    """What `tritonrank` understands of a command: its own parser reads it."""
    command: Any = typer.main.get_command(tritonrank_app)
    _, *rest = words
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    return cast(Mapping[str, Any], command.make_context("tritonrank", list(rest)).params)


def command_file() -> str:
    """The ready file that the image's health check opens."""
    (found,) = re.findall(r"open\('([^']+)'\)", command_of("server", "HEALTHCHECK")[-1])
    return str(found)


@pytest.mark.parametrize("values", SETS)
def test_images_are_stages_of_the_dockerfile_and_no_tag_floats(values: str) -> None:
    for one in workloads(values):
        for made in containers_of(one):
            name, _, tag = made["image"].partition(":")
            assert tag not in ("", "latest")
            stage = name.removeprefix("tritonrank-")
            assert name == "valkey/valkey" or re.search(rf"^FROM .* AS {stage}$", DOCKERFILE, re.M), made["image"]


# Ports and probes


def ports_of(made: Mapping[str, Any]) -> dict[str, int]:
    return {one["name"]: one["containerPort"] for one in made.get("ports", [])}


@pytest.mark.parametrize("values", SETS)
def test_ports_are_those_that_the_programs_listen_on(values: str, tmp_path: Path) -> None:
    settings = settings_of(values, tmp_path)
    assert ports_of(container(values, "gateway")) == {"http": settings.port, "metrics": settings.metrics_port}
    triton = options_of(container(values, "triton")["args"])
    told = {"grpc": triton["grpc_port"], "metrics": triton["metrics_port"], "admin": triton["admin_port"]}
    has_rollout = any(part_of(one) == "rollout" for one in workloads(values))
    assert (triton["admin_port"] is not None) == has_rollout
    assert ports_of(container(values, "triton")) == {name: port for name, port in told.items() if port is not None}
    assert triton["http_port"] not in told.values(), "nobody needs Triton's HTTP but its probes, from inside"
    if has_rollout:
        rollout = options_of(container(values, "rollout")["args"])
        assert ports_of(container(values, "rollout")) == {"admin": rollout["port"], "metrics": rollout["metrics_port"]}


@pytest.mark.parametrize("values", ["canary", "nightly"])
def test_the_rollout_looks_for_ports_that_services_name(values: str) -> None:
    wanted = options_of(container(values, "rollout")["args"])
    for place, part in ((wanted["gateways"], "gateway"), (wanted["tritons"], "triton")):
        _, name, port = place.split(":")
        (service,) = [one for one in of_kind(values, "Service") if one["metadata"]["name"] == name]
        assert service["spec"]["clusterIP"] == "None"
        (workload,) = [one for one in workloads(values) if part_of(one) == part]
        assert selects(service["spec"]["selector"], workload)
        assert int(port) in [one["port"] for one in service["spec"]["ports"]]
        assert int(port) in ports_of(container(values, part)).values()


def test_rules_and_recipe_are_readable(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(one_of("canary", "ConfigMap", "rollout")["data"]["rules.toml"], "utf-8")
    assert Rules.read(rules).least_overlap == 0.7
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(one_of("nightly", "ConfigMap", "nightly")["data"]["recipe.yaml"], "utf-8")
    name = load_recipe(recipe).name
    (job,) = of_kind("nightly", "CronJob")
    pushed = [made["args"] for made in containers_of(job) if made["name"] == "push"]
    assert options_of(pushed[0])["artifacts"] == Path("artifacts", name)


def test_a_night_pushes_what_was_built_and_has_it_judged() -> None:
    """The tag that Tritons start with is not moved before anybody has judged."""
    (job,) = of_kind("nightly", "CronJob")
    build, push, start = (options_of(made["args"]) for made in containers_of(job))
    assert build["recipe"] == Path("/etc/tritonrank/recipe/recipe.yaml")
    assert start["source"] == f"{push['url']}@{push['tags'][0]}"
    (pull,) = template_of(workload_of(rendered("nightly"), "triton"))["spec"]["initContainers"]
    assert options_of(pull["args"])["source"] not in (start["source"], push["url"])
    spec = job["spec"]["jobTemplate"]["spec"]
    codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["containerName"] == "build"
    assert set(codes["values"]) == {GateError.exit_code, LOST_EXIT_CODE}
    (made,) = [one for one in containers_of(job) if one["name"] == "rollout"]
    (url,) = [one["value"] for one in made["env"] if one["name"] == "TRITONRANK_ROLLOUT"]
    service = one_of("nightly", "Service", "rollout")
    assert url == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_a_night_that_learns_is_one_command_that_is_not_tried_again_when_it_was_refused() -> None:
    objects = render([CHART.parent / "values" / "nightly.yaml"], {"nightly.learn": True})
    (job,) = [one for one in objects if one["kind"] == "CronJob"]
    (learn,) = containers_of(job)
    told = options_of(learn["args"])
    assert told["recipe"] == Path("/etc/tritonrank/recipe/recipe.yaml")
    assert told["overrides"] == ["learn.store=s3://models/shop", "learn.tag=nightly", "learn.log=/log"]
    assert told["once"] is True
    codes = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["containerName"] == learn["name"]
    assert GateError.exit_code in codes["values"]
    names = {one["name"] for one in learn["env"]}
    assert {"TRITONRANK_ROLLOUT", "TRITONRANK_ADMIN_KEY", "TRITONRANK_SIGNING_KEY"} <= names


@pytest.mark.parametrize("values", SETS)
def test_services_monitors_and_budgets_find_one_workload_each_and_name_its_ports(values: str) -> None:
    for one in of_kind(values, "Service", "PodMonitor", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        (found,) = [made for made in workloads(values) if selects(selector.get("matchLabels", selector), made)]
        names = {name for made in containers_of(found) for name in ports_of(made)}
        wanted = {port["targetPort"] for port in one["spec"].get("ports", [])}
        wanted |= {endpoint["port"] for endpoint in one["spec"].get("podMetricsEndpoints", [])}
        assert wanted <= names, key_of(one)
    for one in of_kind(values, "Deployment", "StatefulSet"):
        assert selects(one["spec"]["selector"]["matchLabels"], one)
    for one in of_kind(values, "HorizontalPodAutoscaler", "ScaledObject"):
        target = one["spec"]["scaleTargetRef"]
        (scaled,) = [made for made in workloads(values) if key_of(made) == f"{target['kind']}/{target['name']}"]
        assert "replicas" not in scaled["spec"], "an upgrade would set it back"


@pytest.mark.parametrize("values", SETS)
def test_probes_ask_what_the_programs_answer(values: str) -> None:
    gateway, triton = container(values, "gateway"), container(values, "triton")
    routes = {route.path for route in create_metrics_app(MagicMock()).routes}  # type: ignore[attr-defined]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway[probe]["httpGet"]["port"] == "metrics"
        assert gateway[probe]["httpGet"]["path"] in routes
    assert gateway["startupProbe"]["httpGet"]["path"] == "/health/live", "readiness waits for Triton, for minutes"
    check = command_of("server", "HEALTHCHECK")
    for probe in ("startupProbe", "readinessProbe"):
        assert triton[probe]["exec"]["command"] == check
    options = options_of(triton["args"])
    patience = [triton[name]["periodSeconds"] * triton[name]["failureThreshold"] for name in PROBES_THAT_END]
    assert min(patience) > options["ready_timeout"], "a model that loads is ended by no probe"


PROBES_THAT_END = ("startupProbe", "livenessProbe")


@pytest.fixture
def health() -> Iterator[tuple[int, dict[str, int]]]:
    """A server's health: its port, and what each path answers."""
    answers: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers[self.path])
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, answers
        server.shutdown()


def test_the_probes_of_triton_say_what_health_says(health: tuple[int, dict[str, int]], tmp_path: Path) -> None:
    port, answers = health
    file = tmp_path / "ready"

    def passes(probe: str) -> bool:
        *before, code = container("cpu", "triton")[probe]["exec"]["command"]
        moved = code.replace("8000", str(port)).replace(command_file(), str(file))
        assert moved != code
        done = subprocess.run([sys.executable, *before[1:], moved], capture_output=True, timeout=30)
        return done.returncode == 0

    answers.update({"/v2/health/ready": 200, "/v2/health/live": 200})
    assert passes("livenessProbe")
    assert not passes("readinessProbe"), "the golden requests have not been answered yet"
    file.touch()
    assert passes("readinessProbe")
    answers["/v2/health/ready"] = 400
    assert not passes("readinessProbe")
    assert passes("livenessProbe")
    answers["/v2/health/live"] = 503
    assert not passes("livenessProbe")


@pytest.mark.parametrize("values", SETS)
def test_there_is_time_to_end_in_order(values: str, tmp_path: Path) -> None:
    for part, needed in (
        ("gateway", settings_of(values, tmp_path).drain_s + GRACE_SECONDS),
        ("triton", options_of(container(values, "triton")["args"])["drain_s"] + EXIT_SECONDS + STOP_MARGIN_SECONDS),
    ):
        (one,) = [made for made in workloads(values) if part_of(made) == part]
        before = container(values, part)["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert before > 0
        assert template_of(one)["spec"]["terminationGracePeriodSeconds"] > before + needed


# What scales and what watches


def test_autoscalers_follow_metrics_that_exist() -> None:
    names = set()
    for values in SETS:
        for one in of_kind(values, "HorizontalPodAutoscaler"):
            names |= {m["external"]["metric"]["name"] for m in one["spec"]["metrics"] if m["type"] == "External"}
        for one in of_kind(values, "ScaledObject"):
            for trigger in one["spec"]["triggers"]:
                names |= set(metrics_of(promql_parser.parse(trigger["metadata"]["query"])))
    assert names == {"tritonrank_adapt_wished_replicas", "tritonrank_gateway_queued_seconds"}
    assert names <= known_metrics()


def test_what_is_scraped_gets_the_jobs_that_rules_and_dashboards_know() -> None:
    configured = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    known = {one["job_name"] for one in configured["scrape_configs"]}
    jobs = set()
    for one in of_kind("canary", "PodMonitor"):
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            jobs |= {how["replacement"] for how in endpoint["relabelings"] if how["targetLabel"] == "job"}
    assert jobs == known


def test_rules_and_dashboards_are_the_files_of_the_tree() -> None:
    dashboards = {path.name: path.read_text("utf-8") for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    found: dict[str, str] = {}
    for one in of_kind("nightly", "ConfigMap"):
        if "grafana_dashboard" in one["metadata"]["labels"]:
            found |= one["data"]
    assert found == dashboards
    rules = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in RULES.glob("*.yml")}
    assert {name_of(one): one["spec"] for one in of_kind("nightly", "PrometheusRule")} == rules
    of_parts_that_are_off = {"recommending", "users", "rollout"}
    assert {name_of(one) for one in of_kind("cpu", "PrometheusRule")} == set(rules) - of_parts_that_are_off
    assert not of_kind("minimal", "PrometheusRule", "PodMonitor")


RULES = ROOT / "deploy" / "prometheus" / "rules"


def name_of(rule: Object) -> str:
    return str(rule["metadata"]["name"]).rpartition("-")[2]


# Kinds of operators, whose schemas are not at hand


FIELDS = {
    "PodMonitor": {"selector": {"matchLabels"}, "podMetricsEndpoints": {"port", "path", "interval", "relabelings"}},
    "PrometheusRule": {"groups": {"name", "rules", "interval"}},
    "ScaledObject": {
        "scaleTargetRef": {"apiVersion", "kind", "name"},
        "minReplicaCount": None,
        "maxReplicaCount": None,
        "pollingInterval": None,
        "advanced": {"horizontalPodAutoscalerConfig"},
        "triggers": {"type", "metricType", "metadata"},
    },
}
"""What was read in the operators' own definitions: any other field has to be looked up there first."""


@pytest.mark.parametrize("values", SETS)
def test_kinds_of_operators_have_fields_that_were_looked_up(values: str) -> None:
    for one in of_kind(values, *FIELDS):
        known = FIELDS[one["kind"]]
        assert one["spec"].keys() <= known.keys()
        for name, value in one["spec"].items():
            for part in value if isinstance(value, list) else [value]:
                assert not isinstance(part, dict) or part.keys() <= (known[name] or set()), key_of(one)
        for trigger in one["spec"].get("triggers", []):
            assert trigger["metadata"].keys() <= {"serverAddress", "query", "threshold", "ignoreNullValues"}
            assert all(isinstance(text, str) for text in trigger["metadata"].values())
