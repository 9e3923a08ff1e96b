"""Text from outside, as a terminal, a table or a message may show it.

Names, prompts, answers, manifests and servers' messages may hold escape sequences that clear a screen, set
a title or turn a line around. Whatever comes from outside goes through `shown` before anybody sees it.
"""

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, ESC and CSI among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # those that change the direction of writing
    "\u2028\u2029\ufeff\ud800-\udfff]"  # line ends that are none, byte order marks, halves of surrogate pairs
)


def shown(text: object, width: int | None = None, keep: str = "") -> str:
    r"""Returns text with its unsafe characters as escapes, on one line.

    Args:
      text: anything; what is no string is shown as `str` gives it.
      width: characters to show at most; a longer text loses its middle.
      keep: unsafe characters to leave as they are, such as a line end in a completion.

    >>> shown("\x1b[2Jname\n")
    '\\x1b[2Jname\\n'
    >>> shown("a" * 9, width=5)
    'aa…aa'
    """
    text = str(text)
    if width is not None and len(text) > width:
        head = (width - 1) // 2
        text = f"{text[: width - 1 - head]}…{text[len(text) - head :]}"
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
