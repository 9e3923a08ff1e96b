"""Runs a campaign: `python -m tests.campaign --seed=N --inputs=500 --kills=200`; see README.md here."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.support.processes import QUICKLY

FULL = {"inputs": 2000, "kills": 100_000}
SHORT = {"inputs": 20, "kills": 6}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides which inputs and moments are tried")
    parser.add_argument("--inputs", type=int, help=f"bad inputs (default {SHORT['inputs']})")
    parser.add_argument("--kills", type=int, help=f"kills (default {SHORT['kills']})")
    parser.add_argument(
        "--full", action="store_true", help=f"{FULL['inputs']} inputs, and kills at all operations"
    )
    parser.add_argument(
        "--only", action="append", help="kinds of file, commands or scenarios; may be repeated"
    )
    parser.add_argument("--repeat", action="append", metavar="CASE", help="run this case; may be repeated")
    parser.add_argument("--verbose", action="store_true", help="print every case and all that it says")
    return parser.parse_args()


def prepare() -> None:
    """Sets what JAX and the libraries read when they are imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["COLUMNS"] = "100"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # Compiling takes most of the time, whatever the programs do.
    os.environ.setdefault("XLA_FLAGS", QUICKLY)
    sys.dont_write_bytecode = True


def main() -> int:
    args = arguments()
    sizes = FULL if args.full else SHORT
    for name, size in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, 0 if args.repeat else size)
    prepare()
    from tests.campaign import forks

    forks.import_all()
    from tests.campaign.drive import Drive
    from tests.campaign.kills import Kills

    failed = 0
    with tempfile.TemporaryDirectory(prefix="dera_jax-campaign-") as home:
        repeated = args.repeat or []
        start = time.monotonic()
        drive = Drive(Path(home) / "inputs")
        print(f"valid files made in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if args.inputs or not all(name.startswith("kill | ") for name in repeated):
            failed += run_inputs(args, drive)
        if args.kills or any(name.startswith("kill | ") for name in repeated):
            failed += run_kills(args, Kills(Path(home) / "kills", drive.shelf))
        drive.end()
    print(f"seed {args.seed}: {failed} failures")
    return int(failed > 0)


def run_kills(args: argparse.Namespace, kills) -> int:
    """Kills commands, prints what came of it, and returns the number of failures."""
    from tests.campaign.kills import SCENARIOS, in_turn, parse, sample
    from tests.campaign.report import kill_failures, kill_table

    start = time.monotonic()
    wanted = [name for name in SCENARIOS if not args.only or name in args.only]
    # Of fewer kills than scenarios, only those that one falls to are run whole.
    wanted = in_turn(wanted, args.kills, args.seed)
    if args.repeat:
        tries = [parse(name) for name in args.repeat if name.startswith("kill | ")]
        operations = {each.scenario: sum(map(len, kills.whole(each.scenario)[1])) for each in tries}
    else:
        all_tries = {name: kills.all_tries(name) for name in wanted}
        operations = {name: sum(map(len, kills.whole(name)[1])) for name in wanted}
        tries = sample(all_tries, args.kills, args.seed)
    print(f"{operations}: {sum(operations.values())} operations", file=sys.stderr, flush=True)
    found = []
    for number, each in enumerate(tries, 1):
        found.append(kills.run(each))
        if args.verbose or found[-1].fault:
            told = f"{found[-1].fault or 'same'} {each.name}, {found[-1].where}: {found[-1].said!a}"
            print(f"[{number}/{len(tries)}] {told}", file=sys.stderr, flush=True)
    print(kill_table(found, operations))
    print(kill_failures(found))
    print(f"{len(found)} kills in {time.monotonic() - start:.0f} s")
    return sum(bool(each.fault) for each in found)


def run_inputs(args: argparse.Namespace, drive) -> int:
    """Tries bad inputs, prints what came of them, and returns the number of failures."""
    from tests.campaign import report

    start = time.monotonic()
    chosen, controls = chosen_cases(args, drive)
    outcomes = []
    for number, case in enumerate([*controls, *chosen], 1):
        found = drive.control(case) if isinstance(case, str) else drive.run(case)
        outcomes.append(found)
        if args.verbose or found.faults:
            told = "+".join(found.faults) or "fine"
            print(f"[{number}/{len(controls) + len(chosen)}] {told} ({found.code}) {found.case.name}: {found.said!a}",
                  file=sys.stderr, flush=True)  # fmt: skip
    print(report.input_table(outcomes))
    print(report.input_failures(outcomes))
    print(f"{len(chosen)} bad inputs in {time.monotonic() - start:.0f} s")
    return sum(bool(each.faults) for each in outcomes)


def chosen_cases(args: argparse.Namespace, drive) -> tuple[list, list[str]]:
    """Returns the cases, and the commands that are to succeed on valid files first."""
    from tests.campaign import inputs
    from tests.campaign.commands import COMMANDS

    if args.repeat:
        return [inputs.parse(name) for name in args.repeat if not name.startswith("kill | ")], []
    cases = inputs.all_cases(drive.shelf)
    if args.only:
        cases = {pair: found for pair, found in cases.items() if set(pair) & set(args.only)}
    print(f"{sum(map(len, cases.values()))} cases to draw from", file=sys.stderr)
    chosen = inputs.sample(cases, args.inputs, args.seed)
    used = {case.command for case in chosen}
    return chosen, [name for name in COMMANDS if name in used]


if __name__ == "__main__":
    sys.exit(main())
