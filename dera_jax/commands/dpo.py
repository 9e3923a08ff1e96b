"""Alignment of a model by preferences: DPO, IPO, KTO; the reference is fixed or follows (TR-DPO).

Data: `prompt`, `chosen` and `rejected`; or whole transcripts in the last two, as in HH;
for KTO also `prompt`, `completion` and `label`. The model's β is recorded in its manifest, so that
sweeps over it can show β/λ. Several values of --beta and --seed train a grid, each run in its
own folder.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from dera_jax.commands.options import cli, decoding, train_checks, train_grid, training
from dera_jax.commands.options.settings import Help, add_settings, read_settings
from dera_jax.commands.process import endings
from dera_jax.training.config import PreferenceConfig

HELP: Help = {
    "loss": (None, "sigmoid is DPO, sigmoid_norm DPO per token (default %(default)s)"),
    "label_smoothing": ("SHARE", "share of preferences assumed to be flipped (default %(default)g)"),
    "sync_ref_model": (None, "the reference follows the policy (TR-DPO, TR-IPO, TR-KTO)"),
    "ref_model_mixup_alpha": (
        "A",
        "share of the policy in an update of the reference; 1 is a hard update (default %(default)g)",
    ),
    "ref_model_sync_steps": ("N", "steps between its updates (default %(default)s)"),
    "desirable_weight": ("W", "weight of desirable completions in KTO (default %(default)g)"),
    "undesirable_weight": ("W", "weight of undesirable completions in KTO (default %(default)g)"),
}
"""Settings of `PreferenceConfig`."""


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.dpo`."""
    parser = cli.Parser("dpo", __doc__)
    training.add_model_options(parser)
    training.add_data_options(parser, "PAIRS", "`prompt`, `chosen` and `rejected`")
    training.add_reference_options(parser)
    add_settings(parser.add_argument_group("loss"), PreferenceConfig, HELP)
    training.add_train_options(parser, learning_rate=1e-6, batch_size=32)
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
    if any(beta == 0 for _, _, beta in training.grid(args)):
        raise ValueError("--beta: expected a number above 0, got 0: nothing would be learned")
    train_checks.check(parser, args, idle)


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.dpo`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    _check(parser, args)

    from dera_jax.data.examples import encode_examples, encode_pairs
    from dera_jax.training.preferences import preference_method
    from dera_jax.training.runs import Best
    from dera_jax.training.samples import sampler

    preference = train_checks.as_options(args, lambda: read_settings(args, PreferenceConfig))
    stop = decoding.stop_texts(args)
    cli.announce_devices()
    session = training.open_session(args)

    def prepare(policy, seed, beta):
        reference = session.reference
        max_length = train_checks.max_length(args, policy, reference)

        def encode(records):
            if preference.loss == "kto":
                return encode_examples(
                    policy,
                    records,
                    max_length,
                    labelled=True,
                    truncation_mode=args.truncation_mode,
                    stop=stop,
                )
            return encode_pairs(policy, records, max_length, truncation_mode=args.truncation_mode, stop=stop)

        data = session.data(args.data, encode, eval_data=args.eval_data, eval_share=args.eval_share)
        config = training.train_config(args, seed, len(data.items))

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
                progress=True,
            )

        settings = session.settings("dpo", policy) | data.settings
        settings |= {
            "beta": beta,
            "preference": asdict(preference),
            "reference": {"model": reference.name, "fingerprint": reference.fingerprint},
            "max_length": max_length,
        } | ({"stop": list(stop)} if stop else {})
        return method, session.save(policy), config, settings, Best("eval_loss")

    train_grid.run_grid(args, session, cli.command_line("train.dpo", argv), prepare)
