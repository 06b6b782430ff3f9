"""The architectures that there are, as a build sees them; one more is one line here and in the runtime's list."""

from collections.abc import Iterable
from typing import Any

from tritonrank_runtime import architectures as served

from tritonrank.errors import ArtifactError
from tritonrank.rankers.architecture import RankerArchitecture
from tritonrank.rankers.decoder import DecoderArchitecture
from tritonrank.rankers.joint import JointArchitecture
from tritonrank.rankers.shared_context import SharedContextArchitecture
from tritonrank.rankers.split import SplitRankerArchitecture

ARCHITECTURES: tuple[RankerArchitecture, ...] = (
    JointArchitecture(),
    SharedContextArchitecture(),
    DecoderArchitecture(),
)
_BY_NAME = {one.name: one for one in ARCHITECTURES}


def architecture_named(name: str) -> RankerArchitecture:
    """By the name that recipes and text.json use."""
    return _BY_NAME[name]


def architecture_of(config: Any) -> RankerArchitecture:
    """By a checkpoint's config."""
    return _BY_NAME[served.architecture_of_type(config.model_type).name]


def split_architecture_of(config: Any) -> SplitRankerArchitecture:
    """By the config of a checkpoint that reads once what candidates share.

    Raises:
        ArtifactError: it does not.
    """
    found = architecture_of(config)
    if not isinstance(found, SplitRankerArchitecture):
        raise ArtifactError(f"a {found.name} ranker is one graph as it is, and shares nothing among candidates")
    return found


def architecture_of_files(names: Iterable[str]) -> RankerArchitecture:
    """By the files of a model folder: the graphs of one, or the default where there are none."""
    return _BY_NAME[(served.architecture_of_files(names) or served.DEFAULT).name]


def architecture_of_inputs(names: Iterable[str]) -> RankerArchitecture:
    """By the names of a scorer's or a graph's input tensors."""
    return _BY_NAME[served.architecture_of_inputs(names).name]
