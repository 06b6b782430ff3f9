"""Random models of the families that only ``tritonrank up`` serves, and of the forms that a checkpoint can have.

Each is a few hundred kilobytes, saved by the libraries that make such checkpoints: transformers, peft,
sentence-transformers.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_models import save_ranker, tiny_tokenizer
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    DebertaConfig,
    DebertaV2Config,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "num_labels": 1,
}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}


def modernbert_config(vocabulary: int) -> ModernBertConfig:
    """Two layers, one of which looks at its neighbours alone."""
    places = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    local = {"global_attn_every_n_layers": 2, "local_attention": 16, "initializer_cutoff_factor": 2.0}
    return ModernBertConfig(**SIZES | places | local, vocab_size=vocabulary, max_position_embeddings=256)


CONFIGS: dict[str, tuple[str, Callable[[int], PretrainedConfig]]] = {
    "albert": ("bert", lambda size: AlbertConfig(**SIZES, vocab_size=size, embedding_size=16)),
    "mpnet": (
        "xlm-roberta",
        lambda size: MPNetConfig(**SIZES, vocab_size=size, max_position_embeddings=258, pad_token_id=1),
    ),
    "deberta": ("roberta", lambda size: DebertaConfig(**SIZES | DEBERTA, vocab_size=size)),
    "deberta-v2": (
        "bert",
        lambda size: DebertaV2Config(
            **SIZES | DEBERTA, vocab_size=size, position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True
        ),
    ),
    "modernbert": ("bert", modernbert_config),
}
"""Family -> whose tiny tokenizer it gets, and its config for so many tokens."""


def plain_tokenizer(family: str, *, has_segments: bool = False) -> PreTrainedTokenizerFast:
    """A tiny tokenizer that is its tokenizer.json and nothing more."""
    own = tiny_tokenizer(family)
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    special = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
    names_of_inputs = ["input_ids", *(["token_type_ids"] if has_segments else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer, model_input_names=names_of_inputs, model_max_length=256, **special
    )


def save_family(family: str, folder: Path) -> Path:
    """A random one-label ranker of one of ``CONFIGS``."""
    kind, config_of = CONFIGS[family]
    tokenizer = plain_tokenizer(kind, has_segments=family == "albert")
    torch.manual_seed(12)
    config = config_of(len(tokenizer))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_two_labels(folder: Path) -> Path:
    """A yes/no head."""
    return save_ranker("bert", folder, labels=2)


def save_half_in_shards(folder: Path) -> Path:
    """FP16 weights in several files."""
    save_ranker("bert", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


def save_adapter(folder: Path) -> Path:
    """A LoRA adapter with a head of its own, beside the encoder that it belongs to."""
    from peft import LoraConfig, TaskType, get_peft_model

    base = save_ranker("bert", folder / "base", head=False)
    torch.manual_seed(13)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["query", "value"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    told = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps(told | {"base_model_name_or_path": str(base), "inference_mode": True})
    )
    return folder / "adapter"


def save_modular(folder: Path) -> Path:
    """A cross-encoder of sentence-transformers' modules: ModernBERT, pooling, two dense layers."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokenizer = plain_tokenizer("bert")
    torch.manual_seed(14)
    backbone = folder / "backbone"
    ModernBertModel(modernbert_config(len(tokenizer))).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    modules = [
        Transformer(str(backbone)),
        Pooling(32, "mean"),
        Dense(32, 16, activation_function=torch.nn.GELU()),
        Dense(16, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "ranker"))
    return folder / "ranker"


def save_code_of_its_own(folder: Path) -> Path:
    """A ranker whose class lies beside it, as GTE-style models have it."""
    save_ranker("bert", folder)
    (folder / "modeling_own.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n\n\n"
        'class OwnConfig(BertConfig):\n    model_type = "own-ranker"\n\n\n'
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    path = folder / "config.json"
    own = {
        "model_type": "own-ranker",
        "architectures": ["OwnForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
        },
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return folder


def save_pickle(folder: Path) -> Path:
    """A ranker whose weights are a pickle."""
    save_ranker("bert", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder
