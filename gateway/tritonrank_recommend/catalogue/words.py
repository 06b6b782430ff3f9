"""A text becomes tokens, in any language: words where there are blanks, pairs of characters where there are none."""

import re
import threading
import unicodedata

from tritonrank_runtime.images import without_images

# Scripts that are written without blanks between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff"
)
# Vowels of Indic scripts, points of Hebrew and Arabic: parts of a word, which \w does not count as such.
_MARKS = "".join(chr(code) for code in range(0x300, 0xE00) if unicodedata.category(chr(code)).startswith("M"))
_TOKEN = re.compile(rf"[{_UNSPACED}]+|(?:[^\W{_UNSPACED}]|[{_MARKS}])+")
_JOINERS = re.compile("[\u200c\u200d]")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
MOST_TOKENS = 512
"""Of one text."""


class Words:
    """Cuts texts into tokens.

    Args:
        stemmer: language of a Snowball stemmer such as ``english``; empty for none.

    Raises:
        KeyError: there is no stemmer of that language.
    """

    def __init__(self, stemmer: str = "") -> None:
        self._language = stemmer
        self._local = threading.local()
        self._stem([])

    def __call__(self, text: str) -> list[str]:
        """Tokens in their order, without marks, in one case, stemmed."""
        tokens: list[str] = []
        for token in _TOKEN.findall(_plain(without_images(text))):
            if not _IS_UNSPACED.match(token) or len(token) == 1:
                tokens.append(token)
            else:  # as Lucene's CJKAnalyzer does
                tokens += [token[place : place + 2] for place in range(len(token) - 1)]
        return self._stem(tokens[:MOST_TOKENS])

    def _stem(self, tokens: list[str]) -> list[str]:
        if not self._language:
            return tokens
        stemmer = getattr(self._local, "stemmer", None)  # a stemmer is not for two threads at once
        if stemmer is None:
            import Stemmer

            stemmer = self._local.stemmer = Stemmer.Stemmer(self._language)
        stems: list[str] = stemmer.stemWords(tokens)
        return stems


def _plain(text: str) -> str:
    """One way to write each character; accents of Latin and Greek letters go, since few people type them."""
    if text.isascii():
        return text.lower()
    parts = []
    for character in unicodedata.normalize("NFKC", _JOINERS.sub("", text)).casefold():
        whole = unicodedata.normalize("NFD", character)
        parts.append(whole[0] if len(whole) > 1 and whole[0].isalpha() and ord(whole[0]) < 0x400 else character)
    return "".join(parts)
