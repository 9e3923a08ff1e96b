"""How rules are written, and what is said of those that are not there."""

import pytest

from dera_jax.rules.catalogue import KNOWN, listed
from dera_jax.rules.known import known_name, load_rule, parse
from dera_jax.rules.rule import as_rule, check_strength, named, row_weights, rule_code


def test_dials_that_are_left_out_are_written_into_the_name():
    rule = load_rule("plausible+power:p=-1")
    assert rule.name == "plausible:alpha=0.1+power:p=-1" == named(rule.function).name == known_name(rule.name)
    assert row_weights(rule.function, (0.25,)).tolist() == pytest.approx([0.75, 0.25, 0.1, -1])


def test_rules_that_differ_in_their_dials_are_one_program():
    one, other = (load_rule(f"ramp:tokens={n}").function for n in (3, 4))
    assert one == other and hash(one) == hash(other) and one.dials != other.dials
    assert one != load_rule("decay:tokens=3").function


def test_every_rule_has_what_its_table_says():
    for name, entry in KNOWN.items():
        rule = load_rule(name)
        assert rule.name.startswith(name) and callable(rule.function)
        assert entry.formula and entry.source and entry.use and name in listed()
        assert name == "linear" or rule_code(rule.function)


def test_the_code_of_every_part_counts():
    codes = {rule_code(load_rule(spec).function) for spec in ("first", "plausible", "first+plausible")}
    assert len(codes) == 3


def test_a_module_may_be_called_like_a_rule():
    (part,) = parse("plausible:plausible")
    assert part.text == "plausible:plausible" and known_name("plausible:plausible") is None


def test_a_rule_of_ones_own_goes_with_those_of_the_package():
    own = f"{__name__}:halved"
    rule = load_rule(f"first:tokens=2+{own}")
    assert rule.name == f"first:tokens=2+{own}" and known_name(rule.name) is None
    assert rule.function.combination.function is as_rule(own)


def halved(logits, weights, state):
    return logits.mean(axis=0), state


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("powr", "expected linear, tilt, power"),
        ("power:q=1", "power: expected p=, found q=1"),
        ("power:p", "power: expected p=, found p"),
        ("linear:p=1", "linear: expected no dials, found p=1"),
        ("power:p=high", "power: expected p from -100 to 100, found high"),
        ("power:p=nan", "expected p from -100 to 100, found nan"),
        ("kl-budget:nats=inf", "expected nats from 0 to 1000, found inf"),
        ("plausible:alpha=2", "expected alpha from 0 to 1, found 2"),
        ("power:p=1,p=2", "expected p once, found it twice"),
        ("power+minimum", "expected one rule that combines logits, found power and minimum"),
        ("first+first:tokens=3", "expected each rule once, found first twice"),
        ("first+", "found "),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(spec, told):
    with pytest.raises(ValueError, match=r"^--rule=") as error:
        load_rule(spec)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_averages_take_no_weights_below_zero():
    rule = load_rule("first+power").function
    check_strength(rule, (0.5, 0.5))
    for strength in ((1.5,), (-0.1,), (0.7, 0.7)):
        with pytest.raises(ValueError, match="at least 0 that sum to at most 1, found"):
            check_strength(rule, strength)
    check_strength(load_rule("linear").function, (1.5,))
