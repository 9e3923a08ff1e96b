"""Texts in columns, side by side, as wide as the terminal."""

import textwrap
from collections.abc import Mapping
from itertools import zip_longest

NARROWEST, WIDEST = 28, 1000
"""Columns of text narrower than this are not read with pleasure; no terminal is wider."""


def side_by_side(texts: Mapping[str, str], width: int, notes: Mapping[str, str] | None = None) -> str:
    """Returns titled texts in as many columns as fit into `width` characters, the rest below.

    Args:
      notes: what stands under a text, by its title.
    """
    notes, width = notes or {}, min(width, WIDEST)
    per_row = max(1, min(len(texts), (width + 3) // (NARROWEST + 3)))
    column = (width - 3 * (per_row - 1)) // per_row
    titles = list(texts)
    blocks = []
    for start in range(0, len(titles), per_row):
        names = titles[start : start + per_row]
        wrapped = [_wrap(texts[name], column) for name in names]
        height = max(map(len, wrapped))
        lines = [
            [name, "─" * column, *body, *[""] * (height - len(body)), *_wrap(notes.get(name, ""), column)]
            for name, body in zip(names, wrapped, strict=True)
        ]
        blocks.append(
            "\n".join(
                " │ ".join(cell.ljust(column) for cell in row).rstrip()
                for row in zip_longest(*lines, fillvalue="")
            )
        )
    return "\n\n".join(blocks) + "\n"


def _wrap(text: str, width: int) -> list[str]:
    # A model may draw any character, those that steer a terminal too.
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    paragraphs = text.strip().split("\n")
    return [line for paragraph in paragraphs for line in textwrap.wrap(paragraph, width) or [""]]
