"""Environments in which some distributions are not installed, as far as any Python process in them can tell."""

import os
from collections.abc import Collection
from pathlib import Path

BUILDERS = frozenset(
    {
        "accelerate",
        "jinja2",
        "onnx",
        "optimum",
        "polars",
        "pydantic",
        "scipy",
        "sklearn",
        "torch",
        "transformers",
        "yaml",
    }
)
"""Modules that build rankers; nothing that serves may need one."""
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def without(folder: Path, modules: Collection[str]) -> dict[str, str]:
    """Environment variables with which Python, and what it starts, finds none of these modules.

    Args:
        folder: gets the file that Python runs at each start.
        modules: the outermost names.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=sorted(modules)), encoding="utf-8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}
