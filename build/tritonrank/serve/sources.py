"""The Python files of a repository: each model's model.py and what it imports, all of which are copied."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import tritonrank_runtime

MODELS_IN_PYTHON = ("ranker", "tokenize", "score", "select")
"""A repository has the first, or the others (``triton_config.py``)."""
SOURCE_ENDINGS = {".py", ".cpp", ".h", ".inc"}
RECOMMEND = "recommend"
"""The model in Python that only recipes with a ``retrieval`` section have."""
RECOMMEND_PACKAGES = ("tritonrank_recommend", "tritonrank_client")
"""What it imports beside ``tritonrank_runtime``; what those import has to be installed where the server runs."""


def python_sources(models: Iterable[str] = MODELS_IN_PYTHON) -> dict[str, Path]:
    """The source files of models by their place in the repository: model.py and ``tritonrank_runtime`` beside it.

    The C++ sources of the native engine are among them: a server that has no compiled library can make one.
    """
    package = Path(str(tritonrank_runtime.__file__)).parent
    runtime = sorted(path for path in package.rglob("*") if path.suffix in SOURCE_ENDINGS)
    found = {}
    for name in models:
        found[f"{name}/1/model.py"] = serving_sources() / name / "1" / "model.py"
        found |= {f"{name}/1/{tritonrank_runtime.__name__}/{path.relative_to(package)}": path for path in runtime}
    return found


def recommend_sources() -> dict[str, Path]:
    """The Python files of the model ``recommend``, as ``python_sources`` gives those of the others."""
    found = python_sources((RECOMMEND,))
    for package in RECOMMEND_PACKAGES:
        spec = find_spec(package)
        folder = Path(str(spec and spec.origin)).parent
        for path in sorted(folder.rglob("*.py")):
            found[f"{RECOMMEND}/1/{package}/{path.relative_to(folder)}"] = path
    return found


def serving_sources() -> Path:
    """The folder with each model's model.py: in a checkout at its root, in an installed package inside it."""
    inside = Path(__file__).parents[1] / "model_repository"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "model_repository"
