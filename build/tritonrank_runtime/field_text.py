"""What one field of an item says, as text: numbers as people write them, text without its HTML.

Part of ``item_text``: preparing data and serving both come here, so that a model is asked about what it has learnt.
"""

import html
import math
import re
from decimal import Decimal

LARGEST_WHOLE = 1e15
"""Beyond it a float is no exact whole number any more."""
# Tags of HTML alone: a < b and List<int> are no markup. Those of BLOCKS part words, the others stand within them.
_BLOCKS = (
    "address|article|aside|blockquote|body|br|button|center|dd|details|div|dl|dt|figcaption|figure|footer|form|h[1-6]|"
    "head|header|hr|html|iframe|img|input|li|link|main|meta|nav|ol|option|p|picture|pre|script|section|select|source|"
    "style|summary|table|tbody|td|tfoot|th|thead|title|tr|ul|video"
)
_INLINE = "a|abbr|b|big|cite|code|del|em|font|i|ins|label|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_TAG = re.compile(rf"</?(?:(?P<block>{_BLOCKS})|(?:{_INLINE}))(?=[\s/>])[^<>]*>|<!--[^<>]*-->", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")


def field_text(value: str | int | float) -> str:
    """A value of a field as text.

    Whole floats have no fraction (12.0 is ``12``), small ones no exponent (1e-05 is ``0.00001``), booleans are ``true``
    and ``false``; NaN and infinity say nothing.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number_text(value)
    return plain_text(value) if isinstance(value, str) else str(value)


def number_text(value: float) -> str:
    """A float as people write it; nothing where it is none."""
    if not math.isfinite(value):
        return ""
    if value == int(value) and abs(value) < LARGEST_WHOLE:
        return str(int(value))
    return format(Decimal(repr(value)), "f")


def plain_text(text: str) -> str:
    """A text without HTML: tags are taken out, then entities decoded; anything else stays as it is."""
    if "<" in text:
        text = _TAG.sub(lambda tag: " " if tag["block"] else "", text)
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text
