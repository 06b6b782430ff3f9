"""What goes over gRPC: structured requests that are wrong somewhere, damaged protobuf, and calls that are given up."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from loadtests.fuzz.http_requests import packed
from loadtests.fuzz.record import Answer
from loadtests.fuzz.values import COUNTS, DATATYPES, OUTPUTS, hostile_data, right_request

ANSWER_SECONDS = 12.0
SHOWN = 300
SERVICE = "/inference.GRPCInferenceService/"
METHODS = (
    "ModelInfer", "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings", "Nope",
)  # fmt: skip
SIZES = (-1, 0, 1, 2, 3, 1_000_000, 2**40, 2**62, 2**63 - 1, -(2**63))
PARAMETER_NAMES = (
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "classification", "binary_data",
    "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size", "triton_enable_empty_final_response",
    "x" * 70_000, "", "headers",
)  # fmt: skip
VERSIONS = ("1", "0", "-1", "2", "abc", "../1", "9" * 50, "1\0")
NAMES = ("", "nope", "../rank", "rank/../score", "a" * 100_000, "rank\0", "RANK", "%s%n")
MOST_ELEMENTS = 2_000

Message = Any
"""A ModelInferRequest; protobuf's classes have no types."""
Change = Callable[[Random, Message, int], None]
"""(random, message, place of one of its inputs)"""


class GrpcFuzz:
    """Sends to one server.

    Args:
        address: host:port of its gRPC.
    """

    def __init__(self, address: str) -> None:
        unbounded = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        # A server that comes back is found at once, not after a back-off of seconds.
        patience = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        self._channel = grpc.insecure_channel(address, options=[*unbounded, *patience, ("grpc.enable_http_proxy", 0)])
        self._methods = {name: self._bytes_method(name) for name in METHODS}

    def close(self) -> None:
        self._channel.close()

    def structured(self, random: Random) -> Answer:
        """A message that is one, with up to three things wrong in it."""
        message = right_message(random)
        changes = []
        for _ in range(random.choice([1, 1, 2, 3])):
            name = random.choice(list(CHANGES))
            try:
                CHANGES[name](random, message, random.randrange(len(message.inputs) or 1))
            except (ValueError, TypeError, IndexError):  # an earlier change left nothing to change
                name = "none"
            changes.append(name)
        shown = f"{message.model_name[:40]} [{', '.join(changes)}] {str(message)[:SHOWN]}"
        return self._call("ModelInfer", message.SerializeToString(), shown)

    def damaged(self, random: Random) -> Answer:
        """Bytes that were a message, sent to any method."""
        content = _damage(random, right_message(random).SerializeToString())
        method = "ModelInfer" if random.random() < 0.8 else random.choice(METHODS)
        return self._call(method, content, f"{method} {content[:60].hex()}")

    def hang_up(self, random: Random) -> Answer:
        """A right call that is given up by its caller: at its deadline, or cancelled."""
        message = right_message(random)
        call = self._methods["ModelInfer"].future(message.SerializeToString(), timeout=random.choice([0.001, 0.005, 1]))
        if random.random() < 0.5:
            call.cancel()
        try:
            call.result(timeout=2)
        except grpc.RpcError as error:
            return Answer("hung up", str(error.details() or ""), message.model_name)
        except (grpc.FutureCancelledError, grpc.FutureTimeoutError):
            return Answer("hung up", "", message.model_name)
        return Answer("OK", "", message.model_name)

    def _call(self, method: str, content: bytes, shown: str) -> Answer:
        try:
            answer = self._methods[method](content, timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            return Answer(error.code().name, str(error.details() or ""), shown)
        return Answer("OK", answer[: 20 * SHOWN].decode("utf-8", "replace"), shown)

    def _bytes_method(self, name: str) -> Any:
        def unchanged(content: bytes) -> bytes:
            return content

        return self._channel.unary_unary(SERVICE + name, request_serializer=unchanged, response_deserializer=unchanged)


def right_message(random: Random) -> Message:
    """A message that its model answers."""
    request = right_request(random)
    message = service_pb2.ModelInferRequest(model_name=request.model, id="g")
    for one in request.inputs:
        message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        message.raw_input_contents.append(packed(one.data, one.datatype))
    for name in request.outputs:
        message.outputs.add(name=name)
    return message


def _damage(random: Random, content: bytes) -> bytes:
    kind = random.random()
    damaged = bytearray(content)
    if kind < 0.5:
        for _ in range(random.choice([1, 2, 5, 30])):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
    elif kind < 0.7:
        damaged = damaged[: random.randrange(len(damaged))]
    elif kind < 0.85:
        return random.randbytes(random.choice([1, 10, 1_000, 20_000]))
    else:
        place = random.randrange(len(damaged))
        damaged[place:place] = random.randbytes(random.choice([1, 8, 100]))
    return bytes(damaged)


def _datatype(random: Random, message: Message, place: int) -> None:
    message.inputs[place].datatype = str(random.choice(DATATYPES))


def _shape(random: Random, message: Message, place: int) -> None:
    shape: Sequence[int] = [random.choice(SIZES) for _ in range(random.choice([0, 1, 1, 2, 3, 60]))]
    del message.inputs[place].shape[:]
    message.inputs[place].shape.extend(shape)


def _raw(random: Random, message: Message, place: int) -> None:
    content = message.raw_input_contents[place]
    message.raw_input_contents[place] = random.choice(
        [b"", content[:-1], content + b"\0", content * 3, b"\xff" * len(content), b"\xff\xff\xff\x7f", b"\0" * 100_000]
    )


def _drop_raw(random: Random, message: Message, place: int) -> None:
    del message.raw_input_contents[random.choice([0, -1])]


def _more_raw(random: Random, message: Message, place: int) -> None:
    message.raw_input_contents.append(b"abc")


def _typed_contents(random: Random, message: Message, place: int) -> None:
    if random.random() < 0.7:
        del message.raw_input_contents[:]
    for one in message.inputs:
        fill = random.choice(TYPED)
        getattr(one.contents, fill[0]).extend(fill[1])


def _drop_input(random: Random, message: Message, place: int) -> None:
    del message.inputs[place]
    if random.random() < 0.5:
        del message.raw_input_contents[place]


def _repeat_input(random: Random, message: Message, place: int) -> None:
    message.inputs.add().CopyFrom(message.inputs[place])
    message.raw_input_contents.append(message.raw_input_contents[place])


def _add_input(random: Random, message: Message, place: int) -> None:
    name = random.choice(["x", "", "deadline", "a\0b", "a" * 70_000])
    message.inputs.add(name=name, datatype="INT32", shape=[1])
    message.raw_input_contents.append(b"\1\0\0\0")


def _parameter(random: Random, message: Message, place: int) -> None:
    holder = random.choice([message, message.inputs[place], *message.outputs[:1]])
    parameter = holder.parameters[random.choice(PARAMETER_NAMES)]
    field, value = random.choice(PARAMETER_VALUES)
    setattr(parameter, field, value)


def _identity(random: Random, message: Message, place: int) -> None:
    message.id = random.choice(["", "x" * 100_000, "\0\1", "a\r\nb", "\U0001f98a"])


def _repeat_outputs(random: Random, message: Message, place: int) -> None:
    names = OUTPUTS.get(message.model_name, ("scores",))
    for _ in range(random.choice([1, 300])):
        message.outputs.add(name=random.choice(names))


def _unknown_output(random: Random, message: Message, place: int) -> None:
    message.outputs.add(name=random.choice(["", "nope", "deadline", "logits", "x" * 70_000]))


def _version(random: Random, message: Message, place: int) -> None:
    message.model_version = random.choice(VERSIONS)


def _model(random: Random, message: Message, place: int) -> None:
    message.model_name = random.choice(NAMES)


def _values(random: Random, message: Message, place: int) -> None:
    one = message.inputs[place]
    count = math.prod(max(0, min(size, 50)) for size in one.shape)
    message.raw_input_contents[place] = packed(
        hostile_data(random, one.datatype, min(count, MOST_ELEMENTS)), one.datatype
    )


def _many_candidates(random: Random, message: Message, place: int) -> None:
    count = random.choice(COUNTS) if random.random() < 0.25 else 4
    for number, one in enumerate(message.inputs):
        if one.name in ("items", "item_ids", "history"):
            one.shape[:] = [count]
            message.raw_input_contents[number] = packed([str(turn % 3) for turn in range(count)], "BYTES")


TYPED: Sequence[tuple[str, Sequence[Any]]] = (
    ("bytes_contents", [b"a", b"\xff\0"]), ("int_contents", [1, -(2**31)]), ("int64_contents", [2**63 - 1]),
    ("fp32_contents", [math.nan, math.inf]), ("bool_contents", [True]), ("uint_contents", [2**32 - 1]),
    ("fp64_contents", [1e308]),
)  # fmt: skip
PARAMETER_VALUES: Sequence[tuple[str, Any]] = (
    ("bool_param", True), ("int64_param", -1), ("int64_param", 0), ("int64_param", 1), ("int64_param", 2**63 - 1),
    ("int64_param", -(2**63)), ("int64_param", 1_000), ("string_param", "a"), ("string_param", ""),
    ("string_param", "5"), ("string_param", "x" * 70_000), ("double_param", math.nan), ("uint64_param", 2**64 - 1),
)  # fmt: skip
CHANGES: dict[str, Change] = {
    "datatype": _datatype, "shape": _shape, "raw": _raw, "drop raw": _drop_raw, "more raw": _more_raw,
    "typed contents": _typed_contents, "drop input": _drop_input, "repeat input": _repeat_input,
    "add input": _add_input, "parameter": _parameter, "id": _identity, "repeat outputs": _repeat_outputs,
    "unknown output": _unknown_output, "version": _version, "model": _model, "values": _values,
    "many": _many_candidates,
}  # fmt: skip
