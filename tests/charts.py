"""The chart, rendered for each set of values that is tested; and what one wants to know of its objects."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

from deploy.helm.chart import VALUES, Object, render, values_files

SETS = tuple(path.stem for path in values_files())
WORKLOADS = ("Deployment", "StatefulSet", "CronJob")
OURS = "app.kubernetes.io/component"


@cache
def rendered(values: str) -> tuple[Object, ...]:
    """What a set of values makes; of all tests of a process once. Nobody changes it."""
    return tuple(render([VALUES / f"{values}.yaml"]))


def of_kind(values: str, *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [one for one in rendered(values) if one["kind"] in kinds]


def one_of(values: str, kind: str, ending: str) -> Object:
    """The object whose name ends so."""
    (found,) = [one for one in of_kind(values, kind) if one["metadata"]["name"].endswith(f"-{ending}")]
    return found


def template_of(workload: Object) -> Mapping[str, Any]:
    """The pod template of a workload."""
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Mapping[str, Any] = spec["template"]
    return template


def workloads(values: str) -> list[Object]:
    return of_kind(values, *WORKLOADS)


def containers_of(workload: Object) -> Iterator[Mapping[str, Any]]:
    """All of them, those that run first too."""
    spec = template_of(workload)["spec"]
    yield from spec.get("initContainers", [])
    yield from spec["containers"]


def container(values: str, part: str) -> Mapping[str, Any]:
    """The container that a part runs in."""
    return container_of(workload_of(rendered(values), part))


def container_of(workload: Object) -> Mapping[str, Any]:
    """The one that stays."""
    only: Mapping[str, Any]
    (only,) = template_of(workload)["spec"]["containers"]
    return only


def workload_of(objects: Iterable[Object], part: str) -> Object:
    """What a part's pods are made by."""
    (found,) = [one for one in objects if one["kind"] in WORKLOADS and part_of(one) == part]
    return found


def part_of(workload: Object) -> str:
    return str(template_of(workload)["metadata"]["labels"][OURS])


def selects(selector: Mapping[str, str], workload: Object) -> bool:
    """Whether a selector finds the pods of a workload."""
    return selector.items() <= template_of(workload)["metadata"]["labels"].items()


utils.schema_contents = cache(utils.schema_contents)  # it reads the definitions of all kinds again for every object
KUBERNETES = "1.37"


def validate(one: Object) -> None:
    """Whether Kubernetes' own schema takes an object, and knows each of its fields.

    Raises:
        kubernetes_validate.ValidationError: it does not.
    """
    kubernetes_validate.validate(one, KUBERNETES, strict=True)
