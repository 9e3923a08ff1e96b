"""Options made from a dataclass, and the dataclass made from them."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dera_jax.commands.options.settings import add_settings, read_settings, values_of
from dera_jax.common.choices import one_of


@dataclass(frozen=True)
class Config:
    needed: str
    count: int = 3
    rate: float = 1e-6
    limit: float | None = None
    ceiling: int | None = 1024
    words: tuple[str, ...] | str = ()
    flag: bool = False
    kind: str = one_of(("plain", "odd"), "plain")
    folder: Path = field(default_factory=lambda: Path("made"))


HELP = {name: ("X", "%(default)s") for name in ("count", "rate", "limit", "ceiling", "words", "folder")}
HELP |= {"flag": (None, "a flag"), "kind": (None, "%(default)s")}


def parsed(*words, **defaults):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_settings(parser, Config, HELP, leave_out=("needed",), **defaults)
    return parser.parse_args(words)


def test_without_options_it_is_the_dataclass_with_its_defaults():
    args = parsed()
    assert read_settings(args, Config, needed="a") == Config("a")
    assert args.ceiling == "1024" and args.words == [] and args.folder is None


def test_each_option_has_the_type_of_its_setting():
    words = "--count=4", "--rate=2", "--limit=0.5", "--ceiling=7", "--words=a", "--words=b"
    args = parsed(*words, "--flag", "--kind=odd", "--folder=here")
    found = read_settings(args, Config, needed="a")
    assert found == Config("a", 4, 2.0, 0.5, 7, ("a", "b"), True, "odd", Path("here"))
    assert isinstance(found.rate, float) and isinstance(found.ceiling, int)


def test_none_is_a_value_where_it_is_not_the_default():
    assert read_settings(parsed("--ceiling=none"), Config, needed="a").ceiling is None
    with pytest.raises(ValueError, match=r"^--ceiling: expected a number or none, found 'many'$"):
        read_settings(parsed("--ceiling=many"), Config, needed="a")


def test_a_command_has_defaults_of_its_own_and_settings_that_no_option_gives():
    args = parsed(count=8)
    assert read_settings(args, Config, needed="a").count == 8
    assert read_settings(args, Config, needed="a", count=2).count == 2
    assert "needed" not in values_of(args, Config) and "folder" not in values_of(args, Config)


@pytest.mark.parametrize("word", ["--kind=other", "--count=1.5", "--limit=much"])
def test_other_values_are_refused(word):
    with pytest.raises(argparse.ArgumentError):
        parsed(word)


@pytest.mark.parametrize(("left_out", "named"), [((), "needed"), (("needed", "count"), "count")])
def test_every_setting_is_explained_or_left_out(left_out, named):
    with pytest.raises(ValueError, match=rf"neither explained nor left out.*'{named}'"):
        add_settings(argparse.ArgumentParser(), Config, HELP, leave_out=left_out)
