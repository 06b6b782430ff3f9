"""The shared-context ranker: the context's keys and values once, and every candidate attends to them and to itself.

The context is one row, ``[CLS] context [SEP]``, and each candidate another, ``[CLS] candidate``: the [SEP] at its end
would cost one token in twelve and say nothing. How they are run is in ``split_engine.py``.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritonrank_runtime.architecture import VOCABULARY, Input, RowLimits
from tritonrank_runtime.engine import Graph
from tritonrank_runtime.padding import PADDING
from tritonrank_runtime.pair_layout import PairLayout
from tritonrank_runtime.split import SplitArchitecture, candidate_matrix
from tritonrank_runtime.split_engine import SplitNames, check_rows

if TYPE_CHECKING:
    from tritonrank_runtime.packed.rows import PackedRows
    from tritonrank_runtime.text import TextRules

SHARED_CONTEXT = "shared-context"
CONTEXT_FILE = "context.onnx"
CANDIDATES_FILE = "candidates.onnx"
NAMES = SplitNames("context_ids", "candidate_ids", "context_keys", "context_values", CONTEXT_FILE, CANDIDATES_FILE)
INPUT_NAMES = NAMES.inputs


class SharedContext(SplitArchitecture):
    """One request: context_ids (tokens,), and candidate_ids (candidates, tokens), padded with -1."""

    name = SHARED_CONTEXT
    names = NAMES
    inputs = (
        Input("context_ids", 1, PADDING, longest="context_row_tokens", ids=VOCABULARY),
        Input("candidate_ids", 2, PADDING, least=PADDING, longest="candidate_row_tokens", ids=VOCABULARY),
    )
    graph_files = (CONTEXT_FILE, CANDIDATES_FILE)

    def rows(
        self, layout: PairLayout, context: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.int32]]:
        """The context's row (prefix, context, suffix) and one per candidate (prefix, candidate); between two blocks
        one of padding alone."""
        context_ids = np.array([*layout.prefix, *context, *layout.suffix], dtype=np.int32)
        return {"context_ids": context_ids, "candidate_ids": candidate_matrix(layout.prefix, candidates)}

    def longest_rows(self, layout: PairLayout, rules: "TextRules") -> dict[str, int]:
        return {
            "context_ids": len(layout.prefix) + rules.context_tokens + len(layout.suffix),
            "candidate_ids": len(layout.prefix) + rules.candidate_tokens,
        }

    def torch_graphs(self, folder: Path, device: str) -> dict[str, Graph]:
        from tritonrank_runtime.torch_passes import RowsPass, SharedPass, as_half, load_network, row_positions

        network = load_network(folder).folded()
        network = network if device == "cpu" else as_half(network, device)
        longest, longest_row = row_positions(network.config)
        return {
            CONTEXT_FILE: SharedPass(NAMES, network, network.encode_context, longest, device),
            CANDIDATES_FILE: RowsPass(NAMES, network, network.score_candidates, longest_row, device),
        }

    def packed(self, folder: Path) -> "tuple[Any, PackedRows] | None":
        from tritonrank_runtime.image_tokens import image_tokens
        from tritonrank_runtime.packed.rows import SharedContextRows
        from tritonrank_runtime.torch_passes import load_network, row_positions

        network = load_network(folder)
        if image_tokens(network) is not None:  # its kernels know words alone
            return None
        vocabulary, longest = network.config.vocab_size, row_positions(network.config)
        limits = RowLimits(
            dict(zip(INPUT_NAMES, longest, strict=True)),
            {one.name: (one.least, vocabulary) for one in self.inputs},
        )
        return network, SharedContextRows(
            network.config.context_positions, INPUT_NAMES, limits, partial(check_rows, NAMES, may_part=True)
        )
