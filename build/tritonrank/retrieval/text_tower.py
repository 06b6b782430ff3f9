"""The encoder of both towers: texts -> unit vectors, in PyTorch and as ONNX.

It is the recipe's base encoder, mean-pooled over the tokens of a text. Queries and items go through the same weights,
so that an item that nobody has met yet is found by its text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel
from tritonrank_recommend.catalogue.encoder import MODEL_FILE, TOKENIZER_FILE, TextTokenizer, open_session
from tritonrank_runtime.text import TextRules

from tritonrank.errors import ArtifactError
from tritonrank.graphs.export import OPSET
from tritonrank.rankers.graph_writing import trace_graph
from tritonrank.rankers.pretrained import load_encoder, load_tokenizer, longest_input
from tritonrank.recipe import Recipe
from tritonrank.system.quiet import quiet_libraries

TOLERANCE = 1e-5
"""Largest difference of a coordinate between PyTorch and ONNX; unit vectors have coordinates up to 1."""
COMPARED_TEXTS = 16
ENCODER_NODES = "/encoder/"
"""How the names of the graph's nodes begin that are the encoder's."""
PROJECTION = "projection"
"""What pooled vectors are multiplied by, (dimension, dimension): a constant of the graph, at first the unit matrix."""
FEWEST_TOKENS = 8


class TextTower(nn.Module):
    """Token ids -> unit vectors.

    Args:
        encoder: the bare encoder.
    """

    projection: Tensor

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer(PROJECTION, torch.eye(self.dimension))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both (texts, tokens) -> (texts, dimension)."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if getattr(self.encoder.config, "type_vocab_size", 0):
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        hidden = self.encoder(**inputs).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return _unit(_unit(pooled) @ self.projection)

    @property
    def dimension(self) -> int:
        return int(self.encoder.config.hidden_size)


def _unit(vectors: Tensor) -> Tensor:
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths.clamp(min=1e-12)


def load_tower(recipe: Recipe, rules: TextRules, folder: Path) -> tuple[TextTower, TextTokenizer, int]:
    """The untrained tower, its tokenizer, which is written into a folder, and the tokens that it reads of a text.

    A text may have what the ranker's budgets leave of a query or an item, whichever is longer.

    Args:
        recipe: names the base encoder; of a ready checkpoint the base stands behind it.
        rules: the ranker's.
        folder: gets tokenizer.json.

    Raises:
        ArtifactError: the base cannot be used.
    """
    base = recipe.model.untrained
    encoder, fast = load_encoder(base.source, base.revision), load_tokenizer(base.source, base.revision)
    with quiet_libraries():
        encoder.set_attn_implementation("eager")  # traced masks of the others hold for one shape
    budget = max(rules.candidate_tokens, rules.query_tokens, FEWEST_TOKENS)
    tokens = min(budget + fast.num_special_tokens_to_add(), longest_input(encoder))
    fast.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
    return TextTower(encoder), TextTokenizer.from_folder(folder, tokens), tokens


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both (texts, longest); what fills is 0 and masked."""
    longest = max(map(len, ids))
    rows = torch.zeros(len(ids), longest, dtype=torch.long)
    mask = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, text in enumerate(ids):
        rows[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return rows, mask


def write_graph(tower: TextTower, folder: Path) -> None:
    """Write model.onnx: input_ids and attention_mask, int32 [texts, tokens] -> vector, float32 [texts, dimension]."""
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]], dtype=torch.int32)
    with quiet_libraries(), torch.no_grad():
        trace_graph(
            tower,
            {"input_ids": ids, "attention_mask": (ids > 0).int()},
            {
                "input_ids": {0: "texts", 1: "tokens"},
                "attention_mask": {0: "texts", 1: "tokens"},
                "vector": {0: "texts"},
            },
            ["vector"],
            folder / MODEL_FILE,
            OPSET,
        )


def set_projection(folder: Path, projection: NDArray[np.float32]) -> None:
    """Put a learnt projection into the graph of a folder."""
    model = onnx.load(folder / MODEL_FILE)
    (constant,) = (tensor for tensor in model.graph.initializer if tensor.name == PROJECTION)
    constant.CopyFrom(numpy_helper.from_array(projection, PROJECTION))
    onnx.save(model, folder / MODEL_FILE)


def prove_graph(tower: TextTower, ids: Sequence[Sequence[int]], folder: Path) -> float:
    """Compare the written graph with PyTorch, on texts in one padded batch and each alone.

    Returns:
        The largest difference of a coordinate.

    Raises:
        ArtifactError: it is larger than rounding.
    """
    rows, mask = padded(ids[:COMPARED_TEXTS])
    tower.eval()
    with torch.inference_mode():
        expected = tower(rows, mask).numpy()
    session = open_session(folder / MODEL_FILE)

    def run(chosen: slice, tokens: int) -> NDArray[np.float32]:
        feed = {
            "input_ids": rows[chosen, :tokens].int().numpy(),
            "attention_mask": mask[chosen, :tokens].int().numpy(),
        }
        vectors: NDArray[np.float32] = session.run(None, feed)[0]
        return vectors

    together = run(slice(None), rows.shape[1])
    alone = np.concatenate([run(slice(i, i + 1), int(mask[i].sum())) for i in range(len(rows))])
    difference = float(max(np.abs(together - expected).max(), np.abs(alone - expected).max()))
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"{folder / MODEL_FILE}: vectors differ from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}. Look "
            "for operators that the exporter approximates"
        )
    return difference
