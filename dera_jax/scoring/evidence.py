"""What drawn tokens say of the law they were drawn from: likelihood, truncation, and whether it is greedy.

The law has two numbers, θ = (1/T, λ/T), and a set of words that top-k and top-p keep:

    q(v) ∝ exp(θ · f(v)) for v in the set,    f(v) = (h_ref(v), h_aligned(v) − h_ref(v)).

It is an exponential family in θ, so its logarithm is concave, its gradient f(y) − E[f] and its Hessian −Cov[f].

References: Naseh et al., "Stealing the Decoding Algorithms of Language Models", arXiv:2303.04729, which finds
temperature, top-k and top-p of one model from its samples; here λ is found with them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dera_jax.decoding.sampling import nucleus_by_bisection

DEEPEST = 1024
"""The largest top-k that is looked for; beyond that many words a nucleus has its mass to one word's precision."""
CLOSE = 1e-4
"""Logits at temperature 1 that differ by less are equal: two programs round them differently."""


class Moments(NamedTuple):
    """Of the law at one θ, at places where tokens were drawn; 0 where one is not counted."""

    counted: Bool[Array, " places"]
    """Whether the token is in the set."""
    logprob: Float[Array, " places"]
    gradient: Float[Array, "places 2"]
    covariance: Float[Array, "places 2 2"]


def features(logits: Float[Array, "models places vocab"]) -> Float[Array, "2 places vocab"]:
    """Returns f, the reference's logits and how far the aligned model's lie from them."""
    return jnp.stack([logits[0], logits[1] - logits[0]])


def _along(theta: Float[Array, " 2"], f: Float[Array, "2 places vocab"]) -> Float[Array, "places vocab"]:
    return theta[0] * f[0] + theta[1] * f[1]


def _at(words: Float[Array, "places vocab"], token: Int[Array, " places"]) -> Float[Array, "places 1"]:
    return jnp.take_along_axis(words, token[:, None], axis=-1)


def _close(theta: Float[Array, " 2"]) -> Float[Array, ""]:
    return CLOSE * jnp.maximum(jnp.abs(theta[0]), 1e-6)


@jax.jit
def least_kept(
    logits: Float[Array, "models places vocab"],
    theta: Float[Array, " 2"],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
) -> Float[Array, " places"]:
    """Returns the smallest θ · f that top-k and then top-p keep; −inf where they keep all.

    Args:
      top_k: any number beyond `DEEPEST` for none.
      top_p: 1 or more for none.
    """
    u = _along(theta, features(logits))
    deepest = min(DEEPEST, u.shape[-1])
    top = jax.lax.optimization_barrier(jax.lax.top_k(u, deepest)[0])
    last = jnp.take(top, jnp.clip(top_k, 1, deepest) - 1, axis=-1)[:, None]
    least = jnp.where(top_k <= deepest, last, -jnp.inf)
    nucleus = nucleus_by_bisection(jnp.where(u >= least, u, -jnp.inf), top_p)
    return jnp.where(top_p < 1, jnp.maximum(least, nucleus), least)[:, 0]


@jax.jit
def moments(
    logits: Float[Array, "models places vocab"],
    token: Int[Array, " places"],
    there: Bool[Array, " places"],
    theta: Float[Array, " 2"],
    set_theta: Float[Array, " 2"],
    least: Float[Array, " places"],
) -> Moments:
    """Returns the law's moments at θ over the words with set_theta · f ≥ least."""
    f = features(logits)
    set_u = _along(set_theta, f)
    bound = least[:, None] - _close(set_theta)
    counted = there & (_at(set_u, token) >= bound)[:, 0]
    # Less the drawn word's own, so that nothing is lost where all logits are large.
    f = f - jax.vmap(_at, (0, None))(f, token)
    u = jnp.where(set_u >= bound, _along(theta, f), -jnp.inf)
    log_partition = jax.nn.logsumexp(u, axis=-1)
    q = jnp.exp(u - log_partition[:, None])
    mean = jnp.sum(q * f, axis=-1)
    rest = f - mean[..., None]
    covariance = jnp.einsum("nv,inv,jnv->nij", q, rest, rest, precision="highest")
    only = counted[:, None]
    return Moments(
        counted,
        jnp.where(counted, -log_partition, 0.0),
        jnp.where(only, -mean.T, 0.0),
        jnp.where(only[..., None], covariance, 0.0),
    )


class Tails(NamedTuple):
    """Of sets of words, summed over places: how much of the untruncated law they hold, and of the tokens."""

    log_mass: Float[Array, " sets"]
    """Σ log M over the tokens inside, M the mass of the set; in nats."""
    outside: Int[Array, " sets"]
    """Tokens outside."""


class _Sorted(NamedTuple):
    """Of places, with words from the most probable down."""

    there: Bool[Array, " places"]
    upto: Float[Array, "places words"]
    """Mass of the words up to each."""
    starts: Float[Array, "places words"]
    """Mass before each."""
    rank: Int[Array, " places"]
    """Words that are more probable than the token."""
    before: Float[Array, " places"]
    """Their mass."""


@jax.jit
def tails(
    logits: Float[Array, "models places vocab"],
    token: Int[Array, " places"],
    there: Bool[Array, " places"],
    theta: Float[Array, " 2"],
    top_k: Int[Array, ""],
    top_p: Float[Array, ""],
    grid: Float[Array, " masses"],
) -> tuple[Tails, Tails]:
    """Returns what every top-k to `DEEPEST` keeps beside `top_p`, and every top-p beside `top_k`; last: none.

    Args:
      top_k: any number beyond `DEEPEST` for none.
      top_p: 1 or more for none.
      grid: values of top-p, 1/n, 2/n … 1.
    """
    u = _along(theta, features(logits))
    above = u > _at(u, token) + _close(theta)
    q = jax.nn.softmax(u, axis=-1)
    deepest = min(DEEPEST, u.shape[-1])
    top = jax.lax.optimization_barrier(jax.lax.top_k(q, deepest)[0])
    upto = jnp.minimum(jnp.cumsum(top, axis=-1), 1.0)
    rank, before = jnp.sum(above, axis=-1), jnp.sum(jnp.where(above, q, 0), axis=-1)
    places = _Sorted(there, upto, upto - top, rank, before)
    return _by_k(places, top_p), _by_p(places, top_k, grid)


def _by_k(places: _Sorted, top_p: Float[Array, ""]) -> Tails:
    upto, starts = places.upto, places.starts
    counts = jnp.arange(1, upto.shape[-1] + 1)
    wanted = top_p * upto
    words = jax.lax.cond(
        top_p < 1,
        lambda: jnp.clip(jax.vmap(jnp.searchsorted)(starts, wanted), 1, counts),
        lambda: jnp.broadcast_to(counts, upto.shape),
    )
    log_mass = jnp.log(jnp.take_along_axis(upto, words - 1, axis=-1))
    inside = places.rank[:, None] < words
    # Without top-k, and beyond the words that are sorted, a nucleus holds `top_p` itself.
    last = jnp.sum(starts < top_p, axis=-1)
    deep = last >= upto.shape[-1]
    mass = jnp.where(deep, top_p, jnp.take_along_axis(upto, jnp.maximum(last, 1)[:, None] - 1, axis=-1)[:, 0])
    mass, has = (
        jnp.minimum(mass, 1.0),
        jnp.where(deep, places.before < top_p, places.rank < last) | (top_p >= 1),
    )
    log_mass = jnp.append(log_mass, jnp.where(top_p >= 1, 0.0, jnp.log(mass))[:, None], axis=1)
    inside = jnp.append(inside, has[:, None], axis=1)
    there = places.there[:, None]
    return Tails(jnp.where(inside & there, log_mass, 0.0).sum(0), (~inside & there).sum(0))


def _by_p(places: _Sorted, top_k: Int[Array, ""], grid: Float[Array, " masses"]) -> Tails:
    """As the mass asked for grows, words come in one by one: what changes with each is added where it does."""
    deepest = places.upto.shape[-1]
    limit = jnp.where(top_k <= deepest, top_k, deepest)
    whole = jnp.where(top_k <= deepest, jnp.take(places.upto, jnp.clip(limit, 1, deepest) - 1, axis=-1), 1.0)
    number, rank = jnp.arange(deepest), places.rank[:, None]
    log_upto = jnp.log(places.upto)
    change = jnp.diff(log_upto, axis=-1, prepend=0.0)
    # From the token's own word on; it comes in with all that is there by then.
    change = jnp.where(number == rank, log_upto, jnp.where(number > rank, change, 0.0))
    change = jnp.where((number < limit) & places.there[:, None], change, 0.0)
    # A word is kept where the mass before it is less than what is asked for.
    where = _position(places.starts / whole[:, None], grid)
    found = jnp.zeros(len(grid) + 1).at[where.ravel()].add(change.ravel())
    own = _position(places.before / whole, grid)
    own = jnp.where(
        places.rank < jnp.where(top_k <= deepest, limit, jnp.iinfo(jnp.int32).max), own, len(grid)
    )
    came = jnp.zeros(len(grid) + 1, jnp.int32).at[own].add(places.there)
    # Beyond the words that are sorted, a nucleus holds the mass that is asked for.
    beyond = places.there & (top_k > deepest) & (own < len(grid))
    held = jnp.where(places.rank < deepest, log_upto[:, -1], 0.0)
    deep = jnp.maximum(_position(places.upto[:, -1], grid), own)
    found = found.at[deep].add(jnp.where(beyond, -held, 0.0))
    asked = jnp.zeros(len(grid) + 1, jnp.int32).at[deep].add(beyond)
    log_mass = jnp.cumsum(found)[:-1] + jnp.cumsum(asked)[:-1] * jnp.log(grid)
    return Tails(log_mass, places.there.sum() - jnp.cumsum(came)[:-1])


def _position(mass: Float[Array, "*shape"], grid: Float[Array, " masses"]) -> Int[Array, "*shape"]:
    """Returns how many of the grid's masses, which are equally far apart, are at most `mass`."""
    return jnp.clip(jnp.floor(mass * len(grid) + 1e-3).astype(jnp.int32), 0, len(grid))


class Greedy(NamedTuple):
    """Of places: the strengths at which the token is the most probable word, none where low > high."""

    low: Float[Array, " places"]
    high: Float[Array, " places"]


@jax.jit
def most_probable(logits: Float[Array, "models places vocab"], token: Int[Array, " places"]) -> Greedy:
    """Returns between which λ each token is the argmax of the mixture: h_ref + λ d is largest at it.

    Each other word v asks for  h_ref(y) − h_ref(v) + λ (d(y) − d(v)) ≥ 0,  one end of an interval of λ.
    """
    f = features(logits)
    ahead, pull = jax.vmap(_at, (0, None))(f, token) - f
    ahead = ahead + CLOSE
    bound = -ahead / jnp.where(pull == 0, 1.0, pull)
    low = jnp.max(jnp.where(pull > 0, bound, -jnp.inf), axis=-1)
    high = jnp.min(jnp.where(pull < 0, bound, jnp.inf), axis=-1)
    never = jnp.any((pull == 0) & (ahead < 0), axis=-1)
    return Greedy(jnp.where(never, jnp.inf, low), high)


@jax.jit
def divergence(logits: Float[Array, "models places vocab"]) -> Float[Array, " places"]:
    """Returns KL(aligned ‖ reference) of the next token, in nats."""
    reference, aligned = jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.exp(aligned) * (aligned - reference), axis=-1)
