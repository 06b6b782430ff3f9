"""What every section of a recipe is made of."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(f"{path}: {error}") from None


SourcePath = Annotated[Path, AfterValidator(_expand_home)]
"""A file or folder of the user's; ``~`` is the home folder."""
