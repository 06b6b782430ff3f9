"""The last model: how the ranker's score and the signals of retrieval become one order."""

import re
from typing import Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings

FEATURE = re.compile(r"-?(ranker|fused|popularity|age|(rank|score|field)\..+)")


class BlendSettings(Settings):
    """Learnt after the catalogue, where the recipe has a `retrieval` section. See docs/quality.md."""

    method: Literal["auto", "linear", "lambdamart", "none"] = Field(
        "auto",
        description="auto: the ranker alone, a weighted sum or LightGBM's LambdaMART, whichever cross-validation finds "
        "best (few users: the sum); none: the ranker's own order serves",
    )
    monotone: list[str] = Field(
        ["ranker", "fused", "score.two-tower", "score.knn", "score.ease", "score.next"],
        description="features that may only raise an item, with - before the name: only lower it, such as "
        "-field.price. The names: docs/quality.md",
    )
    lists: int = Field(
        2_000,
        ge=50,
        description="users' lists to learn from at the most, of 200 candidates each: the ranker scores them all, which "
        "is nearly all of the stage's time",
    )
    ranked: int = Field(
        0,
        ge=0,
        le=200,
        description="candidates of a list that the ranker reads, the first so many of 200 by what retrieval knows "
        "of them: its work is most of a page's time. 0: all. On the test users such "
        "lists may not be worse than whole ones by more than gate.budget",
    )
    fields: list[str] = Field([], description="numeric fields of items to look at beside the scores, such as price")

    @field_validator("monotone")
    @classmethod
    def _names_features(cls, monotone: list[str]) -> list[str]:
        if unknown := [name for name in monotone if not FEATURE.fullmatch(name)]:
            raise ValueError(
                f"no feature is called {', '.join(unknown)}: ranker, fused, popularity, age, rank.SOURCE, "
                "score.SOURCE or field.NAME"
            )
        return monotone
