"""The Python files of a repository: each model's model.py and what it imports, all of which are copied."""

from collections.abc import Iterable
from pathlib import Path

import tritonrank_runtime

MODELS_IN_PYTHON = ("tokenize", "score", "select")


def python_sources(models: Iterable[str] = MODELS_IN_PYTHON) -> dict[str, Path]:
    """The Python files of models by their place in the repository: model.py and ``tritonrank_runtime`` beside it."""
    runtime = sorted(Path(str(tritonrank_runtime.__file__)).parent.glob("*.py"))
    found = {}
    for name in models:
        found[f"{name}/1/model.py"] = serving_sources() / name / "1" / "model.py"
        found |= {f"{name}/1/{tritonrank_runtime.__name__}/{path.name}": path for path in runtime}
    return found


def serving_sources() -> Path:
    """The folder with each model's model.py: in a checkout at its root, in an installed package inside it."""
    inside = Path(__file__).parents[1] / "model_repository"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "model_repository"
