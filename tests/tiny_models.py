"""Random models of every supported family, each a few hundred kilobytes, with small tokenizers of their own.

Their initial weights are ten times larger than usual, so that the logits of different candidates differ by far more
than rounding does.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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

FAMILIES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
WITH_SEGMENTS = {"bert", "electra"}
VOCABULARY = 400
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
        "bert": (BertForSequenceClassification, BertConfig(**shared | sizes)),
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


def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=ROBERTA_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls=("<s>", 0), add_prefix_space=False)
    return tokenizer


def _unigrams() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=ROBERTA_SPECIALS, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
