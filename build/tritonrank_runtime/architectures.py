"""The architectures that there are. One more is one line here, its own file, and its file in ``tritonrank.rankers``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tritonrank_runtime.architecture import Architecture
from tritonrank_runtime.decoder import Decoder
from tritonrank_runtime.joint import Joint
from tritonrank_runtime.shared_context import SharedContext

DEFAULT = Joint()
"""What whoever does not say otherwise means: any sequence-classification checkpoint, and a text.json without a name."""
ARCHITECTURES: tuple[Architecture, ...] = (DEFAULT, SharedContext(), Decoder())


def architecture_named(name: str) -> Architecture:
    """By the name that recipes and text.json use, which is also the ``model_type`` of a checkpoint of our own kind.

    Raises:
        KeyError: there is none of that name.
    """
    return {one.name: one for one in ARCHITECTURES}[name]


def architecture_of_type(model_type: str) -> Architecture:
    """By the ``model_type`` of a checkpoint's config: our own kinds have names, every other is the default."""
    return next((one for one in ARCHITECTURES if one.name == model_type), DEFAULT)


def architecture_of_inputs(names: Iterable[str]) -> Architecture:
    """By the names of a scorer's or a graph's input tensors, of which an architecture has at least its first."""
    present = {*names}
    return next(one for one in ARCHITECTURES if one.inputs[0].name in present)


def architecture_of_graphs(inputs: Mapping[str, Sequence[str]]) -> Architecture:
    """By the files of its graphs and the names of their inputs."""
    return next((one for one in ARCHITECTURES if one.takes_graphs(inputs)), DEFAULT)


def architecture_of_files(names: Iterable[str]) -> Architecture | None:
    """By the names of the graphs that serve it on a CPU; None where they are not those of one."""
    found = {*names} & {*graph_names()}
    return next((one for one in ARCHITECTURES if {*one.graph_files} == found), None)


def graph_names() -> list[str]:
    """The names that a ranker's graphs can have, in the order in which they run."""
    return list(dict.fromkeys(name for one in ARCHITECTURES for name in one.graph_files))


def graph_inputs(graphs: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the inputs of open graphs, by file name."""
    return {name: [tensor.name for tensor in graph.get_inputs()] for name, graph in graphs.items()}
