"""What the clients return: small frozen records, the same over both protocols."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Item = str | Mapping[str, Any]
"""An item or a history entry: the text itself, or fields that the server renders by its template."""

ItemId = str | int
"""An item's id. The server compares ids as text: 7 and "7" are one."""

Detail = Literal["item_tokens", "truncated", "context_tokens", "unknown_tokens", "unscored", "fields"]
"""What a call may ask for beside the ranking: how many tokens were read or are unknown, which items lost text to their
budget, which could not be scored and why, and whose fields do not fit the server's template."""

NO_TEXT_SCORE = -3.4028234663852886e38
"""What the server gives to an item without text: the lowest finite 32-bit float. Such items come last."""


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One place in a ranking.

    Attributes:
        index: position of the item in the request, from 0.
        score: raw logit; comparable within one artifact, not a probability. NO_TEXT_SCORE says nothing of the item.
        item: the item as the caller gave it.
        item_id: its id as the caller gave it, where the request gave ids.
        has_text: False where the server found no text to score: an empty one, fields that its template does not
            name, or characters that its tokenizer does not know. Such items come last, in the order given.
    """

    index: int
    score: float
    item: Item
    item_id: ItemId | None = None
    has_text: bool = True


@dataclass(frozen=True, slots=True)
class RankResult:
    """An answered `rank` call.

    Attributes:
        ranking: best first. At most `top_k` long; shorter when the server dropped items with a repeated id.
        artifact: the name of the model artifact that scored; empty when there was no item to score.
        seconds: wall-clock time of the whole call, retries and pauses included.
        attempts: requests sent: 1 when the first one succeeded, 0 when there was no item to score.
        item_tokens: tokens of each item that were scored, in the order of the request; None unless asked for.
        truncated: whether an item lost text to its token budget, likewise.
        context_tokens: tokens of query and history together, likewise.
        unscored: position in the request of each item that could not be scored -> why: "empty" (no text), "no_field"
            (none of the template's fields) or "no_token" (the tokenizer knows nothing of the text); likewise.
        missing_fields: field of the template -> how many items and history entries lack it. None unless "fields" was
            asked for; at most 100 names.
        unknown_fields: field that the template does not name -> how many have it, likewise.
        unknown_tokens: tokens of the context, and of all items, that stand for text which the vocabulary does not have;
            None unless asked for.
    """

    ranking: tuple[RankedItem, ...]
    artifact: str
    seconds: float
    attempts: int
    item_tokens: tuple[int, ...] | None = None
    truncated: tuple[bool, ...] | None = None
    context_tokens: int | None = None
    unscored: Mapping[int, str] | None = None
    missing_fields: Mapping[str, int] | None = None
    unknown_fields: Mapping[str, int] | None = None
    unknown_tokens: tuple[int, int] | None = None

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions in the request, best first."""
        return tuple(place.index for place in self.ranking)

    @property
    def scores(self) -> tuple[float, ...]:
        """Raw logits, highest first."""
        return tuple(place.score for place in self.ranking)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether requests can be served; true in a condition when all three are.

    Attributes:
        live: the server process answers.
        ready: the server says that it is ready.
        model_ready: the model asked for is loaded.
        reason: why not, empty when all is well.
    """

    live: bool
    ready: bool
    model_ready: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.live and self.ready and self.model_ready


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output as the server declares it; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says about a model.

    Attributes:
        name: the model.
        versions: versions it serves.
        platform: "ensemble", "onnxruntime_onnx" ...
        inputs: declared inputs.
        outputs: declared outputs.
        config: Triton's model configuration as plain dicts and lists, by the field names of model_config.proto.
        parameters: those of the configuration as texts, such as `activation` (how the checkpoint wants its logits read:
            "sigmoid" or "none"), `calibration`, `max_candidates`, `max_text_bytes`, `deadline_ms`. Empty for servers
            that were assembled before there were any.
        template: how the fields of an item become its text, such as "{title} {brand}"; empty where it is not told.
        fields: the names that the template uses, in its order. None of them is required alone: an item that has at
            least one of them is scored, and `strict=True` wants them all.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    config: Mapping[str, Any]
    parameters: dict[str, str] = field(default_factory=dict)
    template: str = ""
    fields: tuple[str, ...] = ()
