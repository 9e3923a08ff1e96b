"""Training of a reward model on preferences (Bradley–Terry), as a …ForSequenceClassification
folder or a PEFT adapter with the head.

Data: `prompt`, `chosen` and `rejected`; or whole transcripts in the last two, as in HH.
On held-out pairs it reports how often the model prefers the chosen one, and how well its
probabilities are calibrated.
"""

import sys
from collections.abc import Sequence
from functools import cache

from tqdm import tqdm

from dera_jax.commands.options import cli, decoding, train_checks, train_grid, training
from dera_jax.commands.process import endings
from dera_jax.common.checks import check_number
from dera_jax.common.files import make_folder
from dera_jax.common.json_files import write_json
from dera_jax.common.shown import shown


def _tell(folder, found) -> None:
    """Says how well held-out pairs are ranked; above the progress, which is still there."""
    tqdm.write(f"{folder}: {found}", file=sys.stderr)
    if found.accuracy.mean <= 0.5:
        tqdm.write("warning: no better than chance: it has not learned what people prefer", file=sys.stderr)


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.reward`."""
    parser = cli.Parser("reward", __doc__)
    training.add_model_options(parser)
    training.add_data_options(parser, "PAIRS", "`prompt`, `chosen` and `rejected`")
    parser.add_argument(
        "--center-rewards-coefficient",
        type=float,
        default=0.0,
        metavar="C",
        help="draws rewards towards a mean of 0 (default %(default)g)",
    )
    training.add_train_options(parser, learning_rate=1e-4, batch_size=32)
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.reward`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_number("--center-rewards-coefficient", args.center_rewards_coefficient, 0.0, float("inf"))
    train_checks.check(parser, args)

    from dera_jax.analysis.calibration import as_json, calibrate, plot_calibration
    from dera_jax.data.examples import encode_pairs
    from dera_jax.policies import hub
    from dera_jax.policies.reward_models import (
        OWN,
        fresh_reward_model,
        save_reward_adapter,
        save_reward_model,
        with_reward_params,
    )
    from dera_jax.training import parameters
    from dera_jax.training.reward import pair_margins, reward_method
    from dera_jax.training.runs import Best

    stop = decoding.stop_texts(args)
    cli.announce_devices()
    session = training.open_session(args)
    tell_once = cache(cli.tell)

    def prepare(policy, seed, beta):
        reward = fresh_reward_model(policy, seed)
        if policy.tokenizer.pad_token_id is None and not policy.config.adapters:
            padding = policy.tokenizer.convert_ids_to_tokens(reward.config.pad_token)
            tell_once(shown(f"{policy.name}: has no pad token; {padding!r} is that of the reward model", 400))
        max_length = train_checks.max_length(args, policy, whole=True)

        def encode(records):
            return encode_pairs(
                policy, records, max_length, truncation_mode=args.truncation_mode, stop=stop, whole=True
            )

        data = session.data(args.data, encode, eval_data=args.eval_data, eval_share=args.eval_share)
        config = training.train_config(args, seed, len(data.items))
        center = args.center_rewards_coefficient

        def method():
            return reward_method(reward, data.items, config, center=center, held_out=data.held_out)

        settings = session.settings("reward", policy) | data.settings
        settings |= {"max_length": max_length, "center_rewards_coefficient": center}
        settings |= {"stop": list(stop)} if stop else {}

        def save(params, folder, manifest):
            _, frozen = parameters.split(reward.params, OWN)
            judge = with_reward_params(reward, parameters.whole(reward.config, params, frozen))
            if data.held_out:
                make_folder(folder)
                found = calibrate(pair_margins(judge, data.held_out))
                plot_calibration(found, folder / "calibration.png", folder.name)
                write_json(folder / "calibration.json", as_json(found))
                _tell(folder, found)
            if reward.config.adapters:
                save_reward_adapter(judge, folder, hub.split_adapter(args.model)[0], manifest)
            else:
                save_reward_model(judge, folder, manifest)

        return method, save, config, settings, Best("eval_loss")

    train_grid.run_grid(args, session, cli.command_line("train.reward", argv), prepare)
