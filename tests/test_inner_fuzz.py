"""Seeded nonsense for the models inside the ensembles: each answer comes soon, says nothing of files or frames, and the
ranking of others never changes.

Left out is what Triton 2.51 itself does not survive or answer, whoever's models it serves: declared shapes of
terabytes, JSON of several megabytes, and rows of no tokens in a batch of none.
"""

import json
import os
import random
import struct
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import Served
from live import LEAK, PROTOCOLS, infer
from tritonclient.grpc import service_pb2 as pb
from tritonrank.serve.server import LocalTriton

REQUESTS = int(os.environ.get("TRITONRANK_TEST_FUZZ", "300"))
"""Of each protocol."""
LONGEST_SECONDS = 10.0
GOLDEN = {"query": [b"oak"], "history": [b"lamp"], "items": [b"desk", b"oak lamp", b"", b"trail shoes"]}
MODELS = ("tokenize", "score", "select", "tokenize_joint", "score_joint", "select_joint", "ranker")
TEXTS = (
    *(
        "",
        "lamp",
        "\0",
        '{"title": "x"}',
        '{"title": {"a": 1}}',
        '{"title": NaN}',
        '{"title": 1e999}',
        '{"": "{"}',
        "{",
    ),
    *(
        '{"title": ' + "9" * 5_000 + "}",
        '{"title": "\\ud800"}',
        '{"a":' * 3_000,
        "[" * 3_000,
        "é" * 3_000,
        " " * 65_536,
    ),
    *("x" * 65_537, "\ufeff{}", "[CLS][SEP]", "\u0300" * 3_000, "%s%n", "../../etc/passwd", "\u202e\ufffe"),
)
NUMBERS = (0, 1, -1, -2, 2, 100, 101, 30_521, 30_522, 99_999, 2**31 - 1, -(2**31), 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-45)
TYPES = ("BYTES", "INT32", "INT64", "FP32", "BOOL", "UINT8", "nonsense", "")
Tensor = tuple[str, list[int], list[Any]]
"""Datatype, shape, values."""


def good_tensors(model: str) -> dict[str, Tensor]:
    if model.startswith(("tokenize", "ranker")):
        return {
            "query": ("BYTES", [1], ["oak"]),
            "history": ("BYTES", [2], ["a", "b"]),
            "items": ("BYTES", [2], ["c", "d"]),
        }
    if model.startswith("select"):
        logits = [2, 1] if model.endswith("joint") else [2]
        return {"logits": ("FP32", logits, [0.5, 0.25]), "row_of_candidate": ("INT32", [2], [1, 0])}
    if model.endswith("joint"):
        rows: dict[str, Tensor] = {"input_ids": ("INT32", [2, 3], [101, 7, 102] * 2)}
        return rows | {"attention_mask": ("INT32", [2, 3], [1] * 6), "token_type_ids": ("INT32", [2, 3], [0] * 6)}
    return {
        "context_ids": ("INT32", [1, 3], [101, 9, 102]),
        "candidate_ids": ("INT32", [1, 2, 3], [101, 5, 6, 101, 7, -1]),
    }


def extra_tensors(model: str) -> dict[str, Tensor]:
    if "score" in model:
        rows = 2 if model.endswith("joint") else 1
        return {name: ("INT64", [rows, 1], [2**62] * rows) for name in ("deadline", "ticket")}
    return {"item_ids": ("BYTES", [2], ["1", "2"]), "top_k": ("INT32", [1], [1])}


def value_of(draw: random.Random, datatype: str) -> Any:
    if datatype == "BYTES":
        return draw.choice(TEXTS)
    return draw.choice(FLOATS) if datatype.startswith("FP") else draw.choice(NUMBERS)


def changed(draw: random.Random, model: str) -> dict[str, Tensor]:
    """A good request after one to three changes."""
    tensors = good_tensors(model)
    extra = extra_tensors(model)
    for name in draw.sample([*extra], draw.randrange(3)):
        tensors[name] = extra[name]
    for _ in range(draw.randrange(4)):
        if not tensors:
            break
        name = draw.choice([*tensors])
        datatype, shape, values = tensors[name]
        what = draw.choice(["drop", "swap", "type", "shape", "values", "values", "values", "many", "extra"])
        if what == "drop":
            del tensors[name]
        elif what == "swap":  # the count is right, a name is not
            del tensors[name]
            tensors |= {other: extra[other] for other in draw.sample([*extra], 1)}
        elif what == "type":
            tensors[name] = draw.choice(TYPES), shape, values
        elif what == "shape":
            sizes = [draw.choice([1, 1, 2, 3, 50] + ([0, -1] if "score" not in model else [])) for _ in shape]
            tensors[name] = datatype, sizes, values
        elif what == "values":
            longest = 100 if len(values) > 100 else 100_000
            drawn = [value_of(draw, datatype) for _ in values]
            tensors[name] = datatype, shape, [value for value in drawn if len(str(value)) < longest]
        elif what == "many":
            count = draw.choice([3, 25, 80, 1_001])
            others = [*values[:1] * 9, *(value_of(draw, datatype) for _ in range(9))]
            values = [draw.choice([value for value in others if len(str(value)) < 100] or [0]) for _ in range(count)]
            tensors[name] = datatype, [*shape[:-1], count][-len(shape) :], values * int(np.prod(shape[:-1]))
        else:
            tensors[draw.choice(["prices", "", "deadline", "a\0b"])] = "INT32", [1], [1]
    return tensors


def packed(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [str(value).encode("utf-8", "surrogatepass") for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    numbers = [
        float(value) if isinstance(value, float) else int(value) if isinstance(value, int) else 0 for value in values
    ]
    if datatype.startswith("FP"):
        return np.array(numbers, dtype=np.float64).astype("<f4").tobytes()
    bits = 64 if datatype == "INT64" else 32
    return b"".join(
        (int(one) % 2**bits).to_bytes(bits // 8, "little") if np.isfinite(one) else b"\0" * (bits // 8)
        for one in numbers
    )


def over_grpc(served: Served, model: str, tensors: dict[str, Tensor]) -> tuple[str, str]:
    request = pb.ModelInferRequest(model_name=model)
    for name, (datatype, shape, values) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(packed(datatype, values))
    with grpc.insecure_channel(served.urls["grpc"].split("://")[1]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            call(request.SerializeToString(), timeout=LONGEST_SECONDS)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


def over_http(served: Served, model: str, tensors: dict[str, Tensor]) -> tuple[str, str]:
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": values}
        for name, (datatype, shape, values) in tensors.items()
    ]
    url = f"{served.urls['http']}/v2/models/{model}/infer"
    try:
        with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode(), timeout=LONGEST_SECONDS) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        return str(error.code), error.read().decode("utf-8", "replace")
    return "OK", ""


@pytest.fixture(scope="module")
def fuzzed(served: Served) -> Iterator[Served]:
    """A server of its own: should it end, other tests keep theirs."""
    with LocalTriton(served.triton.repository) as triton:
        yield replace(served, triton=triton)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nonsense_for_the_inner_models_is_answered_without_frames_or_files(fuzzed: Served, protocol: str) -> None:
    served = fuzzed
    expected = [infer(served, "grpc", model, GOLDEN) for model in ("rank", "rank_joint")]
    send = {"grpc": over_grpc, "http": over_http}[protocol]
    draw = random.Random(12)
    ends: Counter[tuple[str, str]] = Counter()
    ours = []
    for _ in range(REQUESTS):
        model = draw.choice(MODELS)
        tensors = changed(draw, model)
        began = time.monotonic()
        status, message = send(served, model, tensors)
        what = f"{model} {tensors}"[:600]
        assert time.monotonic() - began < LONGEST_SECONDS, what
        assert not LEAK.search(message.replace("\\/", "/")), (message, what)
        ends[model, status] += 1
        if "server's log has the details" in message:
            ours.append((message, what))
    assert not [one for one in ours if "the engine refused" not in one[0]], ours[:3]
    for model in MODELS:
        assert ends[model, "OK"], f"{model}: nothing was right, so nothing was looked at closely"
    served.triton.check()
    for model, answer in zip(("rank", "rank_joint"), expected, strict=True):
        again = infer(served, "grpc", model, GOLDEN)
        assert again["indices"].tolist() == answer["indices"].tolist()
        assert again["scores"].tolist() == answer["scores"].tolist()
