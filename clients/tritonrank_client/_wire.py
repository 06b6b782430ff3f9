"""The contract of the `rank` model, in both directions and for both protocols.

A request is checked here, before anything is sent, and turned into named arrays; tritonclient's HTTP and gRPC
input classes take the same arrays. An answer is checked against the request: a server that breaks the contract is
reported as such and never as an IndexError in the caller's code.

    inputs   query BYTES[1], history BYTES[-1], items BYTES[-1], item_ids BYTES[-1] (optional), top_k INT32[1],
             max_item_tokens INT32[1], truncate_left BOOL[1] and strict BOOL[1] (all optional)
    outputs  indices INT32[-1], scores FP32[-1], artifact BYTES[1]      best first
             item_tokens INT32[-1], truncated BOOL[-1], unscored BYTES[-1]           in request order; when asked for
             context_tokens INT32[1], unknown_tokens INT32[2], fields BYTES[1] (JSON)  when asked for

Every request bears an id, and its answer must bear the same one.
"""

import json
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ._errors import InvalidRequest, ServerFault
from ._results import NO_TEXT_SCORE, Detail, Item, ItemId, ModelInfo, RankedItem, TensorInfo

LARGEST_INT32 = 2**31 - 1
RANKING_OUTPUTS = ("indices", "scores", "artifact")
"""What every call asks for. A server that is not told sends all that it has."""
VERBATIM = ""  # the name of the one field whose value is the text itself
LONGEST_QUOTED_ID = 80  # characters of a wrong id in a message


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: its name, Triton's datatype, and the values (BYTES as an object array of bytes)."""

    name: str
    datatype: str
    values: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class RankRequest:
    """A checked request: what the caller gave, and the tensors it is sent as."""

    items: tuple[Item, ...]
    item_ids: tuple[ItemId, ...] | None
    top_k: int
    request_id: str
    tensors: tuple[Tensor, ...]
    want: tuple[Detail, ...] = ()
    user: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs to ask the server for."""
        return (*RANKING_OUTPUTS, *self.want)


@dataclass(frozen=True, slots=True)
class Answered:
    """A checked answer; see `RankResult`."""

    ranking: tuple[RankedItem, ...]
    artifact: str
    item_tokens: tuple[int, ...] | None = None
    truncated: tuple[bool, ...] | None = None
    context_tokens: int | None = None
    unscored: dict[int, str] | None = None
    missing_fields: dict[str, int] | None = None
    unknown_fields: dict[str, int] | None = None
    unknown_tokens: tuple[int, int] | None = None


def build_request(
    *,
    query: str,
    history: Iterable[Item],
    items: Iterable[Item],
    item_ids: Iterable[ItemId] | None,
    top_k: int,
    request_id: str,
    want: Collection[Detail] = (),
    max_item_tokens: int = 0,
    truncate_left: bool = False,
    strict: bool = False,
    user: str = "",
) -> RankRequest:
    """Check the caller's arguments and encode them. A request without items is one to which the answer is known.

    Raises:
        InvalidRequest: an argument is wrong; the message begins with its name.
    """
    kept_items = _sequence("items", items)
    tensors = [
        Tensor("query", "BYTES", bytes_array([_encode_text("query", query)])),
        Tensor("history", "BYTES", _encode_items("history", _sequence("history", history))),
        Tensor("items", "BYTES", _encode_items("items", kept_items)),
    ]
    kept_ids: tuple[ItemId, ...] | None = None
    if item_ids is not None:
        kept_ids = _sequence("item_ids", item_ids)
        if len(kept_ids) != len(kept_items):
            raise InvalidRequest(f"item_ids: expected one per item ({len(kept_items)}), got {len(kept_ids)}")
        encoded = [_encode_id(f"item_ids[{row}]", item_id) for row, item_id in enumerate(kept_ids)]
        tensors.append(Tensor("item_ids", "BYTES", bytes_array(encoded)))
    limit = _whole_number("top_k", top_k, "0 (all)")
    tensors.append(Tensor("top_k", "INT32", np.array([limit], dtype=np.int32)))
    # Servers of before these inputs refuse them, so they are sent only where they say something.
    if most_tokens := _whole_number("max_item_tokens", max_item_tokens, "0 (the ranker's own)"):
        tensors.append(Tensor("max_item_tokens", "INT32", np.array([most_tokens], dtype=np.int32)))
    if truncate_left:
        tensors.append(Tensor("truncate_left", "BOOL", np.array([True])))
    if strict:
        tensors.append(Tensor("strict", "BOOL", np.array([True])))
    _encode_text("user", user)
    check_request_id(request_id)
    return RankRequest(kept_items, kept_ids, limit, request_id, tuple(tensors), _check_want(want), user)


def check_request_id(request_id: str) -> None:
    """Refuse an id that cannot be sent.

    Raises:
        InvalidRequest: it is no printable text.
    """
    if not _encode_text("request_id", request_id).decode().isprintable():  # Triton cuts it at a zero byte
        raise InvalidRequest(f"request_id: expected printable text, got {request_id!r}")


def encode(tensors: Iterable[Tensor], input_type: Any) -> list[Any]:
    """Tensors as tritonclient inputs; `input_type` is the InferInput of its http or grpc package."""
    inputs = []
    for tensor in tensors:
        encoded = input_type(tensor.name, list(tensor.values.shape), tensor.datatype)
        encoded.set_data_from_numpy(tensor.values)
        inputs.append(encoded)
    return inputs


def read_answer(answer: Any, request: RankRequest) -> Answered:
    """The ranking (best first), the artifact's name and what else was wanted, from a tritonclient InferResult of either
    protocol.

    Raises:
        ServerFault: the answer breaks the contract; the message names the output.
    """
    indices = _output(answer, "indices", "iu")
    scores = _output(answer, "scores", "f")
    artifact = _output(answer, "artifact", "O")
    # Of items with equal ids the server keeps the best one; everything else that was asked for must come back.
    sent_ids = [str(item_id) for item_id in request.item_ids or ()]
    different = len(request.items if request.item_ids is None else set(sent_ids))
    asked = min(request.top_k or different, different)
    if len(indices) != asked:
        raise _broken(f"indices: expected {asked} for {different} different items, got {len(indices)}")
    if len(scores) != len(indices):
        raise _broken(f"scores: expected one per index ({len(indices)}), got {len(scores)}")
    if indices.min() < 0 or indices.max() >= len(request.items) or len(np.unique(indices)) != len(indices):
        raise _broken(f"indices: expected distinct positions among {len(request.items)} items")
    if request.item_ids is not None and len({sent_ids[index] for index in indices.tolist()}) != asked:
        raise _broken("indices: expected each of the item_ids once")
    if not np.all(scores[:-1] >= scores[1:]) or np.isnan(scores).any():
        raise _broken("scores: expected numbers, highest first")
    if len(artifact) != 1:
        raise _broken(f"artifact: expected one name, got {len(artifact)}")
    ranking = tuple(
        RankedItem(
            index,
            score,
            request.items[index],
            request.item_ids[index] if request.item_ids else None,
            has_text=score > NO_TEXT_SCORE,
        )
        for index, score in zip(indices.tolist(), scores.tolist(), strict=True)
    )
    items = len(request.items)
    details: dict[str, Any] = {}
    if "item_tokens" in request.want:
        details["item_tokens"] = tuple(_detail(answer, "item_tokens", "iu", items))
    if "truncated" in request.want:
        details["truncated"] = tuple(map(bool, _detail(answer, "truncated", "b", items)))
    if "context_tokens" in request.want:
        (details["context_tokens"],) = _detail(answer, "context_tokens", "iu", 1)
    if "unknown_tokens" in request.want:
        details["unknown_tokens"] = tuple(_detail(answer, "unknown_tokens", "iu", 2))
    if "unscored" in request.want:
        reasons = _detail(answer, "unscored", "OUS", items)
        details["unscored"] = {place: _text("unscored", one) for place, one in enumerate(reasons) if one}
    if "fields" in request.want:
        details["missing_fields"], details["unknown_fields"] = _field_counts(_detail(answer, "fields", "OUS", 1)[0])
    return Answered(ranking, _text("artifact", artifact[0]), **details)


def read_model_info(metadata: Any, config: Any) -> ModelInfo:
    """A ModelInfo from what the server sent as metadata and configuration: plain dicts, if all is well.

    Raises:
        ServerFault: a field is missing or of another type.
    """
    try:
        parameters = _parameters(config.get("parameters"))
        return ModelInfo(
            name=str(metadata["name"]),
            versions=tuple(str(version) for version in metadata.get("versions", ())),
            platform=str(metadata.get("platform", "")),
            inputs=_tensor_infos(metadata["inputs"]),
            outputs=_tensor_infos(metadata["outputs"]),
            config=dict(config.items()),
            parameters=parameters,
            template=parameters.get("item_template", ""),
            fields=tuple(filter(None, parameters.get("item_fields", "").split(","))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _broken(f"model metadata: {type(error).__name__} {error}") from error


def _parameters(parameters: Any) -> dict[str, str]:
    """Name -> text; Triton wraps each text in an object of its own."""
    return {str(name): str(value.get("string_value", "")) for name, value in (parameters or {}).items()}


def check_answer_id(answered: object, sent: str) -> None:
    """Tie an answer to its request.

    Raises:
        ForeignAnswerError: the answer bears another id than was sent.
        ServerFault: it bears none.
    """
    if not answered:
        raise _broken("id: missing")
    if answered != sent:
        raise ForeignAnswerError(f"sent {sent!r}, got {str(answered)[:LONGEST_QUOTED_ID]!r}")


class ForeignAnswerError(Exception):
    """An answer to another request came on this connection."""


def microseconds(seconds: float) -> int:
    """Triton's unit for the request parameter `timeout`, on both protocols; 0 would mean "none"."""
    return max(1, int(seconds * 1_000_000))


def _sequence(field: str, values: Iterable[Any]) -> tuple[Any, ...]:
    # A single text is iterable too, and would be ranked letter by letter.
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{field}: expected a list, got {type(values).__name__}")
    return tuple(values)


def encode_item(item: Item, field: str = "item") -> bytes:
    """An element of `items` or `history` as the bytes that cross the wire: whoever writes requests uses this.

    The server reads an element that is a JSON object as fields for its template. So a mapping is sent as one, and a
    text that could be taken for one is sent as the object `{"": text}`, which means the text itself, verbatim.

    Raises:
        InvalidRequest: it cannot be written; the message begins with `field`.
    """
    if isinstance(item, Mapping):
        return _encode_fields(field, item)
    encoded = _encode_text(field, item, "a str or a mapping of fields")
    if item.lstrip().startswith("{"):
        return json.dumps({VERBATIM: item}, ensure_ascii=False).encode("utf-8")
    return encoded


def _encode_items(field: str, items: tuple[Item, ...]) -> npt.NDArray[np.object_]:
    try:
        # Most are texts that begin with a letter or a digit, and so are no objects.
        return bytes_array(
            [item.encode() if type(item) is str and item[:1].isalnum() else encode_item(item) for item in items]
        )
    except (InvalidRequest, UnicodeEncodeError):
        for row, item in enumerate(items):  # which one it was
            encode_item(item, f"{field}[{row}]")
        raise


def _encode_fields(field: str, fields: Mapping[str, Any]) -> bytes:
    try:
        return _json(dict(fields)).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        for name, value in fields.items():  # which one it was
            try:
                _json({name: value}).encode("utf-8")
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidRequest(f"{field}[{name!r}]: {_reason(error)}") from error
        raise


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, default=_plain_number)


def _plain_number(value: Any) -> int:
    if isinstance(value, np.integer):  # numpy's float64 is a float already, and its bool is nobody's text
        return int(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"not valid Unicode text ({error.reason} at {error.start})"
    return f"cannot be written as JSON ({error}); fields hold text, numbers or lists of these"


def _encode_id(field: str, item_id: ItemId) -> bytes:
    is_whole = isinstance(item_id, int | np.integer) and not isinstance(item_id, bool)
    return _encode_text(field, str(item_id) if is_whole else item_id, "a str or an int")


def _encode_text(field: str, text: Any, expected: str = "a str") -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"{field}: expected {expected}, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field}: {_reason(error)}") from error


def bytes_array(values: list[bytes]) -> npt.NDArray[np.object_]:
    """The values of a BYTES tensor."""
    # An object array: numpy's own bytes type drops trailing zero bytes.
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def _whole_number(field: str, value: int, nothing: str) -> int:
    """A number for an INT32 tensor; `nothing` says what 0 means."""
    expected = f"{field}: expected a whole number from {nothing} to {LARGEST_INT32}, got {value!r}"
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequest(expected) from None
    if isinstance(value, bool) or not 0 <= number <= LARGEST_INT32:
        raise InvalidRequest(expected)
    return number


def _check_want(want: Collection[Detail]) -> tuple[Detail, ...]:
    known: tuple[Detail, ...] = get_args(Detail)
    if isinstance(want, str) or not isinstance(want, Collection) or not set(want) <= set(known):
        raise InvalidRequest(f"want: expected a list of some of {', '.join(known)}, got {want!r}")
    return tuple(name for name in known if name in want)


def _detail(answer: Any, name: str, kinds: str, expected: int) -> list[Any]:
    values: list[Any] = _output(answer, name, kinds).tolist()
    if len(values) != expected:
        raise _broken(f"{name}: expected {expected}, got {len(values)}")
    return values


def _output(answer: Any, name: str, kinds: str) -> npt.NDArray[Any]:
    try:
        values = answer.as_numpy(name)
    # tritonclient trusts the server here, and meets a wrong answer with whatever error comes first.
    except Exception as error:
        raise _broken(f"{name}: cannot be decoded ({type(error).__name__}: {error})") from error
    if values is None:
        raise _broken(f"{name}: missing")
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise _broken(f"{name}: got {values.dtype} of shape {list(values.shape)}")
    return np.asarray(values)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):  # HTTP with JSON data instead of binary
        return value
    try:
        return bytes(value).decode("utf-8")
    except (TypeError, ValueError) as error:
        raise _broken(f"{name}: expected UTF-8 text") from error


def _field_counts(value: Any) -> list[dict[str, int]]:
    """Missing and unknown fields, by name."""
    try:
        counts = json.loads(_text("fields", value))
        return [{str(name): int(count) for name, count in counts[kind].items()} for kind in ("missing", "unknown")]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _broken(f"fields: expected JSON with counts ({type(error).__name__} {error})") from error


def _tensor_infos(tensors: Iterable[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(str(one["name"]), str(one["datatype"]), tuple(int(size) for size in one.get("shape", ())))
        for one in tensors
    )


def _broken(what: str) -> ServerFault:
    return ServerFault(
        f"the answer breaks the contract of a rank model: {what}. Check that model= names a tritonrank ensemble "
        "and that server and client are of one release."
    )
