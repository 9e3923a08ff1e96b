"""Preference pairs: how often a policy at each strength prefers the chosen completion."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dera_jax.analysis.estimates import Estimate, estimate, estimate_to_json
from dera_jax.common.usable import Dropped, Unusable, keep_usable
from dera_jax.data.batches import fed_length
from dera_jax.data.examples import Ids, encode_record
from dera_jax.data.fields import Chat, Row, read_pair
from dera_jax.data.instructions import instructed
from dera_jax.data.prompts import read_contrast
from dera_jax.data.records import Record, load_records
from dera_jax.policies.policy import Policy
from dera_jax.scoring.score import Scored, score_tokens
from dera_jax.strengths import Strength, strength_to_json

Accuracy = tuple[Strength, Estimate, Estimate | None]


class Pair(NamedTuple):
    """A prompt and its chosen and rejected completion, as read."""

    record: Record
    row: Row
    contrast: str | Chat | None = None
    """What the reference reads in place of the prompt."""


class EncodedPair(NamedTuple):
    """A pair as ids."""

    group: str
    """The prompt, which intervals are over."""
    prompts: tuple[Ids, ...]
    """As each model reads it."""
    completions: tuple[Ids, ...]
    """The chosen and the rejected one, with their ends: EOS, or a stop text."""


def load_pairs(
    spec: str, limit: int | None = None, settings: Mapping | None = None
) -> tuple[list[Pair], Dropped]:
    """Returns the pairs of a data set that trainings read too, and what became of the other records.

    Args:
      settings: of the chat template, for records that do not say otherwise.

    Raises:
      ValueError: a field is missing or of the wrong kind, with file and line; or no pair can be used.
    """
    records = load_records(spec, limit, settings)
    return keep_usable(records, _pair, lambda r: r.where)


def _pair(record: Record) -> Pair:
    """Returns what a record gives; its contrast is held to what prompts' are."""
    asked = _asked(record)
    row, contrast = read_pair(asked), record.fields.get("contrast")
    if contrast is None:
        return Pair(record, row)
    read = read_contrast(contrast, record.where)
    if isinstance(read, str) != isinstance(row.prompt, str):
        expected, found = ("a text", "messages")[:: 1 if isinstance(row.prompt, str) else -1]
        raise ValueError(f"{record.where}: contrast: expected {expected}, as the prompt, found {found}")
    return Pair(record, row, read + (record.fields.get("prefix") or "") if isinstance(read, str) else read)


def _asked(record: Record) -> Record:
    """Returns a record with its prompt in `prompt`: texts may answer `messages`, and follow a `prefix`."""
    fields = dict(record.fields)
    if isinstance(fields.get("chosen"), str) and fields.get("prompt") is None and fields.get("messages"):
        fields["prompt"] = fields["messages"]
    if prefix := fields.get("prefix"):
        if not isinstance(prefix, str) or not isinstance(fields.get("prompt"), str):
            raise ValueError(f"{record.where}: prefix: expected a text behind a `prompt` that is one")
        fields["prompt"] += prefix
    return replace(record, fields=fields)


def encode_pairs(
    policies: Sequence[Policy], pairs: Sequence[Pair], stop: Sequence[str] = ()
) -> tuple[list[EncodedPair], Dropped]:
    """Returns pairs as ids, as trainings of the models would read them, and what became of the others.

    Args:
      stop: texts at which completions end; one that ends with such a text gets no EOS behind it.

    Raises:
      ValueError: a chat template refuses a chat; or no pair can be used.
    """
    templated = next((p for p in reversed(policies) if p.tokenizer.chat_template), policies[-1])
    readers = [p if p.template is not None else replace(p, tokenizer=templated.tokenizer) for p in policies]
    context = min(policy.config.max_positions for policy in policies)

    def encode(pair: Pair) -> EncodedPair:
        each = [encode_record(reader, pair.record, _as_read(reader, pair), stop=stop) for reader in readers]
        prompts, completions = tuple(prompt for prompt, _ in each), each[-1][1]
        longest = max(prompts, key=len), max(completions, key=len)
        if fed_length(*longest) > context:
            length = sum(map(len, longest))
            detail = f"{length} tokens with a completion do not fit the models' context of {context}"
            raise Unusable("pair too long", detail)
        return EncodedPair(str(pair.row.prompt), prompts, completions)

    return keep_usable(pairs, encode, lambda pair: pair.record.where)


def _as_read(policy: Policy, pair: Pair) -> Row:
    """Returns a pair as a model reads it: with its instruction, a reference with the contrast."""
    said = pair.row.prompt if pair.contrast is None or not policy.reads_contrast else pair.contrast
    text, chat = (said, None) if isinstance(said, str) else (None, said)
    text, chat = instructed(policy.instruction, text, chat)
    return pair.row._replace(prompt=text if chat is None else chat)


def pairwise_accuracy(
    policies: Sequence[Policy], pairs: Sequence[EncodedPair], lambdas: Sequence[Strength], rows: int
) -> list[Accuracy]:
    """Returns for each strength the share of pairs whose chosen completion it prefers.

    Twice: by log π(y|x)/|y| (Eq. 14), and by the implicit reward log π(y|x)/π_ref(y|x), which at
    λ = 0 is 0 for all and so None. Completions are read with their ends. Intervals are over prompts.
    """
    prompts = [pair.prompts for pair in pairs for _ in pair.completions]
    completions = [completion for pair in pairs for completion in pair.completions]
    scored = list(score_tokens(policies, prompts, completions, lambdas, rows))
    chosen, rejected = scored[::2], scored[1::2]
    groups = [pair.group for pair in pairs]
    table: list[Accuracy] = []
    for number, strength in enumerate(lambdas):
        mean = _wins(chosen, rejected, lambda s, i=number: s.logprobs[i].mean())
        ratio = _wins(chosen, rejected, lambda s, i=number: (s.logprobs[i] - s.model_logprobs[:, 0]).sum())
        implicit = estimate(ratio, groups) if any(strength) else None
        table.append((strength, estimate(mean, groups), implicit))
    return table


def _wins(chosen: Sequence[Scored], rejected: Sequence[Scored], value) -> list[float]:
    return [float(value(c) > value(r)) for c, r in zip(chosen, rejected, strict=True)]


def as_json(table: Sequence[Accuracy]) -> list[dict]:
    """Returns the table for a file."""
    return [
        {
            "lambda": strength_to_json(strength),
            "accuracy": estimate_to_json(accuracy),
            "implicit_reward_accuracy": implicit and estimate_to_json(implicit),
        }
        for strength, accuracy, implicit in table
    ]
