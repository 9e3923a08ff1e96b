"""A sweep as it is watched: compiling, and then completion by completion."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands.options import cli
from dera_jax.commands.process import interrupts
from dera_jax.common.shown import shown
from dera_jax.common.user_code import UserCodeError

LOGGED = 10.0
"""Seconds between lines of progress in a file."""


def run_plan(plan, out: Path, prompts: str, command: Sequence[str]) -> tuple:
    """Adds what a sweep's folder lacks; returns all its rows, the seconds of decoding and what was used.

    Args:
      prompts: the PROMPTS argument, for the manifest.
      command: likewise the words of the command line.
    """
    from dera_jax.sweeps.estimate import check_memory
    from dera_jax.sweeps.run import open_run

    check_memory(plan)
    kept = f"finished completions are in {shown(out, 200)}; rerun to resume"
    with (
        _mendable(out),
        interrupts.telling(kept),
        open_run(plan, out, command, cli.warn) as folder,
    ):
        seconds, usage = run_with_progress(plan, folder)
        more = {"decode_seconds": round(seconds, 1)} if seconds else None
        folder.finish(folder.manifest["extent"] | {"prompts": prompts}, more)
        return folder.rows, seconds, folder.manifest.get("resources") if usage.slot_steps else None


@contextmanager
def _mendable(out: Path) -> Iterator[None]:
    """Adds to a failure of the user's own reward which completions are kept."""
    try:
        yield
    except UserCodeError as error:
        from dera_jax.search.scores import ScoreError

        kept = f"{out} keeps all completions; once the reward is mended, the same command goes on"
        if isinstance(error, ScoreError):
            kept = f"completions that have ended are in {out}; a changed score is another draw, for another --out"
        raise ValueError(f"{error}; {kept}") from error


def run_with_progress(plan, folder) -> tuple:
    """Adds what is missing; returns the seconds of decoding, or 0 if rows were there, and the slots' use.

    What the compiler and the rewards take is left out. Of several processes one tells of its own requests.
    """
    from dera_jax.decoding.complete import batching_draw, warm_up
    from dera_jax.devices.processes import leads
    from dera_jax.devices.stopwatch import Stopwatch
    from dera_jax.devices.usage import Usage
    from dera_jax.sweeps.plan import most_strengths, own_conversations, plan_keys, turn_keys
    from dera_jax.sweeps.run import run_sweep

    before, wanted = len(folder.rows), plan_keys(plan)
    watch, usage = Stopwatch(), Usage()
    own = own_conversations(plan, folder.keys)
    missing = {key for conversation in own for key in turn_keys(conversation)} - folder.keys
    if missing:
        if leads():
            print("compiling", file=sys.stderr)
        # Later turns and longer caches compile when their turn comes.
        requests = _first_requests(plan, own, folder.keys)
        strengths = most_strengths(plan, folder.keys)
        compiling, _ = warm_up(
            plan.policies, requests, plan.decode, plan.rows, plan.rule.function, strengths=strengths,
            draw=batching_draw(plan.draw),
        )  # fmt: skip
        if leads():
            print(f"compiled in {max(0.0, compiling):.1f} s", file=sys.stderr)
    there = len(wanted & folder.keys)
    with (
        interrupts.raised(),  # completions that wait to be written are not lost
        _bar(there, len(missing)) as bar,
        closing(run_sweep(plan, folder, watch, usage, _shown_by(bar))) as found,
    ):
        for number, _ in enumerate(found):
            bar.update(number >= there)
    if (left := len(wanted - folder.keys)) and leads():
        cli.warn(f"{left} later turns did not fit the models' context and are not there")
    return (0.0 if before else watch.seconds), usage


def _bar(there: int, missing: int):
    """Returns the progress of completions; those there before say nothing of the speed."""
    from dera_jax.devices.processes import leads

    return tqdm(
        total=there + missing, initial=there, unit="completion", dynamic_ncols=True, disable=not leads(),
        mininterval=0.1 if sys.stderr.isatty() else LOGGED,
    )  # fmt: skip


def _shown_by(bar) -> Callable[[str], None]:
    """Returns what shows a text behind the bar: at once on a terminal, with the next line of a log."""
    return partial(bar.set_postfix_str, refresh=sys.stderr.isatty())


def _first_requests(plan, conversations, there) -> list:
    """Returns the longest first turn that is not there yet of each shape that they have."""
    from dera_jax.sweeps.plan import turn_key

    missing = [c for c in conversations if turn_key(c, 0) not in there]
    longest = {c.first.buckets: c for c in sorted(missing, key=lambda c: max(c.first.slots))}
    return [c.request(plan.policies, (), plan.decode.max_new_tokens) for c in longest.values()]
