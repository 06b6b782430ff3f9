"""A node of one machine, for the chart's pods: it starts containers as they are rendered, probes them, and ends them.

What a kubelet does, as far as processes go. Paths of volumes lie in a folder, ports are free ones, every address is
loopback (the tritonserver of the tests listens nowhere else), and a Service's name is 127.0.0.1.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tritonrank.serve.ports import choose_ports

from deploy.helm.chart import Object

PORTS = ("8000", "8001", "8002", "8003", "8004", "8005", "8080", "8081")


@dataclass
class Running:
    """A container that was started."""

    made: Mapping[str, Any]
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Node:
    """One machine.

    Args:
        folder: of volumes and logs.
        objects: what the chart made.
        secrets: values of variables that refer to secrets, by NAME/KEY.
    """

    folder: Path
    objects: Sequence[Object]
    secrets: Mapping[str, str]
    ports: dict[str, int] = field(default_factory=lambda: choose_ports(dict.fromkeys(PORTS, 0)))
    running: list[Running] = field(default_factory=list)

    def here(self, text: str, pod: str = "") -> str:
        """A word of a container as it is on this machine."""
        text = text.replace("=0.0.0.0", "=127.0.0.1")
        text = re.sub(r"(dns:|http://)shop-tritonrank-[a-z-]+:", r"\g<1>127.0.0.1:", text)
        text = re.sub(r"\b(80[08]\d)\b", lambda found: str(self.ports[found[1]]), text)
        for mount in ("/models", "/tmp", "/etc/tritonrank", "/state"):
            shared = mount in ("/models", "/etc/tritonrank")
            text = re.sub(rf"(?<![\w/.-]){mount}\b", str(self.folder / ("" if shared else pod) / mount[1:]), text)
        return text

    def words(self, made: Mapping[str, Any], pod: str = "") -> list[str]:
        """The command of a container; programs are those of this environment."""
        words = [self.here(word, pod) for word in (*made.get("command", []), *made.get("args", []))]
        program = {"tritonrank": [sys.executable, "-m", "tritonrank"], "python": [sys.executable]}[words[0]]
        return [*program, *words[1:]]

    def environment(self, made: Mapping[str, Any], pod: str) -> dict[str, str]:
        """This process's variables, the container's over them."""
        temporary = self.folder / pod / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(temporary)}
        for variable in made.get("env", []):
            where = variable.get("valueFrom", {}).get("secretKeyRef")
            value = self.secrets[f"{where['name']}/{where['key']}"] if where else self.here(variable["value"], pod)
            own[variable["name"]] = value
        return os.environ | own

    def run(self, made: Mapping[str, Any], pod: str) -> None:
        """A container that ends by itself, such as one before the others."""
        folder = self.folder / "work" if made.get("workingDir") == "/work" else self.folder
        words, environment = self.words(made, pod), self.environment(made, pod)
        done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, made: Mapping[str, Any]) -> Running:
        """A container that stays."""
        name = made["name"]
        environment = self.environment(made, name)
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(self.words(made, name), env=environment, stdout=output, stderr=subprocess.STDOUT)
        self.running.append(Running(made, process, log))
        return self.running[-1]

    def passes(self, one: Running, probe: str) -> bool:
        """Ask once, as the probe says."""
        how = one.made[probe]
        seconds = how.get("timeoutSeconds", 1) + 5  # this machine is slower than a node that is sized
        if "exec" in how:
            program, *rest = (self.here(word, one.made["name"]) for word in how["exec"]["command"])
            assert program == "python3"
            return subprocess.run([sys.executable, *rest], capture_output=True, timeout=60).returncode == 0
        (number,) = [port["containerPort"] for port in one.made["ports"] if port["name"] == how["httpGet"]["port"]]
        url = f"http://127.0.0.1:{self.ports[str(number)]}{how['httpGet']['path']}"
        try:
            return httpx.get(url, timeout=seconds).status_code == 200
        except httpx.HTTPError:
            return False

    def wait(self, one: Running, probe: str) -> None:
        """Until a probe passes, as often as the chart allows."""
        how = one.made[probe]
        end = time.monotonic() + how["periodSeconds"] * how["failureThreshold"]
        while not self.passes(one, probe):
            assert one.process.poll() is None, one.log.read_text("utf-8", "replace")[-3_000:]
            assert time.monotonic() < end, f"{one.made['name']}: {probe} does not pass"
            time.sleep(0.2)

    def end(self, one: Running) -> None:
        """SIGTERM, without waiting."""
        one.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Nothing stays behind."""
        for one in self.running:
            if one.process.poll() is None:
                one.process.terminate()
        for one in self.running:
            try:
                one.process.wait(40)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
