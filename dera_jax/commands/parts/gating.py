"""Gates: a probe is fitted to labelled prompts, and tells of other prompts whether they are steered."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from dera_jax.commands.options import cli, models
from dera_jax.commands.parts.sweep_plan import check_default_prompts, prompts_of
from dera_jax.commands.parts.weighing import record, tell_replaced
from dera_jax.common.shown import shown
from dera_jax.common.usable import Dropped
from dera_jax.strengths import format_strength

if TYPE_CHECKING:
    from dera_jax.policies.policy import Policy
    from dera_jax.policies.steering import Probe

LABEL = "label"
"""The field of a prompt that says whether a gate is to open: true or false, or 1 or 0."""


def labelled_prompts(args: Namespace) -> tuple[Sequence, dict, Dropped]:
    """Returns the prompts of --gate, their labels by id, and what could not be read."""
    from dera_jax.data.prompts import read_prompts

    prompts, unread = read_prompts(args.gate, None, args.chat_template_kwargs)
    return (
        prompts,
        {prompt.prompt_id: _label(prompt.columns.get(LABEL), prompt) for prompt in prompts},
        unread,
    )


def fitted_gate(policy: "Policy", labelled: tuple, source: str, share: float, rows: int) -> "Probe":
    """Returns the probe of the layer that tells held-out prompts apart best, and prints how well each does.

    Args:
      labelled: of `labelled_prompts`.
      source: of them, for what is told.
      share: of the prompts that is held out.
      rows: prompts read at a time.
    """
    from dera_jax.scoring.probes import accuracies, fit_probes

    prompts, labels, unread = labelled
    ids, states = _states(policy, prompts, rows, source, unread)
    yes = np.array([labels[name] for name in ids])
    held = _held_out(yes, share)
    probes = fit_probes(states[~held], yes[~held])
    right = accuracies(probes, states[held], yes[held])
    best = int(np.argmax(right))
    told = "  ".join(f"{layer}: {each:.2f}" for layer, each in enumerate(right))
    print(f"gate of {(~held).sum()} prompts; accuracy on {held.sum()} held-out prompts, by layer\n{told}")
    print(f"gate: layer {best}\n")
    return probes[best]


def gated_prompts(args: Namespace, rows: int) -> tuple[list[dict], str]:
    """Returns the prompts as records, λ or 0 their strength, and what there is to tell of the gate."""
    from dera_jax.data.prompts import read_prompts
    from dera_jax.policies.steering import check_fits, read_steering
    from dera_jax.scoring.probes import says_yes
    from dera_jax.strengths import as_strengths

    only = as_strengths(args.lambda_, 1, "--lambda")
    if len(only) > 1:
        raise ValueError(f"--lambda: expected one strength with --gate, found {len(only)}")
    steering, source = read_steering(args.gate), prompts_of(args)
    if steering.probe is None:
        raise ValueError(f"{steering.where}: expected a gate in it (eval.steer --gate=PROMPTS), found none")
    prompts, unread = read_prompts(source, args.num_prompts, args.chat_template_kwargs)
    tell_replaced(prompts)
    mesh = models.open_mesh(args)
    cli.announce_devices()
    policy = models.load_models(args, mesh=mesh)[0]
    check_default_prompts(args, (policy,))
    check_fits(steering, policy)
    ids, states = _states(policy, prompts, rows, source, unread)
    opens = says_yes(steering.probe, states).tolist()
    whole = {prompt.prompt_id: prompt for prompt in prompts}
    records = [
        record(whole[name], only[0] if each else (0.0,)) for name, each in zip(ids, opens, strict=True)
    ]
    told = f"the gate of layer {steering.probe.layer} opens for {sum(opens)} of {len(opens)} prompts"
    return records, f"{told}: λ = {format_strength(only[0])}, else 0"


def _states(policy, prompts: Sequence, rows: int, source: str, unread):
    from dera_jax.scoring.divergence import encode_texts
    from dera_jax.scoring.probes import prompt_states

    texts, unfit = encode_texts((policy,), prompts)
    if (dropped := unread | unfit).count:
        print(dropped.told(source, len(texts)), file=sys.stderr)
    with tqdm(total=len(texts), desc="reading", unit="prompt", leave=False, disable=None) as bar:
        states = prompt_states(policy, [text.tokens[0] for text in texts], rows, bar.update)
    return [text.id for text in texts], states


def _label(value: object, prompt) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    where = prompt.where or f"prompt {prompt.prompt_id!r}"
    raise ValueError(f"{where}: {LABEL}: expected true or false, found {shown(repr(value), 40)}")


def _held_out(yes: np.ndarray, share: float) -> np.ndarray:
    """Returns which prompts are held out: the same share of both kinds, spread over the file."""
    held = np.zeros(len(yes), bool)
    for kind in (yes, ~yes):
        places = np.flatnonzero(kind)
        count = round(share * len(places))
        if not 0 < count < len(places):
            raise ValueError(
                f"--gate: expected at least two prompts of each kind at --eval-share={share:g}, found "
                f"{len(places)} of one"
            )
        held[places[np.linspace(0, len(places) - 1, count).round().astype(int)]] = True
    return held
