"""Random language models of every family that a decoder can be made of, as transformers makes them.

Weights are ten times larger than usual, so that the logits of different candidates differ by far more than rounding
does, and windows are so short that they matter.
"""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 120
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 1,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def decoder_configs() -> dict[str, PretrainedConfig]:
    """By family; those that differ in more than their sizes have several."""
    gpt2 = {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
    own = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    rest = {name: value for name, value in SIZES.items() if name not in {*own, "max_position_embeddings"}}
    return {
        "llama": LlamaConfig(**SIZES),
        "llama-biased-scaled": LlamaConfig(
            **SIZES, attention_bias=True, mlp_bias=True, rope_scaling=LLAMA3_SCALING, head_dim=16
        ),
        "mistral": MistralConfig(**SIZES, sliding_window=6),
        "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        "qwen3": Qwen3Config(**SIZES, head_dim=16),
        "gemma": GemmaConfig(**SIZES, head_dim=16),
        "gemma2": Gemma2Config(
            **SIZES,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=6,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
        ),
        "gemma3": Gemma3TextConfig(
            **SIZES,
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        "gpt2": GPT2Config(**gpt2, **rest),
    }


def causal_model(family: str, **sizes: int) -> PreTrainedModel:
    """With a vocabulary head; ``sizes`` are settings of its config, of those that it has."""
    config = decoder_configs()[family]
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return _filled(AutoModelForCausalLM, config)


def scalar_model(family: str) -> PreTrainedModel:
    """With a head of one number."""
    return _filled(AutoModelForSequenceClassification, decoder_configs()[family])


def _filled(kind: Any, config: PretrainedConfig) -> PreTrainedModel:
    """No bias and no norm as it begins: what is left out would not be seen. The same whatever was drawn before."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(13)
        model: PreTrainedModel = kind.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()
