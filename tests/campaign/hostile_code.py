"""A user's own rewards and rules that do not do what they are to do.

None waits for ever or fights its process on purpose but those in `ENDS`, which end it: that is the user's own doing,
and nothing may be lost by it.
"""

from tests.campaign.edits import Act, write

ENDS = ("os exit", "os exit 0", "kill", "abort", "terminate", "fault")
"""Rewards and rules that end their process themselves, past all Python."""


def code(text: str) -> Act:
    return write("mine.py", "import os, sys, time, signal, threading\n" + text)


def rewards() -> dict[str, Act]:
    bodies = {
        "exit": "sys.exit(0)",
        "exit 3": "sys.exit(3)",
        "exit text": "sys.exit('\\x1b[2Jbye')",
        "quit": "raise SystemExit",
        "interrupt": "raise KeyboardInterrupt",
        "generator exit": "raise GeneratorExit",
        "base": "raise BaseException('x')",
        "group": "raise BaseExceptionGroup('a', [SystemExit(1)])",
        "stop": "raise StopIteration",
        "os exit": "os._exit(7)",
        "os exit 0": "os._exit(0)",
        "kill": "os.kill(os.getpid(), 9)",
        "abort": "os.abort()",
        "terminate": "os.kill(os.getpid(), 15)",
        "fault": "import ctypes; ctypes.string_at(0)",
        "recursion": "return reward(**columns, completions=completions)",
        "memory": "return [0] * 10**12",
        "memory error": "raise MemoryError",
        "endless": "import itertools; return itertools.count()",
        "endless ones": "return iter(int, 1)",
        "generator": "return (1.0 for _ in completions)",
        "bytes": "return bytes(len(completions))",
        "text": "return 'x' * len(completions)",
        "dict": "return {i: 1.0 for i in range(len(completions))}",
        "set": "return {1.0}",
        "none": "return None",
        "one number": "return 1.0",
        "nan": "return [float('nan')] * len(completions)",
        "huge": "return [10**400] * len(completions)",
        "nones": "return [None] * len(completions)",
        "texts": "return ['1'] * len(completions)",
        "booleans": "return [True] * len(completions)",
        "complex": "return [1j] * len(completions)",
        "lists": "return [[1.0]] * len(completions)",
        "fewer": "return [1.0] * (len(completions) - 1)",
        "more": "return [1.0] * (len(completions) + 1)",
        "array": "import numpy; return numpy.ones(len(completions))",
        "table": "import numpy; return numpy.ones((len(completions), 2))",
        "masked": "import numpy; return numpy.ma.masked_all(len(completions))",
        "prints": "print('\\x1b[2J' * 10); return [1.0] * len(completions)",
        "writes": "os.write(1, b'\\x1b[2J'); return [1.0] * len(completions)",
        "changes": "completions.clear(); return []",
        "changes and keeps": "n = len(completions); completions[:] = ['x'] * n; return [1.0] * n",
        "raises escape": "raise ValueError('\\x1b[2J\\ud800\\nerror: two')",
        "raises long": "raise ValueError('x' * 100000)",
        "raises no text": "raise ValueError",
        "raises odd": "\n    class E(Exception):\n        def __str__(self): raise RuntimeError\n    raise E",
        "odd number": "\n    class N:\n        def __float__(self): sys.exit(0)\n    return [N()] * len(completions)",
        "odd length": "\n    class L(list):\n        def __len__(self): return 10**9\n    return L()",
        "chdir": "os.chdir('/'); return [1.0] * len(completions)",
        "closes": "os.close(1); os.close(2); return [1.0] * len(completions)",
        "forks": "\n    if os.fork() == 0: os._exit(0)\n    return [1.0] * len(completions)",
        "thread": "threading.Thread(target=lambda: 1/0).start(); return [1.0] * len(completions)",
        "signal": "signal.signal(signal.SIGTERM, signal.SIG_IGN); return [1.0] * len(completions)",
        "removes": "import shutil; shutil.rmtree('mine'); return [1.0] * len(completions)",
    }
    found = {
        name: code(f"def reward(completions, **columns):\n    {body}\n") for name, body in bodies.items()
    }
    tops = {
        name: bodies[name]
        for name in (
            "exit",
            "exit 3",
            "exit text",
            "interrupt",
            "os exit",
            "fault",
            "kill",
            "raises escape",
            "prints",
            "base",
            "memory error",
        )
    }
    tops = {
        name: body.replace("; return [1.0] * len(completions)", "").replace("\n    ", "\n")
        for name, body in tops.items()
    }
    found |= {f"import: {name}": code(f"{body}\n") for name, body in tops.items()}
    shapes = {
        "missing": "",
        "number": "reward = 5",
        "class": "class reward: pass",
        "async": "async def reward(**k): return [1.0]",
        "no names": "def reward(): return [1.0]",
        "positional": "def reward(a, b, /): return [1.0]",
        "other names": "def reward(texts): return [1.0]",
        "keyword needed": "def reward(completions, *, missing): return [1.0] * len(completions)",
        "partial": "import functools\nreward = functools.partial(print)",
        "type": "reward = int",
        "builtin": "reward = print",
        "syntax": "def reward(:",
        "tabs": "def reward(completions):\n\tif 1:\n        return",
        "coding": "# coding: nonsense\n",
        "circular": "import mine\nfrom mine import reward",
        "no module": "import nowhere_at_all",
        "prints": "print('\\x1b[2J')\ndef reward(completions, **k): return [1.0] * len(completions)",
    }
    return found | {f"shape: {name}": code(f"{text}\n") for name, text in shapes.items()}


def rules() -> dict[str, Act]:
    bodies = {
        "exit": "sys.exit(0)",
        "interrupt": "raise KeyboardInterrupt",
        "base": "raise BaseException('x')",
        "os exit": "os._exit(0)",
        "raises": "raise ValueError('\\x1b[2J\\nerror: two')",
        "no pair": "return logits[0]",
        "none": "return None, state",
        "shape": "return logits, state",
        "text": "return 'x', state",
        "fewer": "return logits[0][:, :-1], state",
        "whole numbers": "return logits[0].astype(int), state",
        "nan": "return logits[0] * jnp.nan, state",
        "half": "return logits[0].astype('bfloat16'), state",
        "infinite": "return logits[0] - jnp.inf, state",
        "another state": "return logits[0], (state, 1)",
        "branch": "\n    if logits[0, 0, 0] > 0: return logits[0], state",
        "numpy": "import numpy; return numpy.asarray(logits)[0], state",
        "attribute": "return logits.nothing, state",
        "key": "raise KeyError('x')",
        "recursion": "return rule(logits, weights, state)",
    }
    return {
        name: code(f"import jax.numpy as jnp\ndef rule(logits, weights, state):\n    {body}\n")
        for name, body in bodies.items()
    } | {
        "missing": code(""),
        "number": code("rule = 5"),
        "no names": code("def rule(): pass"),
        "import: exit": code("sys.exit(0)"),
        "import: os exit": code("os._exit(0)"),
        "syntax": code("def rule(:"),
    }
