"""A gateway: the same questions in its own dialect, `POST /v1/rank`, on the connections of HTTP.

Asked for are logits, so scores are what a Triton would have answered. What a gateway adds is its own: keys, its queue,
its replicas, and the routes of recommending. Which model it asks is its choice as well.
"""

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ._http import IDENTITY, AsyncHttpTransport, HttpTransport, checked_body, is_yes
from ._http_connection import Answer
from ._options import Settings
from ._recommend import Question
from ._results import Detail
from ._trace import TRACEPARENT, traceparent
from ._wire import VERBATIM, ForeignAnswerError, RankRequest, check_answer_id

LONGEST_REQUEST_ID = 128
"""A gateway makes up an id of its own in place of a longer one."""
DETAILS = frozenset(get_args(Detail))


class GatewayTransport(HttpTransport):
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._dialect = _Dialect(settings)

    def encode(self, request: RankRequest) -> Any:
        return self._dialect.body(request)

    def infer(self, inputs: Any, outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        headers, body = self._dialect.inference(inputs, outputs, request_id, seconds)
        lane = self._lane()
        answer = lane.exchange("POST", self._dialect.rank, headers, body, seconds)
        try:
            return _read(answer, headers)
        except ForeignAnswerError:
            lane.drop()
            raise

    def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        headers = self._dialect.headers(request_id, seconds if question.tells_deadline else None)
        lane = self._lane()
        answer = lane.exchange(question.method, self._dialect.path(question), headers, question.body, seconds)
        try:
            return _checked(answer, headers)
        except ForeignAnswerError:
            lane.drop()
            raise

    def server_live(self, seconds: float) -> bool:
        return _is_live(self._get(self._dialect.health, seconds))

    def server_ready(self, seconds: float) -> bool:
        return is_yes(self._get(self._dialect.health, seconds))

    def model_ready(self, seconds: float) -> bool:
        return self.server_ready(seconds)

    def metadata(self, seconds: float) -> Any:
        return json.loads(checked_body(self._get(self._dialect.rank, seconds)))

    def config(self, seconds: float) -> Any:
        return self.metadata(seconds)["config"]


class AsyncGatewayTransport(AsyncHttpTransport):
    """See `AsyncTransport`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._dialect = _Dialect(settings)

    def encode(self, request: RankRequest) -> Any:
        return self._dialect.body(request)

    async def infer(self, inputs: Any, outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        headers, body = self._dialect.inference(inputs, outputs, request_id, seconds)
        session = self._session
        answer = await self._exchange("POST", self._dialect.rank, headers, body, seconds)
        try:
            return _read(answer, headers)
        except ForeignAnswerError:
            await self._start_afresh(session)
            raise

    async def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        headers = self._dialect.headers(request_id, seconds if question.tells_deadline else None)
        session = self._session
        answer = await self._exchange(question.method, self._dialect.path(question), headers, question.body, seconds)
        try:
            return _checked(answer, headers)
        except ForeignAnswerError:
            await self._start_afresh(session)
            raise

    async def server_live(self, seconds: float) -> bool:
        return _is_live(await self._get(self._dialect.health, seconds))

    async def server_ready(self, seconds: float) -> bool:
        return is_yes(await self._get(self._dialect.health, seconds))

    async def model_ready(self, seconds: float) -> bool:
        return await self.server_ready(seconds)

    async def metadata(self, seconds: float) -> Any:
        return json.loads(checked_body(await self._get(self._dialect.rank, seconds)))

    async def config(self, seconds: float) -> Any:
        return (await self.metadata(seconds))["config"]


class _Dialect:
    """Paths, headers and bodies."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path
        self.rank = f"{settings.path}/v1/rank"
        self.health = f"{settings.path}/health"
        self._headers = {**settings.headers, "Accept-Encoding": IDENTITY, "Content-Type": "application/json"}

    def body(self, request: RankRequest) -> dict[str, Any]:
        """What is asked, as JSON has it."""
        tensors = {tensor.name: tensor.values.tolist() for tensor in request.tensors}
        body: dict[str, Any] = {
            "query": tensors["query"][0].decode(),
            "items": [_item(element) for element in tensors["items"]],
            "history": [_item(element) for element in tensors["history"]],
            "top_k": request.top_k,
            "score_type": "logit",
        }
        if "item_ids" in tensors:
            body["item_ids"] = [item_id.decode() for item_id in tensors["item_ids"]]
        if "max_item_tokens" in tensors:
            body["max_item_tokens"] = tensors["max_item_tokens"][0]
        if tensors.get("truncate_left", [False])[0]:
            body["truncation_direction"] = "left"
        if tensors.get("strict", [False])[0]:
            body["strict"] = True
        if request.user:
            body["user"] = request.user
        return body

    def inference(
        self, body: Mapping[str, Any], outputs: Sequence[str], request_id: str, seconds: float
    ) -> tuple[dict[str, str], bytes]:
        """Headers and body of one attempt."""
        details = [name for name in outputs if name in DETAILS]
        asked = {**body, "details": details} if details else body
        return self.headers(request_id, seconds), json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()

    def headers(self, request_id: str, seconds: float | None) -> dict[str, str]:
        """Those of one attempt."""
        headers = {**self._headers, "X-Request-Id": _header_of(request_id)}
        if parent := traceparent():
            headers[TRACEPARENT] = parent
        return headers if seconds is None else headers | {"X-Deadline-Ms": str(max(1, int(seconds * 1_000)))}

    def path(self, question: Question) -> str:
        """Where a question goes."""
        return self._path + question.path


class _GatewayAnswer:
    """A gateway's answer as tritonclient's InferResult would hand it over."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self._answer = answer

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        if name in ("indices", "scores"):
            field, kind = ("index", np.int64) if name == "indices" else ("logit", np.float32)
            return np.array([place[field] for place in self._answer["ranking"]], dtype=kind)
        if name == "artifact":
            return np.array([self._answer[name]], dtype=np.object_)
        value = self._answer["details"].get(name)
        if isinstance(value, dict):  # as Triton has it: JSON in a text
            value = json.dumps(value)
        return None if value is None else np.atleast_1d(np.array(value))


def _read(answer: Answer, headers: Mapping[str, str]) -> _GatewayAnswer:
    return _GatewayAnswer(json.loads(_checked(answer, headers)))


def _checked(answer: Answer, headers: Mapping[str, str]) -> bytes:
    """The body of an answer that belongs to the request."""
    body = checked_body(answer)
    check_answer_id(answer.headers.get("x-request-id", ""), headers["X-Request-Id"])
    return body


def _item(element: bytes) -> Any:
    """An element as it crosses the wire to Triton -> as JSON has it: the text itself, or fields."""
    text = element.decode()
    if not text.lstrip().startswith("{"):
        return text
    fields = json.loads(text)
    if list(fields) == [VERBATIM] and isinstance(fields[VERBATIM], str):
        return fields[VERBATIM]
    # To a gateway {"text": ...} alone is that text. These are fields, so they get company that no template names.
    return {**fields, VERBATIM: None} if list(fields) == ["text"] else fields


def _header_of(request_id: str) -> str:
    """The id as a header can hold it, the same for the same id."""
    fits = request_id.isascii() and 0 < len(request_id) <= LONGEST_REQUEST_ID
    fits = fits and request_id.strip(string.whitespace) == request_id
    return request_id if fits else request_id.encode("utf-8").hex()[:LONGEST_REQUEST_ID]


def _is_live(answer: Answer) -> bool:
    """Whether a gateway answers: without a Triton it says 503 and nothing else, where a proxy has something to tell."""
    return is_yes(answer) or (answer.status == 503 and not answer.body)
