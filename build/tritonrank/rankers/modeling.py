"""The shared-context ranker as a Hugging Face model: its config, and how an ordinary encoder becomes one.

The network itself is in ``network.py``. The weights are those of an ordinary encoder (BERT, RoBERTa, XLM-R, DistilBERT,
ELECTRA, MiniLM); only the mask is new.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from tritonrank_runtime.image_tokens import image_tokens
from tritonrank_runtime.images import SOFT_TOKENS, WIDTH, ImageTable
from tritonrank_runtime.network import SharedContextPasses
from tritonrank_runtime.shared_context import SHARED_CONTEXT

from tritonrank.errors import ArtifactError


class SharedContextConfig(PretrainedConfig):
    """Sizes of the encoder in the words of BERT's config, and where candidates start.

    Args:
        embedding_size: width of the embeddings; ELECTRA projects them to hidden_size.
        head_size: width of one attention head.
        first_position: rows of the position table that the family does not use (RoBERTa: padding_idx + 1).
        context_positions: position of each candidate's first token = the longest possible context.
    """

    model_type = SHARED_CONTEXT

    def __init__(
        self,
        vocab_size: int = 30_522,
        embedding_size: int = 384,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        head_size: int = 32,
        intermediate_size: int = 1_536,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        layer_norm_eps: float = 1e-12,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        first_position: int = 0,
        context_positions: int = 128,
        initializer_range: float = 0.02,
        **further: Any,
    ) -> None:
        super().__init__(**{"num_labels": 1} | further)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_size = head_size
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.first_position = first_position
        self.context_positions = context_positions
        self.initializer_range = initializer_range


AutoConfig.register(SHARED_CONTEXT, SharedContextConfig)


class SharedContextRanker(SharedContextPasses, PreTrainedModel):
    """The network as a Hugging Face model: trained, saved and loaded as any other."""

    config_class = SharedContextConfig
    base_model_prefix = "ranker"
    main_input_name = "token_ids"
    device: torch.device
    """where its weights are"""

    def __init__(self, config: SharedContextConfig) -> None:
        super().__init__(config)
        self.add_modules(config)
        PreTrainedModel.post_init(self)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.words

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
            module.bias.data.zero_()


@contextmanager
def given_images(ranker: SharedContextRanker, vectors: Tensor | None) -> Iterator[None]:
    """While this lasts ids of images count these vectors (images, width), and not the ranker's table."""
    images = image_tokens(ranker)
    if images is not None:
        images.given = vectors
    try:
        yield
    finally:
        if images is not None:
            images.given = None


class ContextPass(nn.Module):
    """``encode_context`` as a module of its own, which is what an exporter takes."""

    def __init__(self, ranker: SharedContextRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, context_ids: Tensor, image_vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with given_images(self.ranker, image_vectors):
            return self.ranker.encode_context(context_ids)


class CandidatePass(nn.Module):
    """``score_candidates``, likewise."""

    def __init__(self, ranker: SharedContextRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(
        self,
        context_keys: Tensor,
        context_values: Tensor,
        candidate_ids: Tensor,
        image_vectors: Tensor | None = None,
    ) -> Tensor:
        with given_images(self.ranker, image_vectors):
            return self.ranker.score_candidates(context_keys, context_values, candidate_ids)


class BatchPass(nn.Module):
    """``score_batch``, likewise."""

    def __init__(self, ranker: SharedContextRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, context_ids: Tensor, candidate_ids: Tensor) -> Tensor:
        return self.ranker.score_batch(context_ids, candidate_ids)


_NAMES = {
    "distilbert": {
        r"embeddings\.word_embeddings": "embeddings.words",
        r"embeddings\.position_embeddings": "embeddings.positions",
        r"embeddings\.LayerNorm": "embeddings.norm",
        r"transformer\.layer\.(\d+)\.attention\.q_lin": r"layers.\1.query",
        r"transformer\.layer\.(\d+)\.attention\.k_lin": r"layers.\1.key",
        r"transformer\.layer\.(\d+)\.attention\.v_lin": r"layers.\1.value",
        r"transformer\.layer\.(\d+)\.attention\.out_lin": r"layers.\1.attention_out",
        r"transformer\.layer\.(\d+)\.sa_layer_norm": r"layers.\1.attention_norm",
        r"transformer\.layer\.(\d+)\.ffn\.lin1": r"layers.\1.ffn_in",
        r"transformer\.layer\.(\d+)\.ffn\.lin2": r"layers.\1.ffn_out",
        r"transformer\.layer\.(\d+)\.output_layer_norm": r"layers.\1.ffn_norm",
    },
    "bert": {
        r"embeddings\.word_embeddings": "embeddings.words",
        r"embeddings\.position_embeddings": "embeddings.positions",
        r"embeddings\.token_type_embeddings": "embeddings.segments",
        r"embeddings\.LayerNorm": "embeddings.norm",
        r"embeddings_project": "embeddings.project",
        r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)": r"layers.\1.\2",
        r"encoder\.layer\.(\d+)\.attention\.output\.dense": r"layers.\1.attention_out",
        r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm": r"layers.\1.attention_norm",
        r"encoder\.layer\.(\d+)\.intermediate\.dense": r"layers.\1.ffn_in",
        r"encoder\.layer\.(\d+)\.output\.dense": r"layers.\1.ffn_out",
        r"encoder\.layer\.(\d+)\.output\.LayerNorm": r"layers.\1.ffn_norm",
    },
}
"""Parameter names of each family -> ours; families that are not named share BERT's."""
FAMILIES = {"bert", "electra", "distilbert", "roberta", "xlm-roberta", "camembert"}
_AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Families of transformers that count positions from the padding token's id + 1."""
_FIXED_FIRST = {"mpnet": 2, "ernie_m": 2}
"""Families that begin at a constant, whatever their config says."""


def from_encoder(
    encoder: PreTrainedModel, name: str, context_positions: int, images: ImageTable | None = None
) -> SharedContextRanker:
    """A shared-context ranker with the weights of an encoder, a fresh head, and a fresh projection of images.

    Args:
        encoder: the bare encoder (AutoModel).
        name: what errors call it.
        context_positions: the longest context in tokens, special tokens included.
        images: those that it will read; None: texts alone.

    Raises:
        ArtifactError: a family or a kind of positions that this model does not know, or weights left over.
    """
    config = _config_of(encoder.config, name, context_positions)
    if images is not None:
        config.update({WIDTH: images.width, SOFT_TOKENS: images.soft_tokens})
    ranker = SharedContextRanker(config)
    renamed = renamed_weights(encoder.state_dict(), encoder.config.model_type)
    missing, unexpected = ranker.load_state_dict(renamed, strict=False)
    missing = [key for key in missing if not key.startswith("embeddings.images.")]
    if unexpected or set(missing) != {"head.weight", "head.bias"}:
        raise ArtifactError(
            f"{name}: its weights do not fit a shared-context ranker: missing {sorted(missing)}, "
            f"left over {sorted(unexpected)}"
        )
    if images is not None and (tokens := image_tokens(ranker)) is not None:
        tokens.fit(images, ranker.embeddings.words)
    return ranker


def counts_from_padding(model_type: str) -> bool:
    """Whether a family counts the positions of a text from the id of its padding token."""
    return model_type in _AFTER_PADDING


def first_position(config: PretrainedConfig) -> int:
    """Rows of the position table that come before position 0 of a text."""
    own: int | None = getattr(config, "first_position", None)
    if own is not None:
        return own
    if config.model_type in _FIXED_FIRST:
        return _FIXED_FIRST[config.model_type]
    return int(config.pad_token_id) + 1 if counts_from_padding(config.model_type) else 0


def _config_of(config: PretrainedConfig, name: str, context_positions: int) -> SharedContextConfig:
    if config.model_type not in FAMILIES:
        raise ArtifactError(
            f"{name}: a {config.model_type} encoder has another layer than BERT; supported: "
            f"{', '.join(sorted(FAMILIES))}. Use model.architecture: joint"
        )
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ArtifactError(f"{name}: only absolute position embeddings are supported; use model.architecture: joint")
    is_distilbert = config.model_type == "distilbert"
    return SharedContextConfig(
        vocab_size=config.vocab_size,
        embedding_size=getattr(config, "embedding_size", config.hidden_size),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        intermediate_size=config.hidden_dim if is_distilbert else config.intermediate_size,
        hidden_act=config.activation if is_distilbert else config.hidden_act,
        hidden_dropout_prob=config.dropout if is_distilbert else config.hidden_dropout_prob,
        attention_probs_dropout_prob=config.attention_dropout if is_distilbert else config.attention_probs_dropout_prob,
        layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=getattr(config, "type_vocab_size", 0),
        first_position=first_position(config),
        context_positions=context_positions,
        pad_token_id=config.pad_token_id,
    )


def shared_context_name(name: str, family: str) -> str:
    """What a module or parameter of a family's encoder is called in a shared-context ranker; others keep their name."""
    for pattern, ours in _NAMES.get(family, _NAMES["bert"]).items():
        found = re.sub(rf"^{pattern}(?=$|\.(weight|bias)$)", ours, name)
        if found != name:
            return found
    return name


def renamed_weights(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    # Left out: buffers, and a head over [CLS] that was trained for something else.
    left_out = ("position_ids", "embeddings.token_type_ids")
    return {
        shared_context_name(name, family): tensor
        for name, tensor in state.items()
        if not name.startswith("pooler.") and not name.endswith(left_out)
    }
