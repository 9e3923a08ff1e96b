"""Supervised fine-tuning: a policy learns given completions."""

from collections.abc import Sequence

from jaxtyping import PyTree

from dera_jax.data.batches import Batch, make_batch
from dera_jax.data.examples import Example
from dera_jax.policies.policy import Policy
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import losses, parameters
from dera_jax.training.config import TrainConfig
from dera_jax.training.loop import Method
from dera_jax.training.optimization import Terms
from dera_jax.training.packing import PackedBatch, packed_logprobs, packed_source
from dera_jax.training.supervised import Sampler, Source, supervised


def sft_method(
    policy: Policy,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    held_out: Sequence[Example] = (),
    sample: Sampler | None = None,
    packed_length: int | None = None,
) -> Method:
    """Returns the training of `policy` on completions: L = −Σ log π(yₜ | x, y₍<t₎) / Σ 1.

    Args:
      packed_length: tokens of rows that hold several examples each; None: an example a row.

    Raises:
      ValueError: packed examples for an encoder-decoder.
    """
    if packed_length and policy.config.encoder_decoder:
        raise ValueError(f"{policy.name}: packing expects a decoder-only model")
    start, frozen = parameters.split(policy.params)

    def loss(params: PyTree, given: dict, batch: Batch | PackedBatch) -> Terms:
        params = parameters.whole(policy.config, params, given["frozen"])
        if isinstance(batch, PackedBatch):
            return Terms(losses.sft_loss(packed_logprobs(policy.config, params, batch)), batch.learned)
        return Terms(
            losses.sft_loss(completion_logprobs(policy.config, params, batch)), batch.completion_mask
        )

    return supervised(
        start,
        packed_source(examples, packed_length) if packed_length else source_of(policy, examples),
        loss,
        config,
        held_out=source_of(policy, held_out) if held_out else None,
        sample=sample,
        constants={"frozen": frozen},
    )


def source_of(policy: Policy, examples: Sequence[Example]) -> Source:
    """Returns batches of examples."""
    tight = not policy.config.encoder_decoder

    def make(positions: Sequence[int], rows: int) -> Batch:
        chosen = [examples[i] for i in positions]
        prompts, completions, learned = (
            [getattr(e, name) for e in chosen] for name in ("prompt", "completion", "learned")
        )
        return make_batch(prompts, completions, rows, tight=tight, learned=learned)

    return Source(len(examples), make, [len(e.prompt) + len(e.completion) for e in examples])
