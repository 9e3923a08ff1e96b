"""From the arguments of a sweep to its plan, the models loaded."""

import sys

from dera_jax.commands.options import cli, decoding, models
from dera_jax.rules.known import load_rule


def load_plan(args, decode):
    """Returns the sweep that the arguments ask for, its models loaded."""
    from dera_jax.data.encoding import encode_usable
    from dera_jax.data.prompts import read_prompts
    from dera_jax.devices.mesh import own_group
    from dera_jax.devices.processes import leads, several, together
    from dera_jax.rewards.registry import parse_rewards
    from dera_jax.strengths import PER_PROMPT, parse_strengths
    from dera_jax.sweeps.plan import Sweep, check_extent, check_rewards
    from dera_jax.sweeps.run import known_beta

    reference, aligned = models.model_names(args)
    # Everything that can be wrong without a model is checked before one is loaded.
    lambdas = None if args.lambda_ == PER_PROMPT else parse_strengths(args.lambda_, len(aligned or [1]))
    reward = args.reward or (cli.toy_reward() if reference is None else None)
    rewards = parse_rewards(reward) if reward else ()
    prompts, unread = read_prompts(prompts_of(args), args.num_prompts)
    check_rewards(rewards, prompts)
    check_extent(len(prompts), args.num_samples, len(lambdas or [0]))
    rule, rule_name = load_rule(args.rule)
    mesh = models.open_mesh(args)

    def load() -> Sweep:
        cli.announce_devices()
        group = own_group(mesh) if mesh else None
        policies = models.load_models(args, mesh=group and group.mesh)
        _check_default_prompts(args, policies)
        fitting, encoded, unfit = encode_usable(policies, prompts, decode.max_new_tokens)
        if (dropped := unread | unfit).count and leads():
            print(dropped.told(prompts_of(args), len(fitting)), file=sys.stderr)
        return Sweep(
            policies=policies,
            prompts=tuple(fitting),
            encoded=tuple(encoded),
            lambdas=lambdas,
            rewards=rewards,
            decode=decode,
            num_samples=args.num_samples,
            rows=_rows(args, len(fitting) * args.num_samples * len(lambdas or [1]), group),
            rule=rule,
            rule_name=rule_name,
            beta=known_beta(policies) if args.beta is None else args.beta,
            group=group if several() else None,
        )

    return together(load)


def _check_default_prompts(args, policies) -> None:
    """Raises ValueError where no prompts are given and the models cannot read those that stand in."""
    if args.prompts is None and args.reference is not None and not any(
        policy.template is not None or policy.tokenizer.chat_template for policy in policies
    ):  # fmt: skip
        raise ValueError(
            "without --prompts, chats are asked, and neither model has a chat template: expected "
            "--prompts=FILE, or --chat-template=FILE"
        )


def _rows(args, cells: int, group) -> int:
    """Returns the rows of a batch of one group: of those asked for, which all have together, its part."""
    groups = group.count if group else 1
    rows = decoding.parse_rows(args.rows, -(-cells // groups))
    return rows if args.rows == "auto" else -(-rows // groups)


def prompts_of(args) -> str:
    """Returns the PROMPTS argument, or what stands in for it."""
    return args.prompts or ("toy" if args.reference is None else "chat")
