"""Changes to a JSON request, each of which should be answered or refused, and never end the server."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from loadtests.fuzz.values import (
    COUNTS,
    DATATYPES,
    IDENTITIES,
    INPUT_PARAMETERS,
    OUTPUT_PARAMETERS,
    PARAMETERS,
    SHAPES,
    JsonObject,
    hostile_data,
)

Mutation = Callable[[Random, JsonObject, JsonObject], None]
"""(random, the request, one of its inputs): changes one of the two."""
BAD_DATA: Sequence[Any] = (
    None, [], {}, "x", 5, [[[]]], [[1, 2], [3]], [None], ["lamp", "\0"], [1, -1], [0.5, "x"], [[[[1]]]] * 10,
)  # fmt: skip
BAD_OUTPUTS: Sequence[Any] = (
    [{"name": "nope"}], [{}], [], None, 5, [5], [{"name": 5}], [{"name": ""}], [{"name": "context_ids"}],
    [{"name": "indices\0"}],
)  # fmt: skip
EXTRA_NAMES = ("x", "", "deadline", "query\0", "../a", "indices", "a" * 70_000)
MOST_FILLED = 100
"""Elements that a shape may claim to be filled with data."""


def mutate(random: Random, request: JsonObject) -> str:
    """Change a request once; the name of the change. One that does not fit changes nothing."""
    name = random.choice(list(MUTATIONS))
    inputs = request.get("inputs")
    chosen = random.choice(inputs) if isinstance(inputs, list) and inputs else {"name": "x"}
    try:
        MUTATIONS[name](random, request, chosen)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError):  # an earlier change left nothing to change
        return "none"
    return name


def _set(field: str, values: Sequence[Any]) -> Mutation:
    def change(random: Random, request: JsonObject, chosen: JsonObject) -> None:
        chosen[field] = random.choice(values)

    return change


def _set_in_request(field: str, values: Sequence[Any]) -> Mutation:
    def change(random: Random, request: JsonObject, chosen: JsonObject) -> None:
        request[field] = random.choice(values)

    return change


def _other_length(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    chosen["data"] = hostile_data(random, chosen.get("datatype"), random.choice([0, 1, 3, 100, 1_000]))


def _hostile_values(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    count = 1
    for size in chosen["shape"]:
        count *= size
    if 0 <= count <= MOST_FILLED:
        chosen["data"] = hostile_data(random, chosen.get("datatype"), count)


def _drop(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    request["inputs"].remove(chosen)


def _repeat(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    request["inputs"].append(dict(chosen))


def _add(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    name = random.choice(EXTRA_NAMES)
    request["inputs"].append({"name": name, "datatype": "INT32", "shape": [1], "data": [1]})


def _output_parameters(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    random.choice(request["outputs"])["parameters"] = random.choice(OUTPUT_PARAMETERS)


def _repeat_outputs(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    request["outputs"] = request["outputs"] * random.choice([2, 500])


def _nest(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    nested: Any = 0
    for _ in range(random.choice([10, 200, 900])):
        nested = [nested]
    chosen["data"] = nested


def _replace_part(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    part = random.choice(["inputs", "outputs", "id", "parameters"])
    request[part] = random.choice([None, 5, "x", [], {}, [[]], [None], True])


def _many_candidates(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    count = random.choice(COUNTS) if random.random() < 0.25 else 3
    for one in request["inputs"]:
        if one["name"] in ("items", "item_ids", "history"):
            one["shape"], one["data"] = [count], [str(number % 3) for number in range(count)]


def _drop_field(random: Random, request: JsonObject, chosen: JsonObject) -> None:
    chosen.pop(random.choice(list(chosen)), None)


MUTATIONS: dict[str, Mutation] = {
    "datatype": _set("datatype", DATATYPES),
    "shape": _set("shape", SHAPES),
    "data": _set("data", BAD_DATA),
    "length": _other_length,
    "values": _hostile_values,
    "drop": _drop,
    "repeat": _repeat,
    "add": _add,
    "parameters": _set_in_request("parameters", PARAMETERS),
    "input parameters": _set("parameters", INPUT_PARAMETERS),
    "output parameters": _output_parameters,
    "id": _set_in_request("id", IDENTITIES),
    "repeat outputs": _repeat_outputs,
    "outputs": _set_in_request("outputs", BAD_OUTPUTS),
    "nest": _nest,
    "part": _replace_part,
    "many": _many_candidates,
    "drop field": _drop_field,
}
