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
    best = charset_normalizer.from_bytes(sample).best() if beyond >= ENOUGH_TO_TELL else None
    for encoding in (best.encoding if best else WESTERN, WESTERN, "latin-1"):
        try:
            text = content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if encoding != WESTERN and _same_in_western(content, text):
            return WESTERN
        return encoding
    return "latin-1"


def _same_in_western(content: bytes, text: str) -> bool:
    try:
        return content.decode(WESTERN) == text
    except UnicodeDecodeError:
        return False
