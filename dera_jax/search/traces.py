"""What a search has looked at: its decisions one after another, with every candidate of each."""

from collections.abc import Collection, Sequence

from dera_jax.search.candidates import Candidate


def decision(candidates: Sequence[Candidate], kept: Collection[int]) -> list[dict]:
    """Returns the candidates of a decision as rows keep them.

    Args:
      kept: numbers of those that the search goes on with, or ends with.
    """
    return [
        {
            "text": each.completion.text,
            "tokens": [int(token) for token in each.completion.tokens[each.start :]],
            "score": each.score,
            "parent": each.parent,
            "kept": number in kept,
            "ended": each.ended,
        }
        for number, each in enumerate(candidates)
    ]
