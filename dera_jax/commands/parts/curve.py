"""From runs, or from a sweep of its own, to a curve and its files."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands.options import cli, decoding, models
from dera_jax.common.shown import shown

STEP = 0.02
"""Of the strengths of a curve."""


def curve_of_sweep(
    sweep: Namespace, args: Namespace, grid: list[float] | None, command: Sequence[str]
) -> None:
    """Decodes what the arguments ask for, and draws the curve of it."""
    from dera_jax.commands.options import sweeping
    from dera_jax.commands.parts.sweep_plan import load_plan, prompts_of
    from dera_jax.commands.parts.sweep_progress import run_plan
    from dera_jax.commands.parts.sweep_report import folder_name

    config = decoding.decode_config(sweep)
    sweeping.check(sweep)
    decoding.check_as_is(config)
    plan = load_plan(sweep, config)
    out = args.out or Path("runs") / f"curve-{folder_name(plan)}"
    run_plan(plan, out, prompts_of(sweep), command)
    _draw([out], args, grid, command, plan.policies)


def curve_of_runs(args: Namespace, grid: list[float] | None, command: Sequence[str]) -> None:
    """Draws the curve of runs that are there."""
    if args.out:
        cli.check_folder(args.out)
    _draw(args.runs, args, grid, command)


def _draw(
    runs: Sequence[Path], args: Namespace, grid: list[float] | None, command: Sequence[str], policies=None
) -> None:
    from dera_jax.analysis.curves import report
    from dera_jax.analysis.curves.figure import plot_curve
    from dera_jax.analysis.curves.pool import pool_of
    from dera_jax.analysis.curves.runs import read_pooled
    from dera_jax.analysis.reports import describe_models
    from dera_jax.common.files import make_folder, write_text
    from dera_jax.common.json_files import write_json
    from dera_jax.common.provenance import provenance

    pooled = read_pooled(runs, args.allow_missing, cli.warn)
    strengths = grid or _default_grid(pooled.strengths)
    wanted = sorted({*pooled.strengths, *(strengths if args.per_token else ())})
    first = runs[0] if runs[0].is_dir() else runs[0].parent
    folder = args.out or first
    make_folder(folder)
    found = _normalizers(pooled, wanted, args, folder / "normalizers.json", policies)
    told = _told(pool_of(pooled.rows, *found.by_strength()), pooled, strengths, args)
    for warning in _warnings(told):
        cli.warn(warning)
    print(report.tell_curve(told))
    write_text(folder / "curve.csv", report.curve_to_csv(told))
    write_json(
        folder / "curve.json",
        report.curve_to_json(told) | {"runs": [str(run) for run in runs], "provenance": provenance(command)},
    )
    plot_curve(told, folder / "curve.png", describe_models(first))
    print(f"{shown(folder)}/: curve.csv, curve.json, curve.png")


def _default_grid(strengths: Sequence[float]) -> list[float]:
    low, high = strengths[0], strengths[-1]
    end = high + 0.5 * (high - low or 1)
    count = round((end - low) / STEP)
    return sorted({*strengths, *(round(low + STEP * n, 10) for n in range(count + 1))})


def _told(pool, pooled, strengths: Sequence[float], args: Namespace):
    """Returns all that is told of the curve of a pool."""
    from dera_jax.analysis.curves.bounds import bounds
    from dera_jax.analysis.curves.certificate import certify
    from dera_jax.analysis.curves.curve import make_curve
    from dera_jax.analysis.curves.laws import ResponseLaw, TokenLaw
    from dera_jax.analysis.curves.report import Told, plain_means, unscored

    plain, several = plain_means(pool), {"completions": len(pooled.rows), "unscored": unscored(pool)}
    if args.per_token:
        curve = make_curve(TokenLaw(pool), strengths)
        return Told(curve, "absorb", plain, plain, pooled.beta, **several)
    law = ResponseLaw(_with_members(pool, args.limit_means), args.limit_means)
    curve = make_curve(law, strengths)
    return Told(
        curve,
        args.limit_means,
        plain,
        plain_means(law.pool, law.member),
        pooled.beta,
        bounds(law),
        certify(law, [point.lambda_ for point in curve.drawn][:: max(1, len(curve.drawn) // 10)]),
        **several,
    )


def _with_members(pool, limit_means: str):
    """Returns the pool of the prompts that have a completion of any weight."""
    if limit_means == "absorb" or not pool.cut.any():
        return pool
    ended = pool.sums((~pool.cut).astype(float)) > 0
    if not ended.any():
        raise ValueError(
            "no completion has ended within --max-new-tokens, so none has a weight; --limit-means=absorb counts those "
            "that were cut off"
        )
    if not ended.all():
        cli.warn(f"{(~ended).sum()} of {len(ended)} prompts are left out: all their completions were cut off")
    return pool.part(ended[pool.prompt])


def _warnings(told) -> list[str]:
    drawn = [point.lambda_ for point in told.curve.drawn]
    if not drawn:
        return ["nowhere do 10 % of the completions carry the weight: more strengths or samples are needed"]
    inside = [p.lambda_ for p in told.curve.points if not p.drawn and drawn[0] < p.lambda_ < drawn[-1]]
    if inside:
        return [f"too few completions carry the weight between λ = {inside[0]:g} and {inside[-1]:g}"]
    return []


def _normalizers(pooled, wanted: list[float], args: Namespace, kept: Path, policies):
    """Returns the rows' normalizers at strengths: as rows tell them, as kept, or as the models tell."""
    from dera_jax.scoring import normalizers

    zero = () if args.per_token else (0.0, 1.0)  # where log z is 0
    strengths = [strength for strength in wanted if strength not in zero]
    told = normalizers.as_told(pooled.rows, strengths)
    numbers = normalizers.to_read(pooled.rows, strengths)
    if not numbers:
        return told
    identity = pooled.manifest["identity"]
    precision = [str(identity.get("dtype")), *map(str, identity.get("quantization") or ())]
    names = [*_fingerprints(pooled.manifest), *precision]
    there = normalizers.kept_normalizers(kept, pooled.rows, names, strengths)
    if there is not None:
        return there
    policies = policies or load_models_of(pooled.manifest, args)
    rows = [pooled.rows[n] for n in numbers]
    found = normalizers.read_again(policies, rows, strengths, decoding.parse_rows(args.rows, len(rows)))
    shown_by = tqdm(found, "reading again", len(rows), unit="completion", dynamic_ncols=True,
                    mininterval=0.1 if sys.stderr.isatty() else 10.0)  # fmt: skip
    for number, log_normalizers, kl in shown_by:
        told.log_normalizers[numbers[number]] = log_normalizers
        told.kl[numbers[number]] = kl
    normalizers.write_normalizers(kept, pooled.rows, names, told)
    return told


def _fingerprints(manifest: dict) -> list[str]:
    """Returns what tells the models of a run.

    Raises:
      ValueError: the manifest does not say.
    """
    found = manifest["identity"].get("models", {})
    if "reference" not in found or "aligned" not in found:
        raise ValueError("the run's manifest does not tell its models' fingerprints (identity.models)")
    aligned = found["aligned"]
    return [found["reference"], *(aligned if isinstance(aligned, list) else [aligned])]


def load_models_of(manifest: dict, args: Namespace):
    """Returns the models of a run, as they were.

    Raises:
      ValueError: they are unknown, or others by now.
    """
    names = [model["name"] for model in manifest.get("provenance", {}).get("models", [])]
    if args.reference or args.aligned:
        reference, aligned = models.model_names(args)
        names = [reference, *aligned]
    if not names:
        raise ValueError("the run's manifest names no models: expected --reference and --aligned")
    identity = manifest["identity"]
    if args.dtype == "auto" and "dtype" in identity:
        args.dtype = identity["dtype"]
    kinds = identity.get("quantization")
    mesh = models.open_mesh(
        Namespace(**{**vars(args), "reference": names[0], "aligned": ",".join(names[1:])})
    )
    cli.announce_devices()
    quantize = ",".join(kind or "none" for kind in kinds) if kinds else None
    policies = models.load_models(args, names, quantize, mesh)
    for policy, expected in zip(policies, _fingerprints(manifest), strict=True):
        if policy.fingerprint != expected:
            raise ValueError(
                f"{shown(policy.name, 200)}: expected the model that the run was decoded with, found another one; "
                "--reference and --aligned name it, with --steer if it was steered"
            )
    return policies
