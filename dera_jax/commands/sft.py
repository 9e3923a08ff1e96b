"""Supervised fine-tuning of a model on text, as a Hugging Face folder.

Data: JSONL or parquet with `prompt` and `completion`, or with `text`; or .txt, a text a line.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dera_jax.commands import cli, train_options


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.sft`."""
    parser = cli.Parser(__doc__, prog="python -m train.sft")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="where to start: a folder or org/name[@revision]"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="PROMPTS",
        help="FILE.jsonl|.parquet|.txt, hf:org/set[:split] or tfds:name[:split]",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the model, its manifest and metrics.jsonl",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="random weights instead of MODEL's own, which need not be there",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="longest example, in tokens (default: the model's context)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("auto", "float32", "bfloat16"),
        help="of parameters and activations (default %(default)s)",
    )
    train_options.add_train_options(parser, learning_rate=1e-3, max_steps=200, batch_size=32)
    args = parser.parse_args(argv)
    config = train_options.train_config(args)
    train_options.check_new_folder(args.out)

    from dera_jax.data import load_records
    from dera_jax.policies import fresh_policy, load_policy
    from dera_jax.sft import encode_examples, train_sft

    cli.announce_devices()
    records = load_records(args.data)
    policy = (
        fresh_policy(args.model, args.seed, args.dtype)
        if args.from_scratch
        else load_policy(args.model, args.dtype)
    )
    max_length = args.max_length or policy.config.max_positions
    examples, cut = encode_examples(policy, records, max_length)
    print(f"{len(examples)} examples; {cut} cut to {max_length} tokens", file=sys.stderr)
    manifest = {
        "method": "sft",
        "start": {"model": policy.name, "fingerprint": policy.fingerprint},
        "data": args.data,
        "examples": len(examples),
        "examples_cut": cut,
        "max_length": max_length,
    }
    steps = train_sft(policy, examples, config, args.out)
    train_options.finish(policy, steps, config, args.out, manifest, cli.command_line("train.sft", argv))
