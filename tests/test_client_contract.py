"""Arguments are checked where they are given, and the message names the culprit."""

import copy
import json
import math
import pickle
from collections import OrderedDict
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor
from tritonrank_client import (
    TLS,
    AsyncRankClient,
    InvalidRequest,
    KeepAlive,
    RankClient,
    Retry,
    _grpc,
    _grpc_connection,
    encode_item,
)
from tritonrank_client._options import Settings
from tritonrank_client._retry import check_timeout
from tritonrank_client._wire import RankRequest, build_request, bytes_array


def build(**arguments: Any) -> RankRequest:
    defaults = {"query": "", "history": (), "items": ["a"], "item_ids": None, "top_k": 0, "request_id": ""}
    return build_request(**{**defaults, **arguments})


def values(request: RankRequest, name: str) -> list[Any]:
    (tensor,) = (tensor for tensor in request.tensors if tensor.name == name)
    return list(tensor.values.tolist())


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        ({"items": [], "item_ids": ["1"]}, "item_ids: expected one per item (0), got 1"),
        ({"items": "abc"}, "items: expected a list, got str"),
        ({"items": {"title": "x"}}, "items: expected a list, got dict"),
        ({"items": 7}, "items: expected a list, got int"),
        ({"items": ["a", 7]}, "items[1]: expected a str or a mapping of fields, got int"),
        ({"items": ["a", b"b"]}, "items[1]: expected a str or a mapping of fields, got bytes"),
        ({"items": ["a", None]}, "items[1]: expected a str or a mapping of fields, got NoneType"),
        ({"items": ["a", "b\ud800"]}, "items[1]: not valid Unicode text"),
        ({"items": ["a", "\ud800"]}, "items[1]: not valid Unicode text"),
        ({"items": [{"id": 1, "title": "\ud800"}]}, "items[0]['title']: not valid Unicode text"),
        ({"items": [{"\ud800": "x"}]}, "items[0]['\\ud800']: not valid Unicode text"),
        ({"items": ["a", {"id": 1, "price": math.nan}]}, "items[1]['price']: cannot be written as JSON"),
        ({"items": [{"tags": {"a"}}]}, "items[0]['tags']: cannot be written as JSON"),
        ({"items": [{"price": Decimal("1.5")}]}, "items[0]['price']: cannot be written as JSON"),
        ({"items": [{"weight": np.float32(1.5)}]}, "items[0]['weight']: cannot be written as JSON"),
        ({"items": [{"sold": np.bool_(True)}]}, "items[0]['sold']: cannot be written as JSON"),
        ({"items": [{"a": 1, ("b", "c"): 2}]}, "items[0][('b', 'c')]: cannot be written as JSON"),
        ({"history": ["a", {"tags": [b"x"]}]}, "history[1]['tags']: cannot be written as JSON"),
        ({"history": "seen"}, "history: expected a list, got str"),
        ({"history": ["seen", 1]}, "history[1]: expected"),
        ({"query": None}, "query: expected a str, got NoneType"),
        ({"query": "\udfff"}, "query: not valid Unicode text"),
        ({"items": ["a", "b"], "item_ids": ["1"]}, "item_ids: expected one per item (2), got 1"),
        ({"item_ids": [True]}, "item_ids[0]: expected a str or an int, got bool"),
        ({"item_ids": [1.0]}, "item_ids[0]: expected a str or an int, got float"),
        ({"item_ids": [None]}, "item_ids[0]: expected a str or an int, got NoneType"),
        ({"item_ids": [np.bool_(True)]}, "item_ids[0]: expected a str or an int, got bool"),
        ({"item_ids": "1"}, "item_ids: expected a list, got str"),
        ({"top_k": -1}, "top_k: expected a whole number from 0"),
        ({"top_k": 2**31}, "top_k: expected a whole number from 0"),
        ({"top_k": 1.5}, "top_k: expected a whole number from 0"),
        ({"top_k": True}, "top_k: expected a whole number from 0"),
        ({"top_k": None}, "top_k: expected a whole number from 0"),
        ({"request_id": 7}, "request_id: expected a str, got int"),
        ({"request_id": "a\0b"}, "request_id: expected printable text"),
        ({"request_id": "a\nb"}, "request_id: expected printable text"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], begins: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(**arguments)
    assert str(caught.value).startswith(begins)


def test_a_mapping_of_any_kind_becomes_a_json_object_with_its_order() -> None:
    items = [OrderedDict(title="Ö", year=1), MappingProxyType({"a": ["x"]})]
    assert values(build(items=items), "items") == ['{"title": "Ö", "year": 1}'.encode(), b'{"a": ["x"]}']


def test_numpy_integers_and_iterators_are_welcome() -> None:
    request = build(items=iter(["a", "b"]), item_ids=(name for name in "xy"), top_k=np.int64(1))
    assert (request.items, request.item_ids, request.top_k) == (("a", "b"), ("x", "y"), 1)


@given(st.lists(st.text(), min_size=1, max_size=20))
@example(["ends in zeros\0\0"])
@example(['{"en": "oak lamp"}', ' \n{"": "x"}', "\u2003{a", "{"])
def test_texts_are_sent_byte_for_byte(texts: list[str]) -> None:
    """Also trailing zeros, which numpy's own bytes type would drop. One that looks like fields is wrapped as text."""
    for name in ("items", "history"):
        for text, sent in zip(texts, values(build(**{name: texts}), name), strict=True):
            if text.strip().startswith("{"):
                assert json.loads(sent) == {"": text}
            else:
                assert sent == text.encode("utf-8")


def test_whoever_writes_requests_has_the_encoder() -> None:
    assert encode_item("Ö") == "Ö".encode()
    assert json.loads(encode_item('{"a": 1}')) == {"": '{"a": 1}'}
    assert encode_item({"a": np.int64(3), "b": None}) == b'{"a": 3, "b": null}'
    with pytest.raises(InvalidRequest, match="row 7"):
        encode_item(7, "row 7")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "client", [RankClient("grpc://here:1"), RankClient("http://here"), AsyncRankClient("http://x")]
)
@pytest.mark.parametrize("copy_it", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_is_not_copied(client: Any, copy_it: Any) -> None:
    with pytest.raises(TypeError, match="make a client there"):
        copy_it(client)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=5))
def test_fields_come_back_as_they_were(fields: dict[str, Any]) -> None:
    assert json.loads(values(build(items=[fields]), "items")[0]) == fields


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, True, "5"])
def test_a_wrong_timeout_is_named(timeout: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout: expected a number of seconds above 0"):
        check_timeout(timeout, 1.0)


def test_a_timeout_defaults_to_that_of_the_client() -> None:
    assert (check_timeout(None, 1.5), check_timeout(2, 1.5)) == (1.5, 2.0)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [RankClient, AsyncRankClient])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8001",
        "localhost",
        "grpc://localhost",
        "http://host:",
        "http://host:0",
        "http://ho st:80",
        "http://host:80/Ö",
        "ftp://localhost:21",
        "grpc://:8001",
        "grpc://host:port",
        "http://[::1:8000",
        "http://user@host:8000",
        "http://host:8000?x=1",
        "grpc://host:8001/path",
    ],
)
def test_a_wrong_url_is_refused_at_once(client: type, url: str) -> None:
    with pytest.raises(ValueError, match="url: "):
        client(url)


@pytest.mark.parametrize(
    ("url", "target", "is_grpc", "is_secure"),
    [
        ("grpc://127.0.0.1:8001", "127.0.0.1:8001", True, False),
        ("grpcs://ranker.example.com:443/", "ranker.example.com:443", True, True),
        ("http://[::1]:8000", "[::1]:8000", False, False),
        ("https://example.com:443/triton/", "example.com:443", False, True),
        ("https://rank.shop.example", "rank.shop.example:443", False, True),
        ("http://rank.shop.example/base", "rank.shop.example:80", False, False),
        ("grpcs://rank.shop.example", "rank.shop.example:443", True, True),
        ("https://[2001:db8::1]", "[2001:db8::1]:443", False, True),
    ],
)
def test_the_scheme_decides(url: str, target: str, is_grpc: bool, is_secure: bool) -> None:
    settings = Settings(url=url)
    assert (settings.target, settings.is_grpc, settings.is_secure) == (target, is_grpc, is_secure)


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({"timeout": 0}, "timeout: "),
        ({"timeout": math.inf}, "timeout: "),
        ({"model": ""}, "model: "),
        ({"model_version": "latest"}, "model_version: "),
        ({"model_version": 2}, "model_version: "),
        ({"headers": {"X-A": "one\r\nX-B: two"}}, "headers: "),
        ({"headers": {"X-A": 1}}, "headers: "),
        ({"headers": {"": "x"}}, "headers: "),
        ({"headers": {"X-A": "é"}}, "headers: "),
        ({"headers": {"X A": "x"}}, "headers: "),
        ({"headers": {"Accept-Encoding": "gzip"}}, "headers: "),
        ({"headers": {"transfer-encoding": "chunked"}}, "headers: "),
        ({"largest_answer_bytes": 0}, "largest_answer_bytes: "),
        ({"largest_answer_bytes": 2**31}, "largest_answer_bytes: "),
        ({"tls": TLS()}, "tls: grpc://here:1 is not encrypted"),
        ({"url": "grpcs://here:1", "tls": TLS(verify=False)}, "tls: gRPC cannot skip verification"),
    ],
    ids=repr,
)
def test_a_wrong_setting_is_named(options: dict[str, Any], begins: str) -> None:
    with pytest.raises(ValueError, match="^" + begins):
        RankClient(**{"url": "grpc://here:1", **options})


@pytest.mark.parametrize(
    ("make", "begins"),
    [
        (lambda: Retry(attempts=0), "Retry.attempts"),
        (lambda: Retry(initial_seconds=-1), "Retry.initial_seconds"),
        (lambda: Retry(initial_seconds=2, max_seconds=1), "Retry.max_seconds"),
        (lambda: Retry(jitter=1.1), "Retry.jitter"),
        (lambda: Retry(budget_ratio=-0.1), "Retry.budget_ratio"),
        (lambda: Retry(budget_burst=-1), "Retry.budget_burst"),
        (lambda: KeepAlive(time_seconds=0), "KeepAlive.time_seconds"),
        (lambda: KeepAlive(timeout_seconds=-1), "KeepAlive.timeout_seconds"),
        (lambda: TLS(root_certificates="no/such/file.pem"), "TLS.root_certificates: no such file"),
    ],
)
def test_a_wrong_option_is_named(make: Any, begins: str) -> None:
    with pytest.raises(ValueError, match="^" + begins):
        make()


def test_a_key_needs_its_chain(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    with pytest.raises(ValueError, match="go together"):
        TLS(private_key=key)


def test_settings_reach_the_grpc_channel() -> None:
    keep_alive = KeepAlive(time_seconds=30, timeout_seconds=5, without_calls=True)
    settings = Settings(url="grpc://here:1", keep_alive=keep_alive, largest_answer_bytes=12_345)
    options = dict(_grpc_connection._channel_options(settings))
    assert options["grpc.keepalive_time_ms"] == 30_000
    assert options["grpc.keepalive_timeout_ms"] == 5_000
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.max_send_message_length"] == 2**31 - 1
    assert options["grpc.max_receive_message_length"] == 12_345
    assert options["grpc.enable_http_proxy"] == 0
    assert options["grpc.max_reconnect_backoff_ms"] <= 300


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["", "ä"], ["\0"], ["a" * 300, ""]], ids=repr)
def test_texts_are_on_the_wire_as_the_protocol_has_them(texts: list[str]) -> None:
    """Written and read by ways of our own where they are many: both say what tritonclient's say."""
    encoded = bytes_array([text.encode() for text in texts])
    content = _grpc._joined(encoded.tolist())
    assert content == (serialize_byte_tensor(encoded).item() if texts else b"")
    message = service_pb2.ModelInferResponse(raw_output_contents=[b"\1\0\0\0", content])
    message.outputs.add(name="artifact", datatype="INT32", shape=[1])
    message.outputs.add(name="unscored", datatype="BYTES", shape=[len(texts)])
    ours, theirs = (one.as_numpy("unscored") for one in (_grpc._Answer(message), InferResult(message)))
    assert ours.dtype == theirs.dtype
    assert ours.tolist() == theirs.tolist() == [text.encode() for text in texts]
    assert _grpc._Answer(message).as_numpy("artifact").tolist() == [1]
    assert _grpc._Answer(message).as_numpy("other") is None
