"""DeAL: the next tokens are those whose greedy continuation scores best.

From what has been kept, the K most probable next tokens are rolled out greedily by L more. A candidate is worth
c = log P(y_{1:t}) + Σ αᵢ hᵢ(y_{1:t+L}); of the best one M tokens are kept. M = 1 is the paper's; a larger M is about
as many times as fast.

References: Huang et al. 2024, DeAL, arXiv:2402.06147, §3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dera_jax.common.checks import check_count
from dera_jax.decoding.complete import Draw, complete
from dera_jax.search.blocks import LONGEST, BlockSearch
from dera_jax.search.candidates import Candidate
from dera_jax.search.scores import Decode, as_score


@dataclass(frozen=True, kw_only=True)
class Lookahead(BlockSearch):
    """The continuation that is kept is the one that scores best some tokens further on."""

    ahead: int
    """Tokens that a candidate token is rolled out by; ≥ 0."""
    sampled: bool = False
    """Candidates and what follows them are drawn as the run draws; else the most probable tokens, greedily."""
    logprob: float = 1.0
    """Weight of log P(y_{1:t}) beside the score."""

    def __post_init__(self):
        check_count("L", self.ahead, least=0, most=LONGEST - 1)
        super().__post_init__()
        if self.emitted > self.steps:
            raise ValueError(
                f"M: expected at most L + 1 = {self.steps} tokens, which a roll-out has, got {self.emitted}"
            )

    @property
    def ranked(self) -> bool:  # type: ignore[override]
        """Whether the candidates of a branch begin with its most probable tokens."""
        return not self.sampled

    @property
    def steps(self) -> int:
        """Tokens of a roll-out: the candidate, and those that follow it."""
        return self.ahead + 1

    @property
    def name(self) -> str:
        kind = "sampled-lookahead" if self.sampled else "lookahead"
        head = f"{kind}:{self.children}" if self.beams == 1 else f"{kind}-beams:{self.beams}:{self.children}"
        return f"{head}:{self.ahead}:{self.emitted}:{self.score.name}"

    def score_all(self, candidates: Sequence[Candidate], decode: Decode) -> np.ndarray:
        """Returns c of each candidate [1, candidates]."""
        known = [each.completion.logprobs[: each.start + 1].sum(dtype=np.float64) for each in candidates]
        return super().score_all(candidates, decode) + self.logprob * np.array(known)


def lookahead(
    k: int,
    l: int,  # noqa: E741
    m: int,
    score: object,
    *,
    beams: int = 1,
    sampled: bool = False,
    logprob: float = 1.0,
    plain: Draw = complete,
) -> Lookahead:
    """Returns the draw of DeAL, for `draw=` of `generate` and `sweep`.

    Args:
      k: candidate tokens of each branch, at least 1.
      l: tokens that each is rolled out by, at least 0.
      m: tokens that are kept of the best candidate, from 1 to l + 1; 1 is the paper's.
      score: what the roll-outs are ranked by, with its weight, see `best_of`; log P of the tokens is added.
      beams: branches that are kept.
      sampled: candidates are drawn, not the most probable tokens, and what follows is drawn too.
      logprob: weight of log P(y_{1:t}).
      plain: see `blocks`.
    """
    return Lookahead(
        children=k,
        ahead=l,
        emitted=m,
        beams=beams,
        sampled=sampled,
        logprob=logprob,
        score=as_score(score),
        plain=plain,
    )
