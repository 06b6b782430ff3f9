"""The chart's dashboards and alert rules: links to the tree's own files, so that there are no copies to keep alike.

Helm puts what a link leads to into a package. The links are those of files, not of their folders: a source distribution
has a folder once, and one of both places would be empty.
"""

import os
from pathlib import Path

from deploy.helm.chart import CHART, ROOT

SOURCES = {"dashboards": ROOT / "deploy" / "grafana" / "dashboards", "rules": ROOT / "deploy" / "prometheus" / "rules"}


def wanted() -> dict[Path, str]:
    """Every link, with where it leads."""
    return {
        CHART / "files" / kind / path.name: os.path.relpath(path, CHART / "files" / kind)
        for kind, folder in SOURCES.items()
        for path in sorted(folder.iterdir())
        if path.suffix in (".json", ".yml")
    }


def differing() -> list[Path]:
    """Links that are missing, or lead elsewhere, or are too many."""
    links = wanted()
    found = [path for kind in SOURCES for path in (CHART / "files" / kind).glob("*")]
    wrong = [path for path, target in links.items() if not path.is_symlink() or str(path.readlink()) != target]
    return sorted({*wrong, *(path for path in found if path not in links)})


def write() -> None:
    """Make them all, and remove what is too many."""
    links = wanted()
    for path in differing():
        path.unlink(missing_ok=True)
        if path in links:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(links[path])
