"""What a sweep is to decode: cells, prompts × strengths × samples, and which of them are whose."""

import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dera_jax.common.checks import check_count
from dera_jax.common.code_hash import code_hash
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt, prompt_text
from dera_jax.decoding.complete import (
    Draw,
    batching_draw,
    complete,
    draw_name,
    is_plain,
    plain_draw,
    tries_of,
    width_of,
)
from dera_jax.decoding.config import DecodeConfig, rows_of
from dera_jax.decoding.conversation import Conversation
from dera_jax.decoding.speculative_batch import check_drafter
from dera_jax.decoding.value_models import check_values
from dera_jax.devices.mesh import Group, mesh_of, mesh_text
from dera_jax.devices.processes import share
from dera_jax.policies.policy import Policy
from dera_jax.results.rows import RowKey
from dera_jax.rewards.registry import Reward
from dera_jax.rules.known import NamedRule
from dera_jax.rules.rule import LINEAR, check_rule, check_strength, rule_code
from dera_jax.strengths import Strength, format_strength, turn_strengths


@dataclass(frozen=True)
class SweepPlan:
    """What is to be decoded and judged."""

    policies: tuple[Policy, ...]
    prompts: tuple[Prompt, ...]
    encoded: tuple[EncodedPrompt, ...]
    """First turns of the prompts."""
    lambdas: tuple[Strength, ...] | None
    """None: every prompt brings its own."""
    rewards: tuple[Reward, ...]
    decode: DecodeConfig
    num_samples: int = 1
    rows: int = 32
    rule: NamedRule = LINEAR
    beta: float | None = None
    """KL strength of the aligned model."""
    draw: Draw = complete
    """What makes the completions."""
    group: Group | None = None
    """Of processes that decode together, where there are several processes."""

    def __post_init__(self):
        check_count("num_samples", self.num_samples)
        check_count("rows", self.rows)
        check_extent(len(self.prompts), self.num_samples, len(self.lambdas or [0]))
        vocab = min(policy.config.vocab_size for policy in self.policies)
        check_values(self.policies, self.rule.function)
        check_rule(self.rule, len(self.policies), vocab)
        for strength in self.lambdas or ():
            check_strength(self.rule.function, strength)
        aligned = len(self.policies) - 1
        check_rewards(self.rewards, self.prompts)
        check_draw(self.draw, self.prompts, aligned)
        strengths = {s for prompt in self.prompts for each in self._strengths(prompt) for s in each}
        check_settings(self.draw, sorted(strengths), self.decode, self.rule)
        for strength in strengths:
            if len(strength) != aligned:
                raise ValueError(f"lambda: expected a number for each of {aligned} aligned, found {strength}")
            if max(map(abs, strength)) > float(np.finfo(np.float32).max):
                raise ValueError(f"lambda: {format_strength(strength)} is too large for float32")

    @property
    def conversations(self) -> list[Conversation]:
        """Everything there is to decode, prompt by prompt."""
        return [
            Conversation(prompt, encoded, sample, strengths)
            for prompt, encoded in zip(self.prompts, self.encoded, strict=True)
            for sample in range(self.num_samples)
            for strengths in self._strengths(prompt)
        ]

    @property
    def num_rows(self) -> int:
        """Completions in all."""
        return sum(len(conversation.strengths) for conversation in self.conversations)

    def _strengths(self, prompt: Prompt) -> list[tuple[Strength, ...]]:
        """Returns the strength of each turn, for each conversation that one sample of a prompt leads."""
        if self.lambdas is not None:
            return [(strength,) * prompt.num_turns for strength in self.lambdas]
        own = prompt.lambda_
        if own is None:
            raise ValueError(f"prompt {prompt.prompt_id!r} has no `lambda`, which --lambda=prompt needs")
        turns = turn_strengths(own, f"prompt {prompt.prompt_id!r}")
        return [turns if isinstance(own, tuple) else turns * prompt.num_turns]

    @property
    def mesh(self) -> str | None:
        """Devices of all processes, such as data:2,model:4; None: one device."""
        mesh = mesh_of(self.policies[0].params)
        return mesh and mesh_text(mesh, self.group.count if self.group else 1)

    @property
    def identity(self) -> dict:
        """What makes rows comparable: a folder holds rows of one identity."""
        reference, *aligned = (policy.fingerprint for policy in self.policies)
        kinds = [policy.config.quantization for policy in self.policies]
        templates = [policy.template for policy in self.policies]
        instructions = [policy.instruction for policy in self.policies]
        tokenizers = [policy.tokenizer_fingerprint for policy in self.policies]
        changing = self.lambdas is None and any(isinstance(p.lambda_, tuple) for p in self.prompts)
        return {
            "models": {"reference": reference, "aligned": aligned},
            "rule": self.rule.name,
            "dtype": self.policies[0].config.dtype,
            # What was not there at first is left out where it is not used: older folders go on.
            **({"quantization": kinds} if any(kinds) else {}),
            **({"templates": templates} if any(t is not None for t in templates) else {}),
            **({"instructions": instructions} if any(instructions) else {}),
            **({"lambda": "one per turn"} if changing else {}),
            "decode": self.decode.identity(),
            "eos": sorted({i for policy in self.policies for i in policy.eos_ids}),
            **({"tokenizers": tokenizers} if None not in tokenizers else {}),
            **({} if (code := rule_code(self.rule.function)) is None else {"rule_code": code}),
            **_draw_identity(self.draw),
        }


MOST_ROWS = 10**7
"""Completions of a run; their rows are held in memory, about 2 kB each."""


def make_plan(
    policies: Sequence[Policy],
    prompts: Sequence[Prompt],
    encoded: Sequence[EncodedPrompt],
    lambdas: tuple[Strength, ...] | None,
    rewards: Sequence[Reward],
    decode: DecodeConfig,
    *,
    num_samples: int = 1,
    rows: int | str | None = None,
    rule: NamedRule = LINEAR,
    beta: float | None = None,
    group: Group | None = None,
    draw: Draw = complete,
) -> SweepPlan:
    """Returns the plan of a sweep; its batch has the rows asked for, or as many as there is to do, at most 32.

    Args:
      rows: completions decoded at a time, by all groups of processes together; None or "auto" as told.
      beta: KL strength of the aligned model; None: what the aligned models say.
      group: this process's own.
      draw: what makes the completions.

    Raises:
      ValueError: a drafter that the rule or the models do not have.
    """
    check_drafter(plain_draw(draw).draft, rule.function, len(policies))
    groups = group.count if group else 1
    given = rows_of(rows, 1, width_of(draw))
    plan = SweepPlan(
        policies=tuple(policies),
        prompts=tuple(prompts),
        encoded=tuple(encoded),
        lambdas=lambdas,
        rewards=tuple(rewards),
        decode=decode,
        num_samples=num_samples,
        rows=-(-given // groups),
        rule=rule,
        beta=known_beta(policies) if beta is None else beta,
        group=group,
        draw=draw,
    )
    if rows is None or rows == "auto":
        completions = math.ceil(len(plan.conversations) * tries_of(draw))
        return replace(plan, rows=rows_of(rows, -(-completions // groups), width_of(draw)))
    return plan


def _draw_identity(draw: Draw) -> dict:
    """Returns what an identity says of a draw; nothing of the plain one, as in older folders."""
    if is_plain(draw):
        return {}
    if hasattr(draw, "name"):  # which with its fingerprint decides the rows
        found = getattr(draw, "fingerprint", None)
        return {"draw": draw_name(draw), **({} if found is None else {"draw_fingerprint": found})}
    code = code_hash(draw)
    return {"draw": draw_name(draw), **({} if code is None else {"draw_code": code})}


def known_beta(policies: Sequence[Policy]) -> float | None:
    """Returns the KL strength that all aligned policies were trained with, None if it is not one."""
    betas = {policy.beta for policy in policies[1:]}
    return betas.pop() if len(betas) == 1 else None


def check_extent(prompts: int, samples: int, strengths: int) -> None:
    """Raises ValueError where a run would have more completions than it can hold."""
    if (rows := prompts * samples * strengths) > MOST_ROWS:
        raise ValueError(
            f"expected at most {MOST_ROWS} completions, found {prompts} prompts × {samples} samples × "
            f"{strengths} strengths, which are {rows:.2g}; lower --num-prompts, --num-samples or --lambda"
        )


def own_conversations(plan: SweepPlan, there: Container[RowKey]) -> list[Conversation]:
    """Returns what is for this process to decode, some of it there already; all if it is the only one."""
    if plan.group is None:
        return plan.conversations
    missing = [c for c in plan.conversations if any(key not in there for key in turn_keys(c))]
    return share(missing, lambda c: c.prompt.prompt_id, plan.group.number, plan.group.count)


def turn_key(conversation: Conversation, turn: int) -> RowKey:
    """Returns what `row_key` gives for the row of a conversation's turn."""
    strength = format_strength(conversation.strengths[turn])
    return conversation.prompt.prompt_id, conversation.sample, strength, turn


def plan_keys(plan: SweepPlan) -> set[RowKey]:
    """Returns what `row_key` gives for each row that the plan leads to."""
    return {key for conversation in plan.conversations for key in turn_keys(conversation)}


def most_strengths(plan: SweepPlan, there: Container[RowKey]) -> int:
    """Returns how many first turns that are not `there` may share a row at most: the strengths of one sample."""
    if not batching_draw(plan.draw).shares:
        return 1
    missing = Counter(
        (c.prompt.prompt_id, c.sample) for c in own_conversations(plan, there) if turn_key(c, 0) not in there
    )
    return max(missing.values(), default=1)


def turn_keys(conversation: Conversation) -> list[RowKey]:
    """Returns what `row_key` gives for the row of each of a conversation's turns."""
    return [turn_key(conversation, turn) for turn in range(len(conversation.strengths))]


def check_rewards(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> None:
    """Raises ValueError where a reward cannot judge answers to the prompts."""
    asked = _asked(prompts)
    for reward in rewards:
        reward.check(asked)


def check_draw(draw: Draw, prompts: Sequence[Prompt], aligned: int) -> None:
    """Raises ValueError where a draw cannot answer the prompts, or not with so many aligned models."""
    if hasattr(draw, "check"):
        draw.check(_asked(prompts), aligned)


def check_settings(draw: Draw, strengths: Sequence[Strength], decode: DecodeConfig, rule: NamedRule) -> None:
    """Raises ValueError where a draw does not serve the strengths, or not at these settings."""
    if hasattr(draw, "check_settings"):
        draw.check_settings(strengths, decode, rule.function)


def _asked(prompts: Sequence[Prompt]) -> list:
    return [prompt_text(prompt.at_turn(())) for prompt in prompts]
