"""Joint rankers of BERT's kind as the packed engine takes them: their layers are the shared-context ranker's, and only
the head is each family's own.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tritonrank_runtime.network import SharedContextPasses

FAMILIES = ("bert", "electra", "distilbert", "roberta", "xlm-roberta", "camembert")


class PairNetwork(SharedContextPasses):
    """For ``PackedNetwork``: every pair a segment that begins at position 0."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.add_modules(config)


def pair_network(model: Any) -> PairNetwork | None:
    """The network of a one-label model of transformers, whose modules it shares.

    Args:
        model: AutoModelForSequenceClassification.

    Returns:
        None for a family with another layer than BERT's, or other positions than a table's.
    """
    config = model.config
    is_absolute = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if config.model_type not in FAMILIES or config.num_labels != 1 or not is_absolute:
        return None
    encoder = getattr(model, model.base_model_prefix)
    layers = encoder.transformer.layer if config.model_type == "distilbert" else encoder.encoder.layer
    parts = [_layer_parts(layer) for layer in layers]
    embeddings, query = encoder.embeddings, parts[0]["query"]
    head_size = config.hidden_size // config.num_attention_heads
    first = embeddings.position_embeddings.padding_idx
    types = getattr(embeddings, "token_type_embeddings", None)
    sizes = SimpleNamespace(
        vocab_size=config.vocab_size,
        embedding_size=embeddings.word_embeddings.embedding_dim,
        hidden_size=config.hidden_size,
        num_hidden_layers=len(parts),
        num_attention_heads=query.out_features // head_size,  # pruning may have left fewer than the config says
        head_size=head_size,
        intermediate_size=parts[0]["ffn_in"].out_features,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=embeddings.LayerNorm.eps,
        max_position_embeddings=embeddings.position_embeddings.num_embeddings,
        type_vocab_size=0 if types is None else types.num_embeddings,
        first_position=0 if first is None else first + 1,
        context_positions=0,
    )
    with torch.device("meta"):  # nothing is made that is replaced at once
        network = PairNetwork(sizes)
    network.embeddings.words, network.embeddings.positions = embeddings.word_embeddings, embeddings.position_embeddings
    network.embeddings.segments, network.embeddings.norm = types, embeddings.LayerNorm
    network.embeddings.project = getattr(encoder, "embeddings_project", None)
    for layer, found in zip(network.layers, parts, strict=True):
        for name, module in found.items():
            setattr(layer, name, module)
    network.head = _head(model)
    return network.eval()


def _layer_parts(layer: Any) -> dict[str, Any]:
    """A layer's modules by the names of ``network.py``."""
    if hasattr(layer, "sa_layer_norm"):  # DistilBERT
        attention, ffn = layer.attention, layer.ffn
        return {
            "query": attention.q_lin,
            "key": attention.k_lin,
            "value": attention.v_lin,
            "attention_out": attention.out_lin,
            "attention_norm": layer.sa_layer_norm,
            "ffn_in": ffn.lin1,
            "activation": ffn.activation,
            "ffn_out": ffn.lin2,
            "ffn_norm": layer.output_layer_norm,
        }
    own, out = layer.attention.self, layer.attention.output
    return {
        "query": own.query,
        "key": own.key,
        "value": own.value,
        "attention_out": out.dense,
        "attention_norm": out.LayerNorm,
        "ffn_in": layer.intermediate.dense,
        "activation": layer.intermediate.intermediate_act_fn,
        "ffn_out": layer.output.dense,
        "ffn_norm": layer.output.LayerNorm,
    }


def _head(model: Any) -> Any:
    """What makes a score of a pair's first token."""
    family = model.config.model_type
    if family == "bert":
        return nn.Sequential(model.bert.pooler.dense, nn.Tanh(), model.classifier)
    if family == "distilbert":
        return nn.Sequential(model.pre_classifier, nn.ReLU(), model.classifier)
    activation = nn.GELU() if family == "electra" else nn.Tanh()
    return nn.Sequential(model.classifier.dense, activation, model.classifier.out_proj)
