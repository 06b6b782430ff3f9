"""Folders shaped like published rerankers that are language models: their files, with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_decoders import SIZES
from tiny_prompts import gemma, qwen
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

QWEN3_CHAT = """\
{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first \
| default("Given a web search query, retrieve relevant passages that answer the query") -%}
{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer \
can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction }}
<Query>: {{ query }}
<Document>: {{ document }}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
"""A chat template with the roles of sentence-transformers' rerankers; transformers takes one newline from its end."""
KINDS = {
    "Qwen3-Reranker-tiny": (Qwen3Config, qwen, {"head_dim": 16}),
    "mxbai-rerank-base-v2": (Qwen2Config, qwen, {"use_sliding_window": False}),
    "bge-reranker-v2-gemma": (GemmaConfig, gemma, {"head_dim": 8}),
}
"""By a name of the published ones."""


def save_reranker(
    folder: Path, kind: str, *, labels: int = 0, with_modules: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A checkpoint's folder.

    Args:
        folder: to be written; its name counts.
        kind: one of KINDS.
        labels: 0 = a language model, else a class for sequences with so many.
        with_modules: with the files of sentence-transformers, which name prompt and answers.
    """
    config_class, make_tokenizer, own = KINDS[kind]
    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 1_024}
    config = config_class(**sizes | own | {"num_labels": labels or 1, "pad_token_id": tokenizer.pad_token_id})
    torch.manual_seed(7)
    auto = AutoModelForSequenceClassification if labels else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    if with_modules:
        tokenizer.chat_template = QWEN3_CHAT + "\n"
    tokenizer.save_pretrained(folder)
    if with_modules and not labels:
        yes, no = (tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "no"))
        modules = [("", "base.modules.transformer.Transformer"), ("1_LogitScore", "cross_encoder.modules.LogitScore")]
        listed = [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
            for place, (path, kind) in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
        (folder / "1_LogitScore").mkdir()
        answers = {"true_token_id": yes, "false_token_id": no}
        (folder / "1_LogitScore" / "config.json").write_text(json.dumps(answers), encoding="utf-8")
        told = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(told), encoding="utf-8")
    return model, tokenizer
