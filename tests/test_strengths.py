"""Strengths: what people write, what a row stores, and that both mean the same float64."""

import itertools
import json
import math
import random
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.strengths import (
    as_strengths,
    format_strength,
    parse_strengths,
    strength_from_json,
    strength_to_json,
    turn_strengths,
)


def texts(text, num_aligned=1):
    return [format_strength(strength) for strength in parse_strengths(text, num_aligned)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.5,1", "0 0.5 1"),
        ("0:2:0.2", "0 0.2 0.4 0.6 0.8 1 1.2 1.4 1.6 1.8 2"),
        ("2:0:-0.5", "2 1.5 1 0.5 0"),
        ("0:1:0.3", "0 0.3 0.6 0.9"),
        ("1:1:0.5", "1"),
        ("0:1:1/4", "0 0.25 0.5 0.75 1"),
        ("-0.5,1", "-0.5 1"),
        ("1.0,2.50,.5,1.", "1 2.5 0.5"),
        ("-0,0,-0.0", "0"),
        ("1,0.5,0:1:0.5", "1 0.5 0"),
        ("1e2,1e-1,5E-1", "100 0.1 0.5"),
        (" 0 , 1 ", "0 1"),
    ],
)
def test_lists_and_ranges(text, expected):
    assert texts(text) == expected.split()


@pytest.mark.parametrize("step", ["0.1", "0.2", "0.05", "0.01", "0.7", "0.001"])
def test_a_range_holds_the_floats_that_its_decimals_spell(step):
    values = [strength[0] for strength in parse_strengths(f"-1:2:{step}")]
    count = int(Decimal(3) / Decimal(step)) + 1
    assert values == [float(Decimal(-1) + i * Decimal(step)) for i in range(count)]


def test_fractions_are_the_nearest_floats():
    assert parse_strengths("1/6,2/3,-1/3,0:1:1/3") == (
        (1 / 6,),
        (2 / 3,),
        (-1 / 3,),
        (0.0,),
        (1 / 3,),
        (1.0,),
    )


def test_vectors_and_grids():
    assert texts("0.5+0.5,1+0,0.5+-0.5", 2) == ["0.5+0.5", "1+0", "0.5+-0.5"]
    axis = ["0", "0.5", "1"]
    assert texts("0:1:0.5x0:1:0.5", 2) == ["+".join(pair) for pair in itertools.product(axis, axis)]
    assert texts("1x0:1:1x1/2", 3) == ["1+0+0.5", "1+1+0.5"]
    assert texts("1+0,0:1:1x0", 2) == ["1+0", "0+0"]


def test_identity_reads_back_as_the_same_float():
    draw = random.Random(0)
    values = [draw.gauss(0, 1) * 10.0 ** draw.randint(-30, 30) for _ in range(2000)]
    values += [0.1 + 0.2, 1e22, 1e-7, 5e-324, 1.7976931348623157e308, 2.0**53]
    for value in values:
        text = format_strength((value,))
        assert parse_strengths(text) == ((value,),)
        assert parse_strengths(format_strength((value, 1.0)), 2) == ((value, 1.0),)
        assert len(text) <= len(repr(value))
        assert "+" not in text
        assert not text.endswith(".0")
    assert format_strength((-0.0, 0.6)) == "0+0.6"


@pytest.mark.parametrize(
    ("text", "num_aligned", "message"),
    [
        ("", 1, "number is missing"),
        ("0,,1", 1, "number is missing"),
        ("nan", 1, "finite number"),
        ("inf", 1, "finite number"),
        ("1e999", 1, "finite number"),
        ("1/0", 1, "finite number"),
        ("0x", 2, "finite number"),
        ("1_000", 1, "finite number"),
        ("half", 1, "'half'"),
        ("prompt", 1, "'prompt'"),
        ("0:1", 1, "has no step"),
        ("0:1:0", 1, "step 0"),
        ("0:1:-0.1", 1, "away from its stop"),
        ("0:1:0.1:2", 1, "too many colons"),
        ("0:1:0.00001", 1, "more than 10000"),
        ("0:1e300:1", 1, "more than 10000"),
        ("0:1:0.001x0:1:0.001", 2, "more than 10000"),
        ("0.5+0.5", 1, "found 2"),
        ("0.5", 2, "each of 2 aligned models, found 1"),
        ("0:1:0.5", 2, "0:1:0.5x0:1:0.5"),
        ("1+1+1", 2, "found 3"),
        ("+1", 1, "finite number"),
        ("1e+2", 2, "1e2"),
        ("1e+2", 1, "1e2"),
        ("9" * 5000, 1, "finite number"),
        ("1e999999999", 1, "finite number"),
    ],
)
def test_mistakes_end_in_one_line(text, num_aligned, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_strengths(text, num_aligned)
    assert "\n" not in str(error.value)


def test_json_round_trip():
    for strength in [(0.6,), (1.0, -0.5), (1 / 6,)]:
        assert strength_from_json(json.loads(json.dumps(strength_to_json(strength)))) == strength
    assert strength_to_json((1.0,)) == 1.0
    assert strength_to_json((1.0, 0.0)) == [1.0, 0.0]
    assert math.copysign(1, strength_from_json(-0.0)[0]) == 1
    assert strength_from_json([1]) == (1.0,)
    assert isinstance(strength_from_json(1)[0], float)


def test_turns_of_a_prompt():
    assert turn_strengths(0.5, "p.jsonl:1") == ((0.5,),)
    assert turn_strengths([0, 1.5], "p.jsonl:1") == ((0.0,), (1.5,))
    assert turn_strengths(["0.5+-0.25", "1+1/4"], "p.jsonl:1") == ((0.5, -0.25), (1.0, 0.25))


@pytest.mark.parametrize(
    "value", [True, "0.5", None, [], [0.5, None], float("nan"), 10**400, {"a": 1}, "1+", "1e+2+1", "1/0+1"]
)
def test_a_prompts_strength_must_be_numbers(value):
    with pytest.raises(ValueError, match=r"^p\.jsonl:3: lambda: expected") as error:
        turn_strengths(value, "p.jsonl:3")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^lambda: expected"):
        strength_from_json(value)


@pytest.mark.parametrize(
    "value, num_aligned, expected",
    [
        ("0:1:0.5", 1, ["0", "0.5", "1"]),
        (["1/2", 1, "0:1:0.5"], 1, ["0.5", "1", "0"]),
        (0.5, 1, ["0.5"]),
        (np.arange(3), 1, ["0", "1", "2"]),
        ([np.float64(0.1), np.int64(2), Fraction(1, 4), Decimal("0.3")], 1, ["0.1", "2", "0.25", "0.3"]),
        (np.array([0.25, 0.5], np.float32), 1, ["0.25", "0.5"]),
        (jnp.array([0.25, 0.5]), 1, ["0.25", "0.5"]),
        ((x / 2 for x in range(2)), 1, ["0", "0.5"]),
        ([(0.5, 0.5), "1+0", np.array([0.0, 2.0])], 2, ["0.5+0.5", "1+0", "0+2"]),
        ("0:1:1x0", 2, ["0+0", "1+0"]),
        ([()], 0, [""]),
    ],
)
def test_strengths_of_python(value, num_aligned, expected):
    assert [format_strength(strength) for strength in as_strengths(value, num_aligned)] == expected


@pytest.mark.parametrize(
    "value, num_aligned, error, message",
    [
        ("0:1", 1, ValueError, "^lambdas: the range '0:1' has no step"),
        ([0, "a"], 1, ValueError, "^lambdas: expected a finite number such as"),
        ([], 1, ValueError, "at least one strength, found none"),
        ([math.nan], 1, ValueError, "expected a finite number, found NaN"),
        ([10**400], 1, ValueError, "expected a finite number"),
        ([0, True], 1, TypeError, "expected a number or text such as '1/2', found true"),
        ([None], 1, TypeError, "found null"),
        ([{}], 1, TypeError, "found {}"),
        ([(0, 1)], 1, ValueError, r"expected a number for each of 1 aligned models, found \[0, 1\]"),
        ((0.5, 0.5), 2, ValueError, "expected a number for each of 2 aligned models, found 0.5"),
    ],
)
def test_what_is_no_strength_of_python(value, num_aligned, error, message):
    with pytest.raises(error, match=message) as raised:
        as_strengths(value, num_aligned)
    assert "\n" not in str(raised.value)
