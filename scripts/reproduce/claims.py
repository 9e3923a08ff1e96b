"""The paper's claims: what is said, what the paper has, and what makes an experiment agree."""

import math

from scripts.reproduce import quantities as qu
from scripts.reproduce.questions import (
    ACCURACY,
    KL_FACTOR,
    RANK,
    TOKENS,
    accuracy,
    agreement,
    choice,
    improvement,
    incoherence,
    of_range,
    over_weights,
    quality,
    ranks,
    reward,
)
from scripts.reproduce.verdicts import DISAGREES, Claim

CLAIMS = (
    Claim(
        "reward, λ < 1", "DeRa has the reward of retrained models below λ = 1",
        "Fig. 2a: mean gap .046, ahead by .067 below 1",
        "the mean signed gap lies within a tenth of the range",
        agreement("λ < 1", reward, of_range, ""),
    ),
    Claim(
        "reward, 1 < λ ≤ 2", "DeRa has the reward of retrained models from 1 to 2",
        "Fig. 2a: behind above 1; Fig. 3a: .067",
        "the mean signed gap lies within a tenth of the range",
        agreement("1 < λ ≤ 2", reward, of_range, ""),
    ),
    Claim(
        "reward, λ > 2", "DeRa has the reward of retrained models beyond 2", "Fig. 3a, 7a: no longer at 5 and 10",
        "the mean signed gap lies within a tenth of the range",
        agreement("λ > 2", reward, of_range, ""), expected=DISAGREES,
        denied="beyond λ = 2 DeRa no longer has the reward of retrained models",
    ),
    Claim(
        "KL, λ < 1", "DeRa is as far from the reference as retrained models below λ = 1", "follows from Eq. 3",
        f"the ratio of the KL divergences lies within a factor of {KL_FACTOR}",
        agreement("λ < 1", lambda subject: qu.kl, lambda subject: math.log(KL_FACTOR), "", ratio=True),
    ),
    Claim(
        "KL, 1 < λ ≤ 2", "DeRa is as far from the reference as retrained models from 1 to 2", "follows from Eq. 3",
        f"the ratio of the KL divergences lies within a factor of {KL_FACTOR}",
        agreement("1 < λ ≤ 2", lambda subject: qu.kl, lambda subject: math.log(KL_FACTOR), "", ratio=True),
    ),
    Claim(
        "length, λ < 1", "texts are as long as those of retrained models below λ = 1",
        "Fig. 2b, c: means within 2.3 tokens", f"the mean signed gap lies within {TOKENS} tokens",
        agreement("λ < 1", lambda subject: qu.length, lambda subject: TOKENS, " tokens"),
    ),
    Claim(
        "length, 1 < λ ≤ 2", "texts are as long as those of retrained models from 1 to 2",
        "Fig. 2b, c: means within 2.3 tokens", f"the mean signed gap lies within {TOKENS} tokens",
        agreement("1 < λ ≤ 2", lambda subject: qu.length, lambda subject: TOKENS, " tokens"),
    ),
    Claim(
        "order of strengths", "strengths have the same order by DeRa and by retraining", "Fig. 2a: Spearman .99",
        f"Spearman's ρ over all strengths is at least {RANK}", ranks,
    ),
    Claim(
        "choice of strength", "the strength that DeRa chooses is about the best one to retrain at",
        "Fig. 3, 7, 9", "the best retrained model is better by less than a tenth of the range", choice,
    ),
    Claim(
        "better than the base", "retraining at the strength that DeRa chooses is better than the base β",
        "Fig. 3: 2 against 5 retrained; Fig. 7: .5 for both",
        "the retrained model is better, on other prompts", improvement,
    ),
    Claim(
        "quality falls, DeRa", "more of the reward costs quality in DeRa", "Fig. 5: win rate .50 → .24–.28",
        "one quality falls at least; disagrees where all falls are too small to matter", quality("dera"),
    ),
    Claim(
        "quality falls, retrained", "more of the reward costs quality in retrained models", "Fig. 5",
        "as above", quality("retrained"),
    ),
    Claim(
        "text falls apart", "at very large λ text loses coherence", "Fig. 1, 4: texts at λ = 10 and 100",
        "likelihood and known words fall from λ = 1", incoherence,
    ),
    Claim(
        "logits and weights, λ < 1", "mixing weights is as good as mixing logits below λ = 1", "Fig. 8: equal",
        "the objective differs by less than a tenth of the range", over_weights("λ < 1", equal=True),
    ),
    Claim(
        "logits over weights, 1 < λ ≤ 2", "mixing logits beats mixing weights from 1 to 2",
        "Fig. 8: 7.03 against 5.63 at λ = 2",
        "the objective is larger", over_weights("1 < λ ≤ 2"),
    ),
    Claim(
        "logits over weights, λ > 2", "mixing logits beats mixing weights beyond 2", "not shown",
        "the objective is larger", over_weights("λ > 2"), expected=None,
    ),
    Claim(
        "pair accuracy, λ < 1", "DeRa prefers the same answers as retrained models below λ = 1", "Fig. 6: gap .002",
        f"the mean gap lies within {ACCURACY}", accuracy,
    ),
)  # fmt: skip
"""In the order of the matrix."""
