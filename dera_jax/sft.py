"""Supervised fine-tuning: a policy learns given completions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import PyTree

from dera_jax.batches import Batch, make_batch, shuffled
from dera_jax.configs import TrainConfig
from dera_jax.data import Record
from dera_jax.encoding import before
from dera_jax.losses import sft_loss
from dera_jax.policies import Policy
from dera_jax.score import completion_logprobs
from dera_jax.tokenizer import encode_completion, encode_prompt
from dera_jax.training import fit


@dataclass(frozen=True)
class Example:
    """What the policy reads, and what it learns to write."""

    prompt: list[int]
    completion: list[int]


def encode_examples(policy: Policy, records: Sequence[Record], max_length: int) -> tuple[list[Example], int]:
    """Returns records as token ids with EOS behind, and how many were cut to `max_length` tokens.

    A record has `prompt` and `completion`, or a whole `text` (a line of a .txt file is one), of
    which every token but the first is learned.

    Raises:
      ValueError: a record without those fields, or with nothing to learn; with file and line.
    """
    examples, cut = [], 0
    eos = [policy.tokenizer.eos_token_id or policy.eos_ids[0]]
    for record in records:
        prompt, completion = _split(policy, record)
        room = max_length - len(prompt)
        if not completion or room < 1:
            raise ValueError(
                f"{record.where}: nothing to learn (prompt {len(prompt)} tokens, completion {len(completion)})"
            )
        cut += len(completion) + 1 > room
        examples.append(Example(prompt, (completion + eos)[:room]))
    return examples, cut


def _split(policy: Policy, record: Record) -> tuple[list[int], list[int]]:
    fields, reader = record.fields, policy.config.start_token is not None
    if isinstance(fields.get("completion"), str) and isinstance(fields.get("prompt"), str):
        prompt = encode_prompt(policy.tokenizer, fields["prompt"], reader=reader)
        return prompt, encode_completion(policy.tokenizer, before(policy, prompt), fields["completion"])
    text = fields.get("text", fields.get("prompt"))
    if not isinstance(text, str) or reader:
        expected = "text in `prompt` and `completion`" + (", or in `text`" if not reader else "")
        raise ValueError(f"{record.where}: expected {expected}; found {', '.join(fields)}")
    ids = encode_prompt(policy.tokenizer, text)
    return ids[:1], ids[1:]


def train_sft(
    policy: Policy, examples: Sequence[Example], config: TrainConfig, out: Path
) -> Iterator[tuple[int, PyTree]]:
    """Trains `policy`, yielding (steps done, parameters); one line a step goes to OUT/metrics.jsonl."""

    def loss(params: PyTree, batch: Batch):
        logprobs = completion_logprobs(policy.config, params, batch)
        return sft_loss(logprobs, batch.completion_mask), {}

    order = shuffled(len(examples), config.batch_size, config.seed)

    def batches(_: PyTree, step: int):
        chosen = [examples[i] for i in order(step)]
        batch = make_batch([e.prompt for e in chosen], [e.completion for e in chosen])
        return batch, {"tokens": int(batch.completion_mask.sum())}

    return fit(policy.params, config, loss, batches, out / "metrics.jsonl")
