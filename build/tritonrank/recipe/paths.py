"""Where the relative paths of a recipe begin: at its own folder, so that it means the same wherever it is run.

One that is there only as seen from the working directory works as well, and a note says so. Recipes that come with
tritonrank have no data beside them: their paths begin at the working directory, as those after ``--set`` do.
"""

import glob
from pathlib import Path
from typing import Any

from rich.console import Console

from tritonrank.recipe.shipped import shipped_recipes
from tritonrank.system.database_url import DatabaseUrl, is_url

PATH_KEYS = {"data": ("path", "items", "events"), "learn": ("log",)}
"""By section."""
console = Console(stderr=True)


def begin_at_recipe(name: str, section: Any, recipe: Path) -> None:
    """Put the recipe's folder before the relative paths of a section.

    Args:
        name: of the section.
        section: as YAML gave it, not checked yet; it is changed.
        recipe: the file.
    """
    if not isinstance(section, dict) or recipe.resolve() in [path.resolve() for path in shipped_recipes().values()]:
        return
    for key in PATH_KEYS[name]:
        if isinstance(section.get(key), str):
            section[key] = _begun(section[key], recipe.parent, f"{recipe}: {name}.{key}")


def _begun(written: str, folder: Path, setting: str) -> Any:
    if is_url(written):
        try:
            url = DatabaseUrl.parse(written)
        except ValueError:
            return written  # validation says what is wrong with it
        return url.within(_folder_of(url.file, folder, setting)) if url.file else url
    path = Path(written)
    return written if written.startswith("~") else str(_folder_of(path, folder, setting) / path)


def _folder_of(path: Path, folder: Path, setting: str) -> Path:
    """The folder at which a path begins."""
    if path.is_absolute() or _is_there(folder / path) or folder.resolve() == Path.cwd() or not _is_there(path):
        return folder
    note = f"note: {setting} is {path}, which is not in {folder} but in the working directory; it is read from there"
    console.print(note, highlight=False, markup=False, soft_wrap=True)
    return Path()


def _is_there(path: Path) -> bool:
    if not glob.has_magic(str(path)):
        return path.exists()
    return path.exists() or bool(glob.glob(str(path)))  # noqa: PTH207 - Path.glob takes no absolute pattern
