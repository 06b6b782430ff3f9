"""Ask helm what the chart makes of values. It needs no cluster for that."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tritonrank.errors import TritonRankError

ROOT = Path(__file__).parents[2]
CHART = Path(__file__).parent / "tritonrank"
VALUES = Path(__file__).parent / "values"
RELEASE, NAMESPACE = "shop", "shop"

Object = dict[str, Any]
"""One object of Kubernetes."""


class ChartError(TritonRankError):
    """Helm refused; the message is its own."""


def program(name: str) -> str:
    """helm or kubectl: the one that was fetched, else that of the system.

    Raises:
        ChartError: there is none.
    """
    fetched = ROOT / ".tools" / "bin" / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    if found is None:
        raise ChartError(f"{name} is missing. Fetch it: python -m loadtests.cluster_tools")
    return found


def values_files() -> list[Path]:
    """The sets of values that are tested."""
    return sorted(VALUES.glob("*.yaml"))


def helm(*arguments: str | Path) -> str:
    """What helm says to a command; notes about the links to dashboards and rules go nowhere.

    Raises:
        ChartError: it refused.
    """
    done = subprocess.run([program("helm"), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line and "level=INFO" not in line]
        raise ChartError("\n".join(said))
    return done.stdout


def render(
    values: Sequence[Path] = (),
    sets: Mapping[str, Any] | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    chart: Path = CHART,
) -> list[Object]:
    """The objects that `helm install` would make, in its order.

    Args:
        values: files, a later one over an earlier one.
        sets: further values by dotted name, over the files.
        release: name of the installation.
        namespace: that it goes to.
        chart: folder of the chart.

    Raises:
        ChartError: values are wrong, or a template is.
    """
    command: list[str | Path] = ["template", release, chart, "--namespace", namespace]
    for path in values:
        command += ["--values", path]
    for name, value in (sets or {}).items():
        command += ["--set-json", f"{name}={json.dumps(value)}"]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(helm(*command), Loader=loader) if one]


def key_of(one: Object) -> str:
    """Kind and name, which no two objects of a release share."""
    return f"{one['kind']}/{one['metadata']['name']}"


def relative(path: Path) -> str:
    """A path as one would type it."""
    return os.path.relpath(path, Path.cwd())
