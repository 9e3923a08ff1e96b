"""Alignment of a model by preferences: DPO, IPO, KTO; the reference stays or follows (TR-DPO).

Data: `prompt`, `chosen` and `rejected`; or whole transcripts in the last two, as Anthropic's;
for KTO also `prompt`, `completion` and `label`. The model's β is kept in its manifest, so that
sweeps over it can show β/λ. Several values of --beta and --seed train a grid, each run in its
own folder.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields

from dera_jax.commands import cli, train_checks, train_grid, train_options


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.dpo`."""
    parser = cli.Parser("dpo", __doc__)
    train_options.add_model_options(parser)
    train_options.add_data_options(parser, "PAIRS", "`prompt`, `chosen` and `rejected`")
    train_options.add_reference_options(parser)
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--loss",
        default="sigmoid",
        choices=("sigmoid", "sigmoid_norm", "ipo", "kto"),
        help="sigmoid is DPO, sigmoid_norm DPO per token (default %(default)s)",
    )
    group.add_argument(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of preferences taken to be the wrong way round (default %(default)g)",
    )
    group.add_argument(
        "--sync-ref-model",
        action="store_true",
        help="the reference follows the policy (TR-DPO, TR-IPO, TR-KTO)",
    )
    group.add_argument(
        "--ref-model-mixup-alpha",
        type=float,
        default=0.6,
        metavar="A",
        help="share of the policy in an update of the reference; 1 is a hard update (default %(default)g)",
    )
    group.add_argument(
        "--ref-model-sync-steps",
        type=int,
        default=512,
        metavar="N",
        help="steps between its updates (default %(default)s)",
    )
    group.add_argument(
        "--desirable-weight", type=float, default=1.0, metavar="W", help="of KTO (default %(default)g)"
    )
    group.add_argument(
        "--undesirable-weight", type=float, default=1.0, metavar="W", help="of KTO (default %(default)g)"
    )
    train_options.add_train_options(parser, learning_rate=1e-6, batch_size=32)
    return parser


def _check(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot be, or that do nothing."""
    idle = {}
    if args.loss not in ("sigmoid", "sigmoid_norm"):
        idle["--label-smoothing"] = "--loss=sigmoid or sigmoid_norm"
    if args.loss != "kto":
        idle |= dict.fromkeys(("--desirable-weight", "--undesirable-weight"), "--loss=kto")
    if not args.sync_ref_model:
        idle |= dict.fromkeys(("--ref-model-mixup-alpha", "--ref-model-sync-steps"), "--sync-ref-model")
    if any(beta == 0 for _, _, beta in train_options.grid(args)):
        raise ValueError("--beta: expected a number above 0, got 0: nothing would be learned")
    train_checks.check(parser, args, idle)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.dpo`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check(parser, args)

    from dera_jax.dpo import PreferenceConfig, preference_method
    from dera_jax.examples import encode_examples, encode_pairs
    from dera_jax.runs import Best
    from dera_jax.samples import sampler

    names = [field.name for field in fields(PreferenceConfig)]
    given = {name: getattr(args, name) for name in names}
    preference = train_checks.as_options(args, lambda: PreferenceConfig(**given))
    cli.announce_devices()
    loaded: dict = {}

    def prepare(seed, beta):
        policy = train_options.load_policy(args, seed, loaded)
        reference = train_options.load_reference(args, loaded)
        max_length = args.max_length or policy.config.max_positions

        def encode(records):
            if preference.loss == "kto":
                return encode_examples(
                    policy, records, max_length, labelled=True, truncation_mode=args.truncation_mode
                )
            return encode_pairs(policy, records, max_length, truncation_mode=args.truncation_mode)

        if "data" not in loaded:
            loaded["data"] = train_options.Data(args, encode)
        data = loaded["data"]
        config = train_options.train_config(args, seed, len(data.items))

        def method():
            return preference_method(
                policy,
                reference,
                data.items,
                beta,
                preference,
                config,
                args.out / "cache",
                held_out=data.held_out,
                sample=sampler(policy, data.prompts, seed),
            )

        settings = train_options.settings(args, "dpo", policy) | data.settings
        settings |= {
            "beta": beta,
            "preference": asdict(preference),
            "reference": {"model": reference.name, "fingerprint": reference.fingerprint},
            "max_length": max_length,
        }
        return method, train_options.save_of(policy, args), config, settings, Best("eval_loss")

    train_grid.run_grid(args, cli.command_line("train.dpo", argv), prepare)
