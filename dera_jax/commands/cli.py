"""What all commands share: one-line errors, option names, the model and decoding options, the device line."""

import argparse
import glob
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import NoReturn

from dera_jax.configs import DecodeConfig

HABITS = {
    "--model-name-or-path": "--model",
    "--ref-model": "--reference",
    "--reference-model": "--reference",
    "--sft-model": "--reference",
    "--aligned-model": "--aligned",
    "--output-dir": "--out",
    "--output": "--out",
    "--lambdas": "--lambda",
    "--max-tokens": "--max-new-tokens",
    "--max-length": "--max-new-tokens",
    "--n": "--num-samples",
    "--kl-coef": "--beta",
    "--num-train-steps": "--max-steps",
    "--lr": "--learning-rate",
}
"""Names of other tools and what we call the same thing, for a hint in the error."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with exit code 2."""

    def __init__(self, doc: str, **kwargs):
        super().__init__(
            description=doc,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def parse_args(self, args=None, namespace=None):
        return super().parse_args(_normalize(sys.argv[1:] if args is None else list(args)), namespace)

    def error(self, message: str) -> NoReturn:
        for name in re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else ():
            ours = HABITS.get(name) or ("--reference and --aligned" if name == "--model" else None)
            if ours:
                message = f"unknown option {name}: here it is {ours}"
        message = message.replace("unrecognized arguments:", "unknown option").replace("\n", " ")
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _normalize(argv: list[str]) -> list[str]:
    """Makes `_` and `-` the same in option names and lets a value begin with a minus sign."""
    result: list[str] = []
    for argument in argv:
        if result and result[-1] == "--lambda":
            result[-1] += "=" + argument
        elif argument.startswith("--"):
            name, equals, value = argument.partition("=")
            result.append(name.replace("_", "-") + equals + value)
        else:
            result.append(argument)
    return result


def command(main: Callable[[Sequence[str] | None], None]) -> Callable[[Sequence[str] | None], int]:
    """Turns a command's body into a `main` that returns its exit code: 2 and one line for bad input."""

    @wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
        except ValueError as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(
                "interrupted: what was finished is kept; the same command goes on from there", file=sys.stderr
            )
            return 2
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return 0

    return wrapped


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds which models there are and in which precision they run."""
    group = parser.add_argument_group("models (without any: the shipped toy pair)")
    group.add_argument(
        "--reference",
        metavar="MODEL",
        help="the reference (SFT) model, λ = 0: a folder or org/name[@revision]",
    )
    group.add_argument("--aligned", metavar="MODEL[,MODEL…]", help="the aligned model(s), λ = 1")
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="of parameters and activations; auto is the files' own",
    )  # fmt: skip
    group.add_argument(
        "--rule",
        metavar="MODULE:FUNCTION",
        default=None,
        help="another rule than the linear mixture of logits",
    )


def add_decode_options(parser: argparse.ArgumentParser, max_new_tokens: int = 128) -> None:
    """Adds how completions are drawn."""
    defaults = DecodeConfig(max_new_tokens=max_new_tokens)
    group = parser.add_argument_group("decoding (after mixing)")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=defaults.max_new_tokens,
        metavar="N",
        help="longest completion, in tokens (default %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=defaults.temperature,
        metavar="T",
        help="0 is greedy (default %(default)s)",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="keep the K most probable tokens (default: all)"
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="keep the smallest set with probability P (default: all)"
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end a completion at TEXT, escapes such as \n allowed; may be repeated",
    )
    group.add_argument(
        "--seed", type=int, default=defaults.seed, help="of all randomness (default %(default)s)"
    )
    group.add_argument(
        "--rows", default="auto", metavar="N|auto", help="completions decoded at a time (default auto)"
    )


def decode_config(args: argparse.Namespace) -> DecodeConfig:
    """Returns the validated decoding options."""
    return DecodeConfig(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=tuple(unescape(stop) for stop in args.stop),
        seed=args.seed,
    )


def unescape(text: str) -> str:
    r"""Returns `text` with escapes such as \n replaced by what they stand for."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text!r}: broken escape ({error.reason})") from error


def apply_config_file(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments, with those of `--config=FILE` (JSON, option names as keys) as defaults."""
    args = parser.parse_args(argv)
    if not args.config:
        return args
    path = Path(args.config)
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"--config={path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object with option names as keys")
    known = {action.dest: action for action in parser._actions}
    line = []
    for key, value in settings.items():
        if (
            key.replace("-", "_").replace("lambda", "lambda_" if "lambda_" in known else "lambda")
            not in known
        ):
            raise ValueError(f"{path}: unknown option {key!r}")
        values = value if isinstance(value, list) else [value]
        line += [f"--{key}"] * (value is True) or [
            f"--{key}={v}" for v in values if v is not False and v is not None
        ]
    # The command line stands last and so wins.
    return parser.parse_args([*line, *(sys.argv[1:] if argv is None else argv)])


def announce_devices() -> str:
    """Prints the devices that JAX runs on, and returns their kind.

    Raises:
      ValueError: an accelerator is present but JAX fell back to the CPU.
    """
    import jax

    devices = jax.devices()
    present = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/accel[0-9]*")
    if devices[0].platform == "cpu" and present and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise ValueError(
            f"{present[0]} is present but JAX runs on the CPU: install requirements-cuda12.txt or "
            "requirements-tpu.txt, or set JAX_PLATFORMS=cpu"
        )
    kind = devices[0].device_kind
    print(f"devices: {len(devices)} × {kind}", file=sys.stderr)
    return kind


def load_rule(spec: str | None):
    """Returns the rule that `module:function` names and the name that rows carry; None is the mixture.

    Raises:
      ValueError: no such module or function.
    """
    from dera_jax.realign import linear_rule

    if spec is None:
        return linear_rule, "linear"
    module, colon, name = spec.partition(":")
    sys.path.insert(0, "")
    try:
        rule = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--rule={spec}: expected module:function ({error})") from error
    finally:
        sys.path.remove("")
    return rule, spec


def toy_reward() -> str | None:
    """Returns the reward that the shipped aligned model was trained with."""
    from dera_jax.policies import TOY
    from dera_jax.results import read_json

    return read_json(TOY / "aligned" / "manifest.json")["reward"]


def parse_rows(text: str, cells: int) -> int:
    """Returns the rows of a batch: the number given, or for `auto` at most 32."""
    if text == "auto":
        return min(32, max(1, cells))
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"--rows: expected a whole number, at least 1, or auto, got {text!r}")
    return int(text)
