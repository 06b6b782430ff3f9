"""The texts of a request before they are tokens: bytes to text, an item's fields to one text, runs of nothing cut."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tritonrank_runtime.field_text import field_text

FEWEST_DIGITS_AS_TEXT = 4_000
"""Python refuses to read an integer of more than 4,300 digits; one of so many stays the text that it is."""

PLACE = re.compile(r"\{(\w+)\}")
"""Of a field in a template."""

# What fills a long text without making a token, in nearly every tokenizer: blanks, controls, accents and marks that go
# on top of a letter, zero-width and direction marks. A few say as much as thousands.
_FILLING = "\\s\x00-\x1f\x7f-\x9f\xad\u0300-\u036f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufffd"
_FILLING_RUN = re.compile(f"([{_FILLING}]{{3}})[{_FILLING}]+")


class TextError(ValueError):
    """A text of a request cannot be used; the message begins with the field, such as ``items[3]``."""


def decode_texts(raw: Iterable[bytes], field: str, max_bytes: int) -> list[str]:
    """UTF-8 texts of a BYTES tensor.

    Raises:
        TextError: a text is too long or not valid UTF-8; names the field and the element.
    """
    texts = []
    for position, value in enumerate(raw):
        if len(value) > max_bytes:
            raise TextError(f"{field}[{position}]: {len(value)} bytes; the limit is {max_bytes}")
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise TextError(
                f"{field}[{position}]: not valid UTF-8 (byte 0x{value[error.start]:02x} at offset {error.start})"
            ) from None
    return texts


def template_fields(template: str) -> tuple[str, ...]:
    """The names of the fields that a template uses, in its order."""
    return tuple(dict.fromkeys(PLACE.findall(template)))


def render_item(template: str, text: str, field: str = "item") -> str:
    """The text of an item: a JSON object goes through the template, anything else is the text itself.

    ``{"": "text"}``, one field without a name, is that text as it is, whatever it looks like. An object without a
    value for any field of the template has no text: "", not the template's punctuation.

    Raises:
        TextError: a field that the template names holds something that is not text, number or list of these, or
            text that is not valid Unicode.
    """
    fields = read_fields(text, field)
    return fields if isinstance(fields, str) else render_fields(template, fields, field)


def read_fields(text: str, field: str = "item") -> str | dict[str, Any]:
    """The fields of an item that is a JSON object, and the text of any other; see ``render_item``.

    Raises:
        TextError: JSON is nested too deeply, or a text is not valid Unicode.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = json.loads(text, parse_int=_json_integer, parse_float=_json_fraction, parse_constant=_no_value)
    except ValueError:
        return text
    except RecursionError:
        raise TextError(f"{field}: JSON nested too deeply; fields hold text, numbers or lists of these") from None
    if not isinstance(value, dict):
        return text
    if list(value) == [""] and isinstance(value[""], str):
        return _whole_characters(value[""], f"{field}: field ''")
    return value


def render_fields(template: str, fields: Mapping[str, Any], field: str = "item") -> str:
    """Fill ``{name}`` from the fields; absent and null ones become nothing, lists are joined with commas.

    Numbers, booleans and HTML are as ``field_text`` says.

    Where no field that the template names says anything, the item has no text: "", not the template's punctuation.

    Raises:
        TextError: a value is an object, or a list that holds something else than text and numbers.
    """
    is_empty = True

    def fill(match: re.Match[str]) -> str:
        nonlocal is_empty
        value = fields.get(match[1])
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, str | int | float) for part in values):
            raise TextError(f"{field}: field {match[1]!r} must be text, a number or a list of these")
        parts = [field_text(part) for part in values if part is not None and part == part]
        is_empty = is_empty and not any(part.strip() for part in parts)
        return _whole_characters(", ".join(parts), f"{field}: field {match[1]!r}")

    filled, places = PLACE.subn(fill, template)
    return "" if places and is_empty else " ".join(filled.split())


def squeezed(text: str) -> str:
    """A text whose runs of filling are short; one that holds a blank still parts two words."""
    return _FILLING_RUN.sub(lambda run: run[1] + (" " if re.search(r"\s", run[0]) else ""), text)


def whole_words(cut_text: str) -> str:
    """A text without the word at its end, which a cut may have left in part."""
    if not cut_text or cut_text[-1].isspace():
        return cut_text
    return cut_text[: len(cut_text) - len(cut_text.split()[-1])]


def _whole_characters(text: str, what: str) -> str:
    if half := re.search("[\ud800-\udfff]", text):  # JSON can escape one half of a surrogate pair
        raise TextError(f"{what} holds \\u{ord(half[0]):04x}, half a character")
    return text


def _json_integer(digits: str) -> int | str:
    return int(digits) if len(digits) < FEWEST_DIGITS_AS_TEXT else digits


def _json_fraction(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits  # 1e999 is a number of JSON, and infinity is none


def _no_value(_: str) -> None:
    """NaN and Infinity are no JSON, but data frames write a price that is not known as NaN: like null."""
