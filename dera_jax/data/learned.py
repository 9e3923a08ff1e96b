"""Which tokens of a whole text are learned: every answer of a chat, or the prompt too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dera_jax.common.usable import KEEP_END, KEEP_START, Unusable, keep_usable
from dera_jax.data import fields
from dera_jax.data.answers import ended
from dera_jax.data.examples import Example, Report, encode_examples, encode_record
from dera_jax.data.fields import Row
from dera_jax.data.messages import template_variables
from dera_jax.data.records import Record
from dera_jax.data.tokens import text_ids
from dera_jax.data.turn_ends import turn_ends
from dera_jax.policies.chat_templates import Span, render_answers, render_chat
from dera_jax.policies.policy import Policy

Whole = tuple[list[int], list[bool]]
"""Ids of a whole text, and which of them are learned."""


@dataclass(frozen=True)
class Partly(Example):
    """An example of whose completion some tokens are only read: it begins with what is learned first."""

    learned: tuple[bool, ...] = ()


def encode_learned(
    policy: Policy,
    records: Sequence[Record],
    max_length: int,
    *,
    truncation_mode: str = KEEP_START,
    completion_only: bool | None = None,
    assistant_only: bool = False,
    stop: Sequence[str] = (),
) -> tuple[list[Example], Report]:
    """Returns records as `encode_examples` does, with what is learned chosen as TRL's options choose it.

    Args:
      truncation_mode: where more than completions is learned, whole texts lose their end, or their start.
      completion_only: False learns every token but the first, those of the prompt too; True refuses a `text`;
        None learns completions, and texts as a whole.
      assistant_only: learn every answer of a chat, and not what other roles say; with `prompt` and
        `completion` those of the completion, unless `completion_only` is False.
      stop: as `encode_examples`, of texts.

    Raises:
      ValueError: as `encode_examples`, or an encoder-decoder, whose prompts are not learned.
    """
    if not assistant_only and completion_only is not False:
        text = next(filter(fields.is_text, records), None)
        if completion_only and text:
            raise ValueError(
                f"{text.where}: --completion-only-loss expects `prompt` and `completion`, found a text"
            )
        return encode_examples(policy, records, max_length, truncation_mode=truncation_mode, stop=stop)
    if policy.config.encoder_decoder:
        raise ValueError(
            f"{policy.name}: --assistant-only-loss and --completion-only-loss=false expect a decoder-only model: "
            "what an encoder reads is not learned"
        )

    if assistant_only and stop:
        raise ValueError(
            "--stop: expected texts, found --assistant-only-loss: a chat's template ends its answers"
        )

    def use(record: Record) -> tuple[Example, bool]:
        pair = fields.has_pair(record)
        row = fields.read_pair(record) if pair else fields.read_row(record, every=assistant_only)
        asked: tuple[int, ...] | None = None
        if assistant_only:
            whole = _with_answers(policy, record, row, completion_only is False or not row.completions[0])
        else:
            prompt, (completion, *_) = encode_record(policy, record, row, stop=stop)
            whole = [*prompt, *completion], [True] * (len(prompt) + len(completion))
            asked = prompt if len(prompt) > 1 else None
        ids, learned = _cut(whole, max_length, truncation_mode)
        first = learned.index(True)
        made, rest = (tuple(ids[:first]), tuple(ids[first:])), tuple(learned[first:])
        example = Example(*made, asked=asked) if all(rest) else Partly(*made, learned=rest)
        return example, len(whole[0]) > max_length

    made, dropped = keep_usable(records, use, lambda record: record.where)
    cut, chosen = sum(cut for _, cut in made), sum(map(fields.has_pair, records))
    end = {"shortened": cut} if truncation_mode == KEEP_END else {"cut": cut}
    return [example for example, _ in made], Report(len(made), dropped, chosen=chosen, **end)


def _with_answers(policy: Policy, record: Record, row: Row, prompt_too: bool) -> Whole:
    """Returns what `learn_answers` does, errors with file and line."""
    variables = template_variables(record.fields, record.where, record.settings)
    try:
        ids, learned = learn_answers(policy, row, prompt_too, variables)
    except Unusable:
        raise
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error
    if max(ids) >= policy.config.vocab_size:
        vocab = policy.config.vocab_size
        raise ValueError(f"{record.where}: token {max(ids)} is beyond the {vocab} words of {policy.name}")
    return ids, learned


def learn_answers(policy: Policy, row: Row, prompt_too: bool, variables: Mapping | None = None) -> Whole:
    """Returns a chat up to its last answer, with every answer learned and what other roles say read.

    An answer's end of turn is learned where the template writes a token that ends a completion. Behind the
    last one there is one always, unless the template marks (`{% generation %}`) what is learned.

    Args:
      prompt_too: whether answers in the prompt are learned too.
      variables: what else the template reads.

    Raises:
      Unusable: there is no answer, or no token in it.
      ValueError: no chat, or a chat template that fails.
    """
    if row.prompt is None or isinstance(row.prompt, str):
        raise ValueError("--assistant-only-loss expects chats (`messages`); found a text")
    chat = (*row.prompt, *row.completions[0])
    if all(message["role"] != "assistant" for message in chat):
        raise Unusable("no answer in it")
    text, spans, marked = render_answers(policy.tokenizer, chat, policy.template, variables)
    if not prompt_too:
        border = len(render_chat(policy.tokenizer, row.prompt, policy.template, variables=variables))
        spans = [span for span in spans if span[1] > border]
    ids, parts = _tokens(policy, text, spans)
    learned, end = [False] * len(ids), []
    for start, stop in parts:
        if not marked:
            said = ended(policy, ids[start:stop], turn_ends(policy.tokenizer, policy.template))
            # What a template writes behind the end is never drawn; where it writes no end, one is put last.
            end, stop = list(said[stop - start :]), min(stop, start + len(said))
        learned[start:stop] = [True] * (stop - start)
    if not any(learned):
        raise Unusable("nothing to learn: no tokens")
    last = len(ids) - learned[::-1].index(True)
    return [*ids[:last], *end], learned[:last] + [True] * len(end)


def _cut(whole: Whole, max_length: int, mode: str) -> Whole:
    """Returns at most `max_length` tokens, the first ones, or with keep_end the last.

    Raises:
      Unusable: none of them is learned.
    """
    ids, learned = whole
    kept = slice(-max_length, None) if mode == KEEP_END else slice(max_length)
    ids, learned = ids[kept], [False, *learned[kept][1:]]  # nothing is before the first to foretell it
    if not any(learned):
        which = "last" if mode == KEEP_END else "first"
        raise Unusable(f"nothing to learn in its {which} {max_length} tokens")
    return ids, learned


def _tokens(policy: Policy, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
    """Returns the ids of a chat's text, as `encode_prompt` has them, and the tokens of each span of characters."""
    tokenizer = policy.tokenizer
    ids = text_ids(tokenizer, text, special=False)
    if not tokenizer.is_fast:
        raise ValueError(f"{policy.name}: --assistant-only-loss expects a fast tokenizer, found a slow one")
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    found = []
    for start, end in spans:
        within = [n for n, (a, b) in enumerate(places) if a < b and b > start and a < end]
        if within:
            found.append((within[0], within[-1] + 1))
    # Text that says BOS already, to a tokenizer that says it too.
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids, found = ids[1:], [(max(start - 1, 0), end - 1) for start, end in found]
    return ids, found
