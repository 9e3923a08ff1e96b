"""What all commands share: one-line errors, option names, the device line."""

import argparse
import difflib
import glob
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import dera_jax
from dera_jax.commands.process.endings import in_one_line
from dera_jax.common.files import check_place
from dera_jax.common.json_files import read_json
from dera_jax.common.shown import shown
from dera_jax.common.spelling import COMMANDS, respelled, spelled
from dera_jax.devices.compilations import keep_compilations
from dera_jax.rewards.registry import HELP

REWARDS = HELP
"""How rewards are written."""
HABITS = {
    "--model": "--reference and --aligned",
    "--model-name-or-path": "--model|--reference and --aligned",
    "--base-model": "--reference",
    "--ref-model": "--reference",
    "--reference-model": "--reference",
    "--sft-model": "--reference",
    "--aligned-model": "--aligned",
    "--output-dir": "--out",
    "--output": "--out",
    "--dataset": "--prompts|--data",
    "--dataset-name": "--prompts|--data",
    "--data": "--prompts",
    "--prompts": "--prompt",
    "--prompt": "--prompts",
    "--strength": "--lambda",
    "--strengths": "--lambda",
    "--lambdas": "--lambda",
    "--rewards": "--reward",
    "--max-tokens": "--max-new-tokens|--max-length",
    "--max-length": "--max-new-tokens",
    "--n": "--num-samples",
    "--num-return-sequences": "--num-samples",
    "--num-generations": "--num-samples",
    "--batch-size": "--rows",
    "--per-device-train-batch-size": "--batch-size",
    "--kl-coef": "--beta",
    "--num-train-steps": "--max-steps",
    "--lr": "--learning-rate",
    "--bf16": "--dtype=bfloat16",
    "--fp16": "--dtype=float16|--dtype=bfloat16",
    "--torch-dtype": "--dtype",
    "--loss-type": "--loss",
    "--eval-strategy": "--eval-steps",
    "--evaluation-strategy": "--eval-steps",
    "--save-strategy": "--save-steps",
    "--max-seq-length": "--max-length",
    "--max-completion-length": "--max-new-tokens",
    "--response-length": "--max-new-tokens",
    "--epochs": "--num-train-epochs",
    "--num-epochs": "--num-train-epochs",
    "--lora-rank": "--lora-r",
    "--use-peft": "--lora-r",
    "--reward-model": "--reward=model:DIR",
    "--reward-model-path": "--reward=model:DIR",
    "--rloo-k": "--num-samples",
    "--hub-model-id": "--push-to-hub",
    "--hub-private-repo": "--hub-private",
    "--assistant-model": "--draft=reference or aligned",
    "--prompt-lookup-num-tokens": "--draft=ngram --draft-length",
    "--num-assistant-tokens": "--draft-length",
    "--num-speculative-tokens": "--draft-length",
    "--chat-template-args": "--chat-template-kwargs",
    "--default-chat-template-kwargs": "--chat-template-kwargs",
    "--enable-thinking": "--chat-template-kwargs",
    "--logging-steps": "every step is logged (--report-to)",
    "--logging-strategy": "every step is logged (--report-to)",
}
"""Names of other tools and what we call the same thing; of alternatives, the first that a command has."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with exit code 2."""

    def __init__(self, name: str, doc: str, **kwargs):
        """Starts the parser of the command `name`, such as sweep or a script's line, with its description."""
        self.given: frozenset[str] = frozenset()
        """Options of the command line that was parsed last, without their values."""
        super().__init__(
            prog=spelled(name) if name in COMMANDS else name,
            description=doc,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        version = f"dera_jax {dera_jax.__version__}"
        self.add_argument("--version", action="version", version=version, help="print the version and stop")

    def format_help(self) -> str:
        return respelled(super().format_help())

    def parse_args(self, args=None, namespace=None):
        words = _normalize(sys.argv[1:] if args is None else list(args))
        # Before argparse misses a required option that is there under another name.
        names = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        self.given = frozenset(names)
        unknown = [name for name in dict.fromkeys(names) if name not in self._option_string_actions]
        if unknown:
            self.error("; ".join(map(self.unknown, unknown)))
        if (empty := _empty(words)) is not None:
            self.error(f"{empty or 'an argument'}: expected a value, found an empty one")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        unexpected = message.removeprefix("unrecognized arguments: ")
        if unexpected != message:
            meant = "--prompt" in self._option_string_actions and not unexpected.startswith("-")
            message = f"unexpected {unexpected}" + ": did you mean --prompt=…?" * meant
        self.exit(2, f"error: {in_one_line(message)} (see {self.prog} --help)\n")

    def unknown(self, name: str) -> str:
        """Returns what is wrong with the option `name`, with our name for it where that can be told."""
        ours = self._option_string_actions
        for alternative in HABITS.get(name, "").split("|"):
            names = re.findall(r"--[\w-]+", alternative)
            if names and all(n in ours for n in names):
                where = "here it is " if alternative.startswith("--") else ""
                return f"unknown option {name}: {where}{alternative}"
        close = [n for n in ours if n.startswith(name)] or difflib.get_close_matches(
            name, ours, 1, cutoff=0.8
        )
        return f"unknown option {name}" + (f": did you mean {close[0]}?" if close else "")


def _empty(words: Sequence[str]) -> str | None:
    """Returns the first option that is given an empty value, "" for a word on its own; None if there is none.

    >>> _empty(["--out=a", "--prompts="]), _empty(["--out", ""]), _empty(["a", ""]), _empty(["--out=a"])
    ('--prompts', '--out', '', None)
    """
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if not word:
            return before if before.startswith("-") and "=" not in before else ""
        if name.startswith("--") and equals and not value:
            return name
    return None


def _normalize(argv: list[str]) -> list[str]:
    """Makes `_` and `-` the same in option names and lets a strength begin with a minus sign."""
    result: list[str] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            result.append(name.replace("_", "-") + equals + value)
        elif result and result[-1] == "--lambda":
            result[-1] += "=" + word
        else:
            result.append(word)
    return result


def command_line(name: str, argv: Sequence[str] | None) -> list[str]:
    """Returns the words of the command, for a manifest."""
    return ["python", "-m", name, *(sys.argv[1:] if argv is None else argv)]


def tell(text: str) -> None:
    """Prints a line about work on its way."""
    print(text, file=sys.stderr)


def warn(text: str) -> None:
    """Prints a warning, one line."""
    print(f"warning: {text}", file=sys.stderr)


def check_folder(out: Path) -> None:
    """Raises ValueError where a folder is to be written and there is a file."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, found a file: {shown(out, 200)}")


def check_file(name: str, path: Path | None, ending: str) -> None:
    """Raises ValueError where the file of an option cannot be written, or would take the place of another kind.

    Looked at before the work that it is to hold.

    Args:
      name: of the option.
      path: None where it is not given.
      ending: of files of this kind, such as .json.
    """
    if path is None:
        return
    try:
        check_place(path)
        is_folder, is_file, folder = path.is_dir(), path.exists(), path.parent.is_dir()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    told = f"{name}: {shown(path, 200)}"
    if is_folder:
        raise ValueError(f"{told} is a folder, expected a file")
    if not folder:
        raise ValueError(f"{told}: there is no folder {shown(path.parent, 200)}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{told}: the folder {shown(path.parent, 200)} cannot be written to")
    if path.suffix in PICTURES and path.suffix != ending:
        raise ValueError(f"{told}: expected a name that ends in {ending}, which is what is written")
    if is_file and (path.suffix != ending or path.name in KEPT):
        raise ValueError(f"{told} is there already and of another kind: choose another name")


PICTURES = (".png", ".pdf", ".svg", ".eps", ".ps", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif")
KEPT = ("manifest.json", "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of runs and models, which no figures take the place of."""


def option(name: str) -> str:
    """Returns a setting's name as an option's."""
    return "--" + name.replace("_", "-")


def apply_config_file(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the arguments; those not on the command line are taken from `--config=FILE`, if any.

    The file is a JSON object with option names as keys. A list is what commas join, or an option repeated.

    Raises:
      ValueError: the file cannot be read, or holds an unknown option or a value of no use for one.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    if not args.config:
        return args
    return parser.parse_args([*config_words(parser, args.config, words), *words])


def config_words(parser: Parser, file: str, words: Sequence[str]) -> list[str]:
    """Returns the words of a command line that give the options of a `--config` file, but those given already.

    Raises:
      ValueError: as `apply_config_file`.
    """
    path = Path(file)
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{shown(path, 200)}: expected a JSON object with option names as keys")
    given = {word.partition("=")[0] for word in _normalize(list(words))}
    from_file: list[str] = []
    for key, value in settings.items():
        name = "--" + key.replace("_", "-")
        action = parser._option_string_actions.get(name)
        if action is None or name in ("--config", "--help", "--version"):
            raise ValueError(f"{path}: {parser.unknown(name)}")
        if name not in given and value is not None:
            from_file += _option_words(name, value, action, path)
    return from_file


def _option_words(name: str, value, action: argparse.Action, path: Path) -> list[str]:
    """Returns the words of a command line that give the option `name` the JSON `value`."""
    if isinstance(value, dict) and action.metavar == "JSON":
        return [f"{name}={json.dumps(value)}"]
    values = value if isinstance(value, list) else [value]
    if action.nargs == 0 and isinstance(value, bool):
        return [name] * value
    if action.nargs == 0 or any(isinstance(v, bool | dict | list | None) for v in values):
        expected = "true or false" if action.nargs == 0 else "a string, a number or a list of them"
        raise ValueError(f"{path}: {name.lstrip('-')}: expected {expected}, found {value!r:.60}")
    if isinstance(action, argparse._AppendAction):
        return [f"{name}={v}" for v in values]
    return [f"{name}={','.join(map(str, values))}"]


def announce_devices() -> str:
    """Prints the devices that JAX runs on, and returns their kind.

    Raises:
      ValueError: an accelerator is present but JAX fell back to the CPU.
    """
    import jax

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # what JAX raises depends on the platform
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(f"JAX finds no device to run on (JAX_PLATFORMS={wanted}): {error}") from error
    present = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/accel[0-9]*")
    if devices[0].platform == "cpu" and present and os.environ.get("JAX_PLATFORMS") != "cpu":
        raise ValueError(
            f"{present[0]} is present but JAX runs on the CPU: install requirements-cuda12.txt or "
            "requirements-tpu.txt, or set JAX_PLATFORMS=cpu"
        )
    keep_compilations(warn)
    kind = devices[0].device_kind
    if jax.process_index() == 0:  # speaks for all
        print(f"devices: {len(devices)} × {kind}", file=sys.stderr)
    return kind


def toy_reward() -> str | None:
    """Returns the reward that the shipped aligned model was trained with."""
    from dera_jax.policies.policy import TOY

    return read_json(TOY / "aligned" / "manifest.json")["reward"]
