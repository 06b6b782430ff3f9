"""The ranker that a recipe's own one learns from beside the labels: ``finetune.teacher``, another recipe's artifact."""

from pathlib import Path

from tritonrank.errors import RecipeError


def teacher_folder(name: str) -> Path:
    """Where it is.

    Raises:
        RecipeError: nowhere.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise RecipeError(f"finetune.teacher: {folder}: no such folder; build the teacher first, with its own recipe")
    return folder
