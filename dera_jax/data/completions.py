"""Prompts with given completions, from records: the completion as a text, or as the token ids that were drawn."""

from collections.abc import Sequence
from dataclasses import replace

from dera_jax.common.usable import Unusable
from dera_jax.data.answers import encode_answer
from dera_jax.data.encoding import EncodedPrompt, before, encode_turn
from dera_jax.data.prompts import Prompt
from dera_jax.data.records import Record, json_kind
from dera_jax.data.tokens import decode_completion
from dera_jax.policies.policy import Policy


def read_completion(policies: Sequence[Policy], record: Record) -> tuple[EncodedPrompt, list[int]]:
    """Returns what the models read of a record's prompt, and the ids of its completion.

    Raises:
      ValueError: a field is missing or of the wrong kind, tokens that are none or no tokens of the completion beside
        them, or a text that its tokens do not give back; with file and line.
    """
    prompt = Prompt.of(record.fields, record.number, record.where)
    if prompt.num_turns > 1:
        raise ValueError(f"{record.where}: expected one turn, found {prompt.num_turns}")
    text, tokens = (prompt.columns.get(name) for name in ("completion", "tokens"))
    # Ids may be there twice: one prompt has several completions.
    prompt = replace(prompt, prompt_id=record.number)
    try:
        encoded = encode_turn(policies, prompt, (), max_new_tokens=0)
    except Unusable as why:
        raise ValueError(f"{record.where}: {why}") from None
    if tokens is None:
        return encoded, _encoded(policies[-1], encoded, text, record.where)
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError(f"{record.where}: tokens: expected a list of token ids")
    if isinstance(text, str) and text.strip() not in _text(policies[-1], encoded, tokens):
        raise ValueError(f"{record.where}: tokens: the tokenizer reads them otherwise than `completion`")
    return encoded, tokens


def _encoded(policy: Policy, prompt: EncodedPrompt, text: object, where: str) -> list[int]:
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: completion: expected a string, or ids in `tokens`, found {json_kind(text)}"
        )
    tokens = encode_answer(policy, prompt, text)
    if _text(policy, prompt, tokens).strip() != text.strip():
        raise ValueError(
            f"{where}: completion: its tokens are another text to the tokenizer; expected `tokens`"
        )
    return tokens


def _text(policy: Policy, prompt: EncodedPrompt, tokens: Sequence[int]) -> str:
    known = policy.config.vocab_size
    if wrong := [token for token in tokens if token >= known]:
        raise ValueError(f"token {wrong[0]} is none of the {known} words of the models")
    return decode_completion(policy.tokenizer, before(policy, prompt.tokens[-1]), tokens)
