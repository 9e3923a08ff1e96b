"""A key that is nowhere shown and nowhere kept: whatever repeats it has it replaced.

Servers repeat what they were sent, in messages, reason phrases, answers; as it was, or as URLs, JSON, HTML,
Base64 and hexadecimal digits write it, in other case, or broken over lines.
"""

import base64
import html
import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

MARK = "…"
"""What stands in the key's place."""
SHORTEST = 6
"""Letters of a key that is a secret: what local servers are given (x, none, EMPTY) are words of any answer."""
_GAP = "[\\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]*"
"""What may stand between the letters of a key that is broken: nothing that a key can have."""


def redactor(key: str) -> Callable[[str], str]:
    """Returns what replaces a key in texts.

    >>> redactor("sk-secret")("Bearer SK-Sec\\n ret, c2stc2VjcmV0, sk%2dsecret, no")
    'Bearer …, …, …, no'
    """
    if len(key) < SHORTEST:
        return lambda text: text
    forms = sorted(set(_forms(key)), key=len, reverse=True)
    pattern = re.compile("|".join(_GAP.join(map(re.escape, form)) for form in forms), re.IGNORECASE)
    return lambda text: pattern.sub(MARK, text)


def _forms(key: str) -> Iterator[str]:
    """Yields the ways in which a key is written."""
    yield key
    yield from (quote(key, safe=""), "".join(map(_percent, key)))
    # Letters may stay as they are while signs are escaped.
    yield "".join(each if each.isalnum() else _percent(each) for each in key)
    yield from (
        json.dumps(key)[1:-1],
        key.replace("/", "\\/"),
        "".join(f"\\u{ord(each):04x}" for each in key),
    )
    yield from (html.escape(key), "".join(f"&#{ord(each)};" for each in key))
    yield "".join(f"{ord(each):02x}" for each in key)
    yield from _base64(key.encode())


def _percent(letter: str) -> str:
    return f"%{ord(letter):02x}"


def _base64(key: bytes) -> Iterator[str]:
    """Yields the part of a Base64 text that is the key's alone, wherever in it the key begins."""
    for shift in range(3):
        letters = base64.b64encode(b"\0" * shift + key).rstrip(b"=").decode()
        # The first and the last letter may hold bits of what stands around the key.
        own = letters[-(-shift * 8 // 6) : (shift + len(key)) * 8 // 6]
        yield from (own, own.replace("+", "-").replace("/", "_"))
