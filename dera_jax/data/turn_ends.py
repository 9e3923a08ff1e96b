"""What closes the assistant's turn in a chat template: it ends an answer as EOS does, whatever the files call EOS."""

import warnings
from collections.abc import Collection
from functools import cache, lru_cache

from transformers import PreTrainedTokenizerBase

from dera_jax.common.notes import Note
from dera_jax.common.shown import shown
from dera_jax.devices.processes import leads
from dera_jax.policies.chat_templates import render_chat

ANSWER = "AN_ANSWER_THAT_IS_LOOKED_FOR"
"""Stands where an answer stands; no template has it as a word of its own."""
CHAT = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER})


def turn_ends(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> tuple[int, ...]:
    """Returns the ids of the special tokens that a chat template writes directly behind an answer.

    At a chat's end and within one; blanks and line breaks before them do not count.

    Args:
      template: None is the tokenizer's own; where there is none, or it is empty, no token closes a turn.
    """
    try:
        text = template if template == "" else tokenizer.get_chat_template(template)
    except ValueError:
        return ()
    return _turn_ends(tokenizer, text) if text else ()


@lru_cache(maxsize=32)
def _turn_ends(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    ends = set()
    for chat in (CHAT, (*CHAT, CHAT[0])):
        try:
            text = render_chat(tokenizer, chat, template, answer=False)
        except ValueError:  # whoever asks through the template is told
            continue
        behind = text.rpartition(ANSWER)[2].lstrip() if ANSWER in text else ""
        ends.add(max((word for word in special if word and behind.startswith(word)), key=len, default=None))
    return tuple(sorted(special[word] for word in ends - {None}))


def tell(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], name: str) -> None:
    """Notes, once, that tokens which are no EOS of the model `name` end answers."""
    for end in ends:
        _tell(name, tokenizer.convert_ids_to_tokens(end), end)


@cache
def _tell(name: str, word: str, number: int) -> None:
    if leads():
        warnings.warn(
            f"{shown(name, 200)}: {shown(word, 60)} (token {number}) ends answers, since the chat template "
            "closes turns with it; its files do not list it as EOS",
            Note,
            stacklevel=2,
        )
