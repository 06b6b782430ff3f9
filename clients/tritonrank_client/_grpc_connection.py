"""gRPC's connection: one channel per client, and the calls on it.

A caller who runs out of time stops waiting, and that is all: the call itself is not cancelled on the wire, unless the
settings say so, and carries a deadline that is seconds later than the caller's. tritonserver 2.51 can end with a
segmentation fault when short calls are cancelled while it answers them
(https://github.com/triton-inference-server/server/issues/7368). The server still learns the real deadline, as the
request parameter `timeout`; an answer that comes too late is thrown away.
"""

import atexit
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from ._errors import Overloaded
from ._fork import keep_inherited, watch_forks
from ._options import LARGEST_MESSAGE_BYTES, TLS, Settings
from ._trust import Changes

GRACE_SECONDS = 15.0
"""How much later than its caller's a call's deadline on the wire is. A server that lives has answered long before."""

MOST_ABANDONED = 100
"""Calls of one client that nobody waits for and that the server has not answered. As many as HTTP's connections."""

SILENT_SECONDS = 0.5
"""A call that was given up after this, with no answer to any call since it was sent, may be on a connection that is
dead without knowing it: a router forgot it, or the server's address went to another host. The next calls take a new
one, long before a keep-alive ping would tell."""

RENEW_SECONDS = 10.0
"""Not more often than that: a server that is slow is not helped by connections."""

EXIT_SECONDS = 2.0
"""How long the end of the program waits for abandoned calls: breaking the connection cancels them, too."""


_TOLD_BY_US = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
"""Codes of calls of which nothing may have been heard; the others come from the server."""


class Wire:
    """One process's channel to the server, and the calls on it. Safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closed = False
        self._certificates = Changes(settings.tls) if settings.tls is not None else None
        self._start_afresh()
        _wires.add(self)
        watch_forks(self)

    def _start_afresh(self) -> None:
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._starting = threading.Lock()  # held while a call is handed to gRPC, and by a fork
        self._is_held_by_fork = False
        self._changed = threading.Condition()
        self._running: dict[Any, tuple[grpc.Channel, float]] = {}  # with when it was sent
        self._abandoned: set[Any] = set()
        self._heard_at = self._renewed_at = float("-inf")

    def start(self, method: str, message: Any, headers: tuple[tuple[str, str], ...], seconds: float) -> Any:
        """Send `message`; the future of the answer. Whoever stops waiting for it must `abandon` it.

        Raises:
            Overloaded: too many abandoned calls are unanswered.
            RuntimeError: the client is closed.
        """
        if self._certificates is not None and self._certificates.look():
            self.drop_channel()  # a connection that broke would come back with what it was opened with
        with self._starting:
            if self._closed:
                raise RuntimeError("the client is closed")
            if len(self._abandoned) >= MOST_ABANDONED:
                raise Overloaded(
                    f"{self._settings.url}: {MOST_ABANDONED} calls whose callers ran out of time are still unanswered. "
                    "Wait until the server has worked them off, or allow a longer timeout=.",
                    retryable=True,
                )
            if self._channel is None:
                self._channel = _open_channel(self._settings)
                self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            future = getattr(self._stub, method).future(message, timeout=seconds + GRACE_SECONDS, metadata=headers)
            with self._changed:
                self._running[future] = self._channel, time.monotonic()
        future.add_done_callback(self._forget)
        return future

    def abandon(self, future: Any) -> None:
        """Nobody waits for this call any more. It goes on, unless the settings have it cancelled; a reference is kept,
        because gRPC cancels a lost call."""
        if self._settings.cancel_abandoned:
            future.cancel()  # of an answered call: nothing
        with self._changed:
            if future not in self._running:
                return
            channel, sent_at = self._running[future]
            if channel is self._channel:
                self._abandoned.add(future)
            is_dead = channel is self._channel and self._seems_dead(sent_at)
            if is_dead:
                self._renewed_at = time.monotonic()
                self._abandoned.clear()  # they are the old connection's; a reference is in _running
        if is_dead:
            self.drop_channel(channel)

    def _seems_dead(self, sent_at: float) -> bool:
        now = time.monotonic()
        is_silent = now - sent_at >= SILENT_SECONDS and self._heard_at < sent_at
        return is_silent and now - self._renewed_at >= RENEW_SECONDS

    def _forget(self, future: Any) -> None:
        is_heard = future.code() not in _TOLD_BY_US
        with self._changed:
            self._running.pop(future, None)
            self._abandoned.discard(future)
            if is_heard:
                self._heard_at = time.monotonic()
            self._changed.notify_all()

    def wait_until_idle(self, deadline: float) -> None:
        """Wait for the calls on the wire until `deadline` (time.monotonic()) at the latest."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, timeout=max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Take no new calls. The channel closes when those on the wire have been answered, in the background."""
        with self._starting:
            self._closed = True
        self.drop_channel()

    def drop_channel(self, only: grpc.Channel | None = None) -> None:
        """Send the calls from here on over a new channel; the old one closes when its calls have been answered.

        Args:
            only: do it if this is the channel still.
        """
        with self._starting:
            if only is not None and self._channel is not only:
                return
            channel, self._channel = self._channel, None
        if channel is None:
            return
        with self._changed:
            is_idle = not self._is_used(channel)
        if is_idle:
            channel.close()
            return
        threading.Thread(target=self._close_when_idle, args=(channel,), name="tritonrank-drain", daemon=True).start()

    def _is_used(self, channel: grpc.Channel) -> bool:
        return any(own is channel for own, _ in self._running.values())

    def _close_when_idle(self, channel: grpc.Channel) -> None:
        """Each call ends by its deadline on the wire; of a closed client none is waited for longer than the grace."""
        closed_at = None
        with self._changed:
            while self._is_used(channel):
                if self._closed:
                    closed_at = closed_at or time.monotonic()
                    if time.monotonic() >= closed_at + GRACE_SECONDS:
                        break
                self._changed.wait(1.0)
        channel.close()

    def before_fork(self, deadline: float) -> None:
        self._is_held_by_fork = self._starting.acquire(timeout=max(0.0, deadline - time.monotonic()))
        self.wait_until_idle(deadline)

    def after_fork_in_parent(self) -> None:
        if self._is_held_by_fork:
            self._is_held_by_fork = False
            self._starting.release()

    def after_fork_in_child(self) -> None:
        keep_inherited(self._channel, self._stub, self._running, self._abandoned)
        self._start_afresh()


_wires: "weakref.WeakSet[Wire]" = weakref.WeakSet()


@atexit.register
def _wait_for_abandoned_calls() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for wire in list(_wires):
        wire.wait_until_idle(deadline)


def _open_channel(settings: Settings) -> grpc.Channel:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # Without it, gRPC's own thread is a greenlet that stops all others, deadlines included.
        from grpc.experimental import gevent as grpc_gevent

        grpc_gevent.init_gevent()
    options = _channel_options(settings)
    if not settings.is_secure:
        return grpc.insecure_channel(settings.target, options=options)
    tls = settings.tls or TLS()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(tls.root_certificates),
        private_key=_read(tls.private_key),
        certificate_chain=_read(tls.certificate_chain),
    )
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.secure_channel(settings.target, credentials, options=options)


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _channel_options(settings: Settings) -> list[tuple[str, int | str]]:
    keep_alive = settings.keep_alive
    return [
        ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", settings.largest_answer_bytes),
        # That limit is for the bytes on the wire, and a thousandth of it can be unpacked to all of it. So nothing is
        # unpacked: no compression is asked for, and a compressed answer cannot be read.
        ("grpc.per_message_decompression", 0),
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.keepalive_time_ms", round(keep_alive.time_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(keep_alive.timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", int(keep_alive.without_calls)),
        ("grpc.http2.max_pings_without_data", 2),
        # After a refused connection gRPC fails calls for a second, and up to two minutes, without trying again. A
        # server that is back should be found at once, and a connection to nobody costs little. (Not to be completed
        # with min_reconnect_backoff_ms: that one also limits how long connecting may take.)
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 250),
        # The same for a name whose addresses changed; gRPC asks again every 30 s by itself.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Spread calls over all addresses of the name: a headless Kubernetes service has one per pod.
        ("grpc.lb_policy_name", "round_robin"),
        # As over HTTP: gRPC would use the environment's proxy even for 127.0.0.1.
        ("grpc.enable_http_proxy", 0),
        # gRPC shares connections among the channels of a process, and a forked child finds those of its parent.
        ("grpc.use_local_subchannel_pool", 1),
    ]
