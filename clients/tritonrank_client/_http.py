"""HTTP, blocking and asyncio, with Triton's binary tensor extension.

tritonclient's blocking client is made of gevent sockets, which belong to the thread that opened them. So every
thread gets a client of its own, its *lane*, with one connection that is kept alive between calls; it ends with the
thread. The asyncio client is one aiohttp session.
"""

import asyncio
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import gevent
import gevent.hub
import gevent.monkey
import gevent.ssl
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from ._options import TLS, Settings
from ._transports import microseconds
from ._wire import RankRequest, encode

# Calls beyond it wait for a free connection, within their deadline; a burst should not open a thousand sockets.
LARGEST_CONNECTIONS = 100


class HttpTransport:
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._arguments = _Arguments(settings)
        # Weak, because a lane goes when its thread does.
        self._lanes: weakref.WeakSet[_Lane] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request, tritonclient.http.InferInput)

    def infer(self, inputs: list[Any], request_id: str, seconds: float) -> Any:
        arguments = self._arguments.infer(inputs, request_id, seconds)
        return self._lane().call(lambda client: client.infer(**arguments), seconds)

    def server_live(self, seconds: float) -> bool:
        return bool(self._lane().call(lambda client: client.is_server_live(**self._arguments.server()), seconds))

    def server_ready(self, seconds: float) -> bool:
        return bool(self._lane().call(lambda client: client.is_server_ready(**self._arguments.server()), seconds))

    def model_ready(self, seconds: float) -> bool:
        return bool(self._lane().call(lambda client: client.is_model_ready(**self._arguments.model()), seconds))

    def metadata(self, seconds: float) -> Any:
        return self._lane().call(lambda client: client.get_model_metadata(**self._arguments.model()), seconds)

    def config(self, seconds: float) -> Any:
        return self._lane().call(lambda client: client.get_model_config(**self._arguments.model()), seconds)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            lanes = list(self._lanes)
        for lane in lanes:
            lane.close()

    def _lane(self) -> "_Lane":
        own: _Lanes | None = getattr(_this_thread, "lanes", None)
        if own is None:
            own = _this_thread.lanes = _Lanes()
        lane = own.by_transport.get(self)
        if lane is None:
            lane = _Lane(self._settings)
            with self._lock:
                if self._closed:
                    raise RuntimeError("the client is closed")
                self._lanes.add(lane)
            own.by_transport[self] = lane
        return lane


class _Lanes:
    """The lanes of one thread, and the gevent hub under them.

    gevent gives every thread that waits a hub, an event loop with two open files, and never takes it back: a
    program that starts a thread per job would run out of files. So the hub is destroyed when the thread ends,
    which is when thread-local objects are dropped.
    """

    def __init__(self) -> None:
        self.by_transport: weakref.WeakKeyDictionary[HttpTransport, _Lane] = weakref.WeakKeyDictionary()
        self._hub = gevent.get_hub()
        self._thread = threading.current_thread()

    def __del__(self) -> None:
        # The main thread's hub goes with the process. Where gevent has patched threading, a "thread" is a
        # greenlet, and shares its hub with all others.
        if self._thread is threading.main_thread() or gevent.monkey.is_module_patched("threading"):
            return
        if self._hub.loop is None or threading.get_ident() != self._thread.ident:
            return
        # gevent's own thread-local may be gone by now, and closing a client would make a second hub.
        gevent.hub.set_hub(self._hub)
        self._close_lanes()  # apart, because gevent keeps the frame that destroys a hub, and all that it names
        self._hub.destroy(destroy_loop=True)

    def _close_lanes(self) -> None:
        while self.by_transport:
            _, lane = self.by_transport.popitem()
            lane.close()


_this_thread = threading.local()


class _Lane:
    """One thread's connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Any = None
        self._busy = threading.Lock()
        self._closing = threading.Event()

    def call(self, method: Callable[[Any], Any], seconds: float) -> Any:
        """Call a method of this thread's client, for `seconds` at most.

        tritonclient's own timeouts hold for one read or write each, and a server that sends a byte now and then
        outlasts them; gevent's timer ends the whole call.
        """
        with self._busy:
            if self._closing.is_set():
                raise RuntimeError("the client is closed")
            if self._client is None:
                self._client = _blocking_client(self._settings)
            timer = gevent.Timeout.start_new(seconds)
            try:
                return method(self._client)
            except InferenceServerException:
                raise  # the server's own answer: the connection is sound
            except BaseException as error:
                # Half an answer may be waiting in the socket, and geventhttpclient's pool of one loses its only
                # place when a timer fires during a send. Start afresh.
                self._drop_client()
                if error is timer:
                    raise TimeoutError(f"no answer within {seconds:.3f} s") from None
                raise
            finally:
                timer.close()
                if self._closing.is_set():  # close() came during the call and left the rest to us
                    self._drop_client()

    def close(self) -> None:
        self._closing.set()
        if self._busy.acquire(blocking=False):
            try:
                self._drop_client()
            finally:
                self._busy.release()

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class AsyncHttpTransport:
    """See `AsyncTransport`."""

    def __init__(self, settings: Settings) -> None:
        self._arguments = _Arguments(settings)
        context = _ssl_context(ssl, settings.tls or TLS()) if settings.is_secure else None
        self._client = tritonclient.http.aio.InferenceServerClient(
            settings.target,
            conn_limit=LARGEST_CONNECTIONS,
            conn_timeout=None,  # each call has its own deadline
            ssl=settings.is_secure,
            ssl_context=context,
        )

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request, tritonclient.http.InferInput)

    async def infer(self, inputs: list[Any], request_id: str, seconds: float) -> Any:
        async with _deadline(seconds):
            return await self._client.infer(**self._arguments.infer(inputs, request_id, seconds))

    async def server_live(self, seconds: float) -> bool:
        async with _deadline(seconds):
            return bool(await self._client.is_server_live(**self._arguments.server()))

    async def server_ready(self, seconds: float) -> bool:
        async with _deadline(seconds):
            return bool(await self._client.is_server_ready(**self._arguments.server()))

    async def model_ready(self, seconds: float) -> bool:
        async with _deadline(seconds):
            return bool(await self._client.is_model_ready(**self._arguments.model()))

    async def metadata(self, seconds: float) -> Any:
        async with _deadline(seconds):
            return await self._client.get_model_metadata(**self._arguments.model())

    async def config(self, seconds: float) -> Any:
        async with _deadline(seconds):
            return await self._client.get_model_config(**self._arguments.model())

    async def close(self) -> None:
        await self._client.close()


class _Arguments:
    """The keyword arguments that both tritonclient clients take."""

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model
        self._version = settings.model_version
        self._headers = dict(settings.headers)

    def server(self) -> dict[str, Any]:
        return {"headers": dict(self._headers)}  # a copy each time: tritonclient writes into it

    def model(self) -> dict[str, Any]:
        return {"model_name": self._model, "model_version": self._version, **self.server()}

    def infer(self, inputs: list[Any], request_id: str, seconds: float) -> dict[str, Any]:
        return {"inputs": inputs, "request_id": request_id, "timeout": microseconds(seconds), **self.model()}


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    # A timeout of the caller's own arrives here as a cancellation, so this TimeoutError is ours.
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:.3f} s") from error


def _blocking_client(settings: Settings) -> Any:
    arguments: dict[str, Any] = {"connection_timeout": None, "network_timeout": None}  # the lane's timer rules
    if settings.is_secure:
        tls = settings.tls or TLS()
        arguments |= {
            "ssl": True,
            "insecure": not tls.verify,
            "ssl_context_factory": lambda cafile=None: _ssl_context(gevent.ssl, tls),
        }
    return tritonclient.http.InferenceServerClient(settings.target, **arguments)


def _ssl_context(library: Any, tls: TLS) -> Any:
    # `library` is ssl, or gevent's twin of it for gevent's sockets.
    context = library.create_default_context(cafile=tls.root_certificates)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = library.CERT_NONE
    if tls.certificate_chain is not None:
        context.load_cert_chain(tls.certificate_chain, tls.private_key)
    return context
