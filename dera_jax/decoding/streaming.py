"""One completion as it is drawn, for programs that show it word by word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.data.encoding import before
from dera_jax.decoding.complete import MixtureDraw, complete
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Completion, Request, shape_of
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, linear_rule


@dataclass(frozen=True)
class Piece:
    """What one token has added to a completion."""

    text: str
    """Pieces joined are the completion's text; a token may add nothing, or what those before it held back."""
    kl_to_reference: float
    """In its place, in nats."""
    completion: Completion | None = None
    """The whole one, with the last piece."""


def stream(
    policies: Sequence[Policy],
    request: Request,
    config: DecodeConfig,
    rule: Rule = linear_rule,
    draw: MixtureDraw = complete,
) -> Iterator[Piece]:
    """Yields a completion piece by piece; what may be half a character or the beginning of a stop text is held back."""
    batch = draw.batch(policies, shape_of(request), config, 1, rule)
    if draw.prefixes is not None:
        batch.pool.keep_prefixes(draw.prefixes, batch.usage)
    batch.submit([request])
    known = before(policies[-1], request.prompt.tokens[-1])
    endings = batch.endings_of(request)
    text, told = "", 0

    def pieces(tokens: list[int], kl: np.ndarray) -> Iterator[Piece]:
        nonlocal text, told
        for count in range(told + 1, len(tokens) + 1):
            settled = endings.settled(known, tokens[:count])
            new, text = settled[len(text) :], settled
            yield Piece(new, float(kl[count - 1 - told]))
        told = len(tokens)

    while batch.busy:
        for completion in batch.step():
            kl = completion.kl_to_reference[told:]
            yield from pieces(completion.tokens[:-1], kl)
            yield Piece(completion.text[len(text) :], float(kl[-1]), completion)
        for slot in batch.working:
            yield from pieces(slot.tokens, slot.drawn[-1].record.kl_to_reference)
