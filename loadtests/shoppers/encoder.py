"""The encoder that simulated rankers start from: the first layers of the packaged MiniLM, and the words of the shop.

A night on two crowded cores has to be a matter of seconds. Two layers and two thousand words are a thirtieth of the
work of MiniLM's training steps (most of its weights are rows of words that no shop says), and what words mean to each
other is still there from pretraining.
"""

import json
import shutil
from itertools import product
from pathlib import Path

from tritonrank.data.storefront import BRANDS, CATEGORIES, COLOURS, LINES
from tritonrank.recipe import PACKAGED_MINILM
from tritonrank.shrink.cut import Kept, cut
from tritonrank.shrink.vocabulary import tokens_to_keep, write_tokenizer
from tritonrank_runtime.text import TOKENIZER_FILE

LAYERS = 2
RESERVE = 500
"""Frequent words that stay beside the shop's, for whatever texts a recipe's template adds."""
OTHER_WORDS = ("price", *(f"{first}{second}" for first, second in product("0123456789", repeat=2)))


def write_encoder(folder: Path, layers: int = LAYERS) -> Path:
    """Write the encoder as a Hugging Face checkpoint folder, unless it is there.

    Args:
        folder: where it goes.
        layers: of MiniLM's six, from below.

    Raises:
        ArtifactError: the packaged MiniLM is not there.
    """
    from tritonrank.rankers.pretrained import load_encoder, load_tokenizer

    if (folder / "config.json").is_file():
        return folder
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    model = load_encoder(PACKAGED_MINILM)
    load_tokenizer(PACKAGED_MINILM).save_pretrained(draft)
    config = model.config
    tokens = tokens_to_keep(json.loads((draft / TOKENIZER_FILE).read_text(encoding="utf-8")), shop_texts(), RESERVE)
    kept = Kept(
        layers=list(range(layers)),
        heads=[list(range(config.num_attention_heads))] * layers,
        neurons=[list(range(config.intermediate_size))] * layers,
        tokens=tokens,
        positions=config.max_position_embeddings,
    )
    cut(model, kept).save_pretrained(draft)
    write_tokenizer(draft, tokens)
    draft.replace(folder)
    return folder


def shop_texts() -> list[str]:
    """Every word that items and searches of the storefront are made of."""
    found = [*BRANDS, *COLOURS, *LINES, *CATEGORIES, *OTHER_WORDS]
    for category in CATEGORIES.values():
        found += [*category.nouns, *category.searches, *(word for group in category.features for word in group)]
    return found
