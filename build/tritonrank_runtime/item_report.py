"""What of a request's items the ranker could not use: which have nothing to score and why, and whose fields do not fit.

Such items never fail a request: they come last, and a caller who asks is told. A request that says ``strict`` wants to
hear of it instead, and is refused with the place and the field.
"""

import json
from collections import Counter
from collections.abc import Sequence

from tritonrank_runtime.item_text import TextError, read_fields, render_fields, template_fields

EMPTY = "empty"
"""The text is empty or blank, or the fields that the template names are."""
NO_FIELD = "no_field"
"""The object has none of the template's fields."""
NO_TOKEN = "no_token"
"""There is text, but the tokenizer finds no token in it."""
MOST_FIELDS = 100
"""Names of fields that a report holds at the most, the most frequent ones; a client may send any number."""
MOST_NAME = 100
"""Characters of such a name."""


class ItemReader:
    """Renders the items and the history of one request, and notes what the template cannot use.

    Args:
        template: of the items' texts.
        is_strict: refuse what could not be scored, and objects that lack a field of the template.
    """

    def __init__(self, template: str, is_strict: bool = False) -> None:
        self._template = template
        self._fields = frozenset(template_fields(template))
        self._is_strict = is_strict
        self._without_field: set[str] = set()
        self._missing: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def render(self, elements: Sequence[str], name: str) -> list[str]:
        """The texts of a tensor's elements; "" for one that says nothing.

        Args:
            elements: each a text, or an object for the template.
            name: of the tensor.

        Raises:
            TextError: an element cannot be used, or strict mode refuses it; the message begins with its place.
        """
        return [self._render(element, f"{name}[{place}]") for place, element in enumerate(elements)]

    def _render(self, element: str, place: str) -> str:
        fields = read_fields(element, place)
        if isinstance(fields, str):
            return fields
        missing = self._fields - fields.keys()
        self._missing.update(missing)
        self._unknown.update(fields.keys() - self._fields)
        if self._fields and len(missing) == len(self._fields):
            self._without_field.add(place)
        if missing and self._is_strict:
            raise TextError(
                f"{place}: field {min(missing)!r} is missing; the template is {self._template!r}, and strict mode wants"
                " all of its fields (null says that there is no value)"
            )
        return render_fields(self._template, fields, place)

    def unscored(self, texts: Sequence[str], candidates: Sequence[Sequence[int]], name: str = "items") -> list[str]:
        """For each candidate why it cannot be scored, "" for one that can.

        Args:
            texts: as ``render`` gave them.
            candidates: their token ids.
            name: of the tensor that they came in.

        Raises:
            TextError: one cannot be scored, and strict mode refuses that.
        """
        reasons = [
            "" if tokens else self._reason(text, f"{name}[{place}]")
            for place, (text, tokens) in enumerate(zip(texts, candidates, strict=True))
        ]
        if self._is_strict:
            for place, reason in enumerate(reasons):
                if reason:
                    raise TextError(f"{name}[{place}]: {self._why(reason)}, so it cannot be scored in strict mode")
        return reasons

    def fields_json(self) -> str:
        """How many items and history entries lack which field of the template, and have which that it does not name:
        ``{"missing": {"title": 2}, "unknown": {"name": 2}}``, the most frequent first."""
        counts = {"missing": self._missing, "unknown": self._unknown}
        return json.dumps({what: _most_common(found) for what, found in counts.items()})

    def _reason(self, text: str, place: str) -> str:
        if text.strip():
            return NO_TOKEN
        return NO_FIELD if place in self._without_field else EMPTY

    def _why(self, reason: str) -> str:
        fields = ", ".join(template_fields(self._template))
        return {
            EMPTY: f"the text is empty (the template's fields are {fields})" if fields else "the text is empty",
            NO_FIELD: f"it has none of the template's fields ({fields})",
            NO_TOKEN: "the tokenizer finds no token in the text",
        }[reason]


def _most_common(counts: Counter[str]) -> dict[str, int]:
    # By name where counts are equal, so that equal requests get equal answers.
    first = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_FIELDS]
    return {name[:MOST_NAME]: count for name, count in first}
