"""What a sweep will take: seconds and memory."""

import math
from dataclasses import replace

import jax

from dera_jax.decoding.complete import batching_draw, tries_of, warm_up
from dera_jax.decoding.room import full_room
from dera_jax.devices.usage import memory_limit
from dera_jax.models.binding import cache_bytes
from dera_jax.policies.policy import held_bytes
from dera_jax.sweeps.plan import SweepPlan, most_strengths


def estimate_seconds(plan: SweepPlan, completions: int) -> float:
    """Returns the seconds that so many completions take if each is as long as it may be."""
    first = plan.conversations[0].request(plan.policies, (), plan.decode.max_new_tokens)
    _, step = warm_up(
        plan.policies,
        [first],
        plan.decode,
        plan.rows,
        plan.rule.function,
        full=True,
        strengths=most_strengths(plan, ()),
        draw=batching_draw(plan.draw),
    )
    drawn = completions * tries_of(plan.draw)
    return math.ceil(drawn / plan.rows) * plan.decode.max_new_tokens * step


def check_memory(plan: SweepPlan) -> None:
    """Raises ValueError where a batch cannot fit in the memory of this process's devices."""
    needed, limit = memory_bytes(plan), memory_limit()
    if limit is not None and sum(needed.values()) > limit * jax.process_count():
        parts = ", ".join(f"{name} {size / 2**30:.3g} GiB" for name, size in needed.items())
        raise ValueError(
            f"--rows={plan.rows} --max-new-tokens={plan.decode.max_new_tokens}: expected at most "
            f"{limit / 2**30:.3g} GiB, which the devices have, found {parts}; lower one of the two"
        )


def memory_bytes(plan: SweepPlan) -> dict[str, int]:
    """Returns what a sweep takes on its device: weights (shared ones once), caches and logits, in bytes."""
    caches = logits = 0
    for number, policy in enumerate(plan.policies):
        bucket = max(p.buckets[number] for p in plan.encoded)
        taken = max(p.slots[number] for p in plan.encoded)
        config = replace(policy.config, kv_cache=plan.decode.kv_cache)
        # Those of decoder-only models begin with the prompt; an encoder's is kept beside.
        more = full_room(taken, plan.decode.max_new_tokens) - (bucket if taken else 0)
        caches += cache_bytes(config, plan.rows, bucket, more)
        logits += plan.rows * policy.config.vocab_size * 4
    logits *= _places(plan)
    return {"weights": held_bytes(plan.policies), "caches": caches, "logits": logits}


def _places(plan: SweepPlan) -> int:
    """Returns how many logits of a row there are at a time: of drafts, or of a strength beside its row's."""
    draw = batching_draw(plan.draw)
    if draw.draft not in ("none", "auto"):
        return draw.draft_length + 1
    return 2 if most_strengths(plan, ()) > 1 else 1
