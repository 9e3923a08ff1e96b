"""Supervised fine-tuning of a model on text, as a Hugging Face folder or a PEFT adapter.

Data: `prompt` and `completion` (texts or messages), `messages`, or `text`; or .txt with one
text per line. The loss covers completions, the last answer of `messages`, and all of a `text`.
"""

from collections.abc import Sequence

from dera_jax.commands.options import cli, decoding, train_checks, train_grid, training
from dera_jax.commands.process import endings


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.sft`."""
    parser = cli.Parser("sft", __doc__)
    training.add_model_options(parser)
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="random weights; MODEL needs no weights of its own",
    )
    training.add_data_options(parser, "TEXTS", "`prompt` and `completion`, `messages` or `text`")
    parser.add_argument(
        "--assistant-only-loss",
        action="store_true",
        help="learn every answer of a chat: all that the assistant says, and what no other role does",
    )
    parser.add_argument(
        "--completion-only-loss",
        nargs="?",
        const="true",
        choices=("true", "false"),
        help="false learns prompts and earlier messages too (default: completions, and texts as a whole)",
    )
    parser.add_argument(
        "--packing",
        action="store_true",
        help="several examples in a row of --max-length tokens; none sees another",
    )
    training.add_train_options(parser, learning_rate=2e-5, batch_size=32)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.sft`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    train_checks.check(parser, args)

    from dera_jax.data.learned import encode_learned
    from dera_jax.training.packing import pack
    from dera_jax.training.runs import Best
    from dera_jax.training.samples import sampler
    from dera_jax.training.sft import sft_method

    completion_only = {"true": True, "false": False}.get(args.completion_only_loss)
    learned: dict[str, object] = {"assistant_only_loss": True} if args.assistant_only_loss else {}
    learned |= {} if completion_only is None else {"completion_only_loss": completion_only}
    stop = decoding.stop_texts(args)
    learned |= {"stop": list(stop)} if stop else {}
    cli.announce_devices()
    session = training.open_session(args)

    def prepare(policy, seed, beta):
        max_length = train_checks.max_length(args, policy, whole=args.packing)

        def encode(records):
            return encode_learned(
                policy,
                records,
                max_length,
                truncation_mode=args.truncation_mode,
                stop=stop,
                completion_only=completion_only,
                assistant_only=args.assistant_only_loss,
            )

        data = session.data(args.data, encode, eval_data=args.eval_data, eval_share=args.eval_share)
        rows = pack(data.items, max_length) if args.packing else data.items
        config = training.train_config(args, seed, len(rows))

        def method():
            return sft_method(
                policy,
                data.items,
                config,
                held_out=data.held_out,
                sample=sampler(policy, data.prompts, seed),
                packed_length=max_length if args.packing else None,
            )

        settings = session.settings("sft", policy) | data.settings
        settings |= {"max_length": max_length, "packing": args.packing, **learned}
        return method, session.save(policy), config, settings, Best("eval_loss")

    train_grid.run_grid(args, session, cli.command_line("train.sft", argv), prepare)
