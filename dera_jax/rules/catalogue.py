"""The rules of this package: what each computes, where it comes from, what can be set, and when to use it."""

import math
from typing import NamedTuple

from dera_jax.common.shown import shown

KINDS = {
    "weighs": "changes the strength from token to token",
    "combines": "makes one model's logits of all models'",
    "keeps": "takes words out of the result",
}
"""What a part of a rule does; they act in this order."""


class Dial(NamedTuple):
    """A number of a rule that users set."""

    name: str
    default: float
    """Infinite: off."""
    least: float
    most: float
    meaning: str
    whole: bool = False
    """Whether it counts something."""

    def value(self, text: str, where: str) -> float:
        """Returns the number that a text is.

        Raises:
          ValueError: it is none, or out of range.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and self.least <= number <= self.most and self._fits(number)):
            kind = ", a whole number," if self.whole else ""
            raise ValueError(
                f"{where}: expected {self.name}{kind} from {self.least:g} to {self.most:g}, found {shown(text, 40)}"
            )
        return number + 0.0

    def _fits(self, number: float) -> bool:
        return not self.whole or number.is_integer()


class Entry(NamedTuple):
    """A rule."""

    place: str
    """module:function"""
    kind: str
    """One of `KINDS`."""
    formula: str
    source: str
    use: str
    """When to use it."""
    dials: tuple[Dial, ...] = ()

    def dial(self, name: str) -> Dial:
        """Returns one of its dials."""
        return next(dial for dial in self.dials if dial.name == name)


_COUNT = 1, 1e5
KNOWN = {
    "linear": Entry(
        "dera_jax.rules.rule:linear_rule",
        "combines",
        "Σ wₘ hₘ,  w = (1 − Σλ, λ₁, …)",
        "DeRa, arXiv:2402.02992, Eq. 9; MOD, arXiv:2406.18853; proxy-tuning, arXiv:2401.08565, with λ = 1+-1",
        "the default: λ is the KL strength β/λ",
    ),
    "tilt": Entry(
        "dera_jax.rules.tilt:tilt",
        "combines",
        "(1 − Σλ) h_ref + Σ λₘ hₘ + V/β,  V a value head",
        "controlled decoding, arXiv:2310.17022, Eq. 6; FUDGE, arXiv:2104.05218",
        "a reward and no aligned model",
    ),
    "power": Entry(
        "dera_jax.rules.means:power",
        "combines",
        "log Mₚ(π; w) = log(Σ wₘ πₘᵖ) / p",
        "power means: p → 0 is linear, 1 the average of probabilities, −1 their harmonic mean",
        "an ensemble: p = 1 keeps what any model finds likely, p < 0 what all do; λ from 0 to 1",
        (Dial("p", 1.0, -100, 100, "exponent; 0 is linear"),),
    ),
    "probabilities": Entry(
        "dera_jax.rules.means:probabilities",
        "combines",
        "log max(0, Σ wₘ πₘ)",
        "SafeDecoding, arXiv:2402.08983, §4.2, with λ = α",
        "as power:p=1, at any strength: what the aligned model finds less likely is taken out at a large λ",
    ),
    "minimum": Entry(
        "dera_jax.rules.means:minimum",
        "combines",
        "minₘ log πₘ over models of weight above 0",
        "the power mean of p → −∞",
        "only what all models find likely",
    ),
    "maximum": Entry(
        "dera_jax.rules.means:maximum",
        "combines",
        "maxₘ log πₘ over models of weight above 0",
        "the power mean of p → ∞",
        "whatever one of the models finds likely",
    ),
    "alpha-divergence": Entry(
        "dera_jax.rules.divergences:alpha_divergence",
        "combines",
        "π_ref (Σ wₘ (πₘ/π_ref)^−α + c)^(−1/α),  c so that it sums to 1",
        "MOD, arXiv:2406.18853, with f of the α-divergence; α → 0 is linear, 1 the forward KL",
        "models trained with that divergence in the place of the KL; λ from 0 to 1",
        (Dial("alpha", 1.0, 0.05, 1, "of the divergence; 1 is the forward KL"),),
    ),
    "jensen-shannon": Entry(
        "dera_jax.rules.divergences:jensen_shannon",
        "combines",
        "f′⁻¹(Σ wₘ f′(πₘ/π_ref) − c) π_ref,  f′(x) = log 2x/(1 + x)",
        "MOD, arXiv:2406.18853, with f of the Jensen-Shannon divergence",
        "models trained with that divergence in the place of the KL; λ from 0 to 1",
    ),
    "contrastive": Entry(
        "dera_jax.rules.contrast:contrastive",
        "combines",
        "Σ λₘ (log πₘ − log π_ref)",
        "contrastive decoding, arXiv:2210.15097, the reference being the amateur",
        "together with plausible, which keeps it from words that no model would say",
    ),
    "plausible": Entry(
        "dera_jax.rules.contrast:plausible",
        "keeps",
        "words with π_aligned ≥ α max π_aligned",
        "contrastive decoding, arXiv:2210.15097, Eq. 3; with linear and λ = 1 + β arXiv:2309.09117",
        "λ above 1: what the aligned model finds unlikely is not said however large λ is",
        (Dial("alpha", 0.1, 0, 1, "share of the largest probability; 0 keeps all"),),
    ),
    "common": Entry(
        "dera_jax.rules.contrast:common",
        "keeps",
        "words in ⋂ₘ top-k(πₘ), k the smallest with c words inside",
        "SafeDecoding, arXiv:2402.08983, §4.2",
        "only words that all models rank high; all words where the strength is 0",
        (Dial("words", 5, *_COUNT, "c", whole=True),),
    ),
    "first": Entry(
        "dera_jax.rules.schedules:first",
        "weighs",
        "λₜ = λ for t < M, then 0",
        "SafeDecoding, arXiv:2402.08983, §4.2: only the first tokens are mixed",
        "what matters is how an answer begins",
        (Dial("tokens", 5, *_COUNT, "M", whole=True),),
    ),
    "ramp": Entry(
        "dera_jax.rules.schedules:ramp",
        "weighs",
        "λₜ = λ min(1, t/M)",
        "a schedule",
        "the reference begins, and the aligned model takes over",
        (Dial("tokens", 16, *_COUNT, "M", whole=True),),
    ),
    "decay": Entry(
        "dera_jax.rules.schedules:decay",
        "weighs",
        "λₜ = λ exp(−t/M)",
        "a schedule",
        "strong at the beginning, and fluent behind it",
        (Dial("tokens", 16, *_COUNT, "M", whole=True),),
    ),
    "nudging": Entry(
        "dera_jax.rules.gates:nudging",
        "weighs",
        "λₜ = λ where max π_ref < γ, else 0",
        "Nudging, arXiv:2410.09300, with every token a decision of its own",
        "the reference speaks where it is sure, the aligned model where it is not",
        (Dial("gamma", 0.4, 0, 1, "γ, a probability"),),
    ),
    "entropy": Entry(
        "dera_jax.rules.gates:entropy",
        "weighs",
        "λₜ = λ where H(π_ref) > H, else 0",
        "a gate on the reference's entropy",
        "as nudging, with a measure of the whole distribution",
        (Dial("above", 1.0, 0, 20, "H, in nats"),),
    ),
    "confidence": Entry(
        "dera_jax.rules.gates:confidence",
        "weighs",
        "λₜₘ = λₘ (cₘ/Σ c + a π_ref(vₘ)),  cₘ = max πₘ = πₘ(vₘ)",
        "BlendIn, arXiv:2606.11201, with nudging and power at λ = 1, as its published code has it",
        "models that are sure count for more; λ = 1 weighs by confidence alone",
        (Dial("agreement", 0.1, 0, 1, "a, for words that the reference finds likely too"),),
    ),
    "kl-budget": Entry(
        "dera_jax.rules.budget:kl_budget",
        "weighs",
        "λₜ = the largest share of λ with KL(πₜ ‖ π_ref) ≤ b",
        "the KL of Eq. 1 of arXiv:2402.02992, bounded token by token",
        "a strength in nats: λ is the most, the budget what may be spent",
        (
            Dial("nats", 0.1, 0, 1e3, "b, of each token"),
            Dial("response", math.inf, 0, 1e5, "of all tokens of a response together"),
        ),
    ),
}
"""By name."""


def listed() -> str:
    """Returns what `--rule=list` prints."""
    lines = []
    for kind, does in KINDS.items():
        lines += ["" if lines else None, f"{does}:"]
        for name, entry in KNOWN.items():
            if entry.kind == kind:
                lines += _told(name, entry)
    lines += [
        "",
        "Join several by +, as in plausible:alpha=0.1+power:p=-1; module:function is a rule of yours.",
    ]
    return "\n".join(line for line in lines if line is not None)


def _told(name: str, entry: Entry) -> list[str]:
    dials = [
        f"{' ' * 20}{dial.name}={'off' if math.isinf(dial.default) else f'{dial.default:g}'}: {dial.meaning} "
        f"({dial.least:g} to {dial.most:g})"
        for dial in entry.dials
    ]
    return [f"  {name:18}{entry.formula}", f"{' ' * 20}{entry.use}", *dials]
