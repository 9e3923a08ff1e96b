"""How much of the sequence-level mixture (Eq. 5) rows represent: weights, effective sample sizes."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence

import numpy as np


def effective_sample_size(log_weights: Sequence[float] | np.ndarray) -> float:
    """Returns Kish's effective sample size  (Σ w)² / Σ w²,  from 1 to the number of weights.

    Args:
      log_weights: log w, in nats, up to a constant; at least one is finite, the others finite or −∞.

    >>> effective_sample_size([-1000.0, -1000.0])
    2.0
    """
    log_weights = np.asarray(log_weights, np.float64)
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum())


CERTAIN = -1e-6
"""Log-probability from which on a completion was drawn with certainty, as greedy decoding does."""


def log_weight(row: dict, ends: Collection[str] = ("eos",)) -> float | None:
    """Returns the log importance weight of a row for the sequence-level mixture, up to a constant; in nats.

    log w = log π(y|x) + Σ log zₜ − log q(y|x),  q being what was drawn from. None where it is unknown: the
    completion was cut off, by its length or at a stop text, the rule is no mixture, or it was chosen from several
    candidates or tries, so that its q is not what `sampling_logprob` tells.

    Args:
      ends: finish reasons of whole texts; with `stop` the mixture is that of texts up to the stop text.
    """
    if row["finish_reason"] not in ends or row["log_normalizer"] is None or "search" in row or "exact" in row:
        return None
    return row["logprob"] + row["log_normalizer"] - row["sampling_logprob"]


def log_weights(
    rows: Sequence[dict], ends: Collection[str] = ("eos",)
) -> dict[Hashable, list[tuple[float, list[dict]]]]:
    """Returns by prompt the log importance weights that compare, each with its rows, of rows of one strength.

    Weights are known up to a constant of the context, which a prompt's first turns share and later ones, that
    follow answers of their own, do not: a conversation has one weight, the product of its turns'. Left out
    are those with a turn that has none, and samples of a prompt that were drawn with certainty and are copies of
    one text.

    Args:
      ends: as of `log_weight`.
    """
    conversations: dict[tuple, dict[int, dict]] = defaultdict(dict)
    turns: dict[Hashable, set[int]] = defaultdict(set)
    for row in rows:
        prompt, turn = row["prompt_id"], row.get("turn", 0)
        conversations[prompt, row.get("seed"), row["sample"]][turn] = row
        turns[prompt].add(turn)
    found = defaultdict(list)
    for (prompt, *_), by_turn in conversations.items():
        each = [log_weight(row, ends) for row in by_turn.values()]
        if None not in each and by_turn.keys() == turns[prompt]:
            found[prompt].append((math.fsum(each), list(by_turn.values())))
    return {prompt: some for prompt, some in found.items() if not _are_copies([each for _, each in some])}


def _are_copies(conversations: Sequence[Sequence[dict]]) -> bool:
    """Whether all were drawn with certainty, and some say the same."""
    texts = {tuple(row.get("completion", n) for row in each) for n, each in enumerate(conversations)}
    certain = all(_certain(row) for each in conversations for row in each)
    return certain and len(texts) < len(conversations)


def _certain(row: dict) -> bool:
    return row["sampling_logprob"] >= CERTAIN


def effective_sample_share(rows: Sequence[dict]) -> float | None:
    """Returns `Summary.ess` of rows of one strength."""
    shares = [
        effective_sample_size([weight for weight, _ in found]) / len(found)
        for found in log_weights(rows).values()
        if len(found) > 1
    ]
    return math.fsum(shares) / len(shares) if shares else None


def count_copies(rows: Sequence[dict]) -> int:
    """Returns how many rows of one strength are copies of another: beyond the first drawn with certainty."""
    certain = Counter(
        (row["prompt_id"], row.get("turn", 0), row.get("completion")) for row in rows if _certain(row)
    )
    return sum(count - 1 for count in certain.values())
