"""The strength that a constraint asks for, from a run's completions at λ = 0."""

import math
from argparse import Namespace
from collections.abc import Sequence

from dera_jax.analysis.curves.runs import check_as_is, read_whole
from dera_jax.analysis.dual import FEW, Dual, solve
from dera_jax.analysis.tuning.objectives import Constraint, parse_constraint
from dera_jax.commands.options import cli
from dera_jax.common.json_files import write_json
from dera_jax.common.provenance import provenance
from dera_jax.common.shown import shown
from dera_jax.results.manifests import manifest_path, read_manifest

FIGURES = ("kl", "length", "win-rate")
"""Objectives that are no reward."""
MEANINGLESS = ("judge", "against", "kl_price", "retrain", "plot", "aligned", "prompts")
"""Options that --dual does not read."""


def tell_dual(args: Namespace, command: Sequence[str]) -> None:
    """Prints the weight that the constraint needs, and writes it to --out."""
    if given := [name for name in MEANINGLESS if getattr(args, name)]:
        raise ValueError(f"{cli.option(given[0])} has no meaning with --dual")
    if len(args.constraint) != 1:
        raise ValueError(
            f"--dual: expected one --constraint='NAME>=NUMBER', found {len(args.constraint) or 'none'}"
        )
    name = shown(args.run, 200)
    rows = read_whole(args.run, args.allow_missing, cli.warn, [(0.0,)])
    if not rows:
        raise ValueError(f"{name}: expected completions at λ = 0, the reference's own, found none")
    if manifest_path(args.run).exists():
        check_as_is(rows, read_manifest(args.run), name)
    rewards = sorted({each for row in rows for each in row["rewards"]})
    constraint = parse_constraint(args.constraint[0], rewards)
    if not constraint.at_least or constraint.name not in rewards:
        raise ValueError(f"--constraint={constraint.text}: --dual takes REWARD>=NUMBER")
    if args.objective in FIGURES:
        raise ValueError(f"--objective={args.objective}: expected a reward with --dual")
    for reward in (constraint.name, *([args.objective] if args.objective else [])):
        if lacking := sum(row["rewards"].get(reward) is None for row in rows):
            raise ValueError(
                f"{name}: {lacking} of {len(rows)} completions at λ = 0 have no number for {shown(reward, 60)}; "
                "eval.score adds it"
            )
    bound, beta = _bound(constraint, rows), _beta(args.beta, rows)
    found = solve(rows, constraint.name, bound, beta, args.objective, args.seed)
    print(_told(found, constraint, bound, beta, args.objective))
    if found.effective < FEW:
        cli.warn(
            f"{found.effective:.1%} of the completions carry the weight: μ hangs on a few; draw more (--num-samples)"
        )
    if args.out:
        figures = {each: None if _is_nan(value) else value for each, value in vars(found).items()}
        settings = {"constraint": constraint.text, "bound": bound, "beta": beta, "objective": args.objective}
        write_json(args.out, {"run": str(args.run), **settings, **figures, "provenance": provenance(command)})
        print(f"\n{shown(args.out)}")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _bound(constraint: Constraint, rows: Sequence[dict]) -> float:
    if not constraint.relative:
        return constraint.bound
    mean = math.fsum(row["rewards"][constraint.name] for row in rows) / len(rows)
    return mean * (1 + constraint.bound * math.copysign(1, mean))


def _beta(given: str | None, rows: Sequence[dict]) -> float:
    """Returns β of --beta, else of the rows."""
    if given is None:
        told = {row["beta"] for row in rows if isinstance(row["beta"], float)}
        if len(told) != 1:
            raise ValueError("expected --beta, the KL strength at λ = 1; the rows do not tell it")
        return told.pop()
    try:
        beta = float(given)
    except ValueError:
        beta = math.nan
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"--beta: expected a number above 0, found {shown(given, 40)}")
    return beta


def _told(found: Dual, constraint: Constraint, bound: float, beta: float, reward: str | None) -> str:
    interval = "" if math.isnan(found.low) else f"  [{found.low:.4g}, {found.high:.4g}]"
    told = (
        "[ ] is a 95 % interval over prompts"
        if interval
        else "no interval: some draws of these prompts miss it"
    )
    name = shown(constraint.name)
    if reward is None:
        what, law = f"λ = μ = {found.mu:.4g}{interval}", f"π_ref exp(λ {name}/β)"
        assumed = f"λ is for a model that is at its optimum for {name} at β = {beta:g}; one that is not needs another"
    else:
        what, law = f"μ = {found.mu:.4g}{interval}", f"π_ref exp(({shown(reward)} + μ {name})/β)"
        assumed = (
            f"two models at their optima for each reward at β = {beta:g} have it at λ = 1+{found.mu:.4g}"
        )
    gained = "" if found.reward is None else f"E[{shown(reward or '')}] = {found.reward:.4g}, "
    return (
        f"{what} for {name}>={bound:g} in the law {law}, β = {beta:g}\n"
        f"there E[{name}] = {found.mean:.4g} ({found.plain:.4g} at μ = 0), {gained}KL = {found.kl:.4g} nats\n"
        f"from {found.completions} completions of the reference to {found.prompts} prompts, of which "
        f"{found.effective:.0%} carry the weight; {told}\n{assumed}"
    )
