"""How a request becomes text, and the text becomes tokens."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings

DEFAULT_BUDGETS = {"query_tokens": 24, "history_items": 8, "history_tokens": 72, "candidate_tokens": 32}
"""What ``auto`` is in the text section of a ranker that is trained here; a ready checkpoint decides for itself."""


class TextSettings(Settings):
    """How a request becomes token ids; shared by training and the server.

    ``auto`` is a number of its own for a ranker that is trained here. With model.checkpoint it comes from that model:
    queries and candidates as long as the data have them, as far as its positions go, and no history, because an
    ordinary cross-encoder never saw one. ``text_budgets.py`` resolves it; `prepare` shows what came out.
    """

    item_template: str = Field("{title}", min_length=1, description="renders an item's fields; {name} is a field")
    query_tokens: Annotated[int, Field(ge=0, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens; longer queries are cut at the end; auto: 24, with model.checkpoint the longest query "
        "of the data",
    )
    history_items: Annotated[int, Field(ge=0, le=200)] | Literal["auto"] = Field(
        "auto", description="items; the newest are kept; auto: 8, with model.checkpoint none"
    )
    history_tokens: Annotated[int, Field(ge=0, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens; the oldest item is dropped first; auto: 72, with model.checkpoint what history_items need",
    )
    candidate_tokens: Annotated[int, Field(ge=4, le=32_768)] | Literal["auto"] = Field(
        "auto",
        description="tokens of one item; never cut in favour of history; auto: 32, with model.checkpoint the longest "
        "item of the data, as far as its positions go. What rows cost grows with the texts, not with the budget",
    )

    @field_validator("item_template")
    @classmethod
    def _has_a_field(cls, template: str) -> str:
        if not re.search(r"\{\w+\}", template):
            raise ValueError("must contain at least one field in braces, such as {title}")
        return template

    @property
    def template_fields(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.item_template)
