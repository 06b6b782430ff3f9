"""The lexical index, by bm25s; and in which language its words are stemmed."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bm25s
from bm25s import stopwords
from tritonrank_recommend.catalogue.layout import LEXICAL, LexicalFacts
from tritonrank_recommend.catalogue.words import Words

from tritonrank.system.progress import step, track

K1, B = 1.5, 0.75
"""Lucene's b, and between its k1 of 1.2 and the 2 of others; titles are short, so neither matters much."""
METHOD = "lucene"
STOP_WORDS: dict[str, Sequence[str]] = {
    "english": stopwords.STOPWORDS_EN,
    "german": stopwords.STOPWORDS_GERMAN,
    "dutch": stopwords.STOPWORDS_DUTCH,
    "french": stopwords.STOPWORDS_FRENCH,
    "spanish": stopwords.STOPWORDS_SPANISH,
    "portuguese": stopwords.STOPWORDS_PORTUGUESE,
    "italian": stopwords.STOPWORDS_ITALIAN,
    "russian": stopwords.STOPWORDS_RUSSIAN,
    "swedish": stopwords.STOPWORDS_SWEDISH,
    "norwegian": stopwords.STOPWORDS_NORWEGIAN,
    "danish": stopwords.STOPWORDS_DANISH,
    "turkish": stopwords.STOPWORDS_TURKISH,
}
"""By the language of a Snowball stemmer. They tell languages apart and are not left out: \"The Who\" are a band."""
TEXTS_READ = 20_000
FEWEST_SHARE = 0.02
"""Of stop words among all words; titles have few."""
CLEARLY = 1.5


def write_lexical(texts: Sequence[str], queries: Sequence[str], folder: Path) -> LexicalFacts | None:
    """Write the index; None where no text has a word."""
    stemmer = language_of([*texts[:TEXTS_READ], *queries[:TEXTS_READ]])
    words = Words(stemmer)
    tokens = [words(text) for text in track(texts, "words of items")]
    total = sum(map(len, tokens))
    if not total:
        return None
    index = bm25s.BM25(k1=K1, b=B, method=METHOD)
    with step("lexical index"):
        index.index(tokens, create_empty_token=False, show_progress=False)
        index.save(folder / LEXICAL, show_progress=False)
    return LexicalFacts(stemmer=stemmer, k1=K1, b=B, average_tokens=total / len(tokens))


def language_of(texts: Sequence[str]) -> str:
    """The language whose stop words are most frequent; empty where that is not clear."""
    counts = Counter(word for text in texts for word in re.findall(r"\w+", text.lower()))
    total = sum(counts.values())
    shares = sorted(
        ((sum(counts[word] for word in set(known)), language) for language, known in STOP_WORDS.items()), reverse=True
    )
    (most, language), (next_most, _) = shares[:2]
    return language if most >= max(1, FEWEST_SHARE * total) and most >= CLEARLY * next_most else ""
