"""Answers as token ids: what a text or a chat has behind its prompt, the same ids wherever they are read."""

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dera_jax.data.encoding import EncodedPrompt, before
from dera_jax.data.fields import count_common
from dera_jax.data.tokens import encode_completion, joined, start_ids, text_ids, written_prompt
from dera_jax.policies.chat_templates import render_chat
from dera_jax.policies.policy import Policy

Said = str | Sequence[Mapping]
"""A raw text, or messages for the chat template."""


def encode_exchange(
    policy: Policy, prompt: Said, answers: Sequence[Said], prefix: str = "", variables: Mapping | None = None
) -> tuple[list[int], list[list[int]]]:
    """Returns the ids of a prompt, and of each of its answers as it continues the prompt.

    An answer of a chat is what the policy's template writes of the whole chat behind the prompt, the ends of
    turns included. Where a template asks for an answer in other words than it writes one (DeepSeek-R1's opens
    `<think>`, which its whole chats do not have), the prompt ends before those words, as TRL has it.

    Args:
      answers: texts to a text, messages to a chat.
      prefix: start of every answer, which is the prompt's end.
      variables: what else the template reads.

    Raises:
      ValueError: a template that refuses the chat, or writes a prompt otherwise once it is answered.
    """
    tokenizer, reader = policy.tokenizer, policy.config.encoder_decoder
    text, chat = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    start, raw = written_prompt(tokenizer, text, chat, prefix, policy.template, variables)
    if chat is None:
        wholes = [prompt + answer for answer in answers]
    elif raw:
        wholes = [joined([*chat, *answer]) for answer in answers]
    else:

        def render(messages: Sequence[Mapping]) -> str:
            return render_chat(tokenizer, messages, policy.template, answer=False, variables=variables)

        wholes = [render([*chat, *each]) for each in answers]
        start = _shared_start(start, wholes, lambda: render(chat))
    # Encoded together with the prompt, so that the space between them is kept.
    ids = start_ids(tokenizer, start, raw=raw, reader=reader)
    return ids, [_behind(policy, ids, start, whole, raw) for whole in wholes]


def _shared_start(start: str, wholes: Sequence[str], asked: Callable[[], str]) -> str:
    """Returns the prompt that all whole chats begin with: without what only asks for an answer.

    Args:
      asked: gives the prompt before what asks.
    """
    shared = start[: min(count_common(start, whole) for whole in wholes)]
    if len(shared) < len(start) and not shared.startswith(asked()):
        raise ValueError(
            "expected a chat template that writes a chat as it writes its prompt, and the answer behind; "
            f"found another text from character {len(shared)} on"
        )
    return shared


def _behind(policy: Policy, prompt: list[int], start: str, whole: str, raw: bool) -> list[int]:
    """Returns the ids of what `whole` has behind its `start`, which the prompt's ids are of."""
    if not policy.config.encoder_decoder:
        ids = start_ids(policy.tokenizer, whole, raw=raw)
        if ids[: len(prompt)] == prompt:
            return ids[len(prompt) :]
    return encode_completion(policy.tokenizer, before(policy, prompt), whole[len(start) :])


def encode_answer(policy: Policy, prompt: EncodedPrompt, text: str) -> list[int]:
    """Returns the ids of a given completion of a prompt, without EOS, as the last model reads it.

    Raises:
      ValueError: it cannot be read; with the prompt's id.
    """
    asked = prompt.prompt
    try:
        if asked.messages is not None and policy.template != "":
            said = _content(
                policy.tokenizer, asked.messages, asked.prefix + text, policy.template, asked.variables
            )
            answer = ({"role": "assistant", "content": said},)
            ids, (completion,) = encode_exchange(
                policy, asked.messages, [answer], asked.prefix, asked.variables
            )
            # Else the template asks in words that it does not write: what follows those is the text itself.
            if tuple(ids) == prompt.tokens[-1]:
                return without_eos(policy, completion, prompt.turn_ends)
        return encode_completion(policy.tokenizer, before(policy, prompt.tokens[-1]), text)
    except ValueError as error:
        raise ValueError(f"prompt {prompt.id!r}: its completion: {error}") from error


def encode_whole(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Said,
    answer: Said,
    *,
    template: str | None = None,
    reader: bool = False,
    has_ended: bool = True,
    variables: Mapping | None = None,
) -> list[int]:
    """Returns the ids of a prompt and its answer as one text, which a reward model reads.

    A chat is what its template writes of it, to the end; a raw text ends with EOS if it `has_ended`.

    Args:
      answer: a text too, that was drawn, where the prompt is a chat; it may go on with its last message.
      reader: whether an encoder reads it.
      variables: what else the template reads.
    """
    if isinstance(prompt, str) or template == "":
        raw = prompt + answer if isinstance(prompt, str) else joined([*prompt, *answer])
        ids, eos = text_ids(tokenizer, raw), tokenizer.eos_token_id
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
        return ids + [eos] if has_ended and eos is not None and ids[-1:] != [eos] else ids
    if isinstance(answer, str):
        # A last message of the assistant is the start of the answer.
        started = prompt[-1]["role"] == "assistant"
        *prompt, start = prompt if started else [*prompt, {"content": ""}]
        said = start["content"] + answer
        answer = [{"role": "assistant", "content": _content(tokenizer, prompt, said, template, variables)}]
    written = render_chat(tokenizer, [*prompt, *answer], template, answer=False, variables=variables)
    return text_ids(tokenizer, written, special=reader)


def _content(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[Mapping],
    text: str,
    template: str | None,
    variables: Mapping | None,
) -> str:
    """Returns a drawn text without the space before its first word where the template writes that itself."""
    if not text.startswith(" ") or not chat:
        return text
    answered = [*chat, {"role": "assistant", "content": text[1:]}]
    start = render_chat(tokenizer, chat, template, variables=variables)
    whole = render_chat(tokenizer, answered, template, answer=False, variables=variables)
    return text[1:] if whole.startswith(start + text) else text


def ended(policy: Policy, completion: Sequence[int], closing: Sequence[int] = ()) -> Sequence[int]:
    """Returns a completion that ends at its first EOS, or where its turn is closed; else with EOS behind it.

    What a template writes behind that (a line break, another EOS) is left out: it is never generated.

    Args:
      closing: what closes turns besides EOS; see `turn_ends`.
    """
    eos = policy.tokenizer.eos_token_id
    ends = {*policy.eos_ids, *closing} | ({eos} - {None})
    if not ends:
        raise ValueError(f"{policy.name}: expected a token that ends a completion, found none")

    def is_last(place: int) -> bool:
        behind = [token for token in completion[place:] if token not in ends]
        return not policy.tokenizer.decode(behind).strip()

    last = next((n for n, token in enumerate(completion) if token in ends and is_last(n)), None)
    if last is not None:
        return completion[: last + 1]
    return [*completion, min(policy.eos_ids or closing) if eos is None else eos]


def without_eos(policy: Policy, completion: Sequence[int], closing: Sequence[int] = ()) -> list[int]:
    """Returns a completion up to where it ends."""
    return list(ended(policy, completion, closing)[:-1])
