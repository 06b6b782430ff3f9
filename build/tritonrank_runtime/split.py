"""What the two architectures have in common that split a request: one row that all candidates share, and one row of
each candidate, scored by two graphs (``split_engine.py``).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import Architecture, EngineOptions
from tritonrank_runtime.candidate_rows import PARTING
from tritonrank_runtime.engine import MODEL_FILE, Engine, Graph, RowsError, Tensors
from tritonrank_runtime.padding import PADDING, Buckets, side_by_side
from tritonrank_runtime.pair_layout import PairLayout
from tritonrank_runtime.split_engine import BatchedEngine, SplitEngine, SplitNames

if TYPE_CHECKING:
    from tritonrank_runtime.text import TextRules

BLOCK_CANDIDATES = 256
"""More than the 200 or so that retrieval brings, which stay one block. Smaller blocks would fall into more runs."""


class SplitArchitecture(Architecture):
    """One request: the shared row (tokens,), and those of the candidates (candidates, tokens), padded with -1."""

    names: SplitNames
    """of tensors and graphs; ``inputs`` and ``graph_files`` have the same"""
    batch_is_request = True
    block_candidates = BLOCK_CANDIDATES
    has_score_batch = True

    def padded(
        self, tensors: Tensors, buckets: Buckets, layout: PairLayout, rules: "TextRules"
    ) -> dict[str, NDArray[np.int32]]:
        """The shared row is padded to the longest there can be."""
        longest = self.longest_rows(layout, rules)[self.names.shared]
        shapes = {
            self.names.shared: (longest,),
            self.names.rows: buckets.shape(*tensors[self.names.rows].shape),
        }
        return {name: side_by_side([tensors[name]], PADDING, shape)[0] for name, shape in shapes.items()}

    def needed_tokens(self, tensors: Tensors) -> int:
        return int(tensors[self.names.shared].size) + int((tensors[self.names.rows] >= 0).sum())

    def computed_tokens(self, tensors: Tensors) -> int:
        return sum(tensors[one.name].size for one in self.inputs)

    def one_request(self, tensors: Tensors, most_candidates: int) -> Tensors:
        for name, tensor in tensors.items():
            if len(tensor) != 1:
                raise RowsError(f"{name}: {len(tensor)} requests in one; send them one by one")
        if (found := int((tensors[self.names.rows][0, :, :1] != PADDING).sum())) > most_candidates:
            raise RowsError(f"{self.names.rows}: {found} candidates; the limit is {most_candidates}")
        return {name: tensor[0] for name, tensor in tensors.items()}

    def takes_graphs(self, inputs: Mapping[str, Sequence[str]]) -> bool:
        return self.names.shared_file in inputs or self.names.shared in inputs.get(MODEL_FILE, ())

    def engine(self, graphs: Mapping[str, Graph], options: EngineOptions) -> Engine:
        if self.names.shared_file in graphs:
            shared, rows = (graphs[name] for name in self.graph_files)
            return SplitEngine(self.names, shared, rows, options)
        return BatchedEngine(self.names, graphs[MODEL_FILE], options.threads, options.shares)

    def input_names(self, config: Any) -> list[str]:
        return [one.name for one in self.inputs]


def candidate_matrix(
    before: Sequence[int], candidates: Sequence[Sequence[int]], after: Sequence[int] = ()
) -> NDArray[np.int32]:
    """One row per candidate, its ids between others that all have; between two blocks one row of padding alone.

    Args:
        before: ids ahead of each candidate's.
        candidates: ids of each, or PARTING.
        after: ids behind each candidate's.
    """
    partings = [place for place, ids in enumerate(candidates) if ids == PARTING]
    ends = np.array([len(before) + len(ids) for ids in candidates], dtype=np.int64)
    width = int(ends.max(initial=len(before))) + len(after)
    matrix = np.full((len(candidates), width), PADDING, dtype=np.int32)
    # One assignment for all rows: a thousand small ones would take longer than the tokenizer.
    places = np.arange(width)
    is_token = (places >= len(before)) & (places < ends[:, np.newaxis])
    matrix[is_token] = [token for ids in candidates for token in ids]
    matrix[:, : len(before)] = before
    if len(after) and len(candidates):
        matrix[np.arange(len(candidates))[:, np.newaxis], ends[:, np.newaxis] + np.arange(len(after))] = after
    matrix[partings] = PADDING
    return matrix
