"""Documents as the dialects write them -> items. A text, `{"text": ...}`, or fields for the server's template."""

from collections.abc import Mapping, Sequence
from typing import Any

from tritonrank_gateway.ranking import Item
from tritonrank_gateway.refusal import Refusal

Document = str | dict[str, Any]
NO_TEXT = frozenset({"image", "image_url", "url", "video"})


def items_of(documents: Sequence[Document], field: str, rank_fields: Sequence[str] = ()) -> list[Item]:
    """The items of a request's documents.

    Args:
        documents: as they came.
        field: what the dialect calls them.
        rank_fields: of an object, the fields to read, in this order (Cohere's v1); none reads its `text`.

    Raises:
        Refusal: a document is none; the message says which one.
    """
    return [
        document if isinstance(document, str) else _of_object(document, f"{field}[{place}]", rank_fields)
        for place, document in enumerate(documents)
    ]


def text_of(document: Document, field: str) -> str:
    """The text of a query, which has no template.

    Raises:
        Refusal: it is an object without a text.
    """
    if isinstance(document, str):
        return document
    text = document.get("text")
    if not isinstance(text, str):
        raise Refusal("invalid", f'{field}: expected text or {{"text": ...}}')
    return text


def told(document: Document) -> dict[str, Any]:
    """A document as answers repeat it: always an object."""
    return {"text": document} if isinstance(document, str) else document


def _of_object(document: Mapping[str, Any], where: str, rank_fields: Sequence[str]) -> Item:
    if rank_fields:
        said = [f"{name}: {document[name]}" for name in rank_fields if document.get(name) not in (None, "")]
        return "\n".join(said)
    text = document.get("text")
    if isinstance(text, str):
        return text
    if text is not None:
        raise Refusal("invalid", f"{where}.text: expected text, got {type(text).__name__}")
    if NO_TEXT & set(document):
        raise Refusal("invalid", f"{where}: this ranker reads text, no {min(NO_TEXT & set(document))}")
    if not document:
        raise Refusal("invalid", f'{where}: expected text, {{"text": ...}} or fields, got an empty object')
    return document
