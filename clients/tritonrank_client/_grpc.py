"""gRPC, blocking and asyncio. One channel per client: gRPC's unary calls are safe for threads and share it."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio

from ._options import Settings
from ._transports import microseconds
from ._wire import RankRequest, encode

LARGEST_MESSAGE_BYTES = 2**31 - 1  # as tritonclient's default; gRPC's own is 4 MB


class GrpcTransport:
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        self._arguments = _Arguments(settings)
        self._client = tritonclient.grpc.InferenceServerClient(**_connection(settings))

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request, tritonclient.grpc.InferInput)

    def infer(self, inputs: list[Any], request_id: str, seconds: float) -> Any:
        return self._client.infer(**self._arguments.infer(inputs, request_id, seconds))

    def server_live(self, seconds: float) -> bool:
        return bool(self._client.is_server_live(**self._arguments.server(seconds)))

    def server_ready(self, seconds: float) -> bool:
        return bool(self._client.is_server_ready(**self._arguments.server(seconds)))

    def model_ready(self, seconds: float) -> bool:
        return bool(self._client.is_model_ready(**self._arguments.model(seconds)))

    def metadata(self, seconds: float) -> Any:
        return _plain(self._client.get_model_metadata(**self._arguments.model(seconds)))

    def config(self, seconds: float) -> Any:
        return _plain(self._client.get_model_config(**self._arguments.model(seconds)).config)

    def close(self) -> None:
        self._client.close()


class AsyncGrpcTransport:
    """See `AsyncTransport`."""

    def __init__(self, settings: Settings) -> None:
        self._arguments = _Arguments(settings)
        self._client = tritonclient.grpc.aio.InferenceServerClient(**_connection(settings))

    def encode(self, request: RankRequest) -> list[Any]:
        return encode(request, tritonclient.grpc.InferInput)

    async def infer(self, inputs: list[Any], request_id: str, seconds: float) -> Any:
        return await _answer(self._client.infer(**self._arguments.infer(inputs, request_id, seconds)))

    async def server_live(self, seconds: float) -> bool:
        return bool(await _answer(self._client.is_server_live(**self._arguments.server(seconds))))

    async def server_ready(self, seconds: float) -> bool:
        return bool(await _answer(self._client.is_server_ready(**self._arguments.server(seconds))))

    async def model_ready(self, seconds: float) -> bool:
        return bool(await _answer(self._client.is_model_ready(**self._arguments.model(seconds))))

    async def metadata(self, seconds: float) -> Any:
        return _plain(await _answer(self._client.get_model_metadata(**self._arguments.model(seconds))))

    async def config(self, seconds: float) -> Any:
        return _plain((await _answer(self._client.get_model_config(**self._arguments.model(seconds)))).config)

    async def close(self) -> None:
        await self._client.close()


class CallCancelledError(Exception):
    """A gRPC call ended with CANCELLED although nobody here cancelled it."""


async def _answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except asyncio.CancelledError as error:
        # grpc.aio raises this, too, for the calls of a channel that is closed. Passed on, it would look as if the
        # caller's own task had been cancelled.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise CallCancelledError(str(error)) from error


class _Arguments:
    """The keyword arguments that both tritonclient clients take."""

    def __init__(self, settings: Settings) -> None:
        self._model = settings.model
        self._version = settings.model_version
        self._headers = {name.lower(): value for name, value in settings.headers.items()}  # gRPC takes lower case only

    def server(self, seconds: float) -> dict[str, Any]:
        return {"headers": dict(self._headers), "client_timeout": seconds}

    def model(self, seconds: float) -> dict[str, Any]:
        return {"model_name": self._model, "model_version": self._version, **self.server(seconds)}

    def infer(self, inputs: list[Any], request_id: str, seconds: float) -> dict[str, Any]:
        return {
            "inputs": inputs,
            "request_id": request_id,
            "timeout": microseconds(seconds),
            **self.model(seconds),
        }


def _connection(settings: Settings) -> dict[str, Any]:
    keep_alive = settings.keep_alive
    # `channel_args` replaces all of tritonclient's defaults, so the message sizes are restated.
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", round(keep_alive.time_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(keep_alive.timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", int(keep_alive.without_calls)),
        ("grpc.http2.max_pings_without_data", 2),
        # After a refused connection gRPC fails calls for a second, and up to two minutes, without trying again.
        # Our own retries are sooner than that, and a restarted server should be found quickly. (Not to be
        # completed with min_reconnect_backoff_ms: that one also limits how long connecting may take.)
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Spread calls over all addresses of the name: a headless Kubernetes service has one per pod.
        ("grpc.lb_policy_name", "round_robin"),
    ]
    arguments: dict[str, Any] = {"url": settings.target, "channel_args": options, "ssl": settings.is_secure}
    if settings.tls is not None:
        arguments |= {
            "root_certificates": settings.tls.root_certificates,
            "private_key": settings.tls.private_key,
            "certificate_chain": settings.tls.certificate_chain,
        }
    return arguments


def _plain(message: Any) -> dict[str, Any]:
    """A protobuf message as Triton's HTTP server would write it in JSON, unset scalars included.

    protobuf's own conversion writes 64-bit integers as text, so a dimension would be -1 over HTTP and "-1" here.
    """
    return {
        field.name: _plain_field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _plain_field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _plain_value(entry, one) for key, one in value.items()}
    if hasattr(value, "append"):  # protobuf's repeated containers
        return [_plain_value(field, one) for one in value]
    return _plain_value(field, value)


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return _plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value
