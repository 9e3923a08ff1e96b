"""Given completions: their log-probabilities under each model and at every strength, in one pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.answers import encode_answer
from dera_jax.batches import Batch, make_batch
from dera_jax.encoding import encode_prompts
from dera_jax.measure import TokenRecord, measure
from dera_jax.policies import Policy
from dera_jax.prompts import as_prompts, check_one_turn
from dera_jax.realign import mix_logits, strength_weights
from dera_jax.sharding import mesh_of, shard_rows
from dera_jax.strengths import Strength, as_strengths


@dataclass(frozen=True)
class Scored:
    """Figures of one given completion, in nats."""

    tokens: list[int]
    model_logprobs: np.ndarray
    """[tokens, models], the reference first."""
    logprobs: np.ndarray
    """[strengths, tokens], of the realigned policies."""
    kl_to_reference: np.ndarray
    """[strengths, tokens], at each position the completion passes."""
    log_normalizers: np.ndarray
    """[strengths, tokens]"""


def score(
    policies: Sequence[Policy],
    prompts: Sequence,
    completions: Sequence[str | Sequence[int]],
    lambdas: object,
    *,
    rows: int = 8,
) -> list[Scored]:
    """Returns the figures of each completion at each of `lambdas`.

    Args:
      policies: of `load_policies`, the reference first.
      prompts: texts or `Prompt`s.
      completions: one for each prompt: a text, which answers a chat through its template, as trainings read
        it but for EOS; or its token ids (with EOS if it should count).
      lambdas: strengths, as `sweep` takes them.
      rows: of a batch; logits take rows × tokens × vocabulary × 4 bytes for each model.

    Raises:
      TypeError: what is no strength.
      ValueError: bad input, or a prompt without a completion.
    """
    asked = as_prompts(prompts)
    strengths = as_strengths(lambdas, len(policies) - 1)
    check_one_turn(asked)
    if isinstance(completions, str) or len(completions) != len(asked):
        found = "a string" if isinstance(completions, str) else len(completions)
        raise ValueError(f"completions: expected one for each of {len(asked)} prompts, found {found}")
    encoded = encode_prompts(policies, asked, max_new_tokens=0)
    tokens = [
        encode_answer(policies[-1], prompt, completion) if isinstance(completion, str) else list(completion)
        for prompt, completion in zip(encoded, completions, strict=True)
    ]
    return list(score_tokens(policies, [prompt.tokens for prompt in encoded], tokens, strengths, rows))


def score_tokens(
    policies: Sequence[Policy],
    prompts: Sequence[Sequence[Sequence[int]]],
    completions: Sequence[Sequence[int]],
    lambdas: Sequence[float | Strength],
    rows: int,
) -> Iterator[Scored]:
    """Yields the figures of each completion; `prompts[i][m]` are the ids that model m reads."""
    weights = strength_weights([x if isinstance(x, tuple) else (x,) for x in lambdas])
    configs = tuple(policy.config for policy in policies)
    params = tuple(policy.params for policy in policies)
    mesh = mesh_of(params[0])
    rows += -rows % mesh.shape["data"] if mesh else 0
    for start in range(0, len(completions), rows):
        part = slice(start, start + rows)
        batches = tuple(
            make_batch([prompt[m] for prompt in prompts[part]], completions[part], rows)
            for m in range(len(policies))
        )
        batches = shard_rows(batches, mesh) if mesh else batches
        record = jax.device_get(score_batch(configs, params, batches, weights))
        for row, ids in enumerate(completions[part]):
            end = len(ids)
            yield Scored(
                tokens=list(ids),
                model_logprobs=record.model_logprobs[0, row, :end],
                logprobs=record.logprob[:, row, :end],
                kl_to_reference=record.kl_to_reference[:, row, :end],
                log_normalizers=record.log_normalizer[:, row, :end],
            )


@partial(jax.jit, static_argnames="configs")
def score_batch(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    batches: Sequence[Batch],
    weights: Float[Array, "strengths models"],
) -> TokenRecord:
    """Returns the figures of every completion token, [strengths, rows, completion].

    Args:
      batches: for each model its own prompts with the same completions.
      weights: of the models, for each strength.
    """
    each = [completion_logits(c, p, b) for c, p, b in zip(configs, params, batches, strict=True)]
    vocab = min(h.shape[-1] for h in each)
    logits = jnp.stack([h[..., :vocab].reshape(-1, vocab) for h in each])
    shape = batches[0].completion_mask.shape
    token = jnp.asarray(batches[0].completions).reshape(-1)

    def at_strength(strength):
        everywhere = jnp.broadcast_to(strength, (token.shape[0], *strength.shape))
        return measure(logits, mix_logits(logits, everywhere), everywhere, token, mixture=True)

    record = jax.lax.map(at_strength, weights)
    return jax.tree.map(lambda a: a.reshape(a.shape[0], *shape, *a.shape[2:]), record)


def completion_logits(
    config: models.ModelConfig, params: PyTree, batch: Batch
) -> Float[Array, "rows completion vocab"]:
    """Returns the logits that each completion token was drawn from."""
    length = batch.completion_mask.shape[1]
    tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.mask)
    starts = () if batch.starts is None else (jnp.asarray(batch.starts),)
    return models.bind(config, params).completion_logits(tokens, mask, length, *starts)


def completion_logprobs(
    config: models.ModelConfig, params: PyTree, batch: Batch
) -> Float[Array, "rows completion"]:
    """Returns log π(token) of each completion token, 0 where there is none. Differentiable."""
    return token_logprobs(completion_logits(config, params, batch), batch)


def token_logprobs(
    logits: Float[Array, "rows completion vocab"], batch: Batch
) -> Float[Array, "rows completion"]:
    """Returns log π(token) of each completion token from the logits it was drawn from."""
    chosen = jnp.take_along_axis(logits, jnp.asarray(batch.completions)[..., None], axis=-1)[..., 0]
    return jnp.where(batch.completion_mask, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
