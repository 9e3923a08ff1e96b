"""From completions of the reference to rows of the optimum, its table, and distances from it."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from dera_jax.commands.options import cli, decoding
from dera_jax.common.shown import shown


def optimum_of_reference(args: Namespace, strengths: Sequence[float], command: Sequence[str]) -> None:
    """Decodes the reference, and shows the optimum."""
    from dera_jax.commands.options import models, sweeping
    from dera_jax.commands.parts.sweep_plan import load_plan, prompts_of
    from dera_jax.commands.parts.sweep_progress import run_plan
    from dera_jax.commands.parts.sweep_report import folder_name

    if args.reference and not args.aligned:
        args.aligned = args.reference  # no other model is needed
    reward = args.reward or (cli.toy_reward() if models.model_names(args)[0] is None else None)
    _check_reward(reward)
    sweep = sweeping.of_plain_draw(args, lambda_="0", num_samples=args.tries)
    config = decoding.decode_config(sweep)
    sweeping.check(sweep)
    decoding.check_as_is(config)
    for other in args.of:
        _read(other, args.allow_missing)  # before hours of work
    plan = load_plan(sweep, config)
    if not (args.beta or plan.beta):
        raise ValueError("expected --beta, the KL strength at λ = 1; the models do not tell it")
    out = args.out or Path("runs") / f"optimum-{folder_name(plan)}"
    drawn = out.with_name(f"{out.name}-reference")
    run_plan(plan, drawn, prompts_of(sweep), command)
    _show(drawn, args, reward, args.beta or plan.beta, strengths, out, command)


def optimum_of_run(args: Namespace, strengths: Sequence[float], command: Sequence[str]) -> None:
    """Shows the optimum from the completions of a run at λ = 0."""
    rows = _read(args.run, True)
    names = list(dict.fromkeys(name for row in rows for name in row["rewards"]))
    reward = args.reward or (names[0] if len(names) == 1 else None)
    _check_reward(reward)
    if reward not in names:
        there = ", ".join(shown(name, 60) for name in names) or "none"
        raise ValueError(
            f"{shown(args.run, 200)}: no reward {shown(reward, 60)}; the rows have {there}; eval.score adds it"
        )
    folder = args.run if args.run.is_dir() else args.run.parent
    out = args.out or folder.with_name(f"{folder.resolve().name}-optimum")
    _show(args.run, args, reward, args.beta, strengths, out, command)


def _check_reward(reward: str | None) -> None:
    if not reward or "," in reward:
        raise ValueError(f"expected one --reward, found {shown(reward or 'none', 100)}")


def _show(
    run: Path, args: Namespace, reward: str, beta: float | None, strengths: Sequence[float], out: Path,
    command: Sequence[str],
) -> None:  # fmt: skip
    """Writes the optimum's rows, figures and distances, and prints them."""
    from dera_jax.analysis import optimum_report as report
    from dera_jax.analysis.optimum import draws, optimum_of
    from dera_jax.common.json_files import write_json
    from dera_jax.common.provenance import provenance
    from dera_jax.results.manifests import read_manifest

    rows, beta = _reference_rows(run, reward, beta, args.allow_missing)
    found = optimum_of(rows, reward, beta)
    largest = _largest(args.max_reward, reward, max(found.reward))
    identity = _identity(read_manifest(run), found, reward, largest, args)
    # Rows, figures and table are of all strengths that the folder has.
    strengths = sorted({*strengths, *_strengths_there(out, identity)})
    points = [found.at(strength) for strength in strengths]
    drawn = {s: draws(found, s, args.num_samples, largest, args.seed) for s in strengths}
    distances = [
        each for other in args.of for each in _distances(found, run, other, reward, args.allow_missing)
    ]
    made = list(_rows(found, points, drawn, reward, args.seed))
    _write(out, made, identity, read_manifest(run), command)
    accepted = {s: [each.accepted for some in every for each in some] for s, every in drawn.items()}
    print(report.tell_optimum(points, accepted, reward, beta, len(rows)))
    if distances:
        print("\n" + report.tell_distances(distances))
    write_json(
        out / "optimum.json",
        {
            "reward": reward, "beta": beta, "max_reward": largest, "reference": str(run),
            **report.optimum_to_json(points, accepted, distances), "provenance": provenance(command),
        },
    )  # fmt: skip
    print(f"{shown(out)}/: rows.jsonl ({len(made)} rows), manifest.json, optimum.json")


def _read(run: Path, allow_missing: bool, strengths=None) -> list[dict]:
    """Returns the rows of a run, see `read_whole`."""
    from dera_jax.analysis.curves.runs import read_whole

    return read_whole(
        run, allow_missing, cli.warn if not allow_missing or strengths else lambda line: None, strengths
    )


def _strengths_there(out: Path, identity: dict) -> list[float]:
    """Returns the strengths of the rows that a folder of the same identity has."""
    from dera_jax.results.manifests import read_manifest
    from dera_jax.results.reading import read_rows

    if not (out / "rows.jsonl").is_file() or not (out / "manifest.json").is_file():
        return []
    same = read_manifest(out)["identity"].get("draw") == identity["draw"]
    return sorted({row["lambda"] for row in read_rows(out)}) if same else []


def _reference_rows(
    run: Path, reward: str, beta: float | None, allow_missing: bool
) -> tuple[list[dict], float]:
    """Returns the rows of the reference, as it is, and β.

    Raises:
      ValueError: there are none, they were drawn otherwise, or lack the reward; β is unknown.
    """
    from dera_jax.analysis.curves.runs import check_as_is
    from dera_jax.results.manifests import read_manifest

    name = shown(run, 200)
    rows = _read(run, allow_missing, [(0.0,)])
    if not rows:
        raise ValueError(f"{name}: expected completions at λ = 0, the reference's own, found none")
    check_as_is(rows, read_manifest(run), name)
    if lacking := [row for row in rows if row["rewards"].get(reward) is None]:
        raise ValueError(
            f"{name}: {len(lacking)} of {len(rows)} completions at λ = 0 have no number for {shown(reward, 60)}; "
            "eval.score adds it"
        )
    told = {row["beta"] for row in rows if not isinstance(row["beta"], list)}
    beta = beta or (told.pop() if len(told) == 1 else None)
    if not beta:
        raise ValueError("expected --beta, the KL strength at λ = 1; the rows do not tell it")
    return rows, beta


def _largest(given: float | None, reward: str, seen: float) -> float | None:
    """Returns the largest value that a reward can have, None where that is unknown."""
    from dera_jax.rewards.registry import largest_value

    bound = largest_value(reward) if given is None else given
    if bound is not None and seen > bound:
        raise ValueError(f"--max-reward: expected at least {seen:g}, which a completion has, found {bound:g}")
    return bound


def _distances(
    found, run: Path, other: Path, reward: str, allow_missing: bool
) -> Iterator[tuple[str, object]]:
    """Yields how far each strength of a run is from its optimum, with the run's name.

    Raises:
      ValueError: it is of another reference or other prompts, or lacks the reward or β.
    """
    from dera_jax.analysis.curves.runs import check_as_is
    from dera_jax.analysis.optimum import distance
    from dera_jax.results.manifests import read_manifest
    from dera_jax.strengths import strength_from_json

    name, rows = shown(other, 200), _read(other, allow_missing)
    theirs, ours = (read_manifest(each)["identity"] for each in (other, run))
    if theirs.get("models", {}).get("reference") != ours.get("models", {}).get("reference"):
        raise ValueError(f"--of={name}: its reference is not that of {shown(run, 200)}")
    for setting in ("max_new_tokens", "stop"):
        there, here = (each.get("decode", {}).get(setting) for each in (theirs, ours))
        if there != here:
            raise ValueError(
                f"--of={name}: its {setting} is {shown(there, 60)}, in {shown(run, 200)} {shown(here, 60)}"
            )
    check_as_is(rows, read_manifest(other), f"--of={name}")
    texts = {row["prompt_id"]: row["prompt"] for row in found.rows}
    same = [row for row in rows if texts.get(row["prompt_id"]) == row["prompt"]]
    if not same:
        raise ValueError(f"--of={name}: none of its prompts is one of {shown(run, 200)}")
    if lacking := sum(row["rewards"].get(reward) is None for row in same):
        raise ValueError(f"--of={name}: {lacking} completions have no number for {shown(reward, 60)}")
    for strength in sorted({strength_from_json(row["lambda"]) for row in same}):
        if len(strength) > 1 or strength[0] <= 0:
            continue
        part = [row for row in same if strength_from_json(row["lambda"]) == strength]
        beta = part[0]["beta"] if isinstance(part[0]["beta"], float) else found.beta
        yield name, distance(found, part, reward, strength[0], beta / strength[0])


def _rows(found, points, drawn, reward: str, seed: int) -> Iterator[dict]:
    """Yields the rows of the optimum."""
    for point in points:
        strength = point.lambda_
        for number, own in enumerate(drawn[strength]):
            for sample, draw in enumerate(own):
                row = found.rows[draw.row]
                logprob = row["reference_logprob"] + strength * row["rewards"][reward] / found.beta
                tried = found.rows[draw.row + 1 - draw.tries : draw.row + 1] if draw.accepted else ()
                logprob = float(logprob - point.log_z[number])
                yield row | {
                    "sample": sample, "seed": seed, "lambda": strength, "beta": found.beta, "rule": "optimum",
                    "draw": f"optimum:{reward}", "logprob": logprob, "sampling_logprob": logprob,
                    "aligned_logprob": logprob, "kl_to_reference": float(point.kl[number]),
                    "log_normalizer": None,
                    "exact": {
                        "tries": draw.tries,
                        "accepted": draw.accepted,
                        "tokens": sum(len(each.get("tokens", ())) for each in tried),
                        "cut": sum(each["finish_reason"] == "length" for each in tried),
                        "log_weight": None,
                    },
                }  # fmt: skip


def _identity(manifest: dict, found, reward: str, largest: float | None, args: Namespace) -> dict:
    """Returns the identity of an optimum's rows: the reference's, with a reward in the place of the aligned model."""
    identity = manifest["identity"]
    reference = identity.get("models", {}).get("reference", "")
    return {
        **identity,
        "models": {"reference": reference, "aligned": [f"optimum of {reward} at {found.beta!r}"]},
        "rule": "optimum",
        # Other completions, another bound or seed make other rows.
        "draw": f"optimum:{reward}:{found.beta!r}:{largest!r}:{args.seed}:{args.num_samples}:{found.fingerprint}",
    }


def _write(out: Path, rows: list[dict], identity: dict, manifest: dict, command: Sequence[str]) -> None:
    """Writes the run's folder, its rows all at once."""
    from dera_jax.common.provenance import provenance
    from dera_jax.results.folder import RunFolder
    from dera_jax.sweeps.judging import extent

    models = manifest.get("provenance", {}).get("models", [])[:1]
    identity = {name: value for name, value in identity.items() if name not in ("quantization", "templates")}
    with RunFolder(out, identity, provenance(list(command), models=models)) as folder:
        folder.replace_rows(rows)
        folder.finish(folder.manifest.get("extent", {}) | extent(rows))
