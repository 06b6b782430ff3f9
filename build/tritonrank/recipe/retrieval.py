"""What is found before it is ranked: the two towers, and the catalogue that they fill."""

from typing import Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings

Source = Literal["two-tower", "lexical", "knn", "ease", "popular", "new", "next"]


class RetrievalSettings(Settings):
    """Candidates out of the whole catalogue; without it they come with each request. See docs/retrieval.md."""

    epochs: float = Field(
        0.0,
        ge=0,
        description="passes over the training examples for the encoder that finds items, about twice a text of an item "
        "per example; 0: it stays as the base is, and what is learnt on top of it (a projection, what items have "
        "beyond their texts, how history and query are mixed) takes a minute",
    )
    learning_rate: float = Field(
        5e-5,
        gt=0,
        lt=1,
        description="of the encoder, peak, after warm-up; lower than for fine-tuning: items that nobody met must stay "
        "where their texts put them",
    )
    sources: list[Source] = Field(
        ["two-tower", "lexical", "knn", "ease", "popular", "new", "next"],
        min_length=1,
        description="what brings candidates: vectors of text, words, items liked together, EASE, popularity, newness, "
        "what was liked soon after",
    )
    half_life_days: float = Field(
        30.0, gt=0, description="age at which an event counts half for popularity; 30 suits shops, years suit films"
    )

    @field_validator("sources")
    @classmethod
    def _names_each_once(cls, sources: list[Source]) -> list[Source]:
        if len(set(sources)) < len(sources):
            raise ValueError("names a source twice")
        return sources
