"""Training of a value head on a frozen reference, for controlled decoding (--rule=tilt) and the score value:DIR.

Each step samples --num-samples completions of each of its prompts from the reference and scores them. The head
learns V(x, y), the mean reward of a completion that begins with y, for every next word. `fudge` regresses on the
reward of the whole completion at every token; `cd-q` on the mean value of the next word, and on the reward at the
last token. The head is saved alone: the model is not copied. Several values of --seed train a grid.
"""

from collections.abc import Sequence
from dataclasses import asdict

from dera_jax.commands.options import cli, decoding, rollouts, train_checks, train_grid, training
from dera_jax.commands.options.settings import Help, add_settings, read_settings
from dera_jax.commands.process import endings
from dera_jax.training.config import RolloutConfig, ValueTraining

HELP: Help = {
    "method": (None, "what the values learn from (default %(default)s)"),
    "num_epochs": ("N", "updates from the completions of a step (default %(default)s)"),
}
"""Settings of `ValueTraining`."""


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m train.value`."""
    parser = cli.Parser("value", __doc__)
    training.add_model_options(parser, head=True)
    rollouts.add_prompt_options(parser, "--num-samples completions of each")
    add_settings(parser.add_argument_group("values"), ValueTraining, HELP)
    decoding.add_rollout_options(parser, temperature=False)
    training.add_train_options(
        parser, epochs=False, learning_rate=1e-3, max_steps=100, batch_size=128,
        save_steps=20,
    )  # fmt: skip
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m train.value`."""
    parser = make_parser()
    args = parser.parse_args(argv)
    train_checks.check_samples(args)
    train_checks.check(parser, args)
    learning = train_checks.as_options(args, lambda: read_settings(args, ValueTraining))

    from dera_jax.models.value import HEAD
    from dera_jax.policies.value_heads import fresh_value_head, save_value_head
    from dera_jax.training import parameters
    from dera_jax.training.runs import Best, fingerprint
    from dera_jax.training.value import value_method

    def rollout_config(seed):
        return RolloutConfig(decoding.decode_config(args, seed=seed), args.num_samples, beta=0.0)

    for _, seed, _ in training.grid(args):
        train_checks.as_options(args, lambda seed=seed: rollout_config(seed))
    rewards, told = rollouts.read_rewards(args)
    read = rollouts.read_prompts(args)
    cli.announce_devices()
    session = training.open_session(args)

    def reader():
        return session.start

    def prepare(policy, seed, _):
        value, (encoded, held_out) = fresh_value_head(policy, seed), read(reader)
        rollout, config = rollout_config(seed), training.train_config(args, seed)

        def method():
            given = value, policy, encoded, rewards, rollout, learning, config
            return value_method(*given, held_out=held_out)

        settings = session.settings("value", policy) | {
            **told,
            "values": asdict(learning),
            "data": args.data,
            "prompts": len(encoded),
            "prompts_hash": fingerprint(encoded),
            "num_samples": args.num_samples,
            "max_new_tokens": args.max_new_tokens,
            "stop": list(rollout.decode.stop),
        }

        def save(params, folder, manifest):
            head = {name: array for name, array in parameters.part(f"{HEAD}.", params).items()}
            save_value_head(head, folder, args.model, policy.fingerprint, manifest)

        return method, save, config, settings, Best("eval_error")

    train_grid.run_grid(args, session, cli.command_line("train.value", argv), prepare)
