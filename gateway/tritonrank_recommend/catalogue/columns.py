"""Filters on item fields: columns of the artifact (memory-mapped), and of the slots of items that came later.

A field holds numbers, or tags: texts of which an item has none, one or several. What a filter admits among the items
of the artifact is kept for the next request with the same filter.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tritonrank_recommend.catalogue.growing import Growing
from tritonrank_recommend.catalogue.interface import Filters
from tritonrank_recommend.catalogue.layout import COLUMNS, REBUILD, CatalogueError, ColumnFacts, Files
from tritonrank_recommend.stores.interface import FieldValue

BOUNDS: dict[str, Callable[..., NDArray[np.bool_]]] = {
    "gt": np.greater,
    "gte": np.greater_equal,
    "lt": np.less,
    "lte": np.less_equal,
}
MOST_VALUES = 100
"""In the list of one filter."""
KEPT_MASKS = 32
Mask = NDArray[np.bool_]


class FilterError(ValueError):
    """A filter names a field that items do not have, or asks what the field cannot answer; names both."""


def as_tag(value: object) -> str:
    """How a tag is written: true and false as in JSON, 1980.0 as 1980."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def tags_of(value: FieldValue) -> list[str]:
    """The tags of a field; a list has several, null and empty texts are none."""
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    return [as_tag(part) for part in values if part is not None and part != ""]


def number_of(value: FieldValue) -> float:
    """The number of a field; NaN where it holds none."""
    return float(value) if isinstance(value, int | float) else np.nan


class NumberColumn:
    """Numbers by place, then by slot."""

    def __init__(self, name: str, base: NDArray[np.float64] | None) -> None:
        self.name, self._base = name, base
        self._later: Growing[np.float64] = Growing(np.float64)

    def add(self, slot: int, value: FieldValue) -> None:
        if short := slot - len(self._later):
            self._later.extend(np.full(short, np.nan))
        self._later.append(number_of(value))

    def check(self, wanted: object) -> None:
        if isinstance(wanted, Mapping):
            _check_bounds(self.name, wanted)
            return
        for value in _values(self.name, wanted):
            if not isinstance(value, int | float):
                raise FilterError(f"filters.{self.name}: {value!r}, but this field holds numbers")

    def base_mask(self, wanted: Any, items: int) -> Mask:
        return np.zeros(items, dtype=bool) if self._base is None else self._mask(self._base, wanted)

    def later_mask(self, wanted: Any, slots: int) -> Mask:
        return _filled(self._mask(self._later.rows[:slots], wanted), slots)

    def _mask(self, numbers: NDArray[np.float64], wanted: Any) -> Mask:
        if isinstance(wanted, Mapping):
            mask = ~np.isnan(numbers)
            for name, bound in wanted.items():
                mask &= BOUNDS[name](numbers, float(bound))
            return mask
        return np.isin(numbers, [float(value) for value in _values(self.name, wanted)])


class TagColumn:
    """Codes of tags by place, then by slot; ``ends`` says where the codes of a row end, where rows may have several."""

    def __init__(
        self, name: str, values: Sequence[str], codes: NDArray[np.int32] | None, ends: NDArray[np.int64] | None
    ) -> None:
        self.name = name
        self._codes = {value: code for code, value in enumerate(values)}
        self._base, self._ends = codes, ends
        self._later: Growing[np.int32] = Growing(np.int32)
        self._later_ends: Growing[np.int64] = Growing(np.int64)

    def add(self, slot: int, value: FieldValue) -> None:
        if short := slot - len(self._later_ends):
            self._later_ends.extend(np.full(short, len(self._later)))
        codes = [self._codes.setdefault(tag, len(self._codes)) for tag in tags_of(value)]
        self._later.extend(np.array(codes, dtype=np.int32))
        self._later_ends.append(len(self._later))

    def check(self, wanted: object) -> None:
        if isinstance(wanted, Mapping):
            raise FilterError(f"filters.{self.name}: bounds, but this field holds texts; name one or a list of them")
        _values(self.name, wanted)

    def base_mask(self, wanted: Any, items: int) -> Mask:
        if self._base is None:
            return np.zeros(items, dtype=bool)
        if self._ends is None:
            return _in(self._base, self._wanted(wanted))
        return _any_in(self._base, self._ends, self._wanted(wanted))

    def later_mask(self, wanted: Any, slots: int) -> Mask:
        ends = self._later_ends.rows[:slots]
        return _filled(_any_in(self._later.rows, ends, self._wanted(wanted)), slots)

    def _wanted(self, wanted: Any) -> list[int]:
        tags = [as_tag(value) for value in _values(self.name, wanted)]
        return [code for tag in tags if (code := self._codes.get(tag)) is not None]


Column = NumberColumn | TagColumn


class Columns:
    """All fields that filters may name. One thread adds slots, others ask."""

    def __init__(self, files: Files, facts: Sequence[ColumnFacts], items: int) -> None:
        self._files, self._facts, self._items = files, facts, items
        self._refused = {column.field: column.why_not for column in facts if column.why_not}
        self._columns = {column.field: _open(files, column) for column in facts if not column.why_not}
        self._masks: dict[bytes, Mask] = {}
        self._lock = threading.Lock()

    def without_slots(self) -> "Columns":
        """The same columns of the artifact, as they were opened."""
        return Columns(self._files, self._facts, self._items)

    def add(self, slot: int, fields: Mapping[str, FieldValue]) -> None:
        """Take the fields of a slot; slots come in their order. A field that is new becomes a column."""
        for name, value in fields.items():
            if value is None or name in self._refused:
                continue
            if name not in self._columns:
                is_number = isinstance(value, int | float)
                self._columns[name] = NumberColumn(name, None) if is_number else TagColumn(name, [], None, None)
            self._columns[name].add(slot, value)

    def check(self, filters: Filters) -> None:
        """Raises FilterError: a field is not known, or holds another kind of values than the filter."""
        for field, wanted in filters.items():
            if (why_not := self._refused.get(field)) is not None:
                raise FilterError(f"filters.{field}: {why_not}")
            column = self._columns.get(field)
            if column is None:
                known = ", ".join(sorted(self._columns)) or "none"
                raise FilterError(f"filters.{field}: items have no such field; known: {known}")
            column.check(wanted)

    def base_mask(self, filters: Filters) -> Mask:
        """[items of the artifact] whether all filters admit them, by what the artifact says of them."""
        key = msgspec.json.encode(sorted(filters.items()))
        if (kept := self._masks.get(key)) is not None:
            return kept
        mask = np.ones(self._items, dtype=bool)
        for field, wanted in filters.items():
            mask &= self._columns[field].base_mask(wanted, self._items)
        with self._lock:
            if len(self._masks) >= KEPT_MASKS:
                self._masks.pop(next(iter(self._masks)))
            self._masks[key] = mask
        return mask

    def later_mask(self, filters: Filters, slots: int) -> Mask:
        """[slots] the same of items that came later."""
        mask = np.ones(slots, dtype=bool)
        for field, wanted in filters.items():
            mask &= self._columns[field].later_mask(wanted, slots)
        return mask


def _open(files: Files, column: ColumnFacts) -> Column:
    base = f"{COLUMNS}/{column.file}"
    if column.kind == "number":
        return NumberColumn(column.field, files.array(f"{base}.npy"))
    path = files.path(f"{base}.values.json")
    try:
        values = msgspec.json.decode(path.read_bytes(), type=list[str])
    except msgspec.DecodeError as error:
        raise CatalogueError(f"{path}: cannot be read ({error}); {REBUILD}") from None
    has_several = f"{base}.ends.npy" in files.below(COLUMNS)
    return TagColumn(
        column.field, values, files.array(f"{base}.npy"), files.array(f"{base}.ends.npy") if has_several else None
    )


def _values(name: str, wanted: Any) -> list[Any]:
    values = wanted if isinstance(wanted, list | tuple) else [wanted]
    if len(values) > MOST_VALUES:
        raise FilterError(f"filters.{name}: {len(values)} values; the limit is {MOST_VALUES}")
    for value in values:
        if not isinstance(value, str | int | float):
            raise FilterError(f"filters.{name}: {value!r}; expected a text, a number, a list of these, or bounds")
    return list(values)


def _check_bounds(name: str, wanted: Mapping[str, Any]) -> None:
    for bound, value in wanted.items():
        if bound not in BOUNDS:
            raise FilterError(f"filters.{name}.{bound}: no such bound; known: {', '.join(BOUNDS)}")
        if not isinstance(value, int | float):
            raise FilterError(f"filters.{name}.{bound}: {value!r}; expected a number")


def _in(codes: NDArray[np.int32], wanted: Sequence[int]) -> Mask:
    if len(wanted) == 1:
        return np.equal(codes, wanted[0])
    return np.isin(codes, np.array(wanted, dtype=np.int32))


def _any_in(codes: NDArray[np.int32], ends: NDArray[np.int64], wanted: Sequence[int]) -> Mask:
    """Per row whether one of its codes is wanted."""
    if not len(ends):
        return np.zeros(0, dtype=bool)
    hits = np.concatenate([[0], np.cumsum(_in(codes[: ends[-1]], wanted))])
    return np.diff(hits[ends], prepend=0) > 0


def _filled(mask: Mask, slots: int) -> Mask:
    """The last slots may lack a field."""
    return mask if len(mask) == slots else np.concatenate([mask, np.zeros(slots - len(mask), dtype=bool)])
