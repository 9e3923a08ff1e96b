"""A chain: a model whose next word depends on the last one alone, so that everything about its texts is a sum.

A text is words up to a stop word, T words at most. Rewards depend on the length alone. Then every policy here is the
reference with a tilt c of the place and the next word,

  π_t(v | u) = π_ref(v | u) exp(c_t(v)) / n_t(u),      n_t(u) = Σ_v π_ref(v | u) exp(c_t(v)):

the optimum, what gradient steps lead to, and both mixtures of such a policy with the reference. No sampling anywhere:
what is told is exact.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Tilt = Float[np.ndarray, "places words"]


@dataclass(frozen=True)
class Chain:
    """A reference model and a reward."""

    reference: Float[np.ndarray, "words words"]
    """Probabilities of the next word after each; all above 0."""
    first: int
    """The word before a text."""
    stop: int
    """The word that ends it."""
    reward: Float[np.ndarray, " lengths"]
    """Of texts that end after 0, 1, …, T − 1 words, and last of those cut off after T."""

    @property
    def longest(self) -> int:
        """T"""
        return len(self.reward) - 1

    @property
    def plain(self) -> Tilt:
        """The reference itself."""
        return np.zeros((self.longest, len(self.reference)))

    def norms(self, tilt: Tilt) -> Tilt:
        """Returns log n."""
        return np.log(np.exp(tilt) @ self.reference.T)

    def optimum(self, strength: float) -> Tilt:
        """Returns  π*(y) ∝ π_ref(y) exp(r(y)/s)  at the KL strength s: c_t(v) = log E_ref[exp(r/s) | v].

        Args:
          strength: s > 0, ∞ for the reference.
        """
        if np.isinf(strength):
            return self.plain
        return self._from_the_end(self.plain, np.zeros_like(self.plain), self.reward / strength)[0]

    def response_mixture(self, aligned: Tilt, lambda_: float) -> tuple[Tilt, float]:
        """Returns  p(y) ∝ π_ref(y)^{1−λ} π_al(y)^λ  (Eq. 5) and its log Z."""
        worth = np.zeros_like(self.reward)
        return self._from_the_end(lambda_ * aligned, -lambda_ * self.norms(aligned), worth)

    def token_mixture(self, aligned: Tilt, lambda_: float) -> Tilt:
        """Returns the realigned policy (Eq. 6)."""
        return lambda_ * aligned

    def _from_the_end(self, next_word: Tilt, last_word: Tilt, worth: np.ndarray) -> tuple[Tilt, float]:
        """Returns the law of texts in proportion to a product of weights, and the logarithm of their sum.

        Args:
          next_word: log weight of each next word, beside the reference's probability.
          last_word: log weight of the word before.
          worth: log weight of a text's length.
        """
        after = np.full(len(self.reference), worth[-1])
        found = np.empty_like(next_word)
        for place in reversed(range(self.longest)):
            after[self.stop] = worth[place]
            found[place] = next_word[place] + after
            most = found[place].max()
            after = last_word[place] + most + np.log(self.reference @ np.exp(found[place] - most))
        return found, float(after[self.first])

    def trained(self, strength: float, steps: int, rate: float) -> Tilt:
        """Returns the policy after steps of exact natural policy gradient on  E[r] − s KL(π ‖ π_ref).

          c ← (1 − ηs) c + η Q,      Q_t(v): the reward to come after v, less s times the KL to come.

        Args:
          rate: η, below 1/s.

        Reference: Cen et al. 2022, Fast global convergence of natural policy gradient methods with entropy
        regularization.
        """
        tilt = self.plain
        for _ in range(steps):
            tilt = (1 - rate * strength) * tilt + rate * self._to_come(tilt, strength)
        return tilt

    def _to_come(self, tilt: Tilt, strength: float) -> Tilt:
        """Returns Q."""
        norms, weights = self.norms(tilt), np.exp(tilt)
        after = np.full(len(self.reference), self.reward[-1])
        found = np.empty_like(tilt)
        for place in reversed(range(self.longest)):
            after[self.stop] = self.reward[place]
            found[place] = after
            kept = weights[place] * (after - strength * tilt[place])
            after = (self.reference @ kept) / np.exp(norms[place]) + strength * norms[place]
        return found

    def measure(self, tilt: Tilt) -> "Measured":
        """Returns what texts of a policy are like."""
        norms = self.norms(tilt)
        going = np.zeros(len(self.reference))
        going[self.first] = 1.0
        lengths, kl = np.zeros(self.longest + 1), 0.0
        for place in range(self.longest):
            after = np.exp(tilt[place]) * ((going / np.exp(norms[place])) @ self.reference)
            kl += after @ tilt[place] - going @ norms[place]
            going = after
            lengths[place], going[self.stop] = going[self.stop], 0.0
        lengths[-1] = going.sum()
        return Measured(float(lengths @ self.reward), float(kl), lengths)

    def distance(self, tilt: Tilt, strength: float) -> float:
        """Returns KL(π ‖ π*) = (J* − J(π))/s  at the KL strength s."""
        optimum, own = self.measure(self.optimum(strength)), self.measure(tilt)
        return (optimum.objective(strength) - own.objective(strength)) / strength


@dataclass(frozen=True)
class Measured:
    """Texts of a policy."""

    reward: float
    kl: float
    """KL(π ‖ π_ref), in nats."""
    lengths: Float[np.ndarray, " lengths"]
    """Probability of each length; the last is of those cut off."""

    def objective(self, strength: float) -> float:
        """Returns  J = E[r] − s KL."""
        return self.reward - strength * self.kl
