"""From a chosen strength to the β that a training needs: β* = β/λ*, and where it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dera_jax.common.shown import shown
from dera_jax.common.spelling import spelled
from dera_jax.strengths import format_strength

TRAINERS = ("train.dpo", "train.rlhf")
PREFERENCES = ("dpo",)
POLICY_GRADIENT = ("pg", "rloo", "ppo", "policy_gradient")
"""Methods, as manifests name them."""


@dataclass(frozen=True)
class Target:
    """What one aligned model would be retrained at."""

    beta: float | None
    """KL strength it was trained with; None is unknown."""
    beta_star: float | None
    """β/λ, as it is written, in six digits; None where there is none."""
    reason: str = ""
    """Why there is none."""
    method: str | None = None
    """Of its manifest; None is unknown."""
    loss: str | None = None


def make_target(
    lambda_: float, beta: float | None, manifest: Mapping | None = None, reference: str | None = None
) -> Target:
    """Returns β/λ of one aligned model, or why there is none.

    Args:
      lambda_: its strength.
      beta: it was trained with.
      manifest: of the model.
      reference: fingerprint of the sweep's reference.

    >>> make_target(1.2, 0.1).beta_star
    0.0833333
    """
    manifest = manifest or {}
    preference = manifest.get("preference") or {}
    reason = _no_beta(lambda_, beta, manifest, reference)
    star = None if reason else float(f"{beta / lambda_:.6g}")
    return Target(beta, star, reason, manifest.get("method"), preference.get("loss"))


def _no_beta(lambda_: float, beta: float | None, manifest: Mapping, reference: str | None) -> str:
    method = manifest.get("method")
    if method is not None and method not in (*PREFERENCES, *POLICY_GRADIENT):
        return f"the aligned model was made by {shown(method, 60)}, which has no reference and so no β"
    if (manifest.get("preference") or {}).get("sync_ref_model"):
        return "the aligned model's reference followed it in training (--sync-ref-model): λ scales no one β"
    if manifest.get("target_kl") is not None:
        return "the aligned model's β was adapted in training (--target-kl)"
    held = (manifest.get("reference") or {}).get("fingerprint")
    if reference and held and held != reference:
        return f"the run's reference is not the model that the aligned one was held near ({shown(held, 60)} there)"
    if lambda_ == 0:
        return "λ* = 0 is the reference itself (β = ∞): there is nothing to train"
    if lambda_ < 0:
        return "λ* < 0 moves away from the aligned model, which no β > 0 stands for"
    return "β is unknown: give it as --beta=B" if beta is None else ""


def written(beta: float) -> str:
    """Returns β as it is written in commands and configurations."""
    return f"{beta:.6g}"


def rounded(beta: float) -> str:
    """Returns β as a reader is told it; λ is known to fewer digits still."""
    return f"{beta:.4g}"


def changes(target: Target) -> list[tuple[str, str]]:
    """Returns, by tool, the line that a training at β* changes."""
    beta, lines = rounded(target.beta_star), []
    if target.method not in POLICY_GRADIENT:
        lines.append(("dera_jax", f"{spelled('dpo')} … --beta={beta}"))
    if target.method not in PREFERENCES:
        lines.append(("dera_jax", f"{spelled('rlhf')} … --beta={beta}"))
    trl = "RLOO" if target.method in POLICY_GRADIENT else "KTO" if target.loss == "kto" else "DPO"
    rl = {"RLOO": "grpo", "KTO": "kto"}.get(trl, "ipo" if target.loss == "ipo" else "dpo")
    return [
        *lines,
        ("TRL", f"{trl}Config(beta={beta}), or --beta {beta}"),
        ("axolotl", f"rl_beta: {beta}  # with rl: {rl}"),
    ]


def describe_betas(targets: Sequence[Target], strength: Sequence[float]) -> str:
    """Returns the arithmetic: `β* = β/λ* = 0.1/2 = 0.05`, for each aligned model."""
    sole = len(targets) == 1
    parts = []
    for number, (target, lambda_) in enumerate(zip(targets, strength, strict=True), start=1):
        i = "" if sole else "₁₂₃₄₅₆₇₈₉"[number - 1] if number < 10 else f"_{number}"
        text = format_strength((lambda_,))
        if target.beta_star is None:
            parts.append(f"no β*{i}: {target.reason}")
        else:
            star = rounded(target.beta_star)
            parts.append(f"β*{i} = β{i}/λ*{i} = {rounded(target.beta)}/{text} = {star}")
    return "\n".join(parts)
