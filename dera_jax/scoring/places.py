"""Where given tokens were drawn: both models' logits there, a block of places at a time.

Kept is what the heads read, not what they make of it: of 20 000 tokens of a model of 576 units and 49 152 words
that is 46 MB, not 4 GB.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dera_jax import models
from dera_jax.common.shown import shown
from dera_jax.data.batches import Batch, fed_length, make_batch
from dera_jax.data.buckets import bucket_length, padded_length
from dera_jax.devices.mesh import mesh_of, rows_for
from dera_jax.devices.placement import shard_rows
from dera_jax.policies.policy import Policy
from dera_jax.policies.value_heads import check_language_models
from dera_jax.scoring.logprobs import completion_hidden

LOGITS = 2**22
"""Of one model, in a block of places."""


class Block(NamedTuple):
    """Some places, in one of few shapes."""

    logits: Float[Array | np.ndarray, "models places vocab"]
    tokens: Int[np.ndarray, " places"]
    there: Bool[np.ndarray, " places"]
    """False where the block is filled up."""
    part: slice
    """Which of all places they are."""


@dataclass(frozen=True)
class Places:
    """Where tokens were drawn, and which."""

    given: tuple[np.ndarray, ...]
    """Of each model, what `heads` reads: [places, …]."""
    heads: Callable[[tuple[np.ndarray, ...]], Array]
    """Gives the logits [models, places, vocab] of some of `given`."""
    tokens: Int[np.ndarray, " places"]
    groups: Int[np.ndarray, " places"]
    """What is drawn together: of each place its prompt's number, or its completion's."""
    vocab: int

    def __len__(self) -> int:
        return len(self.tokens)

    def blocks(self) -> Iterator[Block]:
        """Yields all places, some at a time."""
        size = min(1 << max(LOGITS // self.vocab, 1).bit_length() - 1, bucket_length(len(self)))
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            fill = size - (part.stop - part.start)
            given = tuple(_filled(each[part], fill) for each in self.given)
            there = np.arange(size) < size - fill
            yield Block(self.heads(given), _filled(self.tokens[part], fill), there, part)


def _filled(values: np.ndarray, fill: int) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[:1], fill, axis=0)]) if fill else values


def given_logits(
    logits: Float[np.ndarray, "models places vocab"],
    tokens: Int[np.ndarray, " places"],
    groups: Int[np.ndarray, " places"],
) -> Places:
    """Returns places whose logits are there."""
    return Places(tuple(logits), jnp.stack, tokens, groups, logits.shape[-1])


def read_places(
    policies: Sequence[Policy],
    prompts: Sequence[Sequence[Sequence[int]]],
    completions: Sequence[Sequence[int]],
    groups: Sequence[int],
    rows: int,
    tell: Callable[[int], None] = lambda count: None,
) -> Places:
    """Returns the places of all tokens of completions; `prompts[i][m]` are the ids that model m reads.

    Args:
      groups: of each completion, see `Places`.
      rows: of a batch.
      tell: hears how many completions have been read, batch by batch.

    Raises:
      ValueError: a word that the models lack, a completion beyond a context, or what heads read is not finite.
    """
    check_language_models(policies)
    configs, params = (tuple(getattr(policy, name) for policy in policies) for name in ("config", "params"))
    vocab = min(config.vocab_size for config in configs)
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        _check(policies, vocab, number, prompt, completion)
    mesh = mesh_of(params[0])
    rows = rows_for(mesh, rows)
    # Of about one length together: the longest of a batch decides its shape.
    order = sorted(range(len(completions)), key=lambda number: len(completions[number]))
    found: list[tuple[np.ndarray, ...]] = []
    for start in range(0, len(order), rows):
        numbers = order[start : start + rows]
        each = [completions[number] for number in numbers]
        batches = tuple(
            make_batch(
                [prompts[n][m] for n in numbers],
                each,
                rows,
                tight=not config.encoder_decoder,
                bucket=padded_length,
            )
            for m, config in enumerate(configs)
        )
        batches = shard_rows(batches, mesh) if mesh else batches
        hidden = jax.device_get(_hidden(configs, params, batches))
        for row, number in enumerate(numbers):
            of_row = tuple(h[row, : len(completions[number])] for h in hidden)
            _check_finite(policies, of_row, number)
            found.append(of_row)
        tell(len(numbers))
    return Places(
        tuple(np.concatenate([of_row[m] for of_row in found]) for m in range(len(policies))),
        partial(_heads, configs, params, vocab=vocab),
        np.concatenate([np.asarray(completions[number], np.int32) for number in order]),
        np.repeat([groups[number] for number in order], [len(completions[number]) for number in order]),
        vocab,
    )


def _check(
    policies: Sequence[Policy], vocab: int, number: int, prompt: Sequence[Sequence[int]], completion: Sequence[int]
) -> None:  # fmt: skip
    if wrong := [token for token in completion if not 0 <= token < vocab]:
        raise ValueError(
            f"completion {number + 1}: token {wrong[0]} is none of the {vocab} words of the models"
        )
    for policy, ids in zip(policies, prompt, strict=True):
        if wrong := [token for token in ids if not 0 <= token < policy.config.vocab_size]:
            raise ValueError(
                f"completion {number + 1}: token {wrong[0]} of its prompt is none of the models' words"
            )
        if fed_length(ids, completion) > policy.config.max_positions:
            raise ValueError(
                f"completion {number + 1}: it and its prompt do not fit the context of {shown(policy.name, 200)} "
                f"({policy.config.max_positions} tokens)"
            )


def _check_finite(policies: Sequence[Policy], hidden: Sequence[np.ndarray], number: int) -> None:
    for policy, each in zip(policies, hidden, strict=True):
        if not np.isfinite(each.astype(np.float32)).all():
            raise ValueError(
                f"{shown(policy.name, 200)}: what it gives is not finite at completion {number + 1}"
            )


@partial(jax.jit, static_argnames="configs")
def _hidden(configs: tuple, params: Sequence[PyTree], batches: Sequence[Batch]) -> tuple[Array, ...]:
    return tuple(completion_hidden(c, p, b) for c, p, b in zip(configs, params, batches, strict=True))


@partial(jax.jit, static_argnames=("configs", "vocab"))
def _heads(configs: tuple, params: Sequence[PyTree], hidden: Sequence[Array], *, vocab: int) -> Array:
    each = [models.bind(c, p).logits(h[None])[0] for c, p, h in zip(configs, params, hidden, strict=True)]
    return jnp.stack([h[..., :vocab].astype(jnp.float32) for h in each])
