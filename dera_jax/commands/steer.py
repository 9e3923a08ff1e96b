"""Makes steering vectors from contrastive pairs (CAA): the mean difference of hidden states.

  python -m eval.steer --model=DIR --data=PAIRS.jsonl --out=FILE.safetensors
  python -m eval.generate --reference=DIR --steer=FILE.safetensors@2

Data: `prompt`, `chosen` and `rejected`, as train.dpo reads them. For each layer it prints the
length of its vector, and how often held-out pairs are told apart by their projection on it. The
vector of the best layer is written, or those of --layers.

--gate=PROMPTS adds a gate: prompts with `label` true where the model is to be steered, false
where not. It is a linear probe of the prompt's last hidden state; eval.weigh --gate=FILE gives
each prompt λ or 0 by it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dera_jax.commands.options import cli, devices
from dera_jax.commands.options.steering import ENDING
from dera_jax.commands.options.templates import add_template_settings
from dera_jax.commands.parts.gating import fitted_gate, labelled_prompts
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_count, check_number
from dera_jax.common.shown import shown


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.steer`."""
    parser = cli.Parser("steer", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="the model to steer: a folder or org/name, perhaps +ADAPTER",
    )
    parser.add_argument("--data", required=True, metavar="PAIRS", help="pairs, in the formats of train.dpo")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors", help="the steering file"
    )
    parser.add_argument(
        "--layers", metavar="N[,N…]|all",
        help="layers whose vectors are written, from 0 (default: the one that separates held-out pairs best)",
    )  # fmt: skip
    parser.add_argument(
        "--at", default="last", choices=("last", "mean"),
        help="hidden states of the completion's last token, or the mean of all its tokens' (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--eval-share", type=float, default=0.25, metavar="SHARE",
        help="share of the prompts that is held out to choose a layer by (default %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--gate", metavar="PROMPTS", help="prompts with `label`, to fit the probe to that opens the steering"
    )
    parser.add_argument("--num-pairs", type=int, metavar="N", help="the first N pairs (default: all)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a text (default: the context)")
    parser.add_argument(
        "--rows", type=int, default=8, metavar="N", help="texts at a time (default %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="type of parameters and activations (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=("int8", "nf4"), help="quantize the linear layers to 8 or 4 bits"
    )
    add_template_settings(parser)
    devices.add_mesh_option(parser)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.steer`."""
    args = make_parser().parse_args(argv)
    _check_out(args.out)
    check_count("--rows", args.rows, most=10**4)
    check_number("--eval-share", args.eval_share, 0.0, 0.9)
    if args.num_pairs is not None:
        check_count("--num-pairs", args.num_pairs)
    if args.max_length is not None:
        check_count("--max-length", args.max_length, least=2)
    if not args.eval_share and args.layers is None:
        raise ValueError("--eval-share=0: expected --layers, as no pairs are held out to choose one by")

    from dera_jax.data.examples import encode_pairs
    from dera_jax.data.records import load_records
    from dera_jax.devices.mesh import open_mesh
    from dera_jax.policies.load import load_policy
    from dera_jax.policies.sizes import weight_bytes
    from dera_jax.policies.steering import Steering, write_steering
    from dera_jax.scoring import steering
    from dera_jax.training.supervised import hold_out

    records = load_records(args.data, args.num_pairs, args.chat_template_kwargs)
    labelled = labelled_prompts(args) if args.gate else None
    mesh = open_mesh(args.mesh, lambda: weight_bytes([args.model], args.dtype, [args.quantize]))
    cli.announce_devices()
    policy = load_policy(args.model, args.dtype, quantize=args.quantize, mesh=mesh)
    config = policy.config
    layers = _layers(args.layers, getattr(config, "num_layers", 0))
    pairs, report = encode_pairs(
        policy, records, min(args.max_length or config.max_positions, config.max_positions)
    )
    print(report.told(args.data), file=sys.stderr)
    used, held_out = hold_out(pairs, args.eval_share) if args.eval_share else (pairs, [])
    with tqdm(total=len(pairs), unit="pair", leave=False, disable=None, dynamic_ncols=True) as bar:
        found = steering.pair_differences(policy, [*used, *held_out], args.rows, args.at, bar.update)
    vectors = steering.mean_difference(found[: len(used)])
    figures = steering.layer_figures(vectors, found[len(used) :])
    layers = layers or [steering.best_layer(figures)]
    _show(figures, layers, len(used), len(held_out))
    probe = fitted_gate(policy, labelled, args.gate, args.eval_share, args.rows) if labelled else None
    made = {
        "model": policy.name,
        "fingerprint": policy.fingerprint,
        "data": args.data,
        "pairs": len(used),
        "at": args.at,
        "method": "mean difference (arXiv:2312.06681)",
    }
    chosen = {n: vectors[n] for n in layers}
    write_steering(args.out, Steering(config.width, config.num_layers, chosen, probe, made))
    print(f"{shown(args.out)}: layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}")


def _check_out(out: Path) -> None:
    """Raises ValueError where the file cannot be written, or a model's weights lie there."""
    cli.check_file("--out", out, ENDING)
    if out.suffix != ENDING:
        raise ValueError(f"--out: expected a name that ends in {ENDING}, found {shown(out, 200)}")
    if out.exists():
        from dera_jax.policies.steering import read_steering

        try:
            read_steering(out)
        except ValueError:
            raise ValueError(f"--out: {shown(out, 200)} is there already and no steering file") from None


def _layers(text: str | None, count: int) -> list[int]:
    """Returns the layers that are asked for; none: the best is to be found.

    Raises:
      ValueError: what is no layer of a model with `count`.
    """
    if text is None:
        return []
    if text == "all":
        return list(range(count))
    layers = [
        int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1 for part in text.split(",")
    ]
    if not all(0 <= layer < count for layer in layers):
        raise ValueError(
            f"--layers: expected numbers from 0 to {count - 1}, or all; found {shown(repr(text), 80)}"
        )
    return sorted(set(layers))


def _show(figures, layers: Sequence[int], used: int, held_out: int) -> None:
    """Prints a line for each layer."""
    print(
        f"vectors of {used} pairs; accuracy and effect (mean/std of projections) on {held_out} held-out pairs\n"
    )
    print(f"{'layer':>7}  {'norm':>9}  {'accuracy':>8}  {'effect':>7}")
    for each in figures:
        accuracy = "—" if each.accuracy is None else f"{each.accuracy:.3f}"
        effect = "—" if each.effect is None else f"{each.effect:.2f}"
        mark = "*" if each.layer in layers else " "
        print(f"{mark}{each.layer:>6}  {each.norm:>9.4g}  {accuracy:>8}  {effect:>7}")
    print()
