"""Language models of transformers become decoders of ours: their configs in our words, their weights under our names.

What a family does that the network does not know is refused, and never left out in silence.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from tritonrank_runtime.decoder_network import SLIDING
from tritonrank_runtime.rotary import SCALINGS

from tritonrank.errors import ArtifactError
from tritonrank.rankers.decoder_modeling import DecoderConfig, DecoderRanker

FULL = "full_attention"
_ROTARY_NAMES = {
    r"embed_tokens": "embeddings.words",
    r"layers\.(\d+)\.input_layernorm": r"layers.\1.attention_norm",
    r"layers\.(\d+)\.self_attn\.q_proj": r"layers.\1.query",
    r"layers\.(\d+)\.self_attn\.k_proj": r"layers.\1.key",
    r"layers\.(\d+)\.self_attn\.v_proj": r"layers.\1.value",
    r"layers\.(\d+)\.self_attn\.q_norm": r"layers.\1.query_norm",
    r"layers\.(\d+)\.self_attn\.k_norm": r"layers.\1.key_norm",
    r"layers\.(\d+)\.self_attn\.o_proj": r"layers.\1.attention_out",
    r"layers\.(\d+)\.mlp\.gate_proj": r"layers.\1.ffn_gate",
    r"layers\.(\d+)\.mlp\.up_proj": r"layers.\1.ffn_in",
    r"layers\.(\d+)\.mlp\.down_proj": r"layers.\1.ffn_out",
}
_ONE_NORM_EACH = {r"layers\.(\d+)\.post_attention_layernorm": r"layers.\1.ffn_norm"}
_TWO_NORMS_EACH = {
    r"layers\.(\d+)\.post_attention_layernorm": r"layers.\1.attention_post_norm",
    r"layers\.(\d+)\.pre_feedforward_layernorm": r"layers.\1.ffn_norm",
    r"layers\.(\d+)\.post_feedforward_layernorm": r"layers.\1.ffn_post_norm",
}
_GPT2_NAMES = {
    r"wte": "embeddings.words",
    r"wpe": "embeddings.positions",
    r"h\.(\d+)\.ln_1": r"layers.\1.attention_norm",
    r"h\.(\d+)\.attn\.c_proj": r"layers.\1.attention_out",
    r"h\.(\d+)\.ln_2": r"layers.\1.ffn_norm",
    r"h\.(\d+)\.mlp\.c_fc": r"layers.\1.ffn_in",
    r"h\.(\d+)\.mlp\.c_proj": r"layers.\1.ffn_out",
    r"ln_f": "norm",
}
_POST_NORMS = {"gemma2", "gemma3_text"}


def decoder_from(
    model: PreTrainedModel, name: str, head_weight: Tensor | None = None, head_bias: Tensor | None = None
) -> DecoderRanker:
    """A decoder with the weights of a language model, FP32, in evaluation mode; where they are FP32 they are the same
    memory.

    Args:
        model: of a family in FAMILIES: the bare model, ...ForCausalLM or ...ForSequenceClassification.
        name: what errors call it.
        head_weight: (rows, hidden), what gives the score of a last token's state: one row, or those of yes and no as
            ``yes_no_head`` gives them. None: the model's own scalar head, and a fresh one where it has none (torch's
            random state decides its weights).
        head_bias: (rows,); None: 0.

    Raises:
        ArtifactError: a family, or something a family does, that the network does not know; weights left over.
    """
    config = decoder_config(model.config, name)
    scalar = getattr(model, "score", None)
    if head_weight is None and scalar is not None:
        if scalar.out_features != 1:
            raise ArtifactError(f"{name}: its head gives {scalar.out_features} numbers; a ranker's gives one")
        head_weight = scalar.weight
    is_word = scalar is None and head_weight is not None
    if not is_word:  # what a scalar head gives is no logit of a word
        config.logit_softcap = None
    if head_weight is None:
        head_weight = torch.empty(1, config.hidden_size).normal_(std=config.initializer_range)
    config.head_rows = len(head_weight)
    weights = renamed_weights(_bare(model).state_dict(), model.config.model_type)
    weights["head.weight"] = head_weight.detach()
    weights["head.bias"] = torch.zeros(len(head_weight)) if head_bias is None else head_bias.detach()
    with torch.device("meta"):  # all weights come from the model
        ranker = DecoderRanker(config)
    missing, unexpected = ranker.load_state_dict(
        {key: tensor.float() for key, tensor in weights.items()}, strict=False, assign=True
    )
    if missing or unexpected:
        raise ArtifactError(
            f"{name}: its weights do not fit a decoder: missing {sorted(missing)}, left over {sorted(unexpected)}"
        )
    return ranker.eval()


def _bare(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head; Gemma 3 names another attribute than the one it has as its base."""
    return next((getattr(model, name) for name in ("model", "transformer") if hasattr(model, name)), model)


def yes_no_head(model: PreTrainedModel, yes: int, no: int | None = None) -> Tensor:
    """The rows of a language model's vocabulary head that make one score: (1 or 2, hidden).

    Two rows where a cap lies between the logits and their difference (Gemma 2), else yes - no; ``no=None`` scores by
    the logit of yes alone.
    """
    weight: Tensor = model.get_output_embeddings().weight.detach().float()
    if no is None:
        return weight[[yes]]
    rows = weight[[yes, no]]
    is_capped = getattr(model.config, "final_logit_softcapping", None) is not None
    return rows if is_capped else rows[:1] - rows[1:]


def decoder_config(config: Any, name: str) -> DecoderConfig:
    """A family's config in our words.

    Raises:
        ArtifactError: says what of it the network does not know.
    """
    if config.model_type not in FAMILIES:
        raise ArtifactError(
            f"{name}: {config.model_type} is no family of language models that is known here; those are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    ours = FAMILIES[config.model_type](config, name)
    special = {key: getattr(config, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return DecoderConfig(initializer_range=config.initializer_range, **ours, **special)


def renamed_weights(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The weights of a family's bare model under our names; what has no name of ours keeps its own."""
    if family == "gpt2":
        state = dict(_gpt2_linear(state))
    return {decoder_name(name, family): tensor for name, tensor in state.items()}


def decoder_name(name: str, family: str) -> str:
    """What a module or parameter of a family's bare model is called in a decoder."""
    names = _GPT2_NAMES if family == "gpt2" else _ROTARY_NAMES
    if family != "gpt2":
        names = names | (_TWO_NORMS_EACH if family in _POST_NORMS else _ONE_NORM_EACH)
    for pattern, ours in names.items():
        found = re.sub(rf"^{pattern}(?=$|\.(weight|bias)$)", ours, name)
        if found != name:
            return found
    return name


def _gpt2_linear(state: Mapping[str, Tensor]) -> "list[tuple[str, Tensor]]":
    """GPT-2's Conv1D keeps weights as (in, out), and those of query, key and value in one."""
    found: list[tuple[str, Tensor]] = []
    for name, tensor in state.items():
        linear = tensor.t().contiguous() if re.search(r"\.c_(attn|proj|fc)\.weight$", name) else tensor
        if part := re.match(r"h\.(\d+)\.attn\.c_attn\.(weight|bias)$", name):
            layer, kind = part.groups()
            ours = (f"layers.{layer}.{one}.{kind}" for one in ("query", "key", "value"))
            found += zip(ours, (chunk.contiguous() for chunk in linear.chunk(3)), strict=True)
        else:
            found.append((name, linear))
    return found


def _rotary(config: Any, name: str) -> dict[str, Any]:
    """What Llama and its kin have in common."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if getattr(config, "partial_rotary_factor", 1.0) != 1.0:
        raise ArtifactError(f"{name}: rotary positions of a part of each head are not known here")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": head_size,
        "intermediate_size": config.intermediate_size,
        "hidden_act": getattr(config, "hidden_activation", None) or config.hidden_act,
        "norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling(getattr(config, "rope_scaling", None), name),
        "attention_bias": getattr(config, "attention_bias", False),
        "attention_out_bias": getattr(config, "attention_bias", False),
        "attention_probs_dropout_prob": getattr(config, "attention_dropout", 0.0),
        **_windows(config),
    }


def _scaling(given: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    if given is None:
        return None
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise ArtifactError(
            f"{name}: config.json: rope_scaling of the type {kind} is not known here, {' and '.join(SCALINGS)} are"
        )
    return {**given, "rope_type": kind}


def _windows(config: Any) -> dict[str, Any]:
    """Which layers look back on a window alone; a window that holds every text is none."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or (types is None and window >= config.max_position_embeddings):
        return {}
    return {"sliding_window": window, "layer_types": types or [SLIDING] * config.num_hidden_layers}


def _llama(config: Any, name: str) -> dict[str, Any]:
    return _rotary(config, name) | {"ffn_bias": config.mlp_bias}


def _qwen2(config: Any, name: str) -> dict[str, Any]:
    return _rotary(config, name) | {"attention_bias": True, "attention_out_bias": False}


def _qwen3(config: Any, name: str) -> dict[str, Any]:
    return _rotary(config, name) | {"query_key_norm": True}


def _gemma(config: Any, name: str) -> dict[str, Any]:
    return _rotary(config, name) | {"norm_offset": True, "embedding_scale": config.hidden_size**0.5}


def _gemma2(config: Any, name: str) -> dict[str, Any]:
    if getattr(config, "use_bidirectional_attention", False):
        raise ArtifactError(f"{name}: its tokens see what follows them; a decoder's see what goes before")
    return _gemma(config, name) | {
        "post_norms": True,
        "query_scale": config.query_pre_attn_scalar**-0.5,
        "attention_softcap": config.attn_logit_softcapping,
        "logit_softcap": config.final_logit_softcapping,
    }


def _gemma3(config: Any, name: str) -> dict[str, Any]:
    return _gemma2(config, name) | {"query_key_norm": True, "rope_local_theta": config.rope_local_base_freq}


def _gpt2(config: Any, name: str) -> dict[str, Any]:
    if config.scale_attn_by_inverse_layer_idx or config.add_cross_attention:
        raise ArtifactError(
            f"{name}: attention that is scaled by the layer, or crosses to an encoder, is not known here"
        )
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_size": config.n_embd // config.n_head,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "hidden_act": config.activation_function,
        "ffn": "plain",
        "norm": "layer",
        "norm_eps": config.layer_norm_epsilon,
        "position": "learned",
        "max_position_embeddings": config.n_positions,
        "attention_bias": True,
        "attention_out_bias": True,
        "ffn_bias": True,
        "query_scale": None if config.scale_attn_weights else 1.0,
        "hidden_dropout_prob": config.resid_pdrop,
        "attention_probs_dropout_prob": config.attn_pdrop,
    }


FAMILIES: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _rotary,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
"""By ``model_type``, what makes our settings of a family's; SmolLM2 is a Llama."""
