"""From the arguments of a sweep to its plan, the models loaded."""

import sys

from dera_jax.commands.options import cli, decoding, drawing, models
from dera_jax.rules.known import load_rule


def load_plan(args, decode):
    """Returns the sweep that the arguments ask for, its models loaded."""
    from dera_jax.data.encoding import encode_usable
    from dera_jax.data.prompts import read_prompts
    from dera_jax.decoding.complete import width_of
    from dera_jax.decoding.config import rows_of
    from dera_jax.devices.mesh import own_group
    from dera_jax.devices.processes import leads, several, together
    from dera_jax.rewards.registry import parse_rewards
    from dera_jax.strengths import PER_PROMPT, parse_strengths
    from dera_jax.sweeps.plan import (
        SweepPlan,
        check_draw,
        check_extent,
        check_rewards,
        check_settings,
        make_plan,
    )

    reference, aligned = models.model_names(args)
    # Everything that can be wrong without a model is checked before one is loaded.
    lambdas = None if args.lambda_ == PER_PROMPT else parse_strengths(args.lambda_, len(aligned or [1]))
    reward = args.reward or (cli.toy_reward() if reference is None else None)
    rewards = parse_rewards(reward) if reward else ()
    prompts, unread = read_prompts(prompts_of(args), args.num_prompts, args.chat_template_kwargs)
    check_rewards(rewards, prompts)
    check_extent(len(prompts), args.num_samples, len(lambdas or [0]))
    rule = load_rule(args.rule)
    rows = args.rows if args.rows == "auto" else decoding.parse_rows(args.rows, 1)
    draw = drawing.draw_of(args, rule, len(aligned or [1]))
    check_draw(draw, prompts, len(aligned or [1]))
    check_settings(draw, lambdas or (), decode, rule)
    rows_of(rows, 1, width_of(draw))
    mesh = models.open_mesh(args)

    def load() -> SweepPlan:
        cli.announce_devices()
        group = own_group(mesh) if mesh else None
        policies = models.load_models(args, mesh=group and group.mesh)
        check_default_prompts(args, policies)
        fitting, encoded, unfit = encode_usable(policies, prompts, decode.max_new_tokens)
        if (dropped := unread | unfit).count and leads():
            print(dropped.told(prompts_of(args), len(fitting)), file=sys.stderr)
        if (contrasts := sum(prompt.contrast is not None for prompt in fitting)) and leads():
            print(
                f"the reference reads the contrast of {contrasts} of {len(fitting)} prompts", file=sys.stderr
            )
        raw = sum(prompt.text is not None for prompt in fitting)
        models.tell_raw(policies, raw, "write `messages` instead of `prompt` to use it")
        return make_plan(
            policies, fitting, encoded, lambdas, rewards, decode,
            num_samples=args.num_samples, rows=rows, rule=rule, beta=args.beta,
            group=group if several() else None, draw=draw,
        )  # fmt: skip

    return together(load)


def check_default_prompts(args, policies) -> None:
    """Raises ValueError where no prompts are given and the models cannot read those that stand in."""
    if args.prompts is None and args.reference is not None and not any(
        policy.template is not None or policy.tokenizer.chat_template for policy in policies
    ):  # fmt: skip
        raise ValueError(
            "without --prompts, chats are asked, and neither model has a chat template: expected "
            "--prompts=FILE, or --chat-template=FILE"
        )


def prompts_of(args) -> str:
    """Returns the PROMPTS argument, or what stands in for it."""
    return args.prompts or ("toy" if args.reference is None else "chat")
