"""The devices and processes that a command runs on."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from dera_jax.common import locks
from dera_jax.common.checks import check_number


def add_mesh_options(parser: argparse.ArgumentParser) -> None:
    """Adds the mesh and the processes that share it."""
    group = parser.add_argument_group("devices")
    add_mesh_option(group)
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="address of the first of several processes; auto: ask Slurm or the TPU pod "
        "(default: JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="number of processes of this run (default: JAX_NUM_PROCESSES)",
    )
    group.add_argument(
        "--process-id", type=int, metavar="I", help="number of this process, from 0 (default: JAX_PROCESS_ID)"
    )
    group.add_argument(
        "--coordinator-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time for all processes to join (default %(default)g)",
    )


def add_mesh_option(parser: argparse._ActionsContainer) -> None:
    """Adds the mesh alone, for commands of one process."""
    parser.add_argument(
        "--mesh",
        metavar="data:N,model:M",
        help="number of devices to split rows (data) and parameters (model) over (default: parameters over as "
        "many devices as their memory requires, rows over the others)",
    )


def start(args: argparse.Namespace, *, saves: bool = False) -> None:
    """Joins the other processes of the run, if it is told of any.

    Args:
      saves: whether the command stops with the others after SIGTERM, its state saved. Else SIGTERM ends
        this process, as it would a single one; JAX by itself would only note it.
    """

    from dera_jax.devices.start import start_processes

    check_number("--coordinator-timeout", args.coordinator_timeout, 0.0, float("inf"))
    before = signal.getsignal(signal.SIGTERM)
    start_processes(args.coordinator, args.num_processes, args.process_id, args.coordinator_timeout)
    # With several processes JAX would only take note of it, and go on.
    if not saves and before is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_free(args: argparse.Namespace, folders: Iterable[Path]) -> None:
    """Raises ValueError where another process writes to a folder, before anything is loaded.

    Of several processes of one run nobody looks: they would meet one another.
    """
    if args.coordinator is None and not os.environ.get("JAX_COORDINATOR_ADDRESS"):
        for folder in folders:
            locks.check_free(folder)


def tell_undivided(policies: Sequence) -> None:
    """Prints a line for each model whose vocabulary its mesh does not divide."""
    from dera_jax.devices.mesh import mesh_of
    from dera_jax.devices.placement import undivided_vocabulary
    from dera_jax.devices.processes import leads

    placed = [(policy, mesh) for policy in policies if (mesh := mesh_of(policy.params))]
    lines = [undivided_vocabulary(mesh, policy.name, policy.config) for policy, mesh in placed]
    for line in dict.fromkeys(filter(None, lines)):
        if leads():
            print(f"note: {line}", file=sys.stderr)
