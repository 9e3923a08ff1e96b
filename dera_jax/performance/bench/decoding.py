"""Speed as ratios: mixing against one model, against bare forward passes, and against torch.

Machines differ and neighbours make noise, so nothing is compared across runs: what is compared
takes turns within one, and the ratio is formed within each turn. Every row makes exactly
`new_tokens` tokens: EOS ends nothing, on neither side.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from dera_jax import decode, models, tokenizer
from dera_jax.configs import DecodeConfig, check_count
from dera_jax.encoding import EncodedPrompt
from dera_jax.generate import CHUNK, Cell, complete
from dera_jax.policies import Policy, fresh_policy
from dera_jax.prompts import Prompt
from dera_jax.realign import linear_rule, strength_weights
from dera_jax.sampling import Sampling

LAMBDA = 0.7
PROMPT_TOKENS = 16
LEAST_SECONDS = 0.3
"""A shorter call is repeated within its turn: one of a few milliseconds says little."""
AGREEMENT_STEPS = 16
"""Greedy tokens compared between the two sides."""

# A sweep, and how much of the torch loop is measured; the rest is counted in.
SWEEP_STRENGTHS = tuple(i / 5 for i in range(11))
SWEEP_PROMPTS = 8
SWEEP_SAMPLES = 4
SWEEP_ROWS = 32
TIMED_STRENGTHS = 3
TIMED_PROMPTS = 2

DECODE_TARGETS = {1: 2.0, 32: 3.0}
"""Least ratio to torch, by rows."""
OVERHEAD_TARGET = 1.1
"""Largest ratio of a whole step to the forward passes in it."""
SWEEP_TARGET = 10.0
"""Least ratio to the torch loop."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchConfig:
    """How long each measurement is, and how often it is repeated."""

    new_tokens: int = 128
    """Of every row; a multiple of `CHUNK`, so that no step is thrown away."""
    repeats: int = 5
    """Turns; ≥ 1."""

    def __post_init__(self):
        check_count("repeats", self.repeats)
        check_count("new_tokens", self.new_tokens)
        if self.new_tokens % CHUNK:
            raise ValueError(f"new_tokens: expected a multiple of {CHUNK}, got {self.new_tokens}")


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Returns a function that runs `run`, which waits for its own results, and returns the seconds."""

    def measured() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measured


def interleave(
    functions: Mapping[str, Callable[[], float]], repeats: int, progress: Progress = lambda line: None
) -> dict[str, dict]:
    """Returns, by name, `first`, the seconds with compilation, and `spread`'s figures of the repeats.

    Args:
      functions: each returns the seconds it took; all of them run in every turn, in this order.
      repeats: turns after the first call; ≥ 1.
    """
    first = {}
    for name, function in functions.items():
        progress(f"first call of {name}")
        first[name] = function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        progress(f"repeat {turn + 1} of {repeats}")
        for name, function in functions.items():
            seconds[name].append(_mean_seconds(function))
    return {name: {"first": first[name], **spread(values)} for name, values in seconds.items()}


def _mean_seconds(function: Callable[[], float]) -> float:
    """Returns the mean of as many calls as fill `LEAST_SECONDS`."""
    taken = [function()]
    while sum(taken) < LEAST_SECONDS:
        taken.append(function())
    return statistics.fmean(taken)


def spread(values: Sequence[float]) -> dict:
    """Returns the median, the range and the values themselves."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def ratio(slower: dict, faster: dict) -> dict:
    """Returns the spread of `slower` / `faster`, formed turn by turn."""
    return spread([s / f for s, f in zip(slower["values"], faster["values"], strict=True)])


def random_policies(folder: Path, shape: Mapping[str, Any]) -> tuple[Policy, ...]:
    """Returns two Llamas of one shape with random parameters.

    Args:
      folder: where the configuration and a tokenizer are written.
      shape: fields of `config.json`.
    """
    words = WordLevel({f"w{i}": i for i in range(shape["vocab_size"])}, unk_token="w0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(dict(shape)), encoding="utf-8")
    return tuple(fresh_policy(str(folder), seed) for seed in range(2))


def without_eos(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """Returns policies whose completions only their length ends."""
    return tuple(replace(policy, eos_ids=()) for policy in policies)


def make_prompt(policies: Sequence[Policy], new_tokens: int) -> EncodedPrompt:
    """Returns `PROMPT_TOKENS` arbitrary words.

    Raises:
      ValueError: they and `new_tokens` do not fit a model's context.
    """
    for policy in policies:
        if PROMPT_TOKENS + new_tokens - 1 > policy.config.max_positions:
            raise ValueError(
                f"{policy.name}: {PROMPT_TOKENS} prompt tokens and {new_tokens} new ones do not fit its "
                f"context of {policy.config.max_positions} tokens"
            )
    vocab = min(len(policy.tokenizer) for policy in policies)
    ids = tuple(np.random.default_rng(0).integers(vocab, size=PROMPT_TOKENS).tolist())
    return EncodedPrompt(Prompt(0, "random words"), (ids,) * len(policies))


def complete_all(
    policies: Sequence[Policy], cells: Sequence[Cell], rows: int, new_tokens: int, temperature: float = 1.0
) -> list[list[int]]:
    """Returns the tokens of every cell, in the order of `cells`; it takes all that a user waits for."""
    config = DecodeConfig(max_new_tokens=new_tokens, temperature=temperature)
    tokens = {id(done.cell): done.tokens for done in complete(policies, cells, config, rows)}
    return [tokens[id(cell)] for cell in cells]


# Decoding: one model, the mixture, the mixture on torch


def bench_decode(
    policies: Sequence[Policy], rows: int, config: BenchConfig, torch_pair=None, progress: Progress = print
) -> dict:
    """Returns tokens per second of one model and of the mixture, and the ratio to torch.

    Timed from the ids of one prompt to `rows` completions: prefill included, on both sides.

    Args:
      torch_pair: `torch_baseline.TorchPair` of the same models; None leaves it out.
    """
    policies, new_tokens = without_eos(policies), config.new_tokens
    prompt = make_prompt(policies, new_tokens)
    ids = np.tile(prompt.tokens[0], (rows, 1))
    # One model is a tuple of one, and its weight is 1 − Σλ over no strengths.
    alone = EncodedPrompt(prompt.prompt, prompt.tokens[-1:])
    single = [Cell(alone, sample, ()) for sample in range(rows)]
    mixed = [Cell(prompt, sample, (LAMBDA,)) for sample in range(rows)]
    result: dict[str, Any] = {"model": policies[-1].name, "rows": rows}
    runs = {
        "single": timed(lambda: complete_all(policies[-1:], single, rows, new_tokens)),
        "mixed": timed(lambda: complete_all(policies, mixed, rows, new_tokens)),
    }
    if torch_pair is not None:
        progress("choosing torch's threads")
        short = timed(lambda: torch_pair.generate(ids, LAMBDA, new_tokens // 4))
        result["torch_threads"] = torch_pair.choose_threads(short)
        result["torch_prefill_seconds"] = timed(lambda: torch_pair.generate(ids, LAMBDA, 1))()
        result["greedy_agreement"] = greedy_agreement(policies, prompt, torch_pair)
        runs["torch"] = timed(lambda: torch_pair.generate(ids, LAMBDA, new_tokens))
    result["seconds"] = seconds = interleave(runs, config.repeats, progress)
    result["tokens_per_second"] = {
        name: spread([rows * new_tokens / s for s in figures["values"]]) for name, figures in seconds.items()
    }
    result["mixed_to_single"] = ratio(seconds["mixed"], seconds["single"])
    if torch_pair is not None:
        result["times_torch"] = ratio(seconds["torch"], seconds["mixed"])
        result["target"] = DECODE_TARGETS.get(rows)
    return result


def greedy_agreement(policies: Sequence[Policy], prompt: EncodedPrompt, torch_pair) -> dict:
    """Returns how many greedy tokens at `LAMBDA` are the same on both sides before the first other."""
    (ours,) = complete_all(policies, [Cell(prompt, 0, (LAMBDA,))], 1, AGREEMENT_STEPS, temperature=0.0)
    ids = np.array([prompt.tokens[0]])
    (theirs,) = torch_pair.generate(ids, LAMBDA, AGREEMENT_STEPS, greedy=True).tolist()
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))
    return {"same": same, "steps": AGREEMENT_STEPS, "ours": ours, "torch": theirs}


# Overhead: the whole step against the forward passes in it


# Static: configs, steps. Traced: the rest, as in `decode.decode_chunk`.
@partial(jax.jit, static_argnames=("configs", "steps"), donate_argnames="state")
def forward_chunk(
    configs: tuple[models.ModelConfig, ...],
    params: Sequence[PyTree],
    state: decode.DecodeState,
    *,
    steps: int,
) -> tuple[decode.DecodeState, Int[Array, "steps rows"]]:
    """Returns `decode_chunk` without rule, draw and statistics: the forward passes and their caches alone.

    The next token is made of each model's largest logit, the cheapest figure that all logits enter:
    the compiler can leave out no word of the head, and no pass can start before the last has ended.
    """
    bound = [models.bind(c, p) for c, p in zip(configs, params, strict=True)]

    def step(state, recent):
        logits, recent = decode.forward_step(bound, state, recent)
        largest = logits.max(axis=-1).sum(axis=0)
        token = jnp.abs(largest.astype(jnp.int32)) % configs[0].vocab_size
        tokens = jnp.broadcast_to(token, state.token.shape)
        return state._replace(token=tokens, position=state.position + 1), recent, token

    return decode.scan_steps(step, state, steps)


def bench_overhead(
    policies: Sequence[Policy], rows: int, config: BenchConfig, progress: Progress = print
) -> dict:
    """Returns what mixing, statistics and the draw add to both models' forward passes."""
    policies = without_eos(policies)
    prompt = make_prompt(policies, config.new_tokens)
    configs, params = tuple(p.config for p in policies), tuple(p.params for p in policies)
    options = {"sampling": Sampling.create(), "eos": jnp.zeros(0, jnp.int32), "rule": linear_rule}
    whole = partial(decode.decode_chunk, configs, params, steps=CHUNK, **options)
    forwards = partial(forward_chunk, configs, params, steps=CHUNK)

    def measured(chunk) -> float:
        state = jax.block_until_ready(_filled(configs, params, prompt.tokens[0], rows, config.new_tokens))
        start = time.perf_counter()
        for _ in range(config.new_tokens // CHUNK):
            state, drawn = chunk(state)
            jax.device_get(drawn)
        return time.perf_counter() - start

    functions = {"whole": partial(measured, whole), "forwards": partial(measured, forwards)}
    seconds = interleave(functions, config.repeats, progress)
    return {
        "model": policies[-1].name,
        "rows": rows,
        "seconds": seconds,
        "whole_to_forwards": ratio(seconds["whole"], seconds["forwards"]),
        "target": OVERHEAD_TARGET,
    }


def _filled(configs, params, ids: Sequence[int], rows: int, new_tokens: int) -> decode.DecodeState:
    """Returns a state with the prompt `ids` in every row."""
    count, key, slots = len(configs), jax.random.key(0), np.arange(rows, dtype=np.int32)
    tokens, mask = tokenizer.pad_left(ids[:-1], tokenizer.bucket_length(len(ids) - 1))
    last = np.full((count, 1), ids[-1], np.int32)
    prefilled = decode.prefill_prompts(configs, params, (tokens,) * count, (mask,) * count, last)
    room = tuple(models.whole_blocks(cache.mask.shape[1] + new_tokens) for cache in prefilled.caches)
    state = decode.empty_state(configs, prefilled, rows, room, key, linear_rule)
    weights = strength_weights(np.full((rows, count - 1), LAMBDA))
    samples = slots.astype(np.uint32)
    return decode.fill_slots(
        state, prefilled, 0, slots, weights, key, np.uint32(0), samples, rule=linear_rule
    )


# A sweep: many strengths in one batch against a loop over prompts and strengths


def bench_sweep(
    policies: Sequence[Policy],
    prompts: Sequence[EncodedPrompt],
    config: BenchConfig,
    torch_pair=None,
    progress: Progress = print,
) -> dict:
    """Returns the time of a sweep, and the ratio to a loop that calls torch per prompt and strength.

    All cells of the loop take the same time but for the prompt's length, so a part of them,
    spread over strengths and prompts, is measured and the sum is scaled by their number.
    """
    policies, new_tokens = without_eos(policies), config.new_tokens
    points = itertools.product(prompts, range(SWEEP_SAMPLES), SWEEP_STRENGTHS)
    cells = [Cell(prompt, sample, (lambda_,)) for prompt, sample, lambda_ in points]
    all_calls = len(prompts) * len(SWEEP_STRENGTHS)
    calls = [
        (p, s) for p in _spaced(prompts, TIMED_PROMPTS) for s in _spaced(SWEEP_STRENGTHS, TIMED_STRENGTHS)
    ]

    def loop(calls) -> None:
        for prompt, lambda_ in calls:
            torch_pair.generate(np.array([prompt.tokens[0]]), lambda_, new_tokens, samples=SWEEP_SAMPLES)

    result: dict[str, Any] = {
        "model": policies[-1].name,
        "strengths": list(SWEEP_STRENGTHS),
        "prompts": len(prompts),
        "samples": SWEEP_SAMPLES,
        "rows": SWEEP_ROWS,
    }
    runs = {"ours": timed(lambda: complete_all(policies, cells, SWEEP_ROWS, new_tokens))}
    if torch_pair is not None:
        progress("choosing torch's threads")
        result["torch_threads"] = torch_pair.choose_threads(timed(lambda: loop(calls[:1])))
        runs["torch_timed"] = timed(lambda: loop(calls))
    result["seconds"] = seconds = interleave(runs, config.repeats, progress)
    if torch_pair is not None:
        seconds["torch"] = spread([s * all_calls / len(calls) for s in seconds["torch_timed"]["values"]])
        result["torch_calls"] = {"all": all_calls, "timed": len(calls)}
        result["times_torch"] = ratio(seconds["torch"], seconds["ours"])
        result["target"] = SWEEP_TARGET
    return result


def _spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Returns up to `count` items, the first and the last among them, at even distances."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
