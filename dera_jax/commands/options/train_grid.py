"""A grid of trainings, each in its own folder: what is not finished is trained, and pushed if that is asked for."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from dera_jax.commands.options import cli, training
from dera_jax.commands.process import endings
from dera_jax.common.shown import shown

WORDS = {"rank": "--lora-r", "alpha": "--lora-alpha", "targets": "--lora-target-modules"}
"""Settings of adapters, and their options."""


def run_grid(args: argparse.Namespace, session, command: Sequence[str], prepare: Callable) -> None:
    """Trains every run of the grid that is not finished.

    Args:
      session: of `training.open_session`.
      prepare: (policy, seed, β) to what makes the method, save, config, settings and best, see
        `runs.run_training`. The method is made once the run is known to go on: that may take a while.
    """
    from dera_jax.common.provenance import provenance
    from dera_jax.devices.processes import leads
    from dera_jax.training import runs
    from dera_jax.training.certificates import tell_certificate
    from dera_jax.training.loop import Preempted

    members, unpushed = list(training.grid(args)), []
    _check_batch(args, session.mesh)
    given = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in command}
    for number, (out, seed, beta) in enumerate(members, 1):
        if len(members) > 1 and leads():
            print(f"{shown(out.name, 100)}, {number} of {len(members)}", file=sys.stderr)
        make, save, config, settings, best = prepare(_policy(session, seed), seed, beta)
        steps = f"{config.max_steps} step{'s' * (config.max_steps != 1)}"
        finished = partial(runs.is_finished, out, settings, config, given, cli.tell)
        # Looked at before the folder is touched, and again when no other run is in it.
        if not finished():
            with runs.alone(out):
                if not finished():
                    made = provenance(list(command))
                    given_run = (
                        make(),
                        save,
                        config,
                        training.run_config(args),
                        out,
                        settings,
                        made,
                        best,
                        session.mesh,
                        cli.tell,
                    )
                    try:
                        manifest = runs.run_training(*given_run)
                    except Preempted as preempted:
                        raise endings.Terminated(str(preempted)) from None
                    print(f"{steps}; model, manifest and metrics in {shown(out)}")
                    if certificate := manifest.get("certificate"):
                        print(tell_certificate(certificate))
                    unpushed += _push(args, out, len(members))
                    continue
        runs.tidy(out)
        print(f"{shown(out)}: already trained ({steps})")
        unpushed += _push(args, out, len(members))
    if unpushed:
        raise ValueError("; ".join(unpushed))


def _policy(session, seed: int):
    """Returns the policy to train; what its adapters cannot be is told in the words of the options."""
    try:
        return session.policy(seed)
    except ValueError as error:
        setting, colon, rest = str(error).partition(":")
        raise ValueError(WORDS.get(setting, setting) + colon + rest) from error


def _push(args: argparse.Namespace, out: Path, members: int) -> list[str]:
    """Uploads a trained model, if that is asked for; returns what went wrong, so that the others are trained."""
    from dera_jax.devices.processes import leads
    from dera_jax.training import publishing

    if args.push_to_hub is None or not leads():
        return []
    repo = publishing.member(args.push_to_hub, out.name) if members > 1 else args.push_to_hub
    try:
        print(f"pushed to {publishing.push(out, repo, args.model, private=args.hub_private)}")
    except ValueError as error:
        return [str(error)]
    return []


def _check_batch(args: argparse.Namespace, mesh) -> None:
    """Raises ValueError where the mesh does not divide a batch."""
    rows, parts = args.batch_size, mesh.shape["data"] if mesh else 1
    if rows % parts:
        raise ValueError(
            f"--batch-size={rows}: expected a multiple of the {parts} devices that rows are split over (--mesh)"
        )
