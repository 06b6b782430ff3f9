"""Tokenizers of language models, trained here on a few lines, and the prompts that rerankers were published with.

Each has what decides its tokens: Qwen's pre-tokenizer pattern and NFC over bytes, GPT-2's as SmolLM2 has it, and the
pieces of Gemma (a blank is part of the word behind it, no pre-tokens, unknown characters as bytes).
"""

import functools
import json
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As the tokenizer.json of Qwen2, Qwen2.5 and Qwen3 has it."""
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special."""

QWEN3_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_PREFIX = f"<|im_start|>system\n{QWEN3_SYSTEM}<|im_end|>\n<|im_start|>user\n"
QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
MXBAI_PREFIX = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
MXBAI_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
BGE_TASK = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
CORPUS = [
    QWEN3_PREFIX,
    f"<Instruct>: {QWEN3_INSTRUCTION}\n<Query>: what is it?\n<Document>: it is!\n",
    MXBAI_PREFIX,
    MXBAI_TASK,
    BGE_TASK,
    "A: what is a panda?\nB: The giant panda is a bear.\n",
    "query: red shoes\ndocument: shoes, red (2001)\n",
    "yes no Yes No 0 1",
    "the star wars, episode IV (1977); Alien (1979)",
    'naïve café, 紅色跑鞋. It is "quoted".\n\n',
]


@functools.cache
def _qwen_rust() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _trained_on_bytes(tokenizer, QWEN_SPECIAL, QWEN_ADDED).to_str()


@functools.cache
def _smol_rust() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained_on_bytes(tokenizer, QWEN_SPECIAL, ()).to_str()


def _trained_on_bytes(tokenizer: Tokenizer, special: Sequence[str], added: Sequence[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer


@functools.cache
def _gemma_rust(spans_words: bool) -> str:
    training = Tokenizer(models.BPE())
    training.normalizer = normalizers.Replace(" ", "▁")
    if not spans_words:
        training.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    training.train_from_iterator(CORPUS * 2, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learnt = training.get_vocab()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    names = [*special, *pieces, *sorted(learnt, key=lambda token: learnt[token])]
    merges = json.loads(training.to_str())["model"]["merges"]
    tokenizer = Tokenizer(
        models.BPE(
            {name: place for place, name in enumerate(names)},
            [tuple(merge) for merge in merges],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("\n", "\n\n", "▁▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", names.index("<bos>"))]
    )
    return tokenizer.to_str()


def qwen() -> PreTrainedTokenizerFast:
    """As Qwen2's and Qwen3's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_qwen_rust()), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


def smol() -> PreTrainedTokenizerFast:
    """As SmolLM2's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_smol_rust()), pad_token="<|im_end|>", eos_token="<|im_end|>"
    )


def gemma(spans_words: bool = False) -> PreTrainedTokenizerFast:
    """As Gemma's; ``spans_words`` gives a vocabulary with tokens such as ``A:▁``, which no published one has."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_gemma_rust(spans_words)),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
