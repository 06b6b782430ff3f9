"""The items of a catalogue as an items table: who serves recommendations need not keep a table beside it."""

import json
from collections.abc import Collection
from pathlib import Path

from tritonrank.errors import DataError
from tritonrank.system.database_url import AnyLocation, DatabaseUrl

FILE, FACTS = "items.db", "catalogue.json"
_CELL = """CASE json_type(fields, {path})
WHEN 'array' THEN (SELECT group_concat(value, ', ') FROM json_each(fields, {path}))
WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE json_extract(fields, {path}) END AS {name}"""


def with_catalogue(location: AnyLocation, key: str, columns: Collection[str]) -> AnyLocation:
    """Where the items are: of the folder of a catalogue the rows of its SQLite file, of all else the same again.

    Args:
        location: of the items table.
        key: what the recipe calls the column of ids.
        columns: fields that are read, the key among them.

    Raises:
        DataError: the catalogue does not have one of the fields.
    """
    if not isinstance(location, Path) or not ((location / FILE).is_file() and (location / FACTS).is_file()):
        return location
    known = json.loads((location / FACTS).read_text(encoding="utf-8"))["fields"]
    if absent := sorted(set(columns) - {key, *known}):
        raise DataError(
            f"{location}: the items of this catalogue have no field {absent[0]!r}, which the recipe's data section "
            f"names; they have {', '.join(known)}"
        )
    cells = [_CELL.format(path=_literal(f'$."{name}"'), name=_name(name)) for name in sorted(set(columns) - {key})]
    query = f"SELECT {', '.join([f'id AS {_name(key)}', *cells])} FROM items ORDER BY place"
    return DatabaseUrl("sqlite", location / FILE, "", "", query)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
