"""What a night of learning refuses: days that are not to be trusted, and rankers that became worse."""

from typing import Literal

from pydantic import Field

from tritonrank.recipe.base import Settings

Check = Literal[
    "empty", "volume", "pages", "like rate", "order", "liking", "skips", "unknown items", "clock", "left out"
]
"""What a whole day can be refused for; docs/learn.md says what each looks at."""


class GuardSettings(Settings):
    """Which events a night learns from, and which days it refuses; see docs/learn.md."""

    false_alarms: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="share of sound days that may be refused, all checks together: 0.01 is one night in three months; "
        "fewer let larger poisons pass",
    )
    least_nights: int = Field(
        5,
        ge=3,
        description="accepted nights before days are compared with them; until then only what no sound day does is "
        "refused. From fewer it cannot be told how much days differ",
    )
    allow: list[Check] = Field(
        [],
        description="checks that only warn, for a night whose cause is known, such as [volume] after a sale began",
    )
    least_change: float = Field(
        2.0,
        gt=1,
        description="factor of events and pages per hour, and of the odds of a like, below which no day is refused, "
        "however rare that is: better rankers and sales move them too",
    )
    least_order_change: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="fall of the chance that what was liked stood above what was not, below which no day is refused",
    )
    most_faulty: float = Field(
        0.1,
        gt=0,
        le=1,
        description="share of events on unknown items, which are left out, and of those with a wrong clock; a day with "
        "more of either than this and than accepted nights had is refused",
    )
    most_left_out: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of a day's users that may be left out as bots or accounts of farms before the day is "
        "refused: where there are more, what tells them from others no longer holds",
    )
    copy_seconds: float = Field(
        2.0,
        ge=0,
        description="time within which a user's second event of one type on one item is a copy: double clicks, and "
        "clients that send again under another id",
    )
    user_factor: float = Field(
        5.0,
        gt=1,
        description="times the events of a busy user (95th percentile) that one user's events count at the most; twice "
        "that is a bot",
    )
    item_factor: float = Field(
        5.0,
        gt=1,
        description="times its usual share of likes from which an item is looked at for new users that like nothing "
        "else: a click farm",
    )


class NightRules(Settings):
    """What the ranker of a night has to show against the live one; see docs/learn.md."""

    least_gain: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="relative gain of NDCG@10 on the newest window, beyond chance; 0: not worse is enough",
    )
    newest_loss: float = Field(
        0.01, gt=0, lt=1, description="relative drop of NDCG@10 that may be lost on the newest window, as gate.budget"
    )
    frozen_loss: float = Field(
        0.02, gt=0, lt=1, description="the same on the frozen window: tastes drift, but a ranker forgets no faster"
    )
    segment_loss: float = Field(
        0.03, gt=0, lt=1, description="the same in a segment, where it is beyond chance among all segments"
    )
    segment_losses: dict[str, float] = Field({}, description="of single segments by name, such as {cold users: 0.05}")
    segment_bound: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="drop in a segment that has to be excluded (95%, all segments together): a disaster in a small one",
    )
