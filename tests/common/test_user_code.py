"""A user's own code, rewards and rules: whatever it does is one line with file and line, and nothing else breaks."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from dera_jax.common import user_code
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import Reward, as_rewards, parse_rewards
from dera_jax.rules.known import load_rule

TWO = Completions(["ask", "ask"], ["yes sir", "no"], [[1, 2], [3]], ["eos", "eos"], str)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of the user's, in the current folder, and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)

    def write(text, name="mine"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


RAISED = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit()": "SystemExit",
    "sys.exit('bye')": "SystemExit: bye",
    "exit()": "SystemExit",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "raise BaseException('x')": "BaseException: x",
    "raise StopIteration": "StopIteration",
    "1 / 0": "ZeroDivisionError: division by zero",
    "json.loads('{')": "JSONDecodeError: Expecting property name",
    "raise ValueError('two\\nlines \\x1b[31m\\ud800')": r"ValueError: two lines \x1b[31m\ud800",
    "raise BaseExceptionGroup('many', [KeyError(1)])": "ExceptionGroup: many",
    "raise Mute": "Mute",
}
"""A line of a user's -> what is told of it."""

HEAD = """
    import json, sys
    class Mute(Exception):
        def __str__(self): raise KeyError
    """


@pytest.mark.parametrize("line", RAISED)
@pytest.mark.parametrize("load", [parse_rewards, lambda spec: load_rule(spec.removeprefix("python:"))])
def test_what_a_module_raises_is_one_line(module, load, line):
    name = module(HEAD + line)
    with pytest.raises(ValueError, match=re.escape(f"python:{name}:f"[7:])) as raised:
        load(f"python:{name}:f")
    told = str(raised.value)
    assert RAISED[line] in told and told.endswith(" (mine.py:5)") and told.isprintable(), told


@pytest.mark.parametrize("line", RAISED)
def test_what_a_reward_raises_is_one_line(module, line):
    name = module(HEAD + f"def helper():\n        {line}\n    def f(completions): helper()")
    with pytest.raises(ValueError, match=f"^reward python:{name}:f: ") as raised:
        parse_rewards(f"python:{name}:f")[0](TWO)
    told = str(raised.value)
    assert RAISED[line] in told and told.endswith(" (mine.py:6)") and told.isprintable(), told


GIVEN = {
    "None": "a list of 2 numbers, found None",
    "'ab'": "a list of 2 numbers, found 'ab'",
    "b'ab'": "a list of 2 numbers, found b'ab'",
    "bytearray(2)": "a list of 2 numbers, found bytearray",
    "memoryview(b'ab')": "a list of 2 numbers, found <memory",
    "{1: 2, 3: 4}": "a list of 2 numbers, found {1: 2, 3: 4}",
    "{1.0, 2.0}": "a list of 2 numbers, found {1.0, 2.0}",
    "1.0": "a list of 2 numbers, found 1.0",
    "(x for x in iter(float, 1))": "2 numbers, found more",
    "itertools.repeat(1.0)": "2 numbers, found more",
    "iter([1.0])": "2 numbers, found 1",
    "[1.0]": "2 numbers, found 1",
    "range(10**12)": "2 numbers, found 1000000000000",
    "np.zeros((2, 1))": r"a finite number or None, found array\(\[0.\]\) for completion 0",
    "np.array(1.0)": "0-d array",
    "[1.0, np.nan]": "a finite number or None, found nan for completion 1",
    "[1.0, 10**400]": "a finite number or None, found 1000000.* for completion 1",
    "[1.0, b'1']": "a finite number or None, found b'1' for completion 1",
    "[1.0, '1']": "a finite number or None, found '1' for completion 1",
    "[1.0, 1j]": "a finite number or None, found 1j for completion 1",
    "[1.0, [2.0]]": r"a finite number or None, found \[2.0\] for completion 1",
    "[Odd(), 1.0]": "a finite number or None, found a Odd for completion 0",
    "later()": "2 numbers, found 1",
}
"""What a reward returns -> what is told."""


@pytest.mark.parametrize("value", GIVEN)
def test_a_reward_is_held_to_a_number_for_each(module, value):
    name = module(f"""
        import itertools
        import numpy as np
        class Odd:
            def __float__(self): raise KeyError
            __repr__ = __float__
        async def later(): return [1.0]
        def f(completions): return {value}
        """)
    with pytest.raises(ValueError, match=f"^reward python:{name}:f: .*{GIVEN[value]}") as raised:
        parse_rewards(f"python:{name}:f")[0](TWO)
    assert str(raised.value).isprintable()


SPOILS = """
    import os, sys
    print("imported")
    def f(completions):
        print("judged", flush=True)
        sys.stdout.close()
        sys.stderr = None
        os.close(0)
        os.close(1)
        os.chdir("/")
        return [1.0, 2.0]
    """
ASKS = """
import os, sys
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.registry import parse_rewards
two, folder = Completions(["a", "b"], ["c", "d"], None, ["eos", "eos"], str), os.getcwd()
(reward,) = parse_rewards("python:mine:f")
assert [reward(two), reward(two)] == [[1.0, 2.0]] * 2
assert os.getcwd() == folder and os.fstat(0)
print("table")
print("warning", file=sys.stderr)
"""


def test_streams_and_folder_are_put_right(module, tmp_path):
    """In a process of its own: at its end Python would complain of a closed standard output."""
    module(SPOILS)
    root = Path(user_code.__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", ASKS], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "warning\n")
    assert ended.stdout == "imported\njudged\njudged\ntable\n"


def press_ctrl_c(soon=0.2):
    threading.Timer(soon, lambda: os.kill(os.getpid(), signal.SIGINT)).start()


@pytest.mark.parametrize("met", ["pass", "return [1.0, 2.0]", "raise ValueError"])
def test_the_users_own_ctrl_c_ends_a_reward_that_hangs(module, met):
    name = module(f"""
        import time
        def f(completions):
            try:
                while True: time.sleep(0.01)
            except BaseException:
                {met}
        """)
    before = signal.getsignal(signal.SIGINT)
    press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        parse_rewards(f"python:{name}:f")[0](TWO)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_that_takes_note_of_ctrl_c_is_called():
    """As trainings have it: the first one ends after the step."""
    noted = []
    before = signal.signal(signal.SIGINT, lambda *_: noted.append(True))
    try:
        assert user_code.run("it", lambda: os.kill(os.getpid(), signal.SIGINT) or "done") == "done"
        assert noted == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_code_runs_in_any_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(user_code.run("it", lambda: 5)))
    thread.start()
    thread.join()
    assert found == [5]


# Names, and Python's own functions


def test_rewards_have_names(module):
    name = module("def f(completions): return [float(len(text)) for text in completions]")
    text = f"exclaim=python:{name}:f, long.1=length:1:1,keywords:a=b,slots"
    rewards = parse_rewards(text)
    assert [reward.name for reward in rewards] == ["exclaim", "long.1", "keywords:a=b", "slots"]
    assert [reward(TWO) for reward in rewards[:2]] == [[7.0, 2.0], [-1.0, 0.0]]
    for wrong, message in [
        ("a=slots,a=keywords:x", "a is listed twice"),
        ("a b=slots", "unknown reward 'a b=slots'"),
        ("=slots", "unknown reward '=slots'"),
        ("a=", "unknown reward ''"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_rewards(wrong)


def test_an_error_says_the_name(module):
    name = module("def f(completions): return 1 / 0")
    with pytest.raises(ValueError, match=r"^reward half: ZeroDivisionError: division by zero \(mine.py:1\)$"):
        parse_rewards(f"half=python:{name}:f")[0](TWO)


class Counts:
    def __call__(self, completions, **columns):
        return [len(text) for text in completions]


def count(completions, prompts):
    return map(len, completions)


def test_rewards_of_python():
    own = Reward("own", lambda completions: [0.0, 1.0])
    for value, expected in {
        (): {},
        "keywords:no,long=length:2:2": {"keywords:no": [0.0, 1.0], "long": [0.0, -1.0]},
        count: {"count": [7.0, 2.0]},
        own: {"own": [0.0, 1.0]},
        (own, count, "a=keywords:no"): {"own": [0.0, 1.0], "count": [7.0, 2.0], "a": [0.0, 1.0]},
        Counts(): {"Counts": [7.0, 2.0]},
    }.items():
        rewards = as_rewards(value)
        assert [reward.name for reward in rewards] == list(expected)
        for reward in rewards:
            assert reward(TWO) == expected[reward.name]
    (first, second) = as_rewards([lambda completions: [1, 2], {"mine": "length:1:1"}])
    assert (first.name, first(TWO), second.name, second(TWO)) == ("lambda", [1.0, 2.0], "mine", [-1.0, 0.0])


@pytest.mark.parametrize(
    "value, kind, message",
    [
        (5, TypeError, "rewards: expected text such as 'length:40:60', a function, .* found 5"),
        ([count, 5], TypeError, "found 5"),
        (["slots", "slots"], ValueError, "rewards: two are named 'slots'"),
        ("lenght:1:2", ValueError, "^rewards: unknown reward 'lenght:1:2'"),
        ({"a b": count}, ValueError, "expected a name of letters, digits and _ . -, found 'a b'"),
        ({"a": "slots,length:1:2"}, ValueError, "expected one reward of the name 'a', found 2"),
    ],
)
def test_what_is_no_reward_is_said(value, kind, message):
    with pytest.raises(kind, match=message):
        as_rewards(value)


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize("then", ["return [1.0] * len(completions)", "raise ValueError", "sys.exit(3)"])
def test_a_fork_of_the_process_does_not_come_back(module, capfd, then):
    """Two processes would write the same rows."""
    name = module(f"import os, sys\ndef f(completions):\n    print(os.fork(), flush=True)\n    {then}\n")
    (reward,) = parse_rewards(f"python:{name}:f")
    us = os.getpid()
    try:
        reward(TWO)
    except user_code.UserCodeError:
        pass
    finally:
        if os.getpid() != us:
            os._exit(7)
    (child,) = {int(line) for line in capfd.readouterr().out.split()} - {0}
    assert os.waitpid(child, 0) == (child, 0)
