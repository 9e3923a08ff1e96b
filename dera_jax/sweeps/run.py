"""Sweeps: every prompt × sample × strength that is not there yet, decoded, judged and kept."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from dera_jax.common.provenance import provenance
from dera_jax.data.encoding import encode_usable, prompt_tokens
from dera_jax.data.prompts import Prompt, prompt_text, usable_prompts, warn_of
from dera_jax.decoding.complete import Draw, complete
from dera_jax.decoding.conversation import Conversation, converse
from dera_jax.decoding.generate import decode_config
from dera_jax.devices.processes import in_lockstep
from dera_jax.devices.stopwatch import Stopwatch
from dera_jax.devices.usage import Usage, resources
from dera_jax.policies.policy import Policy
from dera_jax.results.asked import ended, request, with_request
from dera_jax.results.folder import RunFolder
from dera_jax.results.manifests import Asked
from dera_jax.results.rows import WHOLE, RowKey, row_key
from dera_jax.rewards.of_rows import Tell, judge
from dera_jax.rewards.registry import as_rewards
from dera_jax.rules.rule import Rule, as_rule, linear_rule, named
from dera_jax.strengths import PER_PROMPT, as_strengths
from dera_jax.sweeps.judging import add_beta, extent, remembered
from dera_jax.sweeps.plan import SweepPlan, make_plan, own_conversations, plan_keys, turn_key
from dera_jax.sweeps.reward_hashes import forget_outdated, record
from dera_jax.sweeps.rows import make_row
from dera_jax.sweeps.shared_folder import SharedFolder

FLUSH_ROWS, FLUSH_SECONDS = 64, 2.0
"""Finished rows are judged and written when they are this many, or this old."""


def sweep(
    policies: Sequence[Policy],
    prompts: Sequence[str | dict | Prompt],
    lambdas: object,
    rewards: object = (),
    *,
    out: str | Path | None = None,
    num_samples: int = 1,
    rows: int | str | None = None,
    rule: Rule | str = linear_rule,
    beta: float | None = None,
    command: Sequence[str] = (),
    draw: Draw = complete,
    **settings,
) -> Iterator[dict]:
    """Yields a row for every prompt × sample × strength, those of an earlier run in `out` first.

    Rows are made, and written, as they are asked for: nothing happens before the first `next`, and
    `list(sweep(…))` makes all. Prompts that cannot be used (empty, too long) are left out with a warning.

    Args:
      policies: of `load_policies`, the reference first.
      prompts: texts, mappings with the fields of a prompts file, or `Prompt`s.
      lambdas: strengths, as numbers or text such as "0:2:0.2" and ["1/2", 1]; tuples for several aligned
        models; None takes each prompt's own.
      rewards: a REWARD argument such as "length:40:60", a function with TRL's signature
        (`f(prompts, completions, **columns) -> list`), a `Reward`, a list of these, or a mapping from names.
        In `out` a reward is known by its name: rows that have it are not judged again.
      out: folder to keep rows in and to resume from; None keeps nothing. `python -m eval.plot` draws it.
      num_samples: completions of each prompt at each strength.
      rows: completions decoded at a time; None or "auto": as many as the whole sweep has, at most 32.
      rule: makes one model's logits of all models'; a function, or a name such as "plausible:alpha=0.1".
      beta: KL strength of the aligned model, if it does not tell itself.
      command: words of a command line that the folder keeps as what made it.
      draw: makes a completion of each cell; `complete` draws it from the realigned policy.
      settings: fields of `DecodeConfig`, such as max_new_tokens, temperature and seed.

    Raises:
      TypeError: an unknown setting, or what is no strength or no reward.
      ValueError: bad input; `out` holds another run.
    """
    decode, judges = decode_config(settings, sweep), as_rewards(rewards)
    own = lambdas is None or (isinstance(lambdas, str) and lambdas == PER_PROMPT)
    strengths = None if own else as_strengths(lambdas, len(policies) - 1)
    asked, unread = usable_prompts(prompts)
    asked, encoded, unfit = encode_usable(policies, asked, decode.max_new_tokens)
    warn_of(unread | unfit, "prompts", len(asked))
    plan = make_plan(
        policies, asked, encoded, strengths, judges, decode,
        num_samples=num_samples, rows=rows, rule=named(as_rule(rule)), beta=beta, draw=draw,
    )  # fmt: skip
    if out is None:
        yield from run_conversations(plan, {}, keep=lambda rows: None)
        return
    with open_run(plan, out, command) as folder:
        yield from run_sweep(plan, folder)


def sweep_provenance(plan: SweepPlan, command: Sequence[str]) -> dict:
    """Returns how the rows of `plan` are made, for the manifest."""
    device, processes = jax.devices()[0], jax.process_count()
    return provenance(
        list(command),
        device=f"{jax.device_count()} × {device.device_kind}",
        **({"processes": processes} if processes > 1 else {}),
        models=[{"name": p.name, "fingerprint": p.fingerprint} for p in plan.policies],
    )


@contextmanager
def open_run(
    plan: SweepPlan, out: str | Path, command: Sequence[str], tell: Tell = warnings.warn
) -> Iterator[RunFolder | SharedFolder]:
    """Opens the folder `out`, for all processes that there are, and judges the rows there.

    Args:
      tell: is told of rewards that have changed since they judged rows there, in the first process.

    Raises:
      ValueError: it holds another run, rows of other prompts or of another β, or other things.
    """
    folder = RunFolder(out, plan.identity, sweep_provenance(plan, command), WHOLE)
    prepare = partial(_complete, plan, tell)
    if plan.group is not None:
        with SharedFolder(folder, plan.group, prepare) as shared:
            yield shared
        return
    with folder:
        prepare(folder)
        yield folder


def _complete(plan: SweepPlan, tell: Tell, folder: RunFolder) -> bool:
    """Judges the rows there, notes what is asked for, and returns whether any of it is missing."""
    check_same_prompts(plan, folder.rows)
    for line in forget_outdated(folder, plan.rewards, {prompt.prompt_id for prompt in plan.prompts}):
        tell(line)
    # Both, whatever the first returns.
    changed = any([judge_missing(plan, folder.rows), add_beta(plan.beta, folder.rows)])
    missing = not plan_keys(plan) <= folder.keys
    if missing:
        # Before the first of the rows, so that a run that is killed is known to lack the others.
        folder.record({"asked": with_request(folder.manifest.get("asked", []), _request(plan))})
    if changed:
        folder.replace_rows(folder.rows)
    record(folder, plan.rewards)
    return missing


def _request(plan: SweepPlan) -> Asked:
    return request([prompt.prompt_id for prompt in plan.prompts], plan.num_samples, plan.lambdas)


def run_sweep(
    plan: SweepPlan,
    folder: RunFolder | SharedFolder,
    watch: Stopwatch | None = None,
    usage: Usage | None = None,
    tell: Tell = lambda waiting: None,
) -> Iterator[dict]:
    """Yields the rows of `plan` that `folder` has, then those it lacks, as they are written.

    Of several processes each makes, and is given, those of its own group.

    Args:
      folder: of `open_run`.
      watch: told the seconds of decoding.
      usage: is added to.
      tell: told of rewards that are waited for.
    """
    usage = usage or Usage()
    plan = replace(plan, rewards=(*plan.rewards, *remembered(folder.rows, plan.rewards)))
    wanted = plan_keys(plan)
    there = {row_key(row): row for row in folder.rows}
    yield from [row for key, row in there.items() if key in wanted]
    # A reward that fails in the one process that judges would leave the others waiting for its next step.
    made = replace(plan, rewards=()) if in_lockstep(plan.group) else plan
    yield from run_conversations(made, there, folder.append, watch, usage, tell)
    folder.collect()
    before = folder.manifest.get("extent", {})
    # What rows are made with is told by a run that made some, or goes on from one that was killed at its end.
    tells = len(folder.rows) > len(there) or "rows" not in before
    settings = {"rows": plan.rows, "mesh": plan.mesh} if tells else {}
    more = {"resources": resources(usage)} if usage.slot_steps else {}
    if asked := folder.manifest.get("asked"):
        more["asked"] = ended(asked, _request(plan))
    folder.finish(before | extent(folder.rows) | settings | {"beta": plan.beta}, more)


def run_conversations(
    plan: SweepPlan,
    there: Mapping[RowKey, dict],
    keep: Callable[[list[dict]], None],
    watch: Stopwatch | None = None,
    usage: Usage | None = None,
    tell: Tell = lambda waiting: None,
) -> Iterator[dict]:
    """Decodes and judges what is not `there`, yielding rows after `keep` has taken them."""
    pending: list[dict] = []
    written = time.monotonic()

    def flush() -> list[dict]:
        nonlocal pending, written
        rows, pending, written = pending, [], time.monotonic()
        try:
            judge_missing(plan, rows, tell)
        finally:
            # A reward that fails loses no row: a rerun judges those that lack it.
            keep(rows)
        return rows

    def known(conversation: Conversation, turn: int) -> str | None:
        row = there.get(turn_key(conversation, turn))
        return None if row is None else row["completion"]

    own = own_conversations(plan, there)
    completions = converse(
        plan.policies, own, plan.decode, plan.rows, plan.rule.function, known, usage, plan.draw
    )
    try:
        for completion in (watch or Stopwatch()).timed(completions):
            pending.append(make_row(plan, completion))
            if len(pending) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
                yield from flush()
        yield from flush()
    finally:
        # Interrupted: what has ended is kept.
        if pending:
            keep(pending)


def judge_missing(plan: SweepPlan, rows: list[dict], tell: Tell = lambda waiting: None) -> bool:
    """Adds to `rows` of the plan's prompts each reward that they lack; returns whether there was any."""
    prompts = {prompt.prompt_id: prompt for prompt in plan.prompts}
    tokenizer = plan.policies[-1].tokenizer
    rows = [row for row in rows if row["prompt_id"] in prompts]
    columns = {row["prompt_id"]: prompts[row["prompt_id"]].columns for row in rows}
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    return judge(rows, plan.rewards, columns, decode, tell)


def check_same_prompts(plan: SweepPlan, rows: Sequence[dict]) -> None:
    """Raises ValueError if a prompt of the plan is another, read otherwise or answered otherwise in the rows there."""
    prompts = {prompt.id: prompt for prompt in plan.encoded}
    for row in rows:
        if row["prompt_id"] not in prompts:
            continue
        prompt = prompts[row["prompt_id"]]
        if set(prompt.turn_ends).intersection(row.get("tokens", ())[:-1]):
            raise ValueError(
                f"the folder holds another run: an answer to prompt {prompt.id!r} goes on behind the end of its "
                "turn there, which ends answers here; choose another --out"
            )
        if row.get("turn", 0):  # what later turns ask follows from the answers before them
            continue
        for name, here in (("prompt", prompt_text(prompt.prompt)), ("prompt_tokens", prompt_tokens(prompt))):
            if name in row and here != row[name]:
                raise ValueError(
                    f"the folder holds another run: {name} {prompt.id!r} is {row[name]!r:.60} there and "
                    f"{here!r:.60} here; choose another --out"
                )
