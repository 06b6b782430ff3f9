"""One HTTP request on its way: what a dialect's handler works with.

The handler decodes the body, ranks (once or several times) and gives back its answer. Everything else is the same for
all dialects and happens in `endpoint.py`, before and after.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, get_args

import msgspec
from starlette.requests import Request
from tritonrank_client import InvalidRequest, Overloaded, RankError
from tritonrank_recommend.engine import Recommender
from tritonrank_recommend.random_hex import random_hex

from tritonrank_gateway.adapt.heads import head_of, unranked, with_rest
from tritonrank_gateway.adapt.ladder import SMALLER_COST, Level
from tritonrank_gateway.adapt.pace import Pace
from tritonrank_gateway.keys import Key, Keys
from tritonrank_gateway.load import Load
from tritonrank_gateway.metrics import Metrics
from tritonrank_gateway.model import KnownModel, Model
from tritonrank_gateway.quality import Quality, RankingKind
from tritonrank_gateway.quality.exposure import Exposure
from tritonrank_gateway.ranking import Backend, Ranking, RankRequest, Side, Wish
from tritonrank_gateway.refusal import Refusal, refusal_of
from tritonrank_gateway.replicas import routing_key
from tritonrank_gateway.scores import ScoreType
from tritonrank_gateway.settings import GatewaySettings
from tritonrank_gateway.sizes import all_characters, refuse_truncated, tokens_of, units_of_request
from tritonrank_gateway.texts import fit, fit_text
from tritonrank_gateway.tracing import NO_REQUEST_SPAN, NO_TRACING, RequestSpan, Tracing
from tritonrank_gateway.versions.versions import Versions

DEADLINE_HEADERS = ("x-deadline-ms", "x-envoy-expected-rq-timeout-ms")
USER_HEADER = "x-user-id"
ORDER_HEADER = "x-documents-in-order"
"""Says that the documents come best first, as a search found them: they may stay so where there is no time to rank."""
TRACE_HEADER = "traceparent"
KEPT_TRACE = re.compile(r"00-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f][13579bdf]")
"""As https://www.w3.org/TR/trace-context/ has it, of a trace that its owner keeps: the last bit is set."""
LONGEST_REQUEST_ID = 128
LONGEST_DEADLINE = 15
"""Digits of a header; a request's own deadline is bounded by the settings anyway."""
Body = TypeVar("Body")
Asked = ScoreType | Literal["own", "probability"]


@dataclass(frozen=True, slots=True)
class Gateway:
    """What all requests share."""

    settings: GatewaySettings
    versions: Versions
    keys: Keys
    load: Load
    metrics: Metrics
    pace: Pace
    quality: Quality
    recommender: Recommender | None = None
    """None: there is neither a catalogue nor a store"""
    tracing: Tracing = NO_TRACING
    exposure: Exposure | None = None
    """of items on pages; None where there is no catalogue"""

    @property
    def backend(self) -> Backend:
        """What ranks."""
        return self.versions

    @property
    def model(self) -> KnownModel:
        """What is known of the live version's model."""
        return self.versions.live.model

    @property
    def model_name(self) -> str:
        """What callers may call the model; any other name is as good."""
        return self.settings.model_name or self.settings.model


@dataclass(slots=True)
class Done:
    """What was done for a call, for metrics and log."""

    candidates: int = 0
    characters: int = 0
    tokens: int | None = None
    truncated: int = 0
    unscored: list[int] = field(default_factory=list)
    cached: int = 0
    queue_seconds: float = 0.0
    backend_seconds: float = 0.0
    artifact: str = ""
    score_type: str = ""
    level: int = 0
    spared: int = 0
    has_come: bool = False
    degraded: list[str] = field(default_factory=list)
    """what the answer was made without; a few words of a few"""
    side: Side | None = None
    """whose turn it was, while there is a canary"""


@dataclass(frozen=True, slots=True)
class _Way:
    """How a call wants to be ranked, see ``Call.rank``."""

    field: str
    may_truncate: bool
    seconds: float | None
    kind: RankingKind | None
    in_order: bool
    is_head: bool = False
    """of more items, for which there is no time"""


@dataclass(slots=True)
class Call:
    """One HTTP request.

    Attributes:
        gateway: what all requests share.
        http: the request.
        body: its body.
        held_bytes: of it, as far as it was read.
        key: who calls; None where keys are not asked for.
        span: of the request, in its trace.
        trace_id: of the trace that the request belongs to, where it is kept here or by the caller; "" where it is not.
        started: time.monotonic() when it came.
        deadline: time.monotonic() when nobody waits any more.
        request_id: the caller's own or a new one.
    """

    gateway: Gateway
    http: Request
    started: float
    deadline: float
    request_id: str
    body: bytes = b""
    held_bytes: int = 0
    key: Key | None = None
    span: RequestSpan = NO_REQUEST_SPAN
    trace_id: str = ""
    done: Done = field(default_factory=Done)
    known: KnownModel | None = None

    @classmethod
    def of(cls, http: Request, gateway: Gateway, span: RequestSpan = NO_REQUEST_SPAN) -> "Call":
        """The call of a request whose body was not read yet; its deadline header is read when the body is decoded."""
        started = time.monotonic()
        given = http.headers.get("x-request-id", "")
        fits = given.isascii() and given.isprintable() and 0 < len(given) <= LONGEST_REQUEST_ID
        request_id = given if fits else random_hex(8)
        kept = KEPT_TRACE.fullmatch(http.headers.get(TRACE_HEADER, ""))
        deadline = started + gateway.settings.deadline_s
        trace_id = span.trace_id or (kept[1] if kept else "")
        return cls(gateway, http, started, deadline, request_id, span=span, trace_id=trace_id)

    def decode(self, decoder: msgspec.json.Decoder[Body]) -> Body:
        """The body as the dialect declares it.

        Raises:
            Refusal: it is no JSON, or a field is wrong; the message says which.
        """
        try:
            return decoder.decode(self.body)
        except msgspec.ValidationError as error:
            raise Refusal("invalid", _place(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("unreadable", f"the body is not JSON: {error}") from None

    def read_deadline(self) -> None:
        """Take the deadline from a header.

        Raises:
            Refusal: it is no number of milliseconds above 0.
        """
        for name in DEADLINE_HEADERS:
            given = self.http.headers.get(name)
            if given is None:
                continue
            # isdigit alone takes ² for one, and a number of hundreds of digits fits no float.
            if not (given.isascii() and given.isdigit()) or len(given) > LONGEST_DEADLINE or not int(given):
                raise Refusal("invalid", f"header {name}: expected milliseconds above 0, got {given[:20]!r}")
            self.shorten_deadline(int(given) / 1_000)

    def shorten_deadline(self, seconds: float) -> None:
        """Nobody waits longer than so many seconds from the request's beginning."""
        self.deadline = min(self.deadline, self.started + seconds)

    async def model(self) -> Model:
        """What is known of the model; of the smaller one, once that has ranked.

        Raises:
            Refusal: nothing, because no server was reached yet.
        """
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.seconds_left):
                return await (self.known or self.gateway.model).get()
        except RankError as error:
            raise refusal_of(error, self.gateway.load.queued_seconds) from error
        except TimeoutError:
            raise Refusal("unavailable", "no ranker can be reached now") from None

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def user(self) -> str:
        """Who asks, as a header says it; "" where it does not."""
        return self.http.headers.get(USER_HEADER, "")

    @property
    def names_a_deadline(self) -> bool:
        """Whether a header says how long the caller waits."""
        return any(name in self.http.headers for name in DEADLINE_HEADERS)

    async def rank(
        self,
        asked: RankRequest,
        field: str = "items",
        *,
        may_truncate: bool = True,
        seconds: float | None = None,
        kind: RankingKind | None = "rank",
        is_list: bool = False,
    ) -> Ranking:
        """Rank, as a whole or not at all; more cheaply while there is more work than can be done in time (``adapt``).

        Args:
            asked: the dialect's wish, without deadline and wants.
            field: what the dialect calls the items, for messages.
            may_truncate: False refuses a request with an item that is too long.
            seconds: that the ranker may take, where that is less than is left of the call.
            kind: as what its quality is watched; None for a ranking that nobody is shown.
            is_list: the items come in the order of retrieval, and whoever asks waits when there is no room.

        Raises:
            Refusal: there is no ranking; the message says why.
        """
        pace = self.gateway.pace
        in_order = is_list or self.http.headers.get(ORDER_HEADER, "").lower() in ("1", "true")
        if asked.items and not self.done.has_come:
            self.done.has_come = True
            pace.came(len(asked.items), units_of_request(asked), in_order=in_order)
        level = pace.level_for(len(asked.items), in_order=in_order)
        way = _Way(field, may_truncate, seconds, kind, in_order)
        try:
            return await self._ranked(asked, way, level)
        except Refusal as refusal:
            if refusal.kind != "overloaded":
                raise
            pace.refused()
            last = refusal
        for cheaper in pace.cheaper(level, in_order=in_order, to_the_end=not is_list):
            self.take_back(asked)
            try:
                return await self._ranked(asked, way, cheaper)
            except Refusal as refusal:
                if refusal.kind != "overloaded":
                    raise
                last = refusal
        raise last

    async def _ranked(self, asked: RankRequest, way: "_Way", level: Level) -> Ranking:
        """The ranking at a level."""
        smaller = self.gateway.pace.smaller if level.model == "smaller" else None
        self.known = None if smaller is None else smaller.model
        model = await self.model()
        self._check_size(asked, model, way.field)
        count = level.ranked(len(asked.items)) if way.in_order else len(asked.items)
        head = head_of(asked, count) if count < len(asked.items) else asked
        if count:
            ranking = await self._whole(head, model, replace(way, is_head=head is not asked), level)
        else:
            ranking = unranked(asked)
        if 0 < count < len(asked.items):
            ranking = with_rest(asked, ranking, count)
        self.done.level = max(self.done.level, level.number)
        self.done.spared += len(asked.items) - count
        self.gateway.pace.metrics.served(level.name).inc()
        return ranking

    async def _whole(self, asked: RankRequest, model: Model, way: "_Way", level: Level) -> Ranking:
        """The ranking of all that is asked."""
        fitted, cut = fit(asked.items, model.max_text_bytes, asked.truncate_left)
        history, _ = fit(asked.history, model.max_text_bytes, False)
        ready = replace(
            asked,
            user=asked.user or self.user,
            query=fit_text(asked.query, model.max_text_bytes),
            items=fitted,
            history=history,
            want=tuple(name for name in get_args(Wish) if name in model.outputs),
            is_shown=way.kind is not None,
        )
        if self.gateway.versions.has_canary:
            # A call is of one side, also where it ranks for several contexts: its scores are to be of one model.
            self.done.side = self.done.side or self.gateway.versions.side_of(routing_key(ready))
            ready = replace(ready, side=self.done.side)
        ranking = await self._admitted(ready, way.field, way.seconds, level)
        if ranking.version == "canary" and (canary := self.gateway.versions.arm("canary")) is not None:
            self.known = canary.model
        if cut and ranking.truncated is not None:
            lost = set(cut)
            truncated = [was or place in lost for place, was in enumerate(ranking.truncated)]
            ranking = replace(ranking, truncated=truncated)
        self._note(ranking, len(cut))
        if way.kind is not None:
            self.gateway.quality.ranked(way.kind, ranking, len(ready.items), is_head=way.is_head)
        if not way.may_truncate:
            refuse_truncated(ranking, way.field, cut)
        return ranking

    def take_back(self, asked: RankRequest) -> None:
        """A request that was refused is asked again: its size counts once."""
        self.done.candidates -= len(asked.items)
        self.done.characters -= all_characters(asked)

    async def tell(self, ranking: Ranking, wanted: Asked) -> list[float]:
        """The scores of a ranking.

        Args:
            ranking: what `rank` gave.
            wanted: a score type; `own` is what the checkpoint names, `probability` the best number between 0 and 1.

        Raises:
            Refusal: the ranker has no such scores.
        """
        scores = (await self.model()).scores
        score_type = scores.own if wanted == "own" else scores.probability if wanted == "probability" else wanted
        self.done.score_type = score_type
        try:
            return scores.told(ranking.logits, score_type)
        except ValueError as error:
            raise Refusal("invalid", str(error)) from None

    async def _admitted(self, ready: RankRequest, field: str, seconds: float | None, level: Level) -> Ranking:
        units, gateway = units_of_request(ready), self.gateway
        backend = gateway.backend
        if level.model == "smaller" and gateway.pace.smaller is not None:
            backend, units = gateway.pace.smaller.backend, round(SMALLER_COST * units)
        try:
            left = self.seconds_left if seconds is None else min(seconds, self.seconds_left)
            with gateway.load.admitted(units, left) as queued:
                if self.key is not None:
                    self.key.take_candidates(len(ready.items), time.time())
                self.done.queue_seconds = max(self.done.queue_seconds, queued)
                if not left:
                    raise Refusal("deadline", "the deadline passed before the ranking was begun")
                began = time.monotonic()
                try:
                    ranking = await backend.rank(replace(ready, deadline_s=left))
                except Overloaded:
                    if self.key is not None:
                        self.key.give_back(len(ready.items))
                    raise
                self.done.backend_seconds += time.monotonic() - began
                gateway.pace.done(level, units)
                return ranking
        except InvalidRequest as error:
            refusal = refusal_of(error, 0.0)
            raise Refusal(refusal.kind, str(refusal).replace("items[", f"{field}[", 1)) from error
        except RankError as error:
            raise refusal_of(error, self.gateway.load.queued_seconds) from error

    def _check_size(self, asked: RankRequest, model: Model, field: str) -> None:
        settings, count = self.gateway.settings, len(asked.items)
        most = min(settings.max_documents, model.max_candidates)
        if not count:
            raise Refusal("empty", f"{field}: empty; at least one is needed")
        if count > most:
            raise Refusal("too_large", f"{field}: {count} documents; at most {most} in one request")
        self.done.candidates += count
        characters = all_characters(asked)
        self.done.characters += characters
        if self.done.characters > settings.max_characters:
            said = f"{field}: {characters} characters in all texts; at most {settings.max_characters} in one request"
            raise Refusal("too_large", said)

    def _note(self, ranking: Ranking, cut: int) -> None:
        done = self.done
        done.artifact = ranking.artifact
        (self.known or self.gateway.model).scored_by(ranking.artifact)
        done.cached += ranking.is_cached
        done.truncated += cut if ranking.truncated is None else sum(ranking.truncated)
        done.unscored += ranking.unscored or ()
        if (tokens := tokens_of(ranking)) is not None:
            done.tokens = (done.tokens or 0) + tokens


def _place(message: str) -> str:
    """msgspec's words with the place first: `documents[3]: Expected ...`."""
    said, _, where = message.partition(" - at `$")
    return f"{where.rstrip('`').lstrip('.')}: {said}" if where else said
