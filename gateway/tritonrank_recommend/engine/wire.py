"""The bodies of ``recommend`` and of what belongs to it, the same over the gateway's HTTP and Triton's protocols."""

from typing import Annotated, Any, Literal

import msgspec

from tritonrank_recommend.stores.interface import FieldValue

Id = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=10_000)]
MOST_SIZE = 200


class RecentItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of the history that the request itself carries."""

    item_id: Id
    type: str = "click"
    timestamp: float = 0.0


class RecommendRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What should this user see now; what fits this query for this user.

    Attributes:
        user_id: whose profile is taken; empty for nobody's.
        recent: the newest items of the session, newest last; they come after the profile's events.
        query: what was searched for.
        context: such as page and device: for rules and for the log.
        filters: on fields of items, see ``catalogue.interface.Filters``.
        exclude_seen: leave out what the user has bought, rated or skipped.
        exclude: ids to leave out.
        size: items on a page.
        cursor: of the answer before; the rest of the request is then the page's own.
        deadline_ms: until nobody waits any more.
        explain: say of each shown item what raised it.
        candidates: to be retrieved and ranked; 0 is the gateway's own number.
        order: the blend's, the ranker's alone, or that of retrieval.
    """

    user_id: Id = ""
    recent: Annotated[list[Id | RecentItem], msgspec.Meta(max_length=200)] = []
    query: Text = ""
    context: Annotated[dict[str, str], msgspec.Meta(max_length=20)] = {}
    filters: Annotated[dict[str, Any], msgspec.Meta(max_length=20)] = {}
    exclude_seen: bool = True
    exclude: Annotated[list[Id], msgspec.Meta(max_length=1_000)] = []
    size: Annotated[int, msgspec.Meta(ge=1, le=MOST_SIZE)] = 20
    cursor: Annotated[str, msgspec.Meta(max_length=512)] = ""
    deadline_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None
    explain: bool = False
    candidates: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    order: Literal["blend", "ranker", "retrieval"] = "blend"


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that raised (or lowered) an item.

    Attributes:
        kind: where it comes from.
        name: the item of the history by its id, the word, the field, or the blend's feature.
        effect: the score with it minus the score without it.
        of: which score: the ranker's logit, or the blend's.
    """

    kind: Literal["history", "query", "field", "blend"]
    name: str
    effect: float
    of: Literal["logit", "score"] = "logit"


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an item stands where it stands: reasons by the size of their effect, and one sentence.

    Attributes:
        reasons: what raised or lowered it.
        sentence: those that raised it most, for a reader.
        left_out: what was not looked at, because time was over or the ranker did not answer.
    """

    reasons: list[Reason]
    sentence: str
    left_out: list[str] = []


class Recommended(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of a page.

    Attributes:
        item_id: its id.
        position: in the whole list, from 0.
        score: what it was ordered by.
        fields: of the item.
        sources: that brought it, with its rank in each from 0.
        logit: the ranker's score; None where the ranker was not heard.
        explanation: where it was asked for.
    """

    item_id: str
    position: int
    score: float
    fields: dict[str, FieldValue]
    sources: dict[str, int] = {}
    logit: float | None = None
    explanation: Explanation | None = None


class RecommendAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page.

    Attributes:
        items: best first.
        page: token of the whole list; events name it (``Event.page``).
        cursor: of the next page; empty on the last one.
        cold: nothing was known of the user, neither profile nor recent items.
        degraded: a part did not answer, and the list is what could be made without it.
        degraded_reasons: such as ``ranker: overloaded``, ``store: unavailable``, ``catalogue: missing``.
        artifacts: ``ranker``, ``catalogue``, ``blend``: what made the list.
        milliseconds: ``profile``, ``retrieve``, ``rank``, ``blend``, ``total``.
    """

    items: list[Recommended]
    page: str
    cursor: str = ""
    cold: bool = False
    degraded: bool = False
    degraded_reasons: list[str] = []
    artifacts: dict[str, str] = {}
    milliseconds: dict[str, float] = {}

    @property
    def lacking(self) -> list[str]:
        """``degraded_reasons`` for metrics: of a source its name alone, because its reason may be any text."""
        return [
            reason.partition(":")[0] if reason.startswith("catalogue.") else reason for reason in self.degraded_reasons
        ]


class SimilarAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Items that are like one, best first.

    Attributes:
        items: without those that rules keep out.
        artifacts: ``catalogue``: what said so.
    """

    items: list[Recommended]
    artifacts: dict[str, str] = {}


class ExplainRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Why do these items stand where they stand, for this user and this query.

    Attributes:
        item_ids: to be explained.
        user_id, recent, query, context, candidates: as in RecommendRequest.
        page: token of a list that was shown; query and history are then those of the list.
        deadline_ms: until nobody waits any more; what is not known by then is named.
    """

    item_ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=20)]
    user_id: Id = ""
    recent: Annotated[list[Id | RecentItem], msgspec.Meta(max_length=200)] = []
    query: Text = ""
    context: Annotated[dict[str, str], msgspec.Meta(max_length=20)] = {}
    page: Annotated[str, msgspec.Meta(max_length=512)] = ""
    deadline_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None
    candidates: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0


class ExplainedItem(msgspec.Struct, frozen=True):
    """An item and why it stands where it stands."""

    item_id: str
    explanation: Explanation


class ExplainAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Explanations.

    Attributes:
        items: in the order of the request.
        unknown: ids that are not in the catalogue.
        degraded_reasons: what could not be asked.
        artifacts: ``ranker``, ``catalogue``.
    """

    items: list[ExplainedItem]
    unknown: list[str] = []
    degraded_reasons: list[str] = []
    artifacts: dict[str, str] = {}
