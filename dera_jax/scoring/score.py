"""Given completions: their log-probabilities under each model and at every strength, in one pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.data.answers import encode_answer
from dera_jax.data.batches import Batch, fed_length, lengths, make_batch
from dera_jax.data.buckets import padded_length
from dera_jax.data.encoding import EncodedPrompt, encode_prompts
from dera_jax.data.prompts import as_prompts, check_one_turn
from dera_jax.decoding.measure import TokenRecord, measure
from dera_jax.devices.mesh import mesh_of, rows_for
from dera_jax.devices.placement import shard_rows
from dera_jax.models.places import map_places
from dera_jax.policies.policy import Policy
from dera_jax.policies.value_heads import check_language_models
from dera_jax.realign import mix_centered, strength_weights
from dera_jax.scoring.logprobs import completion_hidden
from dera_jax.strengths import Strength, as_strengths, format_strength


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
      rows: of a batch; memory grows with rows × tokens, not with these times the vocabulary.

    Raises:
      TypeError: what is no strength.
      ValueError: bad input, a prompt without a completion, or both beyond a model's context; logits that
        are not finite.
    """
    asked = as_prompts(prompts)
    strengths = as_strengths(lambdas, len(policies) - 1)
    check_one_turn(asked)
    if isinstance(completions, str) or len(completions) != len(asked):
        found = "a string" if isinstance(completions, str) else len(completions)
        raise ValueError(f"completions: expected one for each of {len(asked)} prompts, found {found}")
    for number, completion in enumerate(completions):
        if not isinstance(completion, (str, Sequence, np.ndarray)):
            raise TypeError(f"completion {number}: expected a text or token ids, found {completion!r:.60}")
    encoded = encode_prompts(policies, asked, max_new_tokens=0)
    tokens = [
        encode_answer(policies[-1], prompt, completion) if isinstance(completion, str) else list(completion)
        for prompt, completion in zip(encoded, completions, strict=True)
    ]
    for prompt, ids in zip(encoded, tokens, strict=True):
        _check(policies, prompt, ids)
    return list(score_tokens(policies, [prompt.tokens for prompt in encoded], tokens, strengths, rows))


def _check(policies: Sequence[Policy], prompt: EncodedPrompt, completion: Sequence[int]) -> None:
    """Raises ValueError where a completion has no such word, or does not fit a model's context."""
    vocab = min(policy.config.vocab_size for policy in policies)
    if wrong := [token for token in completion if not 0 <= token < vocab]:
        raise ValueError(f"prompt {prompt.id!r}: token {wrong[0]} is none of the {vocab} words of the models")
    for policy, ids in zip(policies, prompt.tokens, strict=True):
        if fed_length(ids, completion) > policy.config.max_positions:
            raise ValueError(
                f"prompt {prompt.id!r}: {len(ids)} tokens and {len(completion)} of its completion do not fit "
                f"the context of {shown(policy.name, 200)} ({policy.config.max_positions} tokens)"
            )


def score_tokens(
    policies: Sequence[Policy],
    prompts: Sequence[Sequence[Sequence[int]]],
    completions: Sequence[Sequence[int]],
    lambdas: Sequence[float | Strength],
    rows: int,
    alike: bool = False,
) -> Iterator[Scored]:
    """Yields the figures of each completion; `prompts[i][m]` are the ids that model m reads.

    Args:
      alike: pad all to one shape, which is compiled once: for completions of about one length.
    """
    check_language_models(policies)
    weights = strength_weights([x if isinstance(x, tuple) else (x,) for x in lambdas])
    configs = tuple(policy.config for policy in policies)
    params = tuple(policy.params for policy in policies)
    mesh = mesh_of(params[0])
    rows = rows_for(mesh, rows)
    shapes = [
        lengths([prompt[m] for prompt in prompts], completions, not config.encoder_decoder, padded_length)
        if alike
        else None
        for m, config in enumerate(configs)
    ]
    for start in range(0, len(completions), rows):
        part = slice(start, start + rows)
        batches = tuple(
            make_batch(
                [prompt[m] for prompt in prompts[part]],
                completions[part],
                rows,
                tight=not config.encoder_decoder,
                bucket=padded_length,
                shape=shapes[m],
            )
            for m, config in enumerate(configs)
        )
        batches = shard_rows(batches, mesh) if mesh else batches
        record = jax.device_get(score_batch(configs, params, batches, weights))
        for row, ids in enumerate(completions[part]):
            end = len(ids)
            scored = Scored(
                tokens=list(ids),
                model_logprobs=record.model_logprobs[0, row, :end],
                logprobs=record.logprob[:, row, :end],
                kl_to_reference=record.kl_to_reference[:, row, :end],
                log_normalizers=record.log_normalizer[:, row, :end],
            )
            _check_finite(scored, start + row, policies, lambdas)
            yield scored


def _check_finite(
    scored: Scored, number: int, policies: Sequence[Policy], lambdas: Sequence[float | Strength]
) -> None:
    """Raises ValueError where the logits of a model, or of a mixture, are not finite."""
    for names, found in (
        ([shown(policy.name, 200) for policy in policies], scored.model_logprobs.T),
        (
            [f"the mixture at λ = {format_strength(x if isinstance(x, tuple) else (x,))}" for x in lambdas],
            scored.logprobs,
        ),
    ):
        if not np.isfinite(found).all():
            which, token = np.argwhere(~np.isfinite(found))[0]
            raise ValueError(
                f"{names[which]}: logits are not finite at token {token + 1} of completion {number}"
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
    vocab = min(config.vocab_size for config in configs)
    hidden = tuple(completion_hidden(c, p, b) for c, p, b in zip(configs, params, batches, strict=True))
    rows, count = batches[0].completion_mask.shape

    def of_places(block):
        hidden, completions = block
        each = [models.bind(c, p).logits(h) for c, p, h in zip(configs, params, hidden, strict=True)]
        logits = jnp.stack([h[..., :vocab].reshape(-1, vocab) for h in each])
        token = completions.ravel()

        def at_strength(strength):
            everywhere = jnp.broadcast_to(strength, (token.shape[0], *strength.shape))
            record = measure(logits, mix_centered(logits, everywhere), everywhere, token, mixture=True)
            return jax.tree.map(lambda a: a.reshape(*completions.shape, *a.shape[1:]), record)

        return jax.lax.map(at_strength, weights)

    return map_places(of_places, (hidden, jnp.asarray(batches[0].completions)), rows * vocab, count)
