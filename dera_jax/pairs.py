"""Preference pairs: how often a policy at each strength prefers the chosen completion."""

from collections.abc import Sequence
from dataclasses import dataclass

from dera_jax.data import load_records
from dera_jax.encoding import encode_answer, encode_prompts
from dera_jax.metrics import Estimate, estimate
from dera_jax.policies import Policy
from dera_jax.prompts import Prompt, check_one_turn
from dera_jax.reports import estimate_to_json
from dera_jax.score import Scored, score_tokens
from dera_jax.strengths import Strength, strength_to_json


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt."""

    prompt: Prompt
    chosen: str
    rejected: str


Accuracy = tuple[Strength, Estimate, Estimate | None]


def load_pairs(spec: str, limit: int | None = None) -> list[Pair]:
    """Returns pairs of a data set with `prompt` (or `messages`), `chosen` and `rejected`.

    Raises:
      ValueError: a field is missing or empty, or both completions are the same; with file and line.
    """
    pairs = []
    for record in load_records(spec, limit):
        fields = dict(record.fields)
        texts = []
        for name in ("chosen", "rejected"):
            text = fields.pop(name, None)
            if not isinstance(text, str) or not text:
                raise ValueError(f"{record.where}: expected text in `{name}`, found {text!r:.40}")
            texts.append(text)
        if texts[0] == texts[1]:
            raise ValueError(f"{record.where}: `chosen` and `rejected` are the same")
        pairs.append(Pair(Prompt.of(fields, record.number, record.where), *texts))
    return pairs


def pairwise_accuracy(
    policies: Sequence[Policy], pairs: Sequence[Pair], lambdas: Sequence[Strength], rows: int
) -> list[Accuracy]:
    """Returns for each strength the share of pairs whose chosen completion it prefers.

    Twice: by log π(y|x)/|y| (Eq. 14), and by the implicit reward log π(y|x)/π_ref(y|x), which at
    λ = 0 is 0 for all and so None. Completions are read with EOS. Intervals are over prompts.

    Raises:
      ValueError: a prompt with a completion does not fit a model's context.
    """
    tokenizer = policies[-1].tokenizer
    eos = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    context = min(policy.config.max_positions for policy in policies)
    check_one_turn([pair.prompt for pair in pairs])
    prompts, completions = [], []
    for pair, encoded in zip(pairs, encode_prompts(policies, [p.prompt for p in pairs], 1), strict=True):
        for text in (pair.chosen, pair.rejected):
            prompts.append(encoded.tokens)
            completions.append(encode_answer(policies[-1], encoded, text) + eos)
            if (length := max(map(len, encoded.tokens)) + len(completions[-1])) > context:
                raise ValueError(
                    f"prompt {encoded.id!r}: {length} tokens with a completion do not fit "
                    f"the models' context of {context}"
                )
    scored = list(score_tokens(policies, prompts, completions, lambdas, rows))
    chosen, rejected = scored[::2], scored[1::2]
    groups = [str(pair.prompt.text or pair.prompt.messages) for pair in pairs]
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
