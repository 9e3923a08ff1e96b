"""What the training commands share: options, the settings that they make, the grid of strengths and seeds."""

import argparse
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from dera_jax.commands.options import cli, decoding, devices
from dera_jax.commands.options.settings import Help, add_settings, read_settings
from dera_jax.commands.options.templates import add_template_settings
from dera_jax.common.checks import check_number
from dera_jax.common.usable import TRUNCATION
from dera_jax.training.config import RunConfig, TrainConfig

HELP: Help = {
    "learning_rate": ("RATE", "peak learning rate (default %(default)g, as in TRL)"),
    "batch_size": ("N", "sequences or pairs in an update, over all devices (default %(default)s)"),
    "gradient_accumulation_steps": ("N", "number of parts that a batch is split into (default %(default)s)"),
    "warmup_ratio": ("SHARE", "warm-up, as a share of the steps (default %(default)s)"),
    "warmup_steps": (
        "N",
        "warm-up in steps, instead of --warmup-ratio; a number below 1 is a share (default: the ratio)",
    ),
    "weight_decay": ("W", "weight decay of AdamW (default %(default)s)"),
    "adam_beta1": ("B", "decay of the first moment of AdamW (default %(default)s)"),
    "adam_beta2": ("B", "decay of the second moment of AdamW (default %(default)s)"),
    "adam_epsilon": ("E", "ε of AdamW, added to the root of the second moment (default %(default)g)"),
    "max_grad_norm": ("NORM", "clip gradients to this norm (default %(default)s)"),
    "ema_decay": (
        "D",
        "keep the exponential moving average of the parameters over the steps, with this decay, such as 0.98; 1: their "
        "mean (default 0: keep the last ones)",
    ),
    "eval_steps": ("N", "steps between evaluations (default: only after the last step)"),
    "save_steps": ("N", "steps between checkpoints (default %(default)s)"),
    "save_total_limit": ("N", "number of checkpoints kept (default %(default)s)"),
    "lr_scheduler_type": (None, "schedule after the warm-up (default %(default)s)"),
    "gradient_checkpointing": (None, "recompute activations: less memory, about a third more time"),
    "save_only_model": (
        None,
        "keep no checkpoint at the end; by default the last one is kept, so that the same command with a larger "
        "--max-steps continues",
    ),
    "report_to": (
        None,
        "report the metrics there too; WANDB_MODE=offline works offline (default %(default)s)",
    ),
}
"""Settings of `TrainConfig` and `RunConfig`."""


def add_model_options(parser: argparse.ArgumentParser, *, head: bool = False) -> None:
    """Adds what is trained and where it is written.

    Args:
      head: whether that is a head alone, and the model stays as it is.
    """
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=("the model that the head reads" if head else "the model to start from")
        + ": a folder or org/name, optionally @revision and +ADAPTER",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help=f"folder for the {'head' if head else 'model'}, manifest.json and metrics.jsonl; rerun the same command "
        "to resume",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help=f"Jinja file to use as chat template{'' if head else ', saved with the model'} (default: that of the "
        "tokenizer)",
    )
    add_template_settings(parser)
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16"),
        help="type to compute in; trained parameters stay float32 (default %(default)s)",
    )
    if head:
        parser.set_defaults(lora_r=None)
        return
    group = parser.add_argument_group("low-rank adapters (LoRA), saved in PEFT's format")
    group.add_argument(
        "--lora-r", type=int, metavar="R", help="train adapters of rank R (default: all weights)"
    )
    group.add_argument(
        "--lora-alpha",
        type=float,
        default=16.0,
        metavar="A",
        help="the adapter's output is scaled by A/R (default %(default)g)",
    )
    group.add_argument(
        "--lora-target-modules",
        default="all-linear",
        metavar="NAMES",
        help="layers that get adapters, such as q_proj,v_proj (default %(default)s)",
    )


def add_data_options(parser: argparse.ArgumentParser, metavar: str, fields_: str) -> None:
    """Adds the data to train and to evaluate on, records named by `metavar` with such fields."""
    parser.add_argument(
        "--data",
        required=True,
        metavar=metavar,
        help=f"FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split] or tfds:name[:split] with {fields_}",
    )
    parser.add_argument("--eval-data", metavar=metavar, help="data to evaluate on, in the same formats")
    parser.add_argument(
        "--eval-share",
        type=float,
        metavar="SHARE",
        help="share of the prompts of --data that is held out to evaluate on, chosen by a hash of the prompt",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest prompt and completion together, in tokens (default: the context)",
    )
    parser.add_argument(
        "--truncation-mode",
        default=TRUNCATION[0],
        choices=TRUNCATION,
        help="what is kept of longer ones: keep_start cuts the end, keep_end the start (default %(default)s)",
    )
    decoding.add_stop_option(parser)


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the policy is held near, and how much."""
    parser.add_argument(
        "--reference", metavar="MODEL", help="the model that the KL penalty refers to (default: --model)"
    )
    parser.add_argument(
        "--beta",
        default="0.1",
        metavar="B[,B…]",
        help="KL strength β; several values are trained one after the other (default %(default)s)",
    )


def add_train_options(parser: argparse.ArgumentParser, *, epochs: bool = True, **defaults) -> None:
    """Adds the options of `TrainConfig` and `RunConfig` under the names that TRL gives them.

    Args:
      epochs: whether data are gone through in epochs, which then may count the steps.
      defaults: of this command, where they are not those of the two.
    """
    group = parser.add_argument_group("training")
    if epochs:
        group.add_argument(
            "--num-train-epochs", type=float, default=1.0, metavar="N", help="(default %(default)g)"
        )
    group.add_argument(
        "--max-steps",
        type=int,
        default=None if epochs else defaults.pop("max_steps", TrainConfig.max_steps),
        metavar="N",
        help="optimizer steps (default: what the epochs take)" if epochs else "(default %(default)s)",
    )
    add_settings(group, (TrainConfig, RunConfig), HELP, leave_out=("max_steps", "seed"), **defaults)
    group.add_argument(
        "--push-to-hub",
        metavar="USER/NAME",
        help="upload the last model, with a card; by the token in HF_TOKEN",
    )
    group.add_argument("--hub-private", action="store_true", help="where that is made, for yourself alone")
    group.add_argument(
        "--seed",
        default="0",
        metavar="N[,N…]",
        help="of data order and sampling; several are trained one after the other (default %(default)s)",
    )
    devices.add_mesh_options(parser)


def train_config(args: argparse.Namespace, seed: int, examples: int | None = None) -> TrainConfig:
    """Returns the validated training options.

    Args:
      examples: of an epoch, where steps are counted in epochs.
    """
    steps = args.max_steps
    if steps is None:
        check_number("--num-train-epochs", args.num_train_epochs, 0.0, math.inf)
        steps = max(1, math.ceil(args.num_train_epochs * (examples or 1) / max(args.batch_size, 1)))
    return read_settings(args, TrainConfig, seed=seed, max_steps=steps)


def run_config(args: argparse.Namespace) -> RunConfig:
    """Returns the validated options of what a run writes."""
    return read_settings(args, RunConfig)


def grid(args: argparse.Namespace) -> Iterator[tuple[Path, int, float | None]]:
    """Yields folder, seed and β of each run: OUT itself for one, a folder in it for each of several."""
    seeds = _numbers("--seed", args.seed, int)
    betas = _numbers("--beta", args.beta, float) if hasattr(args, "beta") else [None]
    for beta in betas:
        if beta is not None:
            check_number("--beta", beta, 0.0, math.inf)
    for beta, seed in product(betas, seeds):
        parts = [f"beta={beta}"] * (len(betas) > 1) + [f"seed={seed}"] * (len(seeds) > 1)
        yield args.out / "-".join(parts) if parts else args.out, seed, beta


def open_session(args: argparse.Namespace):
    """Returns the `Session` of the models that the options name."""
    from dera_jax.training.session import Adapters, Session

    adapters = None
    if args.lora_r is not None:
        adapters = Adapters(args.lora_r, args.lora_alpha, args.lora_target_modules)
    return Session(
        args.model,
        args.dtype,
        reference_model=getattr(args, "reference", None),
        mesh_text=args.mesh,
        chat_template=args.chat_template,
        chat_template_kwargs=args.chat_template_kwargs,
        adapters=adapters,
        from_scratch=getattr(args, "from_scratch", False),
        gradient_checkpointing=args.gradient_checkpointing,
        averaged=args.ema_decay > 0,
        tell=cli.tell,
    )


def _numbers(name: str, text: str, kind: type) -> list:
    try:
        numbers = [kind(part) for part in str(text).split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected numbers with commas between, got {text!r}") from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}: {text!r} has a number twice")
    return numbers
