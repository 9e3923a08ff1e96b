"""What a row has drawn, chunk by chunk, as a completion."""

from collections.abc import Sequence

import jax
import numpy as np

from dera_jax.decoding.device_loop import Drawn
from dera_jax.decoding.endings import End
from dera_jax.decoding.request import Completion, Request
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, named
from dera_jax.strengths import format_strength


class NotFinite(ValueError):
    """A completion has figures that are not finite."""


def joined(chunks: Sequence[Drawn], end: int) -> Drawn:
    """Returns the first `end` tokens of chunks."""
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:end], *chunks)


def completion_of(request: Request, tokens: Sequence[int], chunks: Sequence[Drawn], end: End) -> Completion:
    """Returns the completion that has ended, with the figures of its tokens from all its chunks."""
    drawn = joined(chunks, end.count)
    record = drawn.record
    return Completion(
        request=request,
        tokens=list(tokens[: end.count]),
        text=end.text,
        finish_reason=end.reason,
        logprobs=record.logprob,
        model_logprobs=record.model_logprobs,
        sampling_logprobs=drawn.sampling_logprob,
        kl_to_reference=record.kl_to_reference,
        log_normalizers=record.log_normalizer,
    )


def check_finite(
    policies: Sequence[Policy], rule: Rule, request: Request, chunks: Sequence[Drawn], end: int
) -> None:
    """Raises NotFinite where a model's logits, or those that the rule made of them, are not finite."""
    drawn = joined(chunks, end)
    mixed = np.isfinite(drawn.record.logprob) & np.isfinite(drawn.sampling_logprob)
    finite = np.column_stack([np.isfinite(drawn.record.model_logprobs), mixed])
    if finite.all():
        return
    step, column = np.argwhere(~finite)[0]
    name = (*(policy.name for policy in policies), f"rule {named(rule).name}")[column]
    at = f" at λ = {format_strength(request.lambda_)}" if column == len(policies) else ""
    raise NotFinite(
        f"{name}: logits are not finite at token {step + 1} of the completion of prompt {request.prompt.id!r}{at}"
    )
