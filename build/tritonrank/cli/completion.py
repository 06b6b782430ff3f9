"""What Tab offers after ``tritonrank --install-completion``: recipes by name or file, and settings.

An empty answer leaves the word to the shell, which then offers files and folders.
"""

from glob import escape
from pathlib import Path


def complete_recipe(incomplete: str) -> list[str]:
    """Names of shipped recipes, and recipe files of the folder that is typed so far."""
    try:
        from tritonrank.recipe import shipped_recipes
    except ModuleNotFoundError:  # this machine only serves
        return []
    names = [name for name in shipped_recipes() if name.startswith(incomplete)]
    typed = Path(incomplete)
    folder, beginning = (typed, "") if incomplete.endswith("/") else (typed.parent, typed.name)
    files = sorted(folder.glob(f"{escape(beginning)}*.yaml"))
    return names + [str(file) for file in files]


def complete_setting(incomplete: str) -> list[str]:
    """Keys of settings."""
    try:
        from tritonrank.recipe import setting_rows
    except ModuleNotFoundError:
        return []
    keys = dict.fromkeys(row.key.partition(" ")[0] for row in setting_rows())
    return [key for key in keys if key.startswith(incomplete)]


def complete_override(incomplete: str) -> list[str]:
    """The left side of ``--set KEY=VALUE``."""
    return [] if "=" in incomplete else [f"{key}=" for key in complete_setting(incomplete)]
