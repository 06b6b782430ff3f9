"""What every section of a recipe is made of."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
)

from tritonrank.system.database_url import DatabaseUrl, is_url, read_url
from tritonrank.system.table_url import TableUrl


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise ValueError(f"{path}: {error}") from None


OffIsFalse = BeforeValidator(lambda value: "off" if value is False else value)
"""For a choice of words of which one is ``off``: YAML reads that as a boolean."""

SourcePath = Annotated[Path, AfterValidator(_expand_home)]
"""A file or folder of the user's; ``~`` is the home folder."""


def _read_location(value: object) -> Path | DatabaseUrl | TableUrl:
    match value:
        case DatabaseUrl() | TableUrl():
            return value
        case str() if is_url(value):
            return read_url(value)
        case str() | Path():
            return _expand_home(Path(value))
    raise ValueError("expected a path, or the URL of files or of a database")


SourceLocation = Annotated[
    Path | DatabaseUrl | TableUrl,
    BeforeValidator(_read_location),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]
"""A file or folder of the user's, one in an object store, or a table in a database; written out without a password."""

LIST, MAPPING = "(list)", "(mapping)"
"""Tags of a setting that may be either; they are no part of a setting's name in a message."""


def _list_or_mapping(value: object) -> str:
    return MAPPING if isinstance(value, dict) else LIST


Names = Annotated[
    Annotated[list[str], Field(min_length=1), Tag(LIST)] | Annotated[dict[str, str], Field(min_length=1), Tag(MAPPING)],
    Discriminator(_list_or_mapping),
]
"""Columns; or what they are called here, and the columns."""
