"""What the training commands share: options, saving with a manifest, the closing line."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jaxtyping import PyTree

from dera_jax.configs import TrainConfig
from dera_jax.policies import Policy, save_policy, with_params
from dera_jax.provenance import provenance


def add_train_options(parser: argparse.ArgumentParser, **defaults) -> None:
    """Adds the options of `TrainConfig` under the names that TRL gives them."""
    config = TrainConfig(**defaults)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--learning-rate",
        type=float,
        default=config.learning_rate,
        metavar="RATE",
        help="peak (default %(default)g)",
    )
    group.add_argument(
        "--max-steps",
        type=int,
        default=config.max_steps,
        metavar="N",
        help="optimizer steps (default %(default)s)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=config.batch_size,
        metavar="N",
        help="sequences in a step (default %(default)s)",
    )
    group.add_argument(
        "--warmup-ratio",
        type=float,
        default=config.warmup_ratio,
        metavar="SHARE",
        help="of the steps (default %(default)s)",
    )
    group.add_argument(
        "--lr-scheduler-type",
        default=config.lr_scheduler_type,
        choices=("constant", "linear", "cosine"),
        help="after the warm-up (default %(default)s)",
    )
    group.add_argument(
        "--weight-decay",
        type=float,
        default=config.weight_decay,
        metavar="W",
        help="of AdamW (default %(default)s)",
    )
    group.add_argument(
        "--max-grad-norm",
        type=float,
        default=config.max_grad_norm,
        metavar="NORM",
        help="clip gradients (default %(default)s)",
    )
    group.add_argument(
        "--seed", type=int, default=config.seed, help="of data order and sampling (default %(default)s)"
    )


def train_config(args: argparse.Namespace) -> TrainConfig:
    """Returns the validated training options."""
    names = TrainConfig.__dataclass_fields__
    return TrainConfig(**{name: getattr(args, name) for name in names})


def check_new_folder(out: Path) -> None:
    """Raises ValueError if OUT already holds a model."""
    if (out / "model.safetensors").exists():
        raise ValueError(f"{out}: already holds a model; choose another --out or remove it")


def finish(
    policy: Policy,
    steps: Iterator[tuple[int, PyTree]],
    config: TrainConfig,
    out: Path,
    manifest: dict,
    command: list[str],
) -> None:
    """Runs the training to its end and writes the model folder with its manifest."""
    start = time.perf_counter()
    for _, params in steps:
        trained = params
    manifest |= {
        "train_config": asdict(config),
        "seconds": round(time.perf_counter() - start, 1),
        "provenance": provenance(command),
    }
    save_policy(with_params(policy, trained), out, manifest)
    print(f"{config.max_steps} steps in {manifest['seconds']} s; model, manifest and metrics in {out}")
