"""A real Prometheus with the rules of deploy/ and a real Alertmanager, in a hurry: hours are seconds.

Everything is read from deploy/prometheus as it is shipped; only times are shortened and addresses replaced.
"""

import json
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from programs import require_program

from loadtests.processes import LOOPBACK, Process, free_port

DEPLOYED = Path(__file__).parents[1] / "deploy" / "prometheus"
HURRY = 300
"""An hour is 12 seconds."""
LEAST_WINDOW_SECONDS = 5
"""A window of a counter needs some scrapes; there is one in a second."""
START_SECONDS = 30.0
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
WINDOW = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])")
WAIT = re.compile(r"((?:offset|for:|_wait:|_interval:) )(\d+)([smhd])")


@dataclass(frozen=True)
class Alerting:
    """What watches, and what it told.

    Attributes:
        prometheus: URL.
        alertmanager: URL.
        told: path of a receiver -> names of the alerts that it was told of, in order.
    """

    prometheus: str
    alertmanager: str
    told: Mapping[str, list[str]]

    def firing(self) -> set[str]:
        """Names of the alerts that fire now, as Prometheus' API tells."""
        alerts = _get(f"{self.prometheus}/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def faults(self) -> list[str]:
        """Of rules that could not be evaluated."""
        groups = _get(f"{self.prometheus}/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]

    def value(self, query: str) -> list[dict[str, Any]]:
        """What a query gives now."""
        query = urllib.parse.quote(query)
        result: list[dict[str, Any]] = _get(f"{self.prometheus}/api/v1/query?query={query}")["data"]["result"]
        return result

    def arrived(self) -> set[str]:
        """Names of the alerts that Alertmanager has."""
        return {one["labels"]["alertname"] for one in _get(f"{self.alertmanager}/api/v2/alerts")}

    def wait_for(self, wanted: set[str], seconds: float, look: Callable[[], set[str]] | None = None) -> set[str]:
        """Wait until all of these fire; what fires then."""
        deadline = time.monotonic() + seconds
        while not wanted <= (seen := (look or self.firing)()):
            assert time.monotonic() < deadline, f"{wanted - seen} did not fire within {seconds:g} s; {seen} did"
            time.sleep(0.2)
        return seen


@contextmanager
def running_alerting(folder: Path, gateway: str, triton: str) -> Iterator[Alerting]:
    """Start Alertmanager and Prometheus.

    Args:
        folder: for their settings and data.
        gateway: URL of its metrics.
        triton: likewise.
    """
    folder.mkdir(parents=True)
    told: dict[str, list[str]] = {}
    with _receiver(told) as receiver, _alertmanager(folder, receiver) as alertmanager:
        settings = yaml.safe_load(_shortened((DEPLOYED / "prometheus.yml").read_text(encoding="utf-8")))
        settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [urlsplit(alertmanager).netloc]
        (folder / "rules").mkdir()
        for path in (DEPLOYED / "rules").glob("*.yml"):
            (folder / "rules" / path.name).write_text(_shortened(path.read_text(encoding="utf-8")), encoding="utf-8")
        settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        addresses = {"tritonrank-gateway": gateway, "tritonrank-triton": triton}
        jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
        assert jobs.keys() == {*addresses, "tritonrank-rollout"}
        settings["scrape_configs"] = [jobs[name] for name in addresses]  # nothing is rolled out here
        for job in settings["scrape_configs"]:
            job["static_configs"][0]["targets"] = [urlsplit(addresses[job["job_name"]]).netloc]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        address = f"{LOOPBACK}:{free_port()}"
        command = [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--rules.alert.resend-delay=1s",  # what fires before Alertmanager is known is lost, and sent again
        ]  # fmt: skip
        with _running(command, folder / "prometheus.log", f"http://{address}/-/ready") as url:
            yield Alerting(url, alertmanager, told)


@contextmanager
def _alertmanager(folder: Path, receiver: str) -> Iterator[str]:
    routing = (DEPLOYED / "alertmanager.yml").read_text(encoding="utf-8")
    routing = _shortened(routing).replace("http://127.0.0.1:9099", receiver)
    (folder / "alertmanager.yml").write_text(routing, encoding="utf-8")
    address = f"{LOOPBACK}:{free_port()}"
    command = [
        "prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}", f"--web.listen-address={address}", "--cluster.listen-address=",
    ]  # fmt: skip
    with _running(command, folder / "alertmanager.log", f"http://{address}/-/ready") as url:
        yield url


@contextmanager
def _running(command: list[str], log: Path, ready: str) -> Iterator[str]:
    require_program(command[0], "prometheus prometheus-alertmanager")
    process = Process(command, log)
    try:
        process.wait_until(lambda: _answers(ready), command[0], START_SECONDS)
        yield ready.removesuffix("/-/ready")
    finally:
        process.stop()


@contextmanager
def _receiver(told: dict[str, list[str]]) -> Iterator[str]:
    """What the sample of routing calls pager and tickets."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            names = [alert["labels"]["alertname"] for alert in message["alerts"] if alert["status"] == "firing"]
            told.setdefault(self.path, []).extend(names)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _shortened(text: str) -> str:
    """Rules or settings with windows and waits in a hurry."""

    def seconds(number: str, unit: str, least: int) -> str:
        return f"{max(least, int(number) * UNITS[unit] // HURRY)}s"

    text = WINDOW.sub(lambda found: seconds(found[1], found[2], LEAST_WINDOW_SECONDS), text)
    return WAIT.sub(lambda found: found[1] + seconds(found[2], found[3], 1), text)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)
