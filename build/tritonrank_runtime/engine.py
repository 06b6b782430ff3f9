"""Token ids -> logits: the one interface behind which every architecture's engine computes, and what goes through it.

Work is cut into runs of a few hundred tokens, and the runs go side by side, one thread each: a thread with a run of
its own need not wait for others after every operation, which threads inside a run must. Nothing else that is computed
at the same time can change a request's scores, which keeps INT8 scores reproducible (a last digit that differs before a
rounding can move a score by a whole step), and padding stays small. How rows become runs is each architecture's own
affair (``joint.py``, ``shared_context.py``).

Between two runs an engine looks whether anybody still wants them (``Watch``): a request that is late costs no more than
the run that it is in.

On a GPU (``device="cuda"``) nothing is cut for the sake of threads: a run costs more to start than its padding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MODEL_FILE = "model.onnx"
"""The graph of a ranker that is one graph."""
WEIGHTS_FILE = "weights.bin"
"""What several graphs of a folder have in common."""

Tensors = Mapping[str, NDArray[np.int32]]
"""One request by input name; which there are and what shapes they have is the architecture's."""
Logits = NDArray[np.float32]
Feed = dict[str, NDArray[Any]]
"""What one graph is fed with, by input name."""


class RowsError(ValueError):
    """Rows that no engine should get; the message begins with the tensor's name."""


class ExecutorError(RuntimeError):
    """What should compute is not on this machine; the message says what is missing and the command that brings it."""


class EngineLostError(RuntimeError):
    """What computes is gone for the moment, a process of it, say; the run is lost, and the next may go well."""


class Watch:
    """Looked at between the parts of a run: who still wants it, and how far it has come.

    Args:
        is_wanted: says for a request, by its place, whether the work for it goes on; called from several threads.
    """

    def __init__(self, is_wanted: Callable[[int], bool] = lambda _: True) -> None:
        self.is_wanted = is_wanted
        self._done: list[int] = []  # several threads add to it; adding to a list is atomic

    @property
    def tokens(self) -> int:
        """That were computed, without padding."""
        return sum(self._done)

    def did(self, tokens: int) -> None:
        """So many more were computed."""
        self._done.append(tokens)


class Graph(Protocol):
    """What an engine runs: an onnxruntime.InferenceSession, or something that looks like one."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> Sequence[Any]: ...

    def get_inputs(self) -> Sequence[Any]: ...


class KeptContexts(Protocol):
    """What a server tells of the contexts that an engine keeps."""

    hits: int
    misses: int
    bytes: int


class Engine(Protocol):
    """A ranker that runs."""

    input_names: list[str]
    """The tensors that a request needs."""

    @property
    def context_cache(self) -> KeptContexts | None:
        """Keys and values of contexts that are kept between requests, where the architecture has such."""
        ...

    def run(self, requests: Sequence[Tensors], threads: int = 0, watch: Watch | None = None) -> list[Logits]:
        """Logits of each request, one per candidate; none of a request that was not wanted any more.

        Args:
            requests: what to score.
            threads: how many to use now, at most those of the engine; 0 = all.
            watch: looked at between the parts of the work; default: everything is wanted.
        """
        ...

    def check(self, request: Tensors) -> None:
        """Refuse rows that ``tokenize`` would not make: anyone who reaches the server can send some to the scorer.

        Raises:
            RowsError: names the tensor and what is wrong.
        """
        ...

    def token_counts(self, requests: Sequence[Tensors]) -> tuple[int, int]:
        """Tokens to compute, kept contexts included, and tokens without padding: their ratio is what padding costs."""
        ...

    def graph_feeds(self, requests: Sequence[Tensors]) -> dict[str, list[Feed]]:
        """What each graph, by its file's name, is fed with for these requests: calibration sees what serving will."""
        ...
