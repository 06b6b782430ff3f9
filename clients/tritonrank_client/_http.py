"""HTTP, blocking and asyncio, with Triton's binary tensor extension.

tritonclient writes the bodies and reads them; the exchange itself is ours, because it has bounds that tritonclient
does not: one deadline over all of a call, a largest answer, no redirection followed, nothing unpacked, and answers
that are tied to their request. A blocking client has one connection per thread and process, its *lane*, kept alive
between calls. The asyncio client is one aiohttp session.
"""

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import tritonclient.http
from tritonclient.http import InferenceServerClient, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from ._fork import watch_forks
from ._http_connection import Answer, AnswerTooLargeError, Connection
from ._options import Settings
from ._recommend import Question, read_answer_tensor
from ._trace import TRACEPARENT, traceparent
from ._trust import Trust
from ._wire import ForeignAnswerError, RankRequest, check_answer_id, encode, microseconds

# Calls beyond it wait for a free connection, within their deadline; a burst should not open a thousand sockets.
LARGEST_CONNECTIONS = 100

HEADER_LENGTH = "Inference-Header-Content-Length"
IDENTITY = "identity"


class HttpTransport:
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pages = _Pages(settings)
        self._trust = Trust(settings)
        self._closed = False
        self._start_afresh()
        watch_forks(self)

    def _start_afresh(self) -> None:
        self._own = threading.local()
        # Weak, because a lane goes when its thread does.
        self._lanes: weakref.WeakSet[_Lane] = weakref.WeakSet()
        self._lock = threading.Lock()

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request.tensors, tritonclient.http.InferInput)

    def infer(self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        headers, body = self._pages.inference(inputs, outputs, request_id, seconds)
        lane = self._lane()
        answer = lane.exchange("POST", self._pages.infer, headers, body, seconds)
        try:
            return _read_inference(answer, request_id)
        except ForeignAnswerError:
            lane.drop()
            raise

    def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        path, headers, body = self._pages.question(question, request_id, seconds)
        lane = self._lane()
        answer = lane.exchange("POST", path, headers, body, seconds)
        try:
            return read_answer_tensor(_read_inference(answer, request_id))
        except ForeignAnswerError:
            lane.drop()
            raise

    def server_live(self, seconds: float) -> bool:
        return is_yes(self._get(self._pages.live, seconds))

    def server_ready(self, seconds: float) -> bool:
        return is_yes(self._get(self._pages.ready, seconds))

    def model_ready(self, seconds: float) -> bool:
        return is_yes(self._get(self._pages.model_ready, seconds))

    def metadata(self, seconds: float) -> Any:
        return _read_json(self._get(self._pages.metadata, seconds))

    def config(self, seconds: float) -> Any:
        return _read_json(self._get(self._pages.config, seconds))

    def is_triton(self, seconds: float) -> bool:
        return _is_triton(self._get(self._pages.server, seconds))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lanes = list(self._lanes)
        for lane in lanes:
            lane.close()

    def before_fork(self, deadline: float) -> None:
        """Nothing: a thread in the middle of a call keeps its lane, and the child does not see it."""

    def after_fork_in_parent(self) -> None:
        """Nothing was changed."""

    def after_fork_in_child(self) -> None:
        for lane in list(self._lanes):
            lane.forget()
        self._start_afresh()

    def _get(self, path: str, seconds: float) -> Answer:
        return self._lane().exchange("GET", path, self._pages.headers, None, seconds)

    def _lane(self) -> "_Lane":
        lane: _Lane | None = getattr(self._own, "lane", None)
        if lane is None:
            lane = _Lane(Connection(self._settings, self._trust if self._settings.is_secure else None))
            with self._lock:
                if self._closed:
                    raise RuntimeError("the client is closed")
                self._lanes.add(lane)
            self._own.lane = lane
        return lane


class _Lane:
    """One thread's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._process = os.getpid()
        self._busy = threading.Lock()
        self._closing = threading.Event()

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        with self._busy:
            if self._closing.is_set():
                raise RuntimeError("the client is closed")
            try:
                return self._connection.exchange(method, path, headers, body, seconds)
            finally:
                if self._closing.is_set():  # close() came during the call and left the rest to us
                    self._connection.close()

    def drop(self) -> None:
        """Close the connection after an answer that makes it suspect; the next exchange makes another."""
        with self._busy:
            self._connection.close()

    def close(self) -> None:
        self._closing.set()
        if self._busy.acquire(blocking=False):
            try:
                self._connection.close()
            finally:
                self._busy.release()

    def forget(self) -> None:
        """Leave the connection to the parent process, in a forked child."""
        self._connection.forget()

    def __del__(self) -> None:  # its thread has ended
        if self._process == os.getpid():
            self._connection.close()


class AsyncHttpTransport:
    """See `AsyncTransport`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pages = _Pages(settings)
        self._trust = Trust(settings) if settings.is_secure else None
        self._session = self._open_session()

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            base_url=f"{'https' if self._settings.is_secure else 'http'}://{self._settings.target}",
            connector=aiohttp.TCPConnector(limit=LARGEST_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # each call has its own deadline
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request.tensors, tritonclient.http.InferInput)

    async def infer(self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        headers, body = self._pages.inference(inputs, outputs, request_id, seconds)
        session = self._session
        answer = await self._exchange("POST", self._pages.infer, headers, body, seconds)
        try:
            return _read_inference(answer, request_id)
        except ForeignAnswerError:
            await self._start_afresh(session)
            raise

    async def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        path, headers, body = self._pages.question(question, request_id, seconds)
        session = self._session
        answer = await self._exchange("POST", path, headers, body, seconds)
        try:
            return read_answer_tensor(_read_inference(answer, request_id))
        except ForeignAnswerError:
            await self._start_afresh(session)
            raise

    async def server_live(self, seconds: float) -> bool:
        return is_yes(await self._get(self._pages.live, seconds))

    async def server_ready(self, seconds: float) -> bool:
        return is_yes(await self._get(self._pages.ready, seconds))

    async def model_ready(self, seconds: float) -> bool:
        return is_yes(await self._get(self._pages.model_ready, seconds))

    async def metadata(self, seconds: float) -> Any:
        return _read_json(await self._get(self._pages.metadata, seconds))

    async def config(self, seconds: float) -> Any:
        return _read_json(await self._get(self._pages.config, seconds))

    async def close(self) -> None:
        await self._session.close()

    async def _start_afresh(self, session: aiohttp.ClientSession) -> None:
        # aiohttp has the connection back and does not say which it was, so all go; calls on them are sent again.
        if session is self._session and not session.closed:
            self._session = self._open_session()
        await session.close()

    async def _get(self, path: str, seconds: float) -> Answer:
        return await self._exchange("GET", path, self._pages.headers, None, seconds)

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        # aiohttp keeps the connections of one context apart from those of another.
        tls = {} if self._trust is None else {"ssl": self._trust.context(), "server_hostname": self._trust.server_name}
        # A timeout of the caller's own arrives here as a cancellation, so this TimeoutError is ours.
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, path, headers=headers, data=body, allow_redirects=False, **tls
                ) as response,
            ):
                return await self._read(response)
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {seconds:.3f} s") from error

    async def _read(self, response: aiohttp.ClientResponse) -> Answer:
        largest = self._settings.largest_answer_bytes
        pieces, count = [], 0
        try:
            if (response.content_length or 0) > largest:
                raise AnswerTooLargeError(f"{response.content_length} bytes announced, {largest} allowed")
            async for piece in response.content.iter_any():
                pieces.append(piece)
                count += len(piece)
                if count > largest:
                    raise AnswerTooLargeError(f"more than {largest} bytes came")
        except BaseException:  # what else comes on this connection belongs to no other call
            response.close()
            raise
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, headers, b"".join(pieces))


class _Pages:
    """Paths, headers and bodies for one client's settings."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.url
        self._models = f"{settings.path}/v2/models/"
        model = f"{self._models}{quote(settings.model, safe='')}"
        if settings.model_version:
            model += f"/versions/{settings.model_version}"
        self.server = f"{settings.path}/v2"
        self.live = f"{settings.path}/v2/health/live"
        self.ready = f"{settings.path}/v2/health/ready"
        self.model_ready = f"{model}/ready"
        self.metadata = model
        self.config = f"{model}/config"
        self.infer = f"{model}/infer"
        self.headers = {**settings.headers, "Accept-Encoding": IDENTITY}

    def inference(
        self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float
    ) -> tuple[dict[str, str], bytes]:
        """Headers and body of one attempt."""
        body, header_length = InferenceServerClient.generate_request_body(
            inputs,
            outputs=[InferRequestedOutput(name, binary_data=True) for name in outputs],
            request_id=request_id,
            timeout=microseconds(seconds),
            parameters={TRACEPARENT: parent} if (parent := traceparent()) else None,
        )
        return self.headers if header_length is None else {**self.headers, HEADER_LENGTH: str(header_length)}, body

    def question(self, question: Question, request_id: str, seconds: float) -> tuple[str, dict[str, str], bytes]:
        """Path, headers and body of one attempt at a model that takes a gateway's body."""
        if not question.model:
            raise question.only_a_gateway(self._url)
        inputs = encode([question.tensor], tritonclient.http.InferInput)
        return f"{self._models}{question.model}/infer", *self.inference(inputs, ("answer",), request_id, seconds)


def _read_inference(answer: Answer, request_id: str) -> Any:
    """The InferResult in an answer, if it belongs to the request."""
    body = checked_body(answer)
    length = answer.headers.get(HEADER_LENGTH.lower())
    result = InferResult.from_response_body(body, header_length=None if length is None else int(length))
    check_answer_id(result.get_response().get("id", ""), request_id)
    return result


def _read_json(answer: Answer) -> Any:
    return json.loads(checked_body(answer))


def is_yes(answer: Answer) -> bool:
    """Whether a health page says yes. Triton says no with 400; what others say in its place is raised."""
    if 300 <= answer.status < 400 or answer.status in (401, 403, 407):
        checked_body(answer)
    return answer.status == 200


def _is_triton(answer: Answer) -> bool:
    """Whether a server's page about itself is Triton's; one that is not there now is raised, to be asked again."""
    if 300 <= answer.status < 400 or answer.status >= 500:
        checked_body(answer)
    try:
        return answer.status == 200 and "extensions" in json.loads(answer.body)
    except (ValueError, TypeError, RecursionError):
        return False


def checked_body(answer: Answer) -> bytes:
    """The body of an answer that is one.

    Raises:
        InferenceServerException: an error of the server's, or an answer that is none of Triton's.
    """
    if 300 <= answer.status < 400:
        raise InferenceServerException(_redirection(answer), status=str(answer.status))
    packing = answer.headers.get("content-encoding", IDENTITY).strip().lower()
    if packing not in ("", IDENTITY):
        raise PackedAnswerError(f"Content-Encoding: {packing[:40]}, though none was asked for")
    if answer.status != 200:
        raise InferenceServerException(_error_of(answer.body), status=str(answer.status))
    return answer.body


class PackedAnswerError(Exception):
    """A compressed answer: a kilobyte of it may unpack to a gigabyte, so it is not read."""


def _redirection(answer: Answer) -> str:
    """Where a redirection points to, without the path, which may hold what is nobody's business."""
    location = answer.headers.get("location", "")
    try:
        host = urlsplit(location).netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    return f"redirected to {host or 'another path of the same host'}" if location else "redirected to nowhere"


def _error_of(body: bytes) -> str:
    """The message in an error of Triton's or a gateway's, or the beginning of what came instead."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)  # an object is a gateway's
    except (ValueError, TypeError, KeyError, RecursionError):
        return body[:1000].decode("utf-8", errors="replace")
