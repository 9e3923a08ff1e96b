"""The part of `python -m eval.tune` that trains at β*, decodes as the run was decoded, and compares.

Everything is done by the commands themselves, which go on where they stopped.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from dera_jax.analysis.estimates import estimate
from dera_jax.analysis.tuning import beta, choose, retraining
from dera_jax.analysis.tuning.beta import Target
from dera_jax.analysis.tuning.choose import Choice
from dera_jax.analysis.tuning.grid import Grid, read_grid
from dera_jax.analysis.tuning.objectives import Constraint, Objective
from dera_jax.analysis.tuning.report import Retrained
from dera_jax.analysis.tuning.retraining import Cost
from dera_jax.analysis.tuning.runs import Run, differing, read_run
from dera_jax.commands import dera
from dera_jax.commands.options import cli
from dera_jax.commands.parts import recorded
from dera_jax.commands.parts.recorded import Named
from dera_jax.common.files import make_folder, write_bytes
from dera_jax.common.json_files import encode_json, read_json
from dera_jax.common.shown import shown
from dera_jax.data.prompts import Prompt, prompt_text
from dera_jax.data.records import load_records
from dera_jax.results.manifests import TrainingManifest


@dataclass(frozen=True)
class Plan:
    """What the choice was made from."""

    run: Run
    second: Run
    """The run that validates, which may be the same."""
    validation: Grid
    objective: Objective
    constraints: Sequence[Constraint]
    names: Sequence[str]
    """Figures that these are made of."""
    models: Sequence[str | None]
    """Aligned; None is unknown."""
    manifests: Sequence[dict | None]
    targets: Sequence[Target]


def retrain(
    plan: Plan,
    choice: Choice,
    out: Path | None,
    prompts: str | None,
    allow_missing: bool,
    named: Named,
) -> Retrained | None:
    """Returns what the model trained at β* shows on the validation part, None where it is the aligned one.

    Args:
      choice: of λ*.
      out: folder of model and sweep; None is runs/<aligned>-beta=<β*>.
      prompts: where those of the run lie, if not where its manifest says.
      named: code of the recorded commands that may run.

    Raises:
      ValueError: there is no β*; the run or the model were not made by our commands, or these hold what is
        not repeated; prompts that are others.
      SystemExit: one of the commands failed, and has said why.
    """
    _check(plan)
    if choice.strength == (1.0,):
        return None
    (name,), (manifest,), (target,) = plan.models, plan.manifests, plan.targets
    out = out or Path("runs") / f"{Path(name).name}-beta={beta.written(target.beta_star)}"
    model = retraining.retrained_name(name, out / "model")
    (trainer, training), (_, decoding) = commands = _commands(plan, model, out, named)
    # Before anything is done, for they are somebody else's words.
    told = [recorded.line(*command) for command in commands]
    print("--retrain repeats what was recorded:", *told, sep="\n  ", file=sys.stderr)
    make_folder(out)
    _write_prompts(plan, prompts, out / "prompts.jsonl")
    _run(trainer, training)
    trained = read_json(out / "model" / "manifest.json", TrainingManifest)
    if not trained.get("finished"):
        raise ValueError(f"--retrain: training stopped before its end in {out}; the same command goes on")
    for line in retraining.differing_settings(manifest, trained):
        cli.warn(f"the aligned model was trained otherwise: {shown(line)}")
    _run("eval.sweep", decoding)
    cost = retraining.Cost(
        aligned=manifest.get("seconds"),
        retrained=trained.get("seconds"),
        decoding=(plan.run.manifest or {}).get("decode_seconds"),
        strengths=retraining.strengths_to_train(plan.validation.strengths),
    )
    return _compared(plan, choice, out / "sweep", model, cost, allow_missing)


def _commands(plan: Plan, model: str, out: Path, named: Named) -> list[tuple[str, list[str]]]:
    """Returns module and words of the training and of the decoding.

    Raises:
      ValueError: they hold what is not repeated.
    """
    (name,), (manifest,), (target,) = plan.models, plan.manifests, plan.targets
    where = str(plan.second.path)
    trainer, training = retraining.training_words(manifest, name, target.beta_star, out / "model")
    rewards = [each for each in plan.names if each in plan.second.rewards]
    count = len(set(plan.validation.prompts))
    decoding = retraining.decoding_words(
        plan.second.manifest, where, model, out / "prompts.jsonl", count, rewards, out / "sweep"
    )
    return [
        (trainer, recorded.repeatable(trainer, training, name, named)),
        ("eval.sweep", recorded.repeatable("eval.sweep", decoding, where, named)),
    ]


def _check(plan: Plan) -> None:
    """Raises ValueError where there is nothing to train, or the run does not tell how."""
    if len(plan.targets) > 1:
        raise ValueError(f"--retrain: expected one aligned model, found {len(plan.targets)}")
    if plan.targets[0].beta_star is None:
        raise ValueError(f"--retrain: {plan.targets[0].reason}")
    if plan.second.manifest is None:
        raise ValueError(f"--retrain: no manifest.json beside the rows of {plan.second.path}")
    if plan.manifests[0] is None:
        raise ValueError(
            f"--retrain: no manifest.json in {shown(plan.models[0], 200)}, which our training leaves: if it was "
            "trained elsewhere, train it there at β*; if it lies elsewhere now, give its folder as --aligned"
        )


def _run(module: str, words: list[str]) -> None:
    """Runs a command, its output among the progress.

    Raises:
      SystemExit: it failed, and has said why.
    """
    with redirect_stdout(sys.stderr):
        code = dera.run(module.partition(".")[2], words)
    if code:
        raise SystemExit(code)


def _write_prompts(plan: Plan, spec: str | None, path: Path) -> None:
    """Writes the validation prompts as the run read them, with all their fields.

    Raises:
      ValueError: they are not where the run's manifest says, or others are.
    """
    spec = spec or plan.second.manifest.get("extent", {}).get("prompts")
    if spec is None:
        raise ValueError("--retrain: the run's manifest does not tell its prompts; give --prompts")
    asked = {row["prompt_id"]: row["prompt"] for row in plan.second.rows if not row.get("turn", 0)}
    wanted, lines = set(plan.validation.prompts), {}
    for record in load_records(spec):
        prompt = Prompt.of(record.fields, record.number, record.where)
        if prompt.prompt_id in wanted:
            if prompt_text(prompt.at_turn(())) != asked[prompt.prompt_id]:
                raise ValueError(
                    f"--prompts: prompt {prompt.prompt_id!r} of {record.where} is another in the run"
                )
            lines[prompt.prompt_id] = encode_json(record.fields | {"id": prompt.prompt_id}) + b"\n"
    if lacking := wanted - lines.keys():
        raise ValueError(f"--prompts: prompt {min(lacking, key=str)!r} of the run is not in {spec}")
    write_bytes(path, b"".join(lines.values()))


def _compared(
    plan: Plan, choice: Choice, sweep: Path, model: str, cost: Cost, allow_missing: bool
) -> Retrained:
    """Returns the retrained model beside DeRa at λ* and the two models, pair by pair.

    Raises:
      ValueError: it was decoded in another way than the run.
    """
    retrained = read_run(sweep)
    # A trained model's tokenizer is written anew.
    ways = [
        run.manifest["identity"] | {"models": run.reference, "tokenizers": None}
        for run in (plan.second, retrained)
    ]
    if other := differing(*ways):
        told = f"{shown(other.name, 60)} is {other.here!r:.60}, of the run {other.there!r:.60}"
        raise ValueError(f"{sweep}: {told}: they cannot be compared")
    needed = {choice.strength, *choose.ends(1), plan.objective.against} & {*plan.validation.strengths}
    own = set(plan.validation.keys)

    def kept(rows):
        return [row for row in rows if (row["prompt_id"], row["sample"], row.get("turn", 0)) in own]

    groups = {s: kept(plan.second.by_strength[s]) for s in needed}
    groups[choose.RETRAINED] = kept(retrained.by_strength[(1.0,)])
    grid, _ = read_grid(groups, plan.names, model, allow_missing)
    return Retrained(
        beta=plan.targets[0].beta_star,
        model=model,
        prompts=len(set(grid.prompts)),
        objective=estimate(plan.objective.values(grid)[grid.index(choose.RETRAINED)], grid.prompts),
        differences=choose.differences(
            grid, plan.objective, choose.RETRAINED, [choice.strength, *choose.ends(1)]
        ),
        margins=choose.margins(grid, plan.constraints, choose.RETRAINED),
        aligned_allowed=choice.satisfied.get((1.0,)),
        cost=cost,
    )
