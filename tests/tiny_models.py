"""Random models of every supported family, each a few hundred kilobytes, with small tokenizers of their own.

Their initial weights are ten times larger than usual, so that the logits of different candidates differ by far more
than rounding does.
"""

import re
from pathlib import Path
from string import ascii_letters

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizerFast,
    ElectraConfig,
    ElectraForSequenceClassification,
    ElectraTokenizerFast,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizerFast,
)
from tritonrank_runtime.joint import JOINT
from tritonrank_runtime.shared_context import SHARED_CONTEXT

FAMILIES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
WITH_SEGMENTS = {"bert", "electra"}
RANKERS = [
    pytest.param(
        (family, architecture),
        id=f"{family}-{architecture}",
        marks=[] if (family, architecture) in (("bert", JOINT), ("roberta", SHARED_CONTEXT)) else [pytest.mark.slow],
    )
    for family in FAMILIES
    for architecture in (JOINT, SHARED_CONTEXT)
]
"""For a fixture: every family in both architectures. Two of them, which differ in all that families differ in, suffice
while one works; the others are slow."""
TEXTS = [
    "Solid oak desk lamp, brass, warm light, reading",
    "Trail running shoe, waterproof, blue, size 42",
    "Cast iron pan, 26 cm, induction, oven safe",
    "Wool blanket, checked, grey and white, 130 x 180",
    "Noise cancelling headphones, over ear, black",
    "Ceramic teapot, green glaze, 1.2 litres",
    "Garden shears, carbon steel, ash handle",
    "The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs",
]


def save_ranker(
    family: str, folder: Path, positions: int = 256, labels: int = 1, *, head: bool = True, **config: object
) -> Path:
    """A random ranker of the family with a tokenizer that fits it, as a Hugging Face checkpoint folder.

    Args:
        family: one of FAMILIES.
        folder: where it goes.
        positions: rows of the position embeddings.
        labels: 1 makes a ranker.
        head: False saves the bare encoder.
        config: further settings of the family's config.
    """
    tokenizer = tiny_tokenizer(family)
    torch.manual_seed(11)
    model = _model(family, len(tokenizer), positions, {"num_labels": labels, **config})
    (model if head else model.base_model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind: WordPiece, byte-level BPE or Unigram, with the family's layout of pairs."""
    if family == "roberta":
        return RobertaTokenizerFast(tokenizer_object=_byte_pairs())
    if family == "xlm-roberta":
        return XLMRobertaTokenizerFast(tokenizer_object=_unigrams())
    kinds = {"bert": BertTokenizerFast, "distilbert": DistilBertTokenizerFast, "electra": ElectraTokenizerFast}
    return kinds[family](tokenizer_object=_word_pieces())


def _model(family: str, vocabulary: int, positions: int, further: dict[str, object]) -> PreTrainedModel:
    shared = {"vocab_size": vocabulary, "max_position_embeddings": positions, "initializer_range": 0.2} | further
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    distil_sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    makers: dict[str, tuple[type[PreTrainedModel], PretrainedConfig]] = {
        "bert": (BertForSequenceClassification, BertConfig(**sizes | shared)),
        "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(**distil_sizes | shared)),
        "electra": (ElectraForSequenceClassification, ElectraConfig(**sizes | shared | {"embedding_size": 16})),
        "roberta": (RobertaForSequenceClassification, RobertaConfig(**sizes | shared | {"type_vocab_size": 1})),
        "xlm-roberta": (
            XLMRobertaForSequenceClassification,
            XLMRobertaConfig(**sizes | shared | {"type_vocab_size": 1}),
        ),
    }
    kind, config = makers[family]
    return kind(config)


# The vocabularies are written down rather than trained: the trainers break ties differently in every process.
WORDS = sorted({word for text in TEXTS for word in re.findall(r"[a-z]+", text.lower())})
CHARACTERS = sorted({character for text in TEXTS for character in text if character != " "} | set(ascii_letters))
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _word_pieces() -> Tokenizer:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = sorted({character.lower() for character in CHARACTERS})
    pieces = [*specials, *characters, *(f"##{character}" for character in characters)]
    pieces += [word for word in WORDS if word not in pieces]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _byte_pairs() -> Tokenizer:
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in WORDS:  # every word becomes one token, letter by letter from the left
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls=("<s>", 0), add_prefix_space=False)
    return tokenizer


def _unigrams() -> Tokenizer:
    scored = [(piece, 0.0) for piece in SPECIALS] + [(character, -9.0) for character in ["▁", *CHARACTERS]]
    scored += [(f"▁{word}", -5.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=SPECIALS.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
