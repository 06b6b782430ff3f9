"""Which characters the bytes of a text file mean.

UTF-8 is what everything here expects and what nearly all files are. Excel and old shop systems write UTF-16 or one
byte per character. A file with a few broken bytes among sound UTF-8 is a damaged UTF-8 file, and its broken lines are
faults; a file with none of UTF-8's longer characters was never UTF-8, and what it is gets guessed and said.
"""

import codecs
import re

import charset_normalizer

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGER_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
WESTERN = "cp1252"
CANDIDATES = (
    WESTERN, "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp932", "gb18030", "big5", "cp949"
)  # fmt: skip
"""What Windows writes where people do not choose; there are hundreds more that nobody meets."""
AS_TIDY = 0.05
"""Difference of charset-normalizer's chaos, 0 to 1, that decides nothing."""
GUESSED_LINES = 400
"""Lines with other than ASCII characters that the guess looks at."""
ENOUGH_TO_TELL = 60
"""Bytes beyond ASCII; fewer say nothing about a language, and Western Europe is the likeliest."""


def marked_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes tell: by a byte order mark, or by the zeros of UTF-16 without one."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    pairs = start[: len(start) // 2 * 2][:2000]
    if len(pairs) >= 4:
        if not any(pairs[::2]) and all(pairs[1::2]):
            return "utf-16-be"
        if not any(pairs[1::2]) and all(pairs[::2]):
            return "utf-16-le"
    return None


def guess_encoding(content: bytes) -> str | None:
    """The encoding of bytes that are not UTF-8; None where they are UTF-8 that was damaged."""
    if LONGER_CHARACTER.search(content):
        longer = b"".join(LONGER_CHARACTER.findall(content))
        beyond = sum(len(run) for run in re.findall(rb"[\x80-\xff]+", content))
        if len(longer) * 2 >= beyond:
            return None
    found = re.finditer(rb"[^\n]*[\x80-\xff][^\n]*", content)
    sample = b"\n".join(line[0] for _, line in zip(range(GUESSED_LINES), found, strict=False))
    beyond = sum(len(run) for run in re.findall(rb"[\x80-\xff]+", sample))
    likely = _likeliest(sample) if beyond >= ENOUGH_TO_TELL else WESTERN
    for encoding in (likely, WESTERN):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def _likeliest(sample: bytes) -> str:
    """Western where it reads about as well as the best: French text in cp1250 is no less tidy than in cp1252."""
    matches = charset_normalizer.from_bytes(sample, cp_isolation=list(CANDIDATES))
    best = matches.best()
    if best is None:
        return WESTERN
    western = [match.chaos for match in matches if WESTERN in match.could_be_from_charset]
    return WESTERN if western and min(western) <= best.chaos + AS_TIDY else best.encoding
