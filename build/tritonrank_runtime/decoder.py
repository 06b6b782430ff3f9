"""The decoder: a causal language model that reads a request's prefix once, and each candidate as a branch of it.

The prefix is one row, the template's head, query and history, and what leads over to a document; each candidate is
another, its text and the template's tail, at whose last token the score is read. Positions of a branch go on where the
prefix ends. How they are run is in ``split_engine.py``.
"""

from collections.abc import Sequence
from functools import partial
from logging import getLogger
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
    from tritonrank_runtime.packed.rows import DecoderRows, PackedRows
    from tritonrank_runtime.text import TextRules

DECODER = "decoder"
PREFIX_FILE = "prefix.onnx"
BRANCHES_FILE = "branches.onnx"
NAMES = SplitNames("prefix_ids", "branch_ids", "prefix_keys", "prefix_values", PREFIX_FILE, BRANCHES_FILE)

log = getLogger(__name__)


class Decoder(SplitArchitecture):
    """One request: prefix_ids (tokens,), and branch_ids (candidates, tokens), padded with -1."""

    name = DECODER
    names = NAMES
    inputs = (
        Input("prefix_ids", 1, PADDING, longest="prefix_row_tokens", ids=VOCABULARY),
        Input("branch_ids", 2, PADDING, least=PADDING, longest="branch_row_tokens", ids=VOCABULARY),
    )
    graph_files = (PREFIX_FILE, BRANCHES_FILE)

    def rows(
        self, layout: PairLayout, context: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> dict[str, NDArray[np.int32]]:
        """The prefix's row (prefix, context, middle) and one per candidate (candidate, suffix); between two blocks one
        of padding alone."""
        prefix_ids = np.array([*layout.prefix, *context, *layout.middle], dtype=np.int32)
        return {"prefix_ids": prefix_ids, "branch_ids": candidate_matrix((), candidates, layout.suffix)}

    def longest_rows(self, layout: PairLayout, rules: "TextRules") -> dict[str, int]:
        context = layout.longest_context(rules.query_tokens, rules.history_tokens)
        return {
            "prefix_ids": len(layout.prefix) + context + len(layout.middle),
            "branch_ids": rules.candidate_tokens + len(layout.suffix),
        }

    def torch_graphs(self, folder: Path, device: str) -> dict[str, Graph]:
        from tritonrank_runtime.torch_passes import RowsPass, SharedPass, as_half, load_decoder

        network = load_decoder(folder).folded()
        network = network if device == "cpu" else as_half(network, device)
        longest = network.config.max_position_embeddings
        return {
            PREFIX_FILE: SharedPass(NAMES, network, network.encode_prefix, longest - 1, device),
            BRANCHES_FILE: RowsPass(NAMES, network, network.score_branches, longest, device, counts_on=True),
        }

    def packed(self, folder: Path) -> "tuple[Any, PackedRows] | None":
        from tritonrank_runtime.packed.decoder_network import unsupported
        from tritonrank_runtime.torch_passes import load_decoder

        network = load_decoder(folder)
        if reason := unsupported(network.config):
            log.warning("%s: %s: the packed engine has none, so its layers run one operation at a time", folder, reason)
            return None
        return network, packed_rows(network.config)


def packed_rows(config: Any) -> "DecoderRows":
    """How requests of a decoder of these settings become packed rows."""
    from tritonrank_runtime.packed.rows import DecoderRows

    longest = config.max_position_embeddings
    limits = RowLimits(
        dict(zip(NAMES.inputs, (longest - 1, longest), strict=True)),
        {one.name: (one.least, config.vocab_size) for one in Decoder.inputs},
    )
    return DecoderRows(longest, NAMES.inputs, limits, partial(check_rows, NAMES, may_part=True))
