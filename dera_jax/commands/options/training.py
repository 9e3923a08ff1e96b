"""What the training commands share: options, the grid of strengths and seeds, data, saving."""

import argparse
import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

from dera_jax.commands.options import cli, devices
from dera_jax.commands.options.train_help import HELP
from dera_jax.common.checks import check_number
from dera_jax.common.choices import REPORTERS
from dera_jax.common.usable import TRUNCATION
from dera_jax.training.config import RunConfig, TrainConfig


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is trained and where it is written."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="where to start: a folder or org/name, optionally @revision and +ADAPTER",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the model, manifest.json and metrics.jsonl; the same command goes on where it stopped",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja file that `messages` go through, kept in the model's folder (default: the tokenizer's own)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16"),
        help="type to compute in; trained parameters stay float32 (default %(default)s)",
    )
    group = parser.add_argument_group("low-rank adapters (LoRA), written as PEFT's")
    group.add_argument(
        "--lora-r", type=int, metavar="R", help="train adapters of rank R (default: all weights)"
    )
    group.add_argument(
        "--lora-alpha",
        type=float,
        default=16.0,
        metavar="A",
        help="what is added is A/R of it (default %(default)g)",
    )
    group.add_argument(
        "--lora-target-modules",
        default="all-linear",
        metavar="NAMES",
        help="such as q_proj,v_proj (default %(default)s)",
    )


def add_data_options(parser: argparse.ArgumentParser, metavar: str, fields_: str) -> None:
    """Adds the data to train and to evaluate on, records named by `metavar` with such fields."""
    parser.add_argument(
        "--data",
        required=True,
        metavar=metavar,
        help=f"FILE.jsonl|.json|.csv|.parquet|.txt, hf:org/set[:split] or tfds:name[:split] with {fields_}",
    )
    parser.add_argument("--eval-data", metavar=metavar, help="the same, to evaluate on")
    parser.add_argument(
        "--eval-share",
        type=float,
        metavar="SHARE",
        help="of the prompts of --data, held out to evaluate on; by a hash of the prompt",
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="prompt and completion, in tokens (default: the context)"
    )
    parser.add_argument(
        "--truncation-mode",
        default=TRUNCATION[0],
        choices=TRUNCATION,
        help="of longer ones: keep_start cuts completions, keep_end prompts' starts (default %(default)s)",
    )


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the policy is held near, and how much."""
    parser.add_argument(
        "--reference", metavar="MODEL", help="what the policy is held near (default: --model)"
    )
    parser.add_argument(
        "--beta",
        default="0.1",
        metavar="B[,B…]",
        help="KL strength β; several are trained one after the other (default %(default)s)",
    )


def add_train_options(
    parser: argparse.ArgumentParser, *, epochs: bool = True, save_steps: int = 100, **defaults
) -> None:
    """Adds the options of `TrainConfig` and `RunConfig` under the names that TRL gives them."""
    config, run = TrainConfig(**defaults), RunConfig(save_steps=save_steps)
    group = parser.add_argument_group("training")
    if epochs:
        group.add_argument(
            "--num-train-epochs", type=float, default=1.0, metavar="N", help="(default %(default)g)"
        )
    group.add_argument(
        "--max-steps",
        type=int,
        default=None if epochs else config.max_steps,
        metavar="N",
        help="optimizer steps (default: what the epochs take)" if epochs else "(default %(default)s)",
    )
    for settings in (config, run):
        for name, (metavar, text) in HELP.items():
            if hasattr(settings, name):
                value = getattr(settings, name)
                group.add_argument(
                    cli.option(name), type=type(value), default=value, metavar=metavar, help=text
                )
    group.add_argument(
        "--lr-scheduler-type",
        default=config.lr_scheduler_type,
        choices=("constant", "linear", "cosine"),
        help="after the warm-up (default %(default)s)",
    )
    group.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, about a third more time"
    )
    group.add_argument(
        "--save-only-model",
        action="store_true",
        help="no checkpoint stays at the end; from the one that does by default, the same command with more "
        "--max-steps goes on",
    )
    group.add_argument(
        "--report-to",
        default="none",
        choices=REPORTERS,
        help="also tell the metrics there; offline with WANDB_MODE=offline (default %(default)s)",
    )
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
    names = {field.name for field in fields(TrainConfig)} - {"seed", "max_steps"}
    steps = args.max_steps
    if steps is None:
        check_number("--num-train-epochs", args.num_train_epochs, 0.0, math.inf)
        steps = max(1, math.ceil(args.num_train_epochs * (examples or 1) / max(args.batch_size, 1)))
    return TrainConfig(**{name: getattr(args, name) for name in names}, seed=seed, max_steps=steps)


def run_config(args: argparse.Namespace) -> RunConfig:
    """Returns the validated options of what a run writes."""
    return RunConfig(**{field.name: getattr(args, field.name) for field in fields(RunConfig)})


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


TRAINING_BYTES = 16
"""Of a parameter: itself, its gradient, two moments in float32; adapters take less."""


def open_mesh(args: argparse.Namespace):
    """Returns the mesh that is asked for; None is one device."""
    from dera_jax.policies.sizes import weight_bytes

    return devices.open_mesh(
        args, lambda: weight_bytes([args.model], "float32", [None]) // 4 * TRAINING_BYTES
    )


def load_policy(args: argparse.Namespace, seed: int, loaded: dict):
    """Returns the policy to train, with adapters if they are asked for.

    Args:
      loaded: of the runs before, so that a model is read once.
    """
    import jax

    from dera_jax.policies import load, low_rank

    if getattr(args, "from_scratch", False):
        policy = _with_template(args, load.fresh_policy(args.model, seed, args.dtype))
    else:
        if "policy" not in loaded:
            loaded["policy"] = _with_template(args, _loaded(args, args.model))
        policy = loaded["policy"]
    if args.lora_r is not None:
        targets = args.lora_target_modules
        targets = targets if targets == "all-linear" else targets.split(",")
        try:
            policy = low_rank.with_lora(policy, args.lora_r, args.lora_alpha, targets, seed)
        except ValueError as error:
            raise ValueError(_in_options(str(error))) from error
    # On a TPU blocks one by one take an hour to compile; elsewhere the copy of a loop is not worth it.
    scan = jax.default_backend() == "tpu"
    return replace(policy, config=replace(policy.config, remat=args.gradient_checkpointing, scan=scan))


def _in_options(message: str) -> str:
    """Returns what `with_lora` refuses in the words of the options."""
    setting, colon, rest = message.partition(":")
    named = {"rank": "--lora-r", "alpha": "--lora-alpha", "targets": "--lora-target-modules"}
    return named.get(setting, setting) + colon + rest


def _with_template(args: argparse.Namespace, policy):
    """Returns the policy with the chat template of --chat-template, which then is saved with it."""
    if args.chat_template is not None:
        policy.tokenizer.chat_template = args.chat_template
    return policy


def load_reference(args: argparse.Namespace, loaded: dict):
    """Returns what the policy is held near: the model that it starts from, unless another is named."""
    if "reference" not in loaded:
        named = args.reference and args.reference != args.model
        loaded["reference"] = _loaded(args, args.reference) if named else loaded["policy"]
    return loaded["reference"]


def _loaded(args: argparse.Namespace, name: str):
    from dera_jax.policies.load import load_policy

    policy = load_policy(name, args.dtype, mesh=open_mesh(args), as_stored=True)
    devices.tell_undivided([policy])
    return policy


def settings(args: argparse.Namespace, method: str, policy) -> dict:
    """Returns what every command's manifest says of how it started."""
    told = {"method": method, "start": {"model": policy.name, "fingerprint": policy.fingerprint}}
    if args.lora_r is not None:
        told["lora"] = {"r": args.lora_r, "alpha": args.lora_alpha, "targets": args.lora_target_modules}
    if args.chat_template is not None:
        told["chat_template"] = hashlib.sha256(args.chat_template.encode()).hexdigest()[:16]
    return told | {"dtype": policy.config.dtype}


def save_of(policy, args: argparse.Namespace, prefix: str = "") -> Callable:
    """Returns what writes trained parameters of `policy`: its adapters alone, or the whole model.

    Args:
      prefix: of the policy's own among what is trained.
    """
    from dera_jax.policies import hub
    from dera_jax.policies.policy import with_params
    from dera_jax.policies.save import save_adapter, save_policy
    from dera_jax.training import parameters

    _, frozen = parameters.split(policy.params)

    def save(params, folder: Path, manifest: dict) -> None:
        params = parameters.part(prefix, params)
        whole = with_params(policy, parameters.whole(policy.config, params, frozen))
        if policy.config.adapters:
            save_adapter(whole, folder, hub.split_adapter(args.model)[0], manifest)
        else:
            save_policy(whole, folder, manifest)

    return save


class Data:
    """What is trained and what is evaluated on; read and encoded once for all runs of a grid."""

    def __init__(self, args: argparse.Namespace, encode: Callable):
        """Reads the data and tells what became of the records.

        Args:
          encode: records to items and a report.

        Raises:
          ValueError: data that cannot be read or used.
        """
        from dera_jax.data.records import load_records
        from dera_jax.training.runs import fingerprint
        from dera_jax.training.supervised import hold_out

        self.items, report = encode(load_records(args.data))
        print(report.told(args.data), file=sys.stderr)
        self.held_out = []
        if args.eval_data:
            self.held_out, report = encode(load_records(args.eval_data))
            print(report.told(args.eval_data), file=sys.stderr)
        elif args.eval_share:
            self.items, self.held_out = hold_out(self.items, args.eval_share)
            print(f"{len(self.items)} to train, {len(self.held_out)} held out", file=sys.stderr)
        self.prompts = [item.prompt for item in self.held_out or self.items]
        """That samples are drawn for."""
        self.settings = {
            "data": args.data,
            "examples": len(self.items),
            "examples_hash": fingerprint(self.items),
            "held_out": len(self.held_out),
        }


def _numbers(name: str, text: str, kind: type) -> list:
    try:
        numbers = [kind(part) for part in str(text).split(",")]
    except ValueError:
        raise ValueError(f"{name}: expected numbers with commas between, got {text!r}") from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}: {text!r} has a number twice")
    return numbers
