"""gRPC, blocking and asyncio: the protocol's messages, and two ways to wait for a connection's futures.

gRPC's unary calls are safe for threads and share a client's channel, see `_grpc_connection`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from ._grpc_connection import Wire
from ._options import Settings
from ._plain import plain
from ._recommend import Question, read_answer_tensor
from ._trace import TRACEPARENT, traceparent
from ._wire import ForeignAnswerError, RankRequest, Tensor, check_answer_id, microseconds

LENGTH_BYTES = 4
"""Before each element of a BYTES tensor."""


class GrpcTransport:
    """See `Transport`."""

    def __init__(self, settings: Settings) -> None:
        self._messages = _Messages(settings)
        self._wire = Wire(settings)

    def encode(self, request: RankRequest) -> list[Any]:
        return _encode(request.tensors)

    def infer(self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        answer = self._ask("ModelInfer", self._messages.infer(inputs, outputs, request_id, seconds), seconds)
        return _own(answer, request_id, self._wire)

    def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        answer = self._ask("ModelInfer", self._messages.question(question, request_id, seconds), seconds)
        return read_answer_tensor(_own(answer, request_id, self._wire))

    def server_live(self, seconds: float) -> bool:
        return bool(self._ask("ServerLive", service_pb2.ServerLiveRequest(), seconds).live)

    def server_ready(self, seconds: float) -> bool:
        return bool(self._ask("ServerReady", service_pb2.ServerReadyRequest(), seconds).ready)

    def model_ready(self, seconds: float) -> bool:
        return bool(self._ask("ModelReady", self._messages.model(service_pb2.ModelReadyRequest), seconds).ready)

    def metadata(self, seconds: float) -> Any:
        return plain(self._ask("ModelMetadata", self._messages.model(service_pb2.ModelMetadataRequest), seconds))

    def config(self, seconds: float) -> Any:
        answer = self._ask("ModelConfig", self._messages.model(service_pb2.ModelConfigRequest), seconds)
        return plain(answer.config)

    def is_triton(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        self._wire.close()

    def _ask(self, method: str, message: Any, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        future = self._wire.start(method, message, self._messages.headers, seconds)
        try:
            # What the sending took counts, too.
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except grpc.FutureTimeoutError:
            raise TimeoutError(f"no answer within {seconds:.3f} s") from None
        except grpc.RpcError as error:
            raise _told_by_the_server(error) from None
        finally:  # also where a signal or the caller's own timer ended the waiting
            self._wire.abandon(future)


class AsyncGrpcTransport:
    """See `AsyncTransport`."""

    def __init__(self, settings: Settings) -> None:
        self._messages = _Messages(settings)
        self._wire = Wire(settings)

    def encode(self, request: RankRequest) -> list[Any]:
        return _encode(request.tensors)

    async def infer(self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        answer = await self._ask("ModelInfer", self._messages.infer(inputs, outputs, request_id, seconds), seconds)
        return _own(answer, request_id, self._wire)

    async def ask(self, question: Question, request_id: str, seconds: float) -> bytes:
        answer = await self._ask("ModelInfer", self._messages.question(question, request_id, seconds), seconds)
        return read_answer_tensor(_own(answer, request_id, self._wire))

    async def server_live(self, seconds: float) -> bool:
        return bool((await self._ask("ServerLive", service_pb2.ServerLiveRequest(), seconds)).live)

    async def server_ready(self, seconds: float) -> bool:
        return bool((await self._ask("ServerReady", service_pb2.ServerReadyRequest(), seconds)).ready)

    async def model_ready(self, seconds: float) -> bool:
        return bool((await self._ask("ModelReady", self._messages.model(service_pb2.ModelReadyRequest), seconds)).ready)

    async def metadata(self, seconds: float) -> Any:
        return plain(await self._ask("ModelMetadata", self._messages.model(service_pb2.ModelMetadataRequest), seconds))

    async def config(self, seconds: float) -> Any:
        answer = await self._ask("ModelConfig", self._messages.model(service_pb2.ModelConfigRequest), seconds)
        return plain(answer.config)

    async def close(self) -> None:
        self._wire.close()

    async def _ask(self, method: str, message: Any, seconds: float) -> Any:
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()

        def wake(_: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended, and its caller with it
                loop.call_soon_threadsafe(answered.set)

        deadline = loop.time() + seconds
        future = self._wire.start(method, message, self._messages.headers, seconds)
        try:
            future.add_done_callback(wake)
            # A timeout of the caller's own arrives here as a cancellation, so this TimeoutError is ours.
            async with asyncio.timeout_at(deadline):
                await answered.wait()
            return future.result(timeout=0)
        except TimeoutError:
            raise TimeoutError(f"no answer within {seconds:.3f} s") from None
        except grpc.RpcError as error:
            raise _told_by_the_server(error) from None
        finally:
            self._wire.abandon(future)


class _Messages:
    """The protocol's messages for one client's settings."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.url
        self._model = settings.model
        self._version = settings.model_version
        # gRPC takes lower case only.
        self.headers = tuple((name.lower(), value) for name, value in settings.headers.items())

    def model(self, kind: Callable[..., Any]) -> Any:
        return kind(name=self._model, version=self._version)

    def infer(self, inputs: list[Any], outputs: Sequence[str], request_id: str, seconds: float) -> Any:
        message = service_pb2.ModelInferRequest(model_name=self._model, model_version=self._version, id=request_id)
        message.parameters["timeout"].int64_param = microseconds(seconds)
        if parent := traceparent():
            message.parameters[TRACEPARENT].string_param = parent
        for described, content in inputs:
            message.inputs.append(described)
            message.raw_input_contents.append(content)
        for name in outputs:
            message.outputs.add(name=name)
        return message

    def question(self, question: Question, request_id: str, seconds: float) -> Any:
        """To a model that takes a gateway's body."""
        if not question.model:
            raise question.only_a_gateway(self._url)
        message = self.infer(_encode([question.tensor]), ("answer",), request_id, seconds)
        message.model_name, message.model_version = question.model, ""
        return message


def _encode(tensors: Iterable[Tensor]) -> list[tuple[Any, bytes]]:
    """Each tensor as its description and its bytes."""
    encoded = []
    for tensor in tensors:
        values, shape = tensor.values, list(tensor.values.shape)
        described = service_pb2.ModelInferRequest.InferInputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=shape
        )
        content = values.tobytes() if tensor.datatype != "BYTES" else _joined(values.ravel().tolist())
        encoded.append((described, content))
    return encoded


def _joined(texts: Iterable[bytes]) -> bytes:
    """A BYTES tensor on the wire: before each element its length, lowest byte first (KServe's V2 protocol)."""
    parts: list[bytes] = []
    for text in texts:
        parts += (len(text).to_bytes(LENGTH_BYTES, "little"), text)
    return b"".join(parts)


def _own(answer: Any, request_id: str, wire: Wire) -> Any:
    """The tensors in an answer, if it belongs to the request; else the channel that brought it is dropped."""
    try:
        check_answer_id(answer.id, request_id)
    except ForeignAnswerError:
        wire.drop_channel()
        raise
    return _Answer(answer)


class _Answer:
    """An InferResult that is quick where all texts of an output are empty: those of `unscored` nearly always are."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def as_numpy(self, name: str) -> Any:
        """As of InferResult, which takes half a microsecond for each text."""
        for output, content in zip(self._answer.outputs, self._answer.raw_output_contents, strict=False):
            if output.name == name:
                is_empty = output.datatype == "BYTES" and not content.strip(b"\0")  # lengths of 0 alone
                if is_empty and list(output.shape) == [len(content) / LENGTH_BYTES]:
                    return np.full(len(content) // LENGTH_BYTES, b"", dtype=np.object_)
                break
        return tritonclient.grpc.InferResult(self._answer).as_numpy(name)


def _told_by_the_server(error: Any) -> InferenceServerException:
    return InferenceServerException(msg=error.details(), status=str(error.code()))
