"""The training sections of `python -m eval.bench --train`: what is measured, and its lines."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from dera_jax.performance.bench.spreads import format_spread

SECTIONS = ("sft", "dpo", "rlhf")
LARGE_MODEL = 10**7
"""Parameters from which a batch is small."""
ROWS = {False: 32, True: 8}
"""Sequences of a step, by whether the model is large."""
RLHF_ROWS = 128


def measure(
    sections: Sequence[str], policy, new_tokens: int, repeats: int, with_torch: bool, folder: Path, progress
) -> Iterator[tuple[str, dict]]:
    """Yields each measurement of training a policy, with its section."""
    from dera_jax.performance.bench import training
    from dera_jax.policies.save import save_policy

    opponent = None
    if with_torch:
        save_policy(policy, folder / "model")
        opponent = partial(_opponent, folder / "model")
    rows = ROWS[training.num_parameters(policy) >= LARGE_MODEL]
    for section in sections:
        told, place = progress(section), folder / section
        if section == "rlhf":
            found = training.bench_policy_gradient(policy, RLHF_ROWS, new_tokens, repeats, place, told)
        else:
            found = training.bench_supervised(section, policy, rows, repeats, place, opponent, told)
        yield section, found


def _opponent(model: Path, data, config, folder: Path, beta: float | None):
    from dera_jax.performance.bench.torch_training import TorchTraining

    return TorchTraining(model, data, config, folder, beta)


def supervised_line(section: str, result: dict) -> str:
    """Returns what is printed of SFT or DPO."""
    lines = []
    for name, speed in result["tokens_per_second"].items():
        share = result["share_of_peak"][name]["median"]
        lines.append(f"{name} {speed['median']:.0f} tokens/s, {share:.0%} of the matrix product's peak")
    text = f"{section:9} {result['rows']:3} rows: " + "; ".join(lines)
    text += f"; first step, compiling, {result['first_step_seconds']:.1f} s"
    if "times_torch" not in result:
        return text
    threads = result["torch_threads"]["chosen"]
    return (
        f"{text}\n{' ' * 20}TRL with {threads} thread{'s' * (threads > 1)}: ours "
        f"{format_spread(result['times_torch'])} × its tokens/s (target ≥ {result['target']:g})"
    )


def rlhf_line(result: dict) -> str:
    """Returns what is printed of policy gradient."""
    sides = []
    for side, parts in result["parts"].items():
        each = ", ".join(f"{name} {figures['median']:.2f}" for name, figures in parts.items())
        sides.append(f"{side} {result['seconds'][side]['median']:.2f} s a step ({each})")
    return (
        f"rlhf      {result['rows']:3} rows × {result['new_tokens']} tokens: " + f"\n{' ' * 20}".join(sides)
        + f"\n{' ' * 20}ours {format_spread(result['times_plain'])} × as fast (target ≥ {result['target']:g})"
    )  # fmt: skip


LINES = {"sft": partial(supervised_line, "sft"), "dpo": partial(supervised_line, "dpo"), "rlhf": rlhf_line}
