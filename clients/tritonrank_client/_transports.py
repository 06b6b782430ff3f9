"""What a client needs from a protocol, and the choice of one.

A transport sends one request once. It knows neither retries nor our errors: what the library raises goes up as it
is. The protocol's module is imported when it is chosen, so a gRPC client never loads aiohttp.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from ._options import Settings
from ._recommend import Question
from ._wire import RankRequest


class Transport(Protocol):
    """Blocking calls, safe for threads and forks. `seconds` is the time the call may take."""

    def encode(self, request: RankRequest) -> Any:
        """The request as this protocol's inputs; they may be sent several times."""

    def infer(self, inputs: Any, outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        """Send the inputs and ask for these outputs; an InferResult that bears `request_id`."""

    def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        """Send a question of `recommend`; the JSON of the answer to `request_id`."""

    def server_live(self, seconds: float) -> bool:
        """Whether the server says that it is live."""

    def server_ready(self, seconds: float) -> bool:
        """Whether the server says that it is ready."""

    def model_ready(self, seconds: float) -> bool:
        """Whether the server says that the model is ready."""

    def metadata(self, seconds: float) -> Any:
        """The model's metadata as the server's JSON: plain dicts and lists, not checked."""

    def config(self, seconds: float) -> Any:
        """The model's configuration, likewise."""

    def is_triton(self, seconds: float) -> bool:
        """Whether a Triton answers; a gateway is none."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """The same for asyncio; made and used in one event loop of one process."""

    def encode(self, request: RankRequest) -> Any:
        """The request as this protocol's inputs; they may be sent several times."""

    async def infer(self, inputs: Any, outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        """Send the inputs and ask for these outputs; an InferResult that bears `request_id`."""

    async def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        """Send a question of `recommend`; the JSON of the answer to `request_id`."""

    async def server_live(self, seconds: float) -> bool:
        """Whether the server says that it is live."""

    async def server_ready(self, seconds: float) -> bool:
        """Whether the server says that it is ready."""

    async def model_ready(self, seconds: float) -> bool:
        """Whether the server says that the model is ready."""

    async def metadata(self, seconds: float) -> Any:
        """The model's metadata as the server's JSON: plain dicts and lists, not checked."""

    async def config(self, seconds: float) -> Any:
        """The model's configuration, likewise."""

    async def close(self) -> None:
        """Close the connections."""


def open_transport(settings: Settings) -> Transport:
    """The blocking transport for the URL's scheme. Nothing is sent yet."""
    if settings.is_folder:
        from ._in_process import InProcessTransport

        return InProcessTransport(settings)
    if settings.is_gateway:
        from ._gateway import GatewayTransport

        return GatewayTransport(settings)
    if settings.is_grpc:
        from ._grpc import GrpcTransport

        return GrpcTransport(settings)
    from ._http import HttpTransport

    return HttpTransport(settings)


def open_async_transport(settings: Settings) -> AsyncTransport:
    """The asyncio transport for the URL's scheme; to be called in the event loop that will use it."""
    if settings.is_folder:
        from ._in_process import AsyncInProcessTransport

        return AsyncInProcessTransport(settings)
    if settings.is_gateway:
        from ._gateway import AsyncGatewayTransport

        return AsyncGatewayTransport(settings)
    if settings.is_grpc:
        from ._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(settings)
    from ._http import AsyncHttpTransport

    return AsyncHttpTransport(settings)
