"""What a search has looked at: its decisions one after another, with every candidate of each."""

from collections.abc import Callable, Collection, Sequence

from dera_jax.data.encoding import before
from dera_jax.decoding.endings import Endings
from dera_jax.policies.policy import Policy
from dera_jax.search.candidates import Candidate


def decision(
    candidates: Sequence[Candidate], kept: Collection[int], said: Callable[[Candidate], str]
) -> list[dict]:
    """Returns the candidates of a decision as rows keep them.

    Args:
      kept: numbers of those that the search goes on with, or ends with.
      said: what a candidate adds to what it goes on from.
    """
    return [
        {
            "text": said(each),
            "tokens": len(each.completion.tokens) - each.start,
            "score": each.score,
            "parent": each.parent,
            "kept": number in kept,
            "ended": each.ended,
        }
        for number, each in enumerate(candidates)
    ]


def new_text(policy: Policy, endings: Endings, candidate: Candidate) -> str:
    """Returns what a candidate says behind what it goes on from."""
    made = candidate.completion
    known = [*before(policy, made.request.prompt.tokens[-1]), *made.tokens[: candidate.start]]
    return endings.cut(known, made.tokens[candidate.start : made.length]).text
