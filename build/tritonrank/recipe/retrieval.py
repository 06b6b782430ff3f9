"""What is found before it is ranked: the two towers, and the catalogue that they fill."""

from typing import Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings

Source = Literal["two-tower", "lexical", "knn", "ease", "popular", "new"]


class RetrievalSettings(Settings):
    """Candidates out of the whole catalogue; without it they come with each request. See docs/retrieval.md."""

    epochs: float = Field(
        1.0,
        ge=0,
        description="passes over the training examples for the encoder that finds items; 0: it stays as the base is, "
        "and only how history and query are mixed is learnt, in seconds",
    )
    learning_rate: float = Field(
        5e-5, gt=0, lt=1, description="peak, after warm-up; lower than for fine-tuning: items far from any example "
        "must stay where their text put them",
    )  # fmt: skip
    sources: list[Source] = Field(
        ["two-tower", "lexical", "knn", "ease", "popular", "new"],
        min_length=1,
        description="what brings candidates: vectors of text, words, items liked together, EASE, popularity, newness",
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
