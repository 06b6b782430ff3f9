"""The recipes that come with tritonrank: beside this package in a checkout, inside it in an installed one."""

from pathlib import Path

INSIDE = Path(__file__).parents[1] / "recipes"
IN_A_CHECKOUT = Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """By name, in the order of the names."""
    folder = INSIDE if INSIDE.is_dir() else IN_A_CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(asked: Path) -> Path:
    """The file that is asked for: a path, or where there is no such file the name of a recipe that is shipped."""
    return asked if asked.exists() else shipped_recipes().get(str(asked), asked)
