"""Draws from the response-level optimum at any λ: a chain of responses, each of which redraws the end of the last.

From a response y a place t is taken, each of its tokens as likely as any other, and what follows is drawn anew from the
mixture. The new response y′ is taken with probability

  min(1, Π_{s ≥ t} z′ₛ / Π_{s ≥ t} zₛ · |y| / |y′|),

which leaves p(y) ∝ π_ref(y)^{1−λ} π_al(y)^λ (Eq. 5) as it is: |y| and |y′| are how many places there were to choose
from in either direction. A chain begins with a response of the mixture; its law tends to p with its length.

References: Metropolis et al. 1953; Hastings 1970, Monte Carlo sampling methods using Markov chains.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from dera_jax.common.checks import check_count
from dera_jax.data.encoding import EncodedPrompt, before
from dera_jax.decoding.complete import complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.endings import Endings
from dera_jax.decoding.request import Chain, Completion, Request
from dera_jax.exact.draws import CUT, ExactDraw
from dera_jax.policies.policy import Policy
from dera_jax.search.noise import uniform

MOST_STEPS = 10**5


@dataclass(frozen=True, kw_only=True)
class Metropolis(ExactDraw):
    """The last response of a chain of N steps."""

    n: int

    def __post_init__(self):
        super().__post_init__()
        check_count("N", self.n, least=2, most=MOST_STEPS)

    @property
    def method(self) -> str:
        return f"metropolis:{self.n}"

    @property
    def tries(self) -> float:
        """Completions that take as many forward passes as a request, if half of a response is redrawn."""
        return 1 + self.n / 2

    def found(self, policies, requests, config, rows, rule, usage) -> Iterator[Completion]:
        """Yields the last response of every request's chain, as many chains side by side as there are rows.

        Raises:
          ValueError: a model with an encoder.
        """
        if any(policy.config.encoder_decoder for policy in policies):
            raise ValueError("metropolis: expected decoder-only models, found an encoder")
        for start in range(0, len(requests), rows):
            yield from self._chains(policies, requests[start : start + rows], config, rows, rule, usage)

    def _chains(self, policies, requests, config, *rest) -> Iterator[Completion]:
        def drawn(asked: Sequence[Request]) -> list[Completion]:
            made = {id(done.request): done for done in complete_unshared(policies, asked, config, *rest)}
            return [made[id(request)] for request in asked]

        eos = {i for policy in policies for i in policy.eos_ids}
        endings = Endings(policies[-1].tokenizer, eos, config.stop, config.max_new_tokens)
        states = drawn([replace(request) for request in requests])
        found = [Chain(steps=0, moves=0, tokens=len(state.tokens), cut=_cut(state)) for state in states]
        for step in range(1, self.n + 1):
            places = [
                int(uniform(request, config, f"place {step}") * len(state.tokens))
                for request, state in zip(requests, states, strict=True)
            ]
            asked = [
                _redrawn(request, state, place, config, step)
                for request, state, place in zip(requests, states, places, strict=True)
            ]
            for number, (end, place) in enumerate(zip(drawn(asked), places, strict=True)):
                state, request = states[number], requests[number]
                new = _spliced(policies, endings, state, place, end)
                limit = math.log(uniform(request, config, f"accept {step}"))
                moves = limit < self._log_acceptance(state, new, place)
                found[number] = found[number].after(moves, len(end.tokens), _cut(new))
                states[number] = new if moves else state
        for request, state, chain in zip(requests, states, found, strict=True):
            yield replace(state, request=request, exact=chain)

    def _log_acceptance(self, now: Completion, new: Completion, place: int) -> float:
        if self.limit_means == "ended" and _cut(new):
            return -math.inf  # it is no member
        if self.limit_means == "ended" and _cut(now):
            return 0.0
        return log_acceptance(now.log_normalizers[place:], new.log_normalizers[place:], place)


def log_acceptance(now: Float[np.ndarray, " before"], new: Float[np.ndarray, " after"], place: int) -> float:
    """Returns the logarithm of the probability to go from one response to another.

    Args:
      now: log z of the tokens from `place` on, which are redrawn.
      new: of those that come in their place.
      place: tokens that both begin with.
    """
    longer = math.log((place + len(now)) / (place + len(new)))
    return min(0.0, float(new.sum(dtype=np.float64) - now.sum(dtype=np.float64)) + longer)


def _cut(completion: Completion) -> bool:
    return completion.finish_reason == CUT


def _redrawn(request: Request, state: Completion, place: int, config: DecodeConfig, step: int) -> Request:
    """Returns the request for what follows the first `place` tokens of a response."""
    own = request.config or config
    prompt: EncodedPrompt = request.prompt
    tokens = tuple((*ids, *state.tokens[:place]) for ids in prompt.tokens)
    return replace(
        request,
        prompt=replace(prompt, tokens=tokens),
        config=replace(own, max_new_tokens=own.max_new_tokens - place),
        attempt=request.attempt * MOST_STEPS + step,
    )


def _spliced(
    policies: Sequence[Policy], endings: Endings, state: Completion, place: int, end: Completion
) -> Completion:
    """Returns the first `place` tokens of a response with another end."""
    own, prompt = state.request.config, state.request.prompt
    if own is not None:
        endings = endings.but(own.stop, own.max_new_tokens)
    tokens = [*state.tokens[:place], *end.tokens]
    # As a whole: a stop text, or a character, may begin in one part and end in the other.
    found = endings.find(before(policies[-1], prompt.tokens[-1]), tokens, 0, prompt.turn_ends)
    figures = ("logprobs", "model_logprobs", "sampling_logprobs", "kl_to_reference", "log_normalizers")
    joined = {
        name: _joined(getattr(state, name), getattr(end, name), place)[: found.count] for name in figures
    }
    return replace(state, tokens=tokens[: found.count], text=found.text, finish_reason=found.reason, **joined)


def _joined(first: np.ndarray, end: np.ndarray, place: int) -> np.ndarray:
    return np.concatenate([first[:place], end])
