"""Value heads among the models that are decoded together: only rules that ask for one may have it, as the last."""

from collections.abc import Sequence

from dera_jax.common.shown import shown
from dera_jax.policies.policy import Policy
from dera_jax.rules.rule import Rule, named, takes_values


def check_values(policies: Sequence[Policy], rule: Rule) -> None:
    """Raises ValueError unless the last model is a value head on the reference just where `rule` takes one."""
    name, asked = named(rule).name, takes_values(rule)
    for number, policy in enumerate(policies):
        given, expected = policy.value_of is not None, asked and number == len(policies) - 1
        if expected and not given:
            raise ValueError(
                f"rule {name}: expected a value head (of train.value) as the last model, found "
                f"{shown(policy.name, 200)}, a language model"
            )
        if given and not expected:
            why = "expected it as the last model" if asked else "the rule tilt takes one (--rule=tilt)"
            raise ValueError(f"rule {name}: {shown(policy.name, 200)} is a value head; {why}")
        if given:
            check_value_of(policy, policies[0])


def check_value_of(value: Policy, reference: Policy) -> None:
    """Raises ValueError where a value head stands on another model than the reference."""
    if value.value_of != reference.fingerprint:
        raise ValueError(
            f"{shown(value.name, 200)}: a value head of another model than the reference {shown(reference.name, 200)}"
        )
