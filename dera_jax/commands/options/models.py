"""The models that a command names: its options, and loading them with progress."""

import argparse
import os
import sys
import time
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands.options import devices
from dera_jax.commands.options.steering import add_steer_option, read_steer, split_steer
from dera_jax.commands.options.templates import add_template_settings
from dera_jax.common.folders import no_such_file
from dera_jax.common.shown import shown


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds which models there are, what they read, and in which precision they run."""
    group = add_pair_options(parser)
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help="Jinja file to use as chat template (default: that of the aligned model, else of the reference)",
    )
    group.add_argument(
        "--reference-chat-template", metavar="FILE|none",
        help="chat template of the reference alone; none: it reads the messages' contents as raw text",
    )  # fmt: skip
    group.add_argument(
        "--aligned-instruction", metavar="TEXT|FILE|none", action="append", default=[],
        help="what the aligned models alone are told: with {prompt} in it a template of the task, else a system "
        "message (raw text: what comes before); the same model may then be reference and aligned; given several "
        "times, one for each aligned model",
    )  # fmt: skip
    group.add_argument(
        "--reference-instruction", metavar="TEXT|FILE",
        help="what the reference alone is told, such as the opposite: λ above 1 leads away from it",
    )  # fmt: skip
    add_steer_option(group)
    add_template_settings(group)
    group.add_argument(
        "--quantize",
        metavar="int8|nf4",
        help="quantize the linear layers to 8 or 4 bits; one value per model is possible, such as none,int8",
    )
    devices.add_mesh_options(parser)


def add_pair_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds which models there are and their type; returns the group."""
    group = parser.add_argument_group("models (without any: the shipped toy pair)")
    group.add_argument(
        "--reference",
        metavar="MODEL",
        help="the reference (SFT) model, λ = 0: a folder or org/name[@revision], then +ADAPTER if it has one",
    )
    group.add_argument("--aligned", metavar="MODEL[,MODEL…]", help="the aligned model(s), λ = 1")
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="type of parameters and activations; auto: that of the files, on CPUs float32 (default %(default)s)",
    )  # fmt: skip
    return group


def model_names(args: argparse.Namespace) -> tuple[str | None, list[str] | None]:
    """Returns the reference and the aligned models; None and None stand for the toy pair."""
    if args.reference is None and args.aligned is None:
        return None, None
    if args.aligned is None and (steer := getattr(args, "steer", None)):
        return args.reference, [args.reference] * len(split_steer(steer))
    if not args.reference or not args.aligned:
        raise ValueError("expected both --reference and --aligned, or neither, for the shipped toy pair")
    from dera_jax.policies.hub import split_models

    aligned = split_models(args.aligned)
    if not all(aligned):
        raise ValueError(f"--aligned: a model is missing in {args.aligned!r}")
    return args.reference, aligned


def parse_quantize(text: str | None, count: int) -> list[str | None]:
    """Returns the quantization of each of `count` models from `int8`, or from one for each, `none,int8`.

    Raises:
      ValueError: an unknown name, or another number of them.
    """
    if text is None:
        return [None] * count
    kinds = text.split(",")
    for kind in kinds:
        if kind not in ("none", "int8", "nf4"):
            raise ValueError(f"--quantize: expected int8, nf4 or none, found {kind!r} in {text!r}")
    if len(kinds) not in (1, count):
        raise ValueError(f"--quantize: expected one, or one for each of {count} models, found {len(kinds)}")
    kinds = kinds * count if len(kinds) == 1 else kinds
    return [None if kind == "none" else kind for kind in kinds]


def open_mesh(args: argparse.Namespace):
    """Joins the other processes, if any, and returns the mesh that is asked for, or that the models' sizes ask for.

    None is one device.
    """
    devices.start(args)

    from dera_jax.devices import mesh
    from dera_jax.policies.policy import TOY
    from dera_jax.policies.sizes import weight_bytes

    reference, aligned = model_names(args)
    names = [str(TOY / "reference")] if reference is None else [reference, *aligned]
    kinds = parse_quantize(args.quantize, len(names))
    return mesh.open_mesh(args.mesh, lambda: weight_bytes(names, args.dtype, kinds))


def load_models(
    args: argparse.Namespace,
    names: list[str] | None = None,
    quantize: str | None = None,
    mesh=None,
    as_stored: bool = False,
):
    """Returns the policies that the model options name, the reference first.

    Args:
      names: other models than those of --reference and --aligned.
      quantize: other than --quantize.
      mesh: of `open_mesh`.
      as_stored: as of `load_policies`.
    """
    from dera_jax.devices.processes import leads
    from dera_jax.policies.load import load_policies
    from dera_jax.policies.policy import held_bytes

    reference, aligned = model_names(args) if names is None else (names[0], names[1:])
    kinds = parse_quantize(quantize or getattr(args, "quantize", None), 1 + len(aligned or [1]))
    steer = read_steer(getattr(args, "steer", None), len(aligned or [1]))
    start = time.perf_counter()
    with closing(_Bars()) as bars:
        policies = load_policies(
            reference,
            aligned,
            args.dtype,
            quantize=kinds,
            started=bars.start,
            mesh=mesh,
            as_stored=as_stored,
            **_templates(args),
        )
    policies = (policies[0], *(each(policy) for each, policy in zip(steer, policies[1:], strict=True)))
    described = " and ".join(dict.fromkeys(map(_described, policies)))
    if held_bytes(policies) < sum(held_bytes([policy]) for policy in policies):
        described += ", what they share held once"
    if leads():
        print(
            f"loaded {len(policies)} models ({described}): {format_bytes(held_bytes(policies))} "
            f"in {time.perf_counter() - start:.1f} s",
            file=sys.stderr,
        )
    devices.tell_undivided(policies)
    return policies


def tell_raw(policies, raw: int, how: str) -> None:
    """Prints a line where an aligned model has a chat template and `raw` prompts do not go through it.

    Args:
      how: what would put them through it.
    """
    from dera_jax.devices.processes import leads

    if raw and leads() and any(p.template or p.tokenizer.chat_template for p in policies[1:]):
        prompts = "1 prompt is" if raw == 1 else f"{raw} prompts are"
        print(f"note: {prompts} raw text, without the aligned model's chat template: {how}", file=sys.stderr)


def _templates(args: argparse.Namespace) -> dict[str, str | None]:
    """Returns the texts of --chat-template and --reference-chat-template."""
    from dera_jax.policies.tokenizers import read_template

    texts: dict[str, str | None] = {}
    for name in ("chat_template", "reference_chat_template"):
        file = getattr(args, name, None)
        none = file == "none" and name == "reference_chat_template"
        texts[name] = "" if none else file and read_template(Path(file))
    return texts | _instructions(args)


def _instructions(args: argparse.Namespace) -> dict[str, str | list[str | None] | None]:
    """Returns what --reference-instruction and --aligned-instruction say."""
    of_reference = read_instruction(getattr(args, "reference_instruction", None), "--reference-instruction")
    told = getattr(args, "aligned_instruction", [])
    aligned = model_names(args)[1] or [None]
    if len(told) > 1 and len(told) != len(aligned):
        raise ValueError(
            f"--aligned-instruction: expected one, or one for each of {len(aligned)} aligned models, "
            f"found {len(told)}"
        )
    each = [None if text == "none" else read_instruction(text, "--aligned-instruction") for text in told]
    return {"reference_instruction": of_reference, "aligned_instruction": each or None}


LONGEST_NAME = 1000
"""Of a file, in characters; a longer text is none."""


def read_instruction(given: str | None, name: str) -> str | None:
    """Returns an instruction, or the text of the file that it names, without white space around it.

    Args:
      name: of the option, for errors.

    Raises:
      ValueError: it is empty, or a file that is no text.
    """
    if given is None:
        return None
    text = given
    if len(given) <= LONGEST_NAME and "\n" not in given and Path(given).is_file():
        try:
            text = Path(given).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}={shown(given, 80)}: cannot be read ({error})") from error
    elif _is_path(given):
        raise ValueError(f"{name}: {shown(given, 80)}: {no_such_file(Path(given))}")
    if not text.strip():
        raise ValueError(f"{name}: expected a text or a file with one, found nothing")
    return text.strip()


def _is_path(text: str) -> bool:
    """Whether a text that is no file was meant to be one: nobody is told a word with slashes, or with an ending."""
    if len(text) > LONGEST_NAME or any(each.isspace() or each in "{\0" for each in text):
        return False
    return os.path.exists(text) or "/" in text or Path(text).suffix in (".txt", ".md", ".jinja")


class _Bars:
    """One progress bar after the other."""

    def __init__(self):
        self.bar = None

    def start(self, name: str, size: int):
        """Returns what is told of bytes that were read."""
        from dera_jax.devices.processes import leads

        self.close()
        self.bar = tqdm(
            total=size,
            desc=f"loading {name}",
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=None if leads() else True,
        )
        return self.bar.update

    def close(self) -> None:
        """Takes the last bar away."""
        if self.bar is not None:
            self.bar.close()


def _described(policy) -> str:
    import jax

    dtype, kind, stored = policy.config.dtype, policy.config.quantization, policy.stored_dtype
    told = f"{kind} weights, {dtype}" if kind else dtype
    if stored in (None, dtype):
        return told
    widened = dtype == "float32" and jax.default_backend() == "cpu"
    return f"{told} from {stored} files{', as CPUs compute faster in it' if widened else ''}"


def format_bytes(count: int) -> str:
    """Returns a number of bytes in its unit, 1.5 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"
