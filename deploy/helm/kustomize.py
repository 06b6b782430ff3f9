"""The same objects for kustomize: a base in the tree, rendered from the chart, one file for each object.

Alert rules and dashboards stay where they are (deploy/prometheus, deploy/grafana): a copy here would be a third one,
and `kubectl create configmap --from-file` takes them as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from deploy.helm.chart import VALUES, Object, render

BASE = Path(__file__).parents[1] / "kustomize" / "base"
RELEASE = "tritonrank"
SETS = {"monitoring.rules": False, "monitoring.dashboards": False, "fullnameOverride": RELEASE}
HEAD = "# Written by `python -m deploy.helm` from chart and values/cpu.yaml. Change those, or patch in an overlay.\n"
HELMS_OWN = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def base() -> dict[str, str]:
    """Every file of the base by its name."""
    objects = [_without_helm(one) for one in render([VALUES / "cpu.yaml"], SETS, release=RELEASE)]
    files = {f"{one['metadata']['name']}-{one['kind'].lower()}.yaml": _written(one) for one in objects}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(files),
    }
    return {**files, "kustomization.yaml": _written(kustomization)}


def differing(files: dict[str, str], folder: Path = BASE) -> Iterator[str]:
    """Names of files in the folder that are not as they should be."""
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    yield from sorted(name for name in {*files, *found} if files.get(name) != found.get(name))


def write(files: dict[str, str], folder: Path = BASE) -> None:
    """Write them, and remove those that are no longer."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.yaml"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _without_helm(one: Object) -> Object:
    labels = one["metadata"]["labels"]
    return one | {
        "metadata": one["metadata"] | {"labels": {k: v for k, v in labels.items() if k not in HELMS_OWN}},
    }


def _written(one: Object) -> str:
    return HEAD + yaml.safe_dump(one, sort_keys=False, width=120)
