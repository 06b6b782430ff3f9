"""Learning on from what happened: one night of ``tritonrank learn``, from the training log to a version that serves."""

from typing import Literal

from pydantic import Field, field_validator

from tritonrank.recipe.base import Settings, SourcePath
from tritonrank.recipe.guarding import GuardSettings, NightRules
from tritonrank.recipe.training import FinetuneSettings

OLD, NEWEST, FROZEN = "old", "newest", "frozen"
WINDOWS = (NEWEST, FROZEN, OLD)
"""Where judged lists come from: the newest hours, hours that no night ever learns, and the recipe's own test lists."""
SLOWER = 4.0
"""By how much a ranker that is trained further learns slower than one that begins: what it knows has to stay."""


class LearnSettings(Settings):
    """What `tritonrank learn` does with new hours of the training log; nothing else reads it. See docs/learn.md."""

    log: SourcePath | None = Field(
        None,
        description="folder that the gateway's --events-log names; default: data.events where data.source is events",
    )
    delay_hours: float = Field(
        1.0,
        gt=0,
        le=168,
        description="hours after a page was shown in which what becomes of it still counts for it; before that the "
        "page is neither learnt nor judged. Longer where purchases come late",
    )
    newest_hours: int = Field(
        6,
        ge=1,
        le=744,
        description="hours at the end of the log on which a night's model is judged, and which the next night learns; "
        "more where fewer than 36 users liked something in them, up to half of the new hours. The first night's stay "
        "frozen: they are judged by all and learnt by none",
    )
    history_days: int = Field(
        30,
        ge=1,
        description="days of the log that a night reads: for what users liked before, and to replay. A frozen window "
        "that is older gives way to a new one",
    )
    replay_share: float = Field(
        0.5,
        ge=0,
        le=0.9,
        description="share of the lists to learn that are older than the new hours, drawn anew each night; without "
        "any, old tastes are forgotten",
    )
    most_lists: int = Field(
        20_000,
        ge=1,
        description="lists of new hours that a night learns at the most, one per user in turn, newest first: it bounds "
        "time; how many were left out is said",
    )
    segments: dict[str, str] = Field(
        {"cold users": "history_items < 3", "cold items": "item_positives < 5"},
        description="what else is judged apart: names, and SQL conditions on the columns of judged lists "
        "(docs/learn.md), such as {evening: hour >= 18, lamps: item_category = 'lamp'}",
    )
    epochs: float = Field(1.0, gt=0, description="passes over a night's training examples, replayed ones among them")
    learning_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="peak, after warm-up; default: a quarter of finetune's, so that what was learnt before stays",
    )
    adapter: Literal["none", "lora"] | None = Field(
        None, description="lora trains thin matrices beside a base that stays as it is; default: as finetune.adapter"
    )
    minutes: float = Field(
        30.0, gt=0, description="training may take at most; then the best weights so far are judged as any others"
    )
    hours: float = Field(
        6.0, gt=0, description="a whole night may take at most, over all attempts; one that takes longer has failed"
    )
    processes: int = Field(
        1,
        ge=1,
        description="processes of this machine that train together, each on lists of its own; on GPUs one for each "
        "GPU; all else of a night runs in one process",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="GB that the night's processes may hold together; one that needs more has failed. Default: no "
        "bound but the machine's",
    )
    retriever: Literal["keep", "anew"] = Field(
        "keep",
        description="keep: the encoder that finds items stays that of the build, popularity, neighbours and the blend "
        "are learnt anew; anew: the encoder, too",
    )
    store: str | None = Field(
        None, min_length=1, description="URL of the model store that accepted versions are pushed to (docs/store.md)"
    )
    tag: str = Field(
        "nightly",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="of the store that leads to the last accepted version; latest is what servers start with",
    )
    release: Literal["rollout", "promote", "none"] = Field(
        "rollout",
        description="rollout: an accepted version goes through shadow and canary by the controller's rules "
        "(docs/rollout.md); promote: it is served at once by who serves artifacts/RECIPE; none: somebody else decides",
    )
    wait_minutes: float = Field(
        0.0, ge=0, description="to wait for the rollout's decision; later ones are written down by the next night"
    )
    keep_nights: int = Field(
        7, ge=1, description="nights whose data and checkpoints stay, besides what the next night needs"
    )

    guards: GuardSettings = GuardSettings()
    rules: NightRules = NightRules()

    @field_validator("segments")
    @classmethod
    def _names_are_free(cls, segments: dict[str, str]) -> dict[str, str]:
        if taken := [name for name in segments if name in WINDOWS]:
            raise ValueError(f"{taken[0]} is a window already, which is judged in any case; take another name")
        return segments

    def training(self, finetune: FinetuneSettings) -> FinetuneSettings:
        """How an accepted ranker is trained further: as `finetune`, in so far as this section does not differ."""
        adapter = self.adapter or finetune.adapter
        told = {**finetune.model_dump(exclude_unset=True), "adapter": adapter}
        if adapter != finetune.adapter:
            told.pop("learning_rate", None)  # the default of the other way of training
        settings = FinetuneSettings(**told)
        rate = self.learning_rate or settings.learning_rate / SLOWER
        return settings.model_copy(update={"epochs": self.epochs, "learning_rate": rate, "teacher": None})
