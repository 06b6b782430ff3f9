"""What an upgrade does: which objects come, go and change, and which pods are started again because of it.

Kubernetes replaces the pods of a workload when its pod template changes, and only then; a volume claim of a StatefulSet
cannot change at all. The way back (`helm rollback`) is the same question with both sides exchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.helm.chart import Object, key_of

WORKLOADS = ("Deployment", "StatefulSet")
IMMUTABLE = {
    "Deployment": ("spec.selector",),
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.volumeClaimTemplates"),
}


@dataclass(frozen=True)
class Changes:
    """Between two renderings.

    Attributes:
        added: objects, as KIND/NAME.
        removed: objects.
        changed: by object the places in it, dotted.
        restarted: workloads whose pods are replaced, one after another.
        refused: workloads that Kubernetes would not change: they have to be deleted first.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]
    restarted: tuple[str, ...]
    refused: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """For people."""
        for key in self.added:
            yield f"+ {key}"
        for key in self.removed:
            yield f"- {key}"
        for key, places in self.changed.items():
            yield f"~ {key}: {', '.join(places)}"
        yield f"pods that are replaced: {', '.join(self.restarted) or 'none'}"
        if self.refused:
            yield f"REFUSED by Kubernetes (delete them first): {', '.join(self.refused)}"


def changes(before: Sequence[Object], after: Sequence[Object]) -> Changes:
    """Compare two renderings of the chart."""
    old, new = ({key_of(one): one for one in side} for side in (before, after))
    both = [key for key in new if key in old]
    changed = {key: tuple(_differences(old[key], new[key])) for key in both if old[key] != new[key]}
    restarted, refused = [], []
    for key, places in changed.items():
        kind = new[key]["kind"]
        if kind in WORKLOADS and any(place.startswith("spec.template") for place in places):
            restarted.append(key)
        if any(place.startswith(IMMUTABLE.get(kind, ())) for place in places if kind in IMMUTABLE):
            refused.append(key)
    return Changes(
        added=tuple(key for key in new if key not in old),
        removed=tuple(key for key in old if key not in new),
        changed=changed,
        restarted=tuple(restarted),
        refused=tuple(refused),
    )


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """The dotted places at which two trees differ, as deep as both are maps."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)
    elif old != new:
        yield place
