"""Training data as token ids: examples to imitate and pairs to prefer, and what became of the records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from dera_jax.common.usable import KEEP_END, KEEP_START, Dropped, Unusable, keep_usable
from dera_jax.data import fields
from dera_jax.data.answers import Said, encode_exchange, encode_whole, ended
from dera_jax.data.fields import Row
from dera_jax.data.messages import template_variables
from dera_jax.data.records import Record
from dera_jax.data.tokens import encode_prompt
from dera_jax.data.turn_ends import turn_ends
from dera_jax.policies.policy import Policy

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """What the policy reads, and what it learns to write."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """With EOS at its end, unless it was cut."""
    desirable: bool | None = None
    """Whether to write it or not; None where that is not told."""
    # Not in its `repr`, by which trainings know their data.
    asked: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    """The whole prompt, where it is learned too and `prompt` is but its first token."""
    learned: ClassVar[tuple[bool, ...] | None] = None
    """Which tokens of the completion are learned; None is all of them."""


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt, one of them preferred; with EOS at their ends, unless they were cut."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float = 0.0
    """By how much chosen is better, in reward."""
    asked: ClassVar[tuple[int, ...] | None] = None


@dataclass(frozen=True)
class Report:
    """What became of the records."""

    used: int
    """Examples, or pairs."""
    dropped: Dropped = field(default_factory=Dropped)
    """Records that were left out."""
    cut: int = 0
    """Completions that lost their end, and EOS with it."""
    chosen: int = 0
    """Of the examples: those that are the better answer of a pair, whose other one is not used."""
    shortened: int = 0
    """Prompts that lost their start."""

    def told(self, source: str) -> str:
        """Returns one line for the user: a warning where many records were dropped.

        >>> print(Report(40, Dropped({"text is empty": 2}, {"text is empty": "d:3"}), 1).told("d"))
        d: 40 used; 2 records dropped (2 text is empty, the first d:3); 1 completion cut
        """
        of_pairs = f" ({self.chosen} the chosen completion of a pair)" if self.chosen else ""
        cut, shortened = f"; {self.cut} completion{'s' * (self.cut != 1)} cut", self.shortened
        start = f"; {shortened} prompt{'s' * (shortened != 1)} without their start" if shortened else ""
        return self.dropped.told(source, self.used, of_pairs) + cut + start


class _Encoded(NamedTuple):
    record: Record
    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    cut: int
    """Completions that lost their end."""
    shortened: bool
    """Whether the prompt lost its start."""


def encode_examples(
    policy: Policy,
    records: Sequence[Record],
    max_length: int,
    *,
    labelled: bool = False,
    truncation_mode: str = KEEP_START,
    stop: Sequence[str] = (),
) -> tuple[list[Example], Report]:
    """Returns records as examples of at most `max_length` tokens, prompt and completion together.

    A record has `prompt` and `completion`, texts or lists of messages; `messages`; or a whole `text` (a
    line of a .txt file is one), of which every token but the first is learned. Of a pair (see
    `encode_pairs`) it is the chosen completion.

    Args:
      labelled: whether to ask for a `label` besides, true or false. A pair is two examples then.
      truncation_mode: what is kept of more than `max_length` tokens, as TRL names it. `keep_start`: the
        completion loses its end, and a prompt that leaves it no room is dropped. `keep_end`: the prompt
        loses its start.
      stop: texts at which completions end as at EOS; one that ends with such a text gets no EOS behind it.

    Raises:
      ValueError: a record without those fields, with file and line; or no record can be used.
    """

    def read(record: Record) -> Row:
        if not fields.has_pair(record, labelled=labelled):
            return fields.read_row(record)
        prompt, completions = fields.read_pair(record)
        return Row(prompt, completions if labelled else completions[:1])

    encoded, report = _encode_all(policy, records, max_length, read, truncation_mode, stop=stop)
    examples = [
        Example(e.prompt, completion, label)
        for e in encoded
        for completion, label in zip(e.completions, _labels(e, labelled), strict=True)
    ]
    chosen = 0 if labelled else sum(fields.has_pair(e.record) for e in encoded)
    return examples, replace(report, used=len(examples), chosen=chosen)


def encode_pairs(
    policy: Policy,
    records: Sequence[Record],
    max_length: int,
    *,
    truncation_mode: str = KEEP_START,
    whole: bool = False,
    stop: Sequence[str] = (),
) -> tuple[list[Pair], Report]:
    """Returns records as pairs of at most `max_length` tokens, prompt and each completion together.

    A record has `prompt`, `chosen` and `rejected`, texts or lists of messages; or the last two, both with
    the prompt, as in Anthropic's transcripts; and optionally `margin`, or `score_chosen` and
    `score_rejected`.

    Both completions have the same prompt: with `keep_end` it leaves room for the longer one.

    Args:
      whole: whether prompt and completion are one text, as reward models read it (see `encode_whole`).
      stop: as `encode_examples`; in a whole text a completion loses its stop text, as rewards are handed it.

    Raises:
      ValueError: as `encode_examples`.
    """
    encoded, report = _encode_all(policy, records, max_length, fields.read_pair, truncation_mode, whole, stop)
    pairs = []
    for each in encoded:
        chosen, rejected = each.completions
        pairs.append(Pair(each.prompt, chosen, rejected, fields.read_margin(each.record)))
    return pairs, report


def _labels(encoded: _Encoded, labelled: bool) -> tuple[bool | None, ...]:
    if not labelled:
        return (None,)
    return (True, False) if len(encoded.completions) == 2 else (fields.read_label(encoded.record),)


def _encode_all(
    policy: Policy,
    records: Sequence[Record],
    max_length: int,
    read: Callable[[Record], Row],
    mode: str,
    whole: bool = False,
    stop: Sequence[str] = (),
) -> tuple[list[_Encoded], Report]:
    """Returns the records that can be used, and the report of all."""

    def use(record: Record) -> _Encoded:
        return _fit(record, *encode_record(policy, record, read(record), whole, stop), max_length, mode)

    encoded, dropped = keep_usable(records, use, lambda record: record.where)
    cut, shortened = sum(e.cut for e in encoded), sum(e.shortened for e in encoded)
    return encoded, Report(len(encoded), dropped, cut, shortened=shortened)


def _fit(record: Record, prompt: Ids, completions: tuple[Ids, ...], max_length: int, mode: str) -> _Encoded:
    """Returns prompt and completions of at most `max_length` tokens together.

    Raises:
      Unusable: the prompt leaves no room, or the completions differ beyond their room only.
    """
    whole = len(prompt)
    if mode == KEEP_END:
        prompt = prompt[-max(1, max_length - max(map(len, completions))) :]
    room = max_length - len(prompt)
    if room < 1:
        raise Unusable(f"prompt of {max_length} tokens or more")
    kept = tuple(completion[:room] for completion in completions)
    if len(kept) == 2 and kept[0] == kept[1]:
        raise Unusable(f"{fields.EQUAL} in their first {max_length} tokens")
    return _Encoded(record, prompt, kept, sum(len(c) > room for c in completions), len(prompt) < whole)


def encode_record(
    policy: Policy, record: Record, row: Row, whole: bool = False, stop: Sequence[str] = ()
) -> tuple[Ids, tuple[Ids, ...]]:
    """Returns a record's prompt and completions as ids, EOS behind, as the policy reads and writes them.

    Args:
      whole: whether each completion is one text with the prompt, as `encode_pairs` has it.
      stop: texts at which completions end, as `encode_pairs` has it.

    Raises:
      Unusable: a completion has no tokens.
      ValueError: a chat template that fails, a word the model does not have, or a chat that is to end at a
        text; with file and line.
    """
    if stop and not isinstance(row.prompt, str | None):
        raise ValueError(
            f"{record.where}: --stop: expected texts, found a chat, whose template ends its answers"
        )
    is_text = isinstance(row.prompt, str)
    variables = {} if is_text else template_variables(record.fields, record.where, record.settings)
    try:
        prompt, completions = (_whole_ids if whole else _ids)(policy, row, variables, tuple(stop))
    except Unusable:
        raise
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error
    if not all(completions):
        raise Unusable("nothing to learn: no tokens")
    highest, vocab = max(map(max, ([0, *prompt], *completions))), policy.config.vocab_size
    if highest >= vocab:
        raise ValueError(f"{record.where}: token {highest} is beyond the {vocab} words of {policy.name}")
    return tuple(prompt), tuple(map(tuple, completions))


def _ids(
    policy: Policy, row: Row, variables: dict, stop: tuple[str, ...]
) -> tuple[list[int], list[Sequence[int]]]:
    has_stopped = [isinstance(said, str) and said.endswith(stop) for said in row.completions]
    if row.prompt is not None:
        prompt, completions = encode_exchange(policy, row.prompt, row.completions, variables=variables)
        closing = () if isinstance(row.prompt, str) else turn_ends(policy.tokenizer, policy.template)
        found = zip(completions, has_stopped, strict=True)
        return prompt, [ids if stopped or not ids else ended(policy, ids, closing) for ids, stopped in found]
    if policy.config.encoder_decoder:
        raise ValueError("expected text in `prompt` and `completion`, as an encoder reads; found a text")
    ids = encode_prompt(policy.tokenizer, row.completions[0])
    return ids[:1], [ids[1:] if has_stopped[0] or not ids[1:] else ended(policy, ids[1:])]


def _whole_ids(
    policy: Policy, row: Row, variables: dict, stop: tuple[str, ...]
) -> tuple[list[int], list[list[int]]]:
    """Returns whole texts, cut where they leave their prompt: a token may span its end."""
    tokenizer, reader = policy.tokenizer, policy.config.encoder_decoder
    text, chat = (row.prompt, None) if isinstance(row.prompt, str) else (None, row.prompt)
    prompt = encode_prompt(tokenizer, text, chat, template=policy.template, variables=variables)

    def read(said: Said) -> list[int]:
        text = said if isinstance(said, str) else ""
        last = max(filter(text.endswith, stop), key=len, default="")
        return encode_whole(
            tokenizer,
            row.prompt,
            text.removesuffix(last) if last else said,
            template=policy.template,
            reader=reader,
            has_ended=not last,
            variables=variables,
        )

    wholes = [read(said) for said in row.completions]
    end = min(fields.count_common(prompt, whole) for whole in wholes)
    return prompt[:end], [whole[end:] for whole in wholes]
