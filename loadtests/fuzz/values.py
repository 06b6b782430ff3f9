"""Tensors as the models want them, and values that they should survive.

None of these values holds what an answer is searched for (``record.LEAK``): an answer may repeat what it was asked.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

JsonObject = dict[str, Any]

MODELS = ("rank", "rank", "ranker")
"""What is asked, in shares; all but the ensemble are calls past it."""
OUTPUTS = {
    "rank": (
        "indices", "scores", "artifact", "item_tokens", "truncated", "context_tokens", "unknown_tokens", "unscored",
        "fields",
    ),
}  # fmt: skip
OUTPUTS["ranker"] = OUTPUTS["rank"]
OPTIONAL = ("item_ids", "top_k", "max_item_tokens", "truncate_left", "strict")
TEXTS: Sequence[str] = (
    "", "lamp", "\0", "a\0b", "\n\nERROR no such line\r\n", '{"title":"x"}', '{"title":{"a":1}}', '{"title":[[1]]}',
    '{"title":"\\ud800"}', '{"title":NaN}', '{"title":-Infinity}', '{"title":1e999}', '{"title":' + "9" * 5_000 + "}",
    '{"title":true}', '{"":"verbatim"}', "{" * 50, "[" * 3_000, '{"a":' * 3_000, '{"title":' + "[" * 20_000,
    "[CLS][SEP][PAD][MASK]", "\U0001f98a" * 200, "\u202e\0\ufeff", "\xe9" * 3_000, "x" * 65_536, "x" * 65_537,
    " " * 65_536, '{"title":"' + "x" * 60_000 + '"}', "<script>alert(1)</script>", "{{7*7}}", "%s%n%x", "../../secret",
    "\ufffe\uffff", "\u0300" * 3_000,
)  # fmt: skip
INTEGERS: Sequence[Any] = (
    0, 1, -1, 2, 100, 101, 28, 29, 30_521, 30_522, 30_523, 50_000, 2**31 - 1, -(2**31), 2**31, 2**32, 2**63 - 1,
    -(2**63), 2**64, 1.5, True, None, "1", 1e300,
)  # fmt: skip
FLOATS: Sequence[Any] = (0, 1, -1, math.nan, math.inf, -math.inf, 1e308, 1e-46, 3.5e38, "x", None)
DATATYPES: Sequence[Any] = (
    "BYTES", "INT32", "INT64", "FP32", "FP16", "BF16", "UINT8", "BOOL", "FP64", "INT8", "STRING", "TYPE_INT32", "",
    "int32", None, 5,
)  # fmt: skip
SHAPES: Sequence[Any] = (
    [], [0], [1], [2], [3], [-1], [-(2**31)], [2**40], [2**62], [2**63 - 1], [2**63], [2**64], [1, 1], [1, 2], [2, 1],
    [1, 0], [0, 0], [1, 2, 3], [2**32, 2**32], [2**31, 2**31, 4], [1_000_000], [10_000_000], [1] * 50, ["a"], [1.5],
    None, "x", [None], [[1]], {}, [2**63 - 1, 2],
)  # fmt: skip
"""Nothing between 10 million and 2**40 elements: this release keeps gigabytes for what was only claimed."""
PARAMETERS: Sequence[Any] = (
    {"sequence_id": 0}, {"sequence_id": 1, "sequence_start": True}, {"sequence_id": "abc", "sequence_end": True},
    {"sequence_id": -1}, {"sequence_id": 2**64}, {"sequence_id": 1.5}, {"sequence_id": {}}, {"priority": -1},
    {"priority": 2**63}, {"priority": "x"}, {"priority": True}, {"timeout": -1}, {"timeout": 0}, {"timeout": 1},
    {"timeout": 2**64}, {"timeout": "5"}, {"timeout": 1.5}, {"timeout": None}, {"timeout": []}, {"classification": 1},
    {"binary_data_output": "x"}, {"binary_data_output": True}, {"shared_memory_region": "nowhere"}, {"foo": "bar"},
    {"foo": {"a": 1}}, {"triton_enable_empty_final_response": True}, {"triton_final_response": True}, {"max_tokens": 1},
    {str(number): number for number in range(500)}, {"x": "y" * 100_000}, {"headers": "a"}, 5, "x", [], None,
)  # fmt: skip
OUTPUT_PARAMETERS: Sequence[Any] = (
    {"classification": 1}, {"classification": 0}, {"classification": -1}, {"classification": 2**40},
    {"classification": "x"}, {"binary_data": True}, {"binary_data": "x"},
    {"shared_memory_region": "nope", "shared_memory_byte_size": 64},
    {"shared_memory_region": "nope", "shared_memory_byte_size": -1, "shared_memory_offset": 2**63},
    {"shared_memory_region": "../x"}, 5, None,
)  # fmt: skip
INPUT_PARAMETERS: Sequence[Any] = (
    {"shared_memory_region": "nope", "shared_memory_byte_size": 64},
    {"shared_memory_region": "nope", "shared_memory_byte_size": 2**63, "shared_memory_offset": -1},
    {"binary_data_size": -1}, {"binary_data_size": 2**63}, {"binary_data_size": 2**64}, {"binary_data_size": 1},
    {"binary_data_size": "4"}, {"binary_data_size": 1.5}, {"foo": 1}, [], None,
)  # fmt: skip
IDENTITIES: Sequence[Any] = (
    "a", "", "x" * 100_000, "\0\1\x1b[31m", "a\r\nX-Inject: 1", "\ud800", "\U0001f98a", 5, None, {}, '"}\n',
)  # fmt: skip
COUNTS = (999, 1_000, 1_001, 1_500, 20_000)
"""Of candidates: about the most that a request may hold."""


@dataclass
class Tensor:
    """An input as it is sent; a mutated one is right in no field."""

    name: str
    datatype: Any
    shape: Any
    data: Any

    def json(self) -> JsonObject:
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape, "data": self.data}


@dataclass
class ModelRequest:
    """A request to a model that is right until somebody mutates it."""

    model: str
    inputs: list[Tensor]
    outputs: list[str] = field(default_factory=list)

    def json(self) -> JsonObject:
        """As HTTP sends it."""
        return {
            "id": "f",
            "inputs": [one.json() for one in self.inputs],
            "outputs": [{"name": name} for name in self.outputs],
        }


def right_request(random: Random) -> ModelRequest:
    """A request that its model answers."""
    model = random.choice(MODELS)
    inputs = [Tensor(name, *values) for name, values in _right_tensors().items()]
    if random.random() < 0.5:
        inputs = [one for one in inputs if one.name not in OPTIONAL]
    return ModelRequest(model, inputs, list(OUTPUTS[model]))


def hostile_data(random: Random, datatype: Any, count: int) -> list[Any]:
    """So many elements, each one of those that hurt."""
    values = {"BYTES": TEXTS, "FP32": FLOATS}.get(datatype if isinstance(datatype, str) else "", INTEGERS)
    return [random.choice(values) for _ in range(count)]


def _right_tensors() -> dict[str, tuple[str, list[int], list[Any]]]:
    texts = {
        "query": ("BYTES", [1], ["lamp"]),
        "history": ("BYTES", [2], ["lamp 0", "lamp 1"]),
        "items": ("BYTES", [2], ["lamp 0", "lamp 1"]),
    }
    wishes: dict[str, tuple[str, list[int], list[Any]]] = {
        "item_ids": ("BYTES", [2], ["0", "1"]),
        "top_k": ("INT32", [1], [0]),
    }
    cuts: dict[str, tuple[str, list[int], list[Any]]] = {
        "max_item_tokens": ("INT32", [1], [1]),
        "truncate_left": ("BOOL", [1], [True]),
    }
    return texts | wishes | cuts
