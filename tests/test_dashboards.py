"""The dashboards of deploy/grafana: the files are what the code makes, and Grafana and Prometheus understand them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from image_files import ROOT

from deploy.grafana.__main__ import BOARDS, FOLDER, main, written

WATCH = yaml.safe_load((ROOT / "deploy" / "compose.watch.yaml").read_text(encoding="utf-8"))
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
FILES = sorted(FOLDER.glob("*.json"))


def panels_of(path: Path) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in json.loads(path.read_text("utf-8"))["panels"] if panel["type"] != "row")


@cache
def known_metrics() -> frozenset[str]:
    """Those of docs/metrics.md, which a test holds to what servers tell, and what comes of rules."""
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8")))
    parts = {f"{name}_{part}" for name in told for part in ("bucket", "count", "sum")}
    rules = (path.read_text("utf-8") for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
    return frozenset(
        {"ALERTS"} | told | parts | {name for text in rules for name in re.findall(r"record: (\S+)", text)}
    )


def test_the_files_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text("utf-8") for path in FILES} == {
        f"{one.name}.json": written(one) for one in BOARDS
    }
    command = [sys.executable, "-m", "deploy.grafana", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_was_changed_by_hand_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.grafana.__main__.FOLDER", tmp_path)
    assert main([]) is None
    (tmp_path / "ranker.json").write_text("{}")
    (tmp_path / "old.json").write_text("{}")
    problem = main(["--check"])
    assert problem is not None
    assert "old.json, ranker.json" in problem
    assert "service.json" not in problem
    assert "python -m deploy.grafana" in problem
    assert main([]) is None
    assert main(["--check"]) is None
    assert not (tmp_path / "old.json").exists()


def metrics_of(expression: object) -> Iterator[str]:
    """Names in a parsed query."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield str(expression.name)
        return
    for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from metrics_of(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from metrics_of(inner)


def test_metrics_are_found_wherever_they_are_in_a_query() -> None:
    query = 'histogram_quantile(0.9, sum by (le) (rate(a_bucket{x="y"}[1m]))) / (b or max_over_time(c[5m:1s])) > 1'
    assert set(metrics_of(promql_parser.parse(query))) == {"a_bucket", "b", "c"}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_panel_says_what_it_answers_and_fits_the_grid(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels_of(path):
        assert panel["description"].rstrip("."), panel["title"]
        assert "?" in panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    board = json.loads(path.read_text("utf-8"))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert board["uid"] == f"tritonrank-{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_query_is_promql_over_metrics_of_the_docs_and_variables_of_the_page(path: Path) -> None:
    variables = {one["name"] for one in json.loads(path.read_text("utf-8"))["templating"]["list"]}
    for panel in panels_of(path):
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "1h")
            for name in variables:
                query = query.replace(f"${name}", ".*")
            assert "$" not in query, (panel["title"], query)
            assert set(metrics_of(promql_parser.parse(query))) <= known_metrics(), (panel["title"], query)
            assert target["datasource"]["uid"] == "${datasource}"


def test_what_composes_to_watch_reads_files_that_exist_and_listens_on_loopback() -> None:
    services = WATCH["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
        assert "privileged" not in service
        for volume in service["volumes"]:
            if volume["type"] == "bind":
                assert (ROOT / "deploy" / volume["source"]).is_dir()
                assert volume["read_only"] is True
            else:
                assert volume["source"] in WATCH["volumes"]
    assert services.keys() == {"prometheus", "alertmanager", "grafana"}
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert {"--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="} < {*services["alertmanager"]["command"]}
    for name in ("prometheus", "alertmanager"):
        (config,) = (one for one in services[name]["command"] if one.startswith("--config.file="))
        (mount,) = (one for one in services[name]["volumes"] if one["type"] == "bind")
        file = ROOT / "deploy" / mount["source"] / Path(config.partition("=")[2]).relative_to(mount["target"])
        assert file.is_file()
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (told,) = scraped["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert f"--web.listen-address={told}" in services["alertmanager"]["command"]
    grafana = services["grafana"]["environment"]
    assert grafana["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert ":?" in grafana["GF_SECURITY_ADMIN_PASSWORD"], "without a password it must not start"
    mounted = {volume["target"]: ROOT / "deploy" / volume["source"] for volume in services["grafana"]["volumes"]}
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "tritonrank.yaml").read_text())["providers"]
    assert mounted[provider["options"]["path"]] == FOLDER
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "${PROMETHEUS_URL}"
    assert "PROMETHEUS_URL" in grafana
