"""Completions of several strengths, pooled: each is a sample for every strength.

Of a prompt with nₖ completions at the strength λₖ, n in all, a completion y of the pool was drawn from

  q̄(y) = Σₖ nₖ/n qₖ(y),      log qₖ(y) = (1 − λₖ) log π_ref(y) + λₖ log π_al(y) − Σₜ log zₜ(λₖ),

whichever strength it was drawn at. Reference: Veach and Guibas 1995, Optimally combining sampling techniques (the
balance heuristic).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from dera_jax.analysis.curves.groups import Groups, Rows, grouped


@dataclass(frozen=True)
class Pool(Groups):
    """Completions with what their weights need."""

    drawn_at: Rows
    """Strength of each completion."""
    reference: Rows
    """log π_ref(y), in nats."""
    aligned: Rows
    """log π_al(y)."""
    log_normalizers: Mapping[float, Rows]
    """Σ log zₜ at a strength: of all at which completions were drawn."""
    kl: Mapping[float, Rows]
    """Σ KL(mixture ‖ reference) of the next token, at strengths where that is known."""
    own_kl: Rows
    """Likewise at the strength that each was drawn at."""
    cut: Bool[np.ndarray, " rows"]
    """Whether the length limit has ended it."""
    values: Mapping[str, Rows]
    """Rewards and lengths by name; NaN where a reward gave none."""

    @cached_property
    def strengths(self) -> tuple[float, ...]:
        """Those of the completions, in increasing order."""
        return tuple(np.unique(self.drawn_at).tolist())

    @cached_property
    def log_ratio(self) -> Rows:
        """ℓ(y) = log π_al(y) − log π_ref(y)."""
        return self.aligned - self.reference

    def log_power(self, strength: float) -> Rows:
        """Returns  log π_ref(y)^{1−λ} π_al(y)^λ."""
        return self.reference + strength * self.log_ratio

    def log_mixture(self, strength: float) -> Rows:
        """Returns log q(y) of the realigned policy, at a strength whose normalizers are known."""
        return self.log_power(strength) - self.log_normalizers[strength]

    def counts(self, strength: float) -> Int[np.ndarray, " prompts"]:
        """Returns how many completions of each prompt were drawn at a strength."""
        return np.add.reduceat((self.drawn_at == strength).astype(int), self.starts)

    @cached_property
    def log_proposal(self) -> Rows:
        """log q̄(y)."""
        shares = [self.counts(strength) / self.sizes for strength in self.strengths]
        with np.errstate(divide="ignore"):
            parts = [
                np.log(share)[self.prompt] + self.log_mixture(strength)
                for share, strength in zip(shares, self.strengths, strict=True)
            ]
        return np.logaddexp.reduce(parts)

    def part(self, keep: Bool[np.ndarray, " rows"]) -> "Pool":
        """Returns some of the completions; prompts without any are left out."""
        sizes = np.add.reduceat(keep.astype(int), self.starts)
        left = sizes > 0

        def of(values: Mapping) -> dict:
            return {name: each[keep] for name, each in values.items()}

        return Pool(
            prompts=tuple(prompt for prompt, kept in zip(self.prompts, left, strict=True) if kept),
            starts=np.append(0, np.cumsum(sizes[left])[:-1]),
            count=int(sizes.sum()),
            drawn_at=self.drawn_at[keep],
            reference=self.reference[keep],
            aligned=self.aligned[keep],
            log_normalizers=of(self.log_normalizers),
            kl=of(self.kl),
            own_kl=self.own_kl[keep],
            cut=self.cut[keep],
            values=of(self.values),
        )


def pool_of(
    rows: Sequence[dict],
    log_normalizers: Mapping[float, Rows],
    kl: Mapping[float, Rows] | None = None,
) -> Pool:
    """Returns the pool of rows of one aligned model.

    Args:
      rows: of plain draws, at least one.
      log_normalizers: Σ log zₜ of each row, at every strength of the rows; those of λ = 0 and 1 are 0.
      kl: likewise Σ KL(mixture ‖ reference), at any strengths.
    """
    groups, order = grouped(rows)
    ordered = [rows[n] for n in order]

    def column(value) -> Rows:
        return np.array([value(row) for row in ordered], np.float64)

    zero = {0.0: np.zeros(len(rows)), 1.0: np.zeros(len(rows))}
    names = dict.fromkeys(
        name for row in ordered for name, value in row["rewards"].items() if value is not None
    )
    return Pool(
        **vars(groups),
        drawn_at=column(lambda row: _number(row["lambda"])),
        reference=column(lambda row: row["reference_logprob"]),
        aligned=column(lambda row: _number(row["aligned_logprob"])),
        log_normalizers=zero
        | {s: np.asarray(each, np.float64)[order] for s, each in log_normalizers.items()},
        kl={s: np.asarray(each, np.float64)[order] for s, each in (kl or {}).items()},
        own_kl=column(lambda row: row["kl_to_reference"]),
        cut=np.array([row["finish_reason"] == "length" for row in ordered]),
        values={name: column(lambda row, name=name: _or_nan(row["rewards"].get(name))) for name in names}
        | {"length": column(lambda row: row["length"])},
    )


def _number(value) -> float:
    return float(value[0] if isinstance(value, list) else value)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
