"""Speed of training as ratios: SFT and DPO against TRL on torch, policy gradient against a plain script.

As in `bench`, what is compared takes turns within one run. Both sides train the same model on the same
batch of equal lengths, so nobody pads; ours go through `fit`, as the commands do.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.examples import Example, Pair
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.models.keys import seed_key
from dera_jax.performance.bench import plain_script
from dera_jax.performance.bench.sides import without_eos
from dera_jax.performance.bench.timing import Progress, interleave, ratio, spread
from dera_jax.policies.policy import Policy
from dera_jax.rewards.registry import Reward
from dera_jax.training.config import PreferenceConfig, RolloutConfig, RunConfig, TrainConfig
from dera_jax.training.loop import Method, fit
from dera_jax.training.optimization import TrainState
from dera_jax.training.policy_gradient import policy_gradient_method
from dera_jax.training.preferences import preference_method
from dera_jax.training.sft import sft_method

PROMPT_TOKENS = 16
COMPLETION_TOKENS = 128
BETA = 0.1
STEP_SECONDS = 1.0
"""Steps are added to a turn until it takes about so long."""
PEAK_WIDTH = 2048
"""Of the square matrices whose product is the machine's peak."""
PG_SAMPLES = 4
PARTS = ("rollout", "reference", "reward", "update")
PLAIN_TARGET = 2.0
"""Least ratio of the plain script's step to ours."""


def torch_target(parameters: int) -> float:
    """Returns the least ratio to TRL that is aimed at for a model of this size."""
    return 1.2 if parameters > 10**7 else 1.0


def bench_supervised(
    kind: str,
    policy: Policy,
    rows: int,
    repeats: int,
    folder: Path,
    with_torch: Callable[..., Any] | None = None,
    progress: Progress = print,
) -> dict:
    """Returns tokens per second of SFT or DPO, the share of the matrix product's peak, and the ratio to TRL.

    A step reads `rows` sequences of PROMPT_TOKENS + COMPLETION_TOKENS tokens; for DPO they are rows/2 pairs.

    Args:
      kind: sft or dpo.
      folder: for what runs write.
      with_torch: (data, config, folder, beta) to a `torch_training.TorchTraining` of the same model; None
        leaves the comparison out.
    """
    generator = np.random.default_rng(0)
    words = partial(_words, generator, policy)
    items = rows if kind == "sft" else rows // 2
    config = TrainConfig(max_steps=10**6, batch_size=items, lr_scheduler_type="constant", warmup_ratio=0.0)
    if kind == "sft":
        data: list = [Example(words(PROMPT_TOKENS), words(COMPLETION_TOKENS)) for _ in range(items)]
        method, beta = sft_method(policy, data, config), None
    else:
        each = PROMPT_TOKENS, COMPLETION_TOKENS, COMPLETION_TOKENS
        data, beta = [Pair(*map(words, each)) for _ in range(items)], BETA
        method = preference_method(policy, policy, data, beta, PreferenceConfig(), config, folder / "cache")
    tokens = rows * (PROMPT_TOKENS + COMPLETION_TOKENS)
    result: dict[str, Any] = {"model": policy.name, "rows": rows, "tokens_per_step": tokens}
    with contextlib.closing(Steps(method, config, folder / "ours")) as ours:
        progress("compiling")
        result["first_step_seconds"] = ours.run(1)
        steps = max(1, round(STEP_SECONDS / min(ours.run(1), ours.run(1))))
        runs = {"ours": lambda: ours.run(steps) / steps}
        if with_torch:
            progress("choosing torch's threads")
            opponent = with_torch(data, config, folder / "torch", beta)
            result["torch_threads"] = opponent.choose_threads(1)
            runs["torch"] = lambda: opponent.run(steps) / steps
        runs["peak"] = peak_seconds
        result["seconds"] = seconds = interleave(runs, repeats, progress)
    flops = training_flops(policy, rows, COMPLETION_TOKENS)
    peak = spread([2 * PEAK_WIDTH**3 / s for s in seconds.pop("peak")["values"]])
    result["flops_per_step"], result["peak_flops_per_second"] = flops, peak
    for name, figures in seconds.items():
        result.setdefault("tokens_per_second", {})[name] = spread([tokens / s for s in figures["values"]])
        shares = [flops / s / p for s, p in zip(figures["values"], peak["values"], strict=True)]
        result.setdefault("share_of_peak", {})[name] = spread(shares)
    if with_torch:
        result["times_torch"] = ratio(seconds["torch"], seconds["ours"])
        result["target"] = torch_target(num_parameters(policy))
    return result


class Steps:
    """A `fit` that is advanced a few steps at a time, so that it can take turns."""

    def __init__(self, method: Method, config: TrainConfig, out: Path):
        """Starts nothing yet; OUT is a folder of its own."""
        run = RunConfig(save_steps=config.max_steps)
        self._figures: dict[str, float] = {}
        self._steps: Iterator = fit(self._noting(method), config, run, out)

    def run(self, count: int) -> float:
        """Returns the seconds of `count` steps, the last one's results waited for."""
        start = time.perf_counter()
        *_, (_, state, _) = itertools.islice(self._steps, count)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    def figures(self) -> dict[str, float]:
        """Returns what was logged with the last step's batch."""
        return self._figures

    def close(self) -> None:
        """Ends the run, saving nothing."""
        self._steps.close()

    def _noting(self, method: Method) -> Method:
        """Returns `method`; what is logged with its batches is kept here too."""

        def batches(state: TrainState, step: int) -> tuple[Any, dict]:
            batch, self._figures = method.batches(state, step)
            return batch, self._figures

        return replace(method, batches=batches)


def peak_seconds() -> float:
    """Returns the seconds of a float32 product of two large square matrices, the best of three."""
    matrix = jnp.ones((PEAK_WIDTH, PEAK_WIDTH), jnp.float32)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(jnp.matmul(matrix, matrix, precision="highest"))
        taken.append(time.perf_counter() - start)
    return min(taken)


def training_flops(policy: Policy, rows: int, completion: int) -> int:
    """Returns the multiplications and additions of a step that no trainer can leave out.

    Forward and twice as many backward: 6 for each parameter of a linear map and token (of the head, only where
    a completion's token is predicted), and causal attention's 6 · (length + 1) · heads · head_dim a layer.
    """
    config, length = policy.config, PROMPT_TOKENS + completion
    head = config.vocab_size * config.width
    maps = sum(a.size for a in jax.tree.leaves(policy.params["blocks"]) if a.ndim == 2)
    attention = config.num_layers * (length + 1) * config.num_heads * config.head_dim
    return 6 * rows * (length * (maps + attention) + completion * head)


# Policy gradient: where its time goes, and the same by a plain script
def bench_policy_gradient(
    policy: Policy, rows: int, new_tokens: int, repeats: int, folder: Path, progress: Progress = print
) -> dict:
    """Returns the seconds of a step and of its parts, and the ratio to a plain script's.

    Every completion has `new_tokens` tokens on both sides; EOS ends nothing.

    Args:
      rows: completions of a step, PG_SAMPLES of each prompt.
      folder: for what runs write.
    """
    (policy,) = without_eos((policy,))
    generator = np.random.default_rng(0)
    drawn = [_words(generator, policy, PROMPT_TOKENS) for _ in range(rows // PG_SAMPLES)]
    prompts = [EncodedPrompt(Prompt(i, "random words"), (ids,)) for i, ids in enumerate(drawn)]
    config = TrainConfig(max_steps=10**6, batch_size=rows, lr_scheduler_type="constant", warmup_ratio=0.0)
    rollout = RolloutConfig(DecodeConfig(new_tokens), PG_SAMPLES, BETA)
    reward = Reward("characters", lambda c: [len(text) / 100 for text in c.completions])
    method = policy_gradient_method(policy, policy, prompts, (reward,), rollout, config)
    plain = PlainScript(policy, np.repeat(drawn, PG_SAMPLES, axis=0), new_tokens, config)
    parts: dict[str, dict[str, list[float]]] = {"ours": {}, "plain": {}}
    with contextlib.closing(Steps(method, config, folder)) as steps:

        def ours() -> float:
            seconds = steps.run(1)
            logged = steps.figures()
            known = {part: logged[f"{part}_seconds"] for part in PARTS[:-1]}
            _note(parts["ours"], known | {"update": seconds - sum(known.values())})
            return seconds

        def theirs() -> float:
            known = plain.step()
            _note(parts["plain"], known)
            return sum(known.values())

        seconds = interleave({"ours": ours, "plain": theirs}, repeats, progress)
    # The first entry of each part is the call that compiled.
    split = {side: {n: spread(values[1:]) for n, values in each.items()} for side, each in parts.items()}
    return {
        "model": policy.name,
        "rows": rows,
        "new_tokens": new_tokens,
        "seconds": seconds,
        "parts": split,
        "times_plain": ratio(seconds["plain"], seconds["ours"]),
        "target": PLAIN_TARGET,
    }


class PlainScript:
    """Steps of `plain_script` on a policy's parameters."""

    def __init__(self, policy: Policy, prompts: np.ndarray, new_tokens: int, config: TrainConfig):
        """Takes the prompts' ids, [rows, length]."""
        self._policy, self._prompts, self._new_tokens = policy, jnp.asarray(prompts, jnp.int32), new_tokens
        self._optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        self._state = policy.params, self._optimizer.init(policy.params)
        self._key = seed_key(config.seed)

    def step(self) -> dict[str, float]:
        """Returns the seconds of each part of one more step."""
        config, start, length = self._policy.config, self._policy.params, self._prompts.shape[1]
        self._key, key = jax.random.split(self._key)
        times = [time.perf_counter()]
        made = plain_script.rollout(config, self._state[0], self._prompts, key, self._new_tokens)
        ids = np.asarray(made)
        times.append(time.perf_counter())
        tokens = jnp.concatenate([self._prompts, made], axis=1)
        reference = jax.block_until_ready(
            plain_script.reference_logprobs(config, start, tokens, prompt=length)
        )
        times.append(time.perf_counter())
        rewards = np.array([len(text) / 100 for text in self._policy.tokenizer.batch_decode(ids)], np.float32)
        times.append(time.perf_counter())
        self._state, _ = jax.block_until_ready(
            plain_script.update(
                config, self._optimizer, self._state, tokens, rewards, reference, prompt=length, beta=BETA
            )
        )
        times.append(time.perf_counter())
        return {part: end - begin for part, begin, end in zip(PARTS, times, times[1:], strict=False)}


def _note(parts: dict[str, list[float]], seconds: dict[str, float]) -> None:
    for name, value in seconds.items():
        parts.setdefault(name, []).append(value)


def num_parameters(policy: Policy) -> int:
    """Returns how many numbers a policy's parameters are; a shared embedding counts once."""
    return sum(leaf.size for leaf in jax.tree.leaves(policy.params))


def _words(generator: np.random.Generator, policy: Policy, count: int) -> tuple[int, ...]:
    return tuple(generator.integers(len(policy.tokenizer), size=count).tolist())
