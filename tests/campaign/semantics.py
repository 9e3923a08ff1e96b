"""Changes that make sense of a file: what is right in form and wrong, or hostile, in content."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

Act = Callable[[Path], None]


def write(path: str, text: str | bytes) -> Act:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return lambda folder: (folder / path).write_bytes(data)


def lines(path: str, *records: dict | str, count: int = 1) -> Act:
    """Returns what writes records as lines."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in records] * count
    return write(path, "".join(text + "\n" for text in texts))


def every(path: str, edit: Callable[[dict, int], object]) -> Act:
    """Returns what changes every line of a file."""

    def act(folder: Path) -> None:
        found = [json.loads(line) for line in (folder / path).read_text().splitlines()]
        for number, each in enumerate(found):
            edit(each, number)
        (folder / path).write_text("".join(json.dumps(each) + "\n" for each in found))

    return act


def edited(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes a JSON object."""

    def act(folder: Path) -> None:
        found = json.loads((folder / path).read_text())
        edit(found)
        (folder / path).write_text(json.dumps(found))

    return act


def tensors(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes the arrays of a file of weights."""

    def act(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        found = load_file(folder / path)
        edit(found)
        save_file({name: np.ascontiguousarray(value) for name, value in found.items()}, folder / path)

    return act


def header(path: str, edit: Callable[[dict], object]) -> Act:
    """Returns what changes the header of a file of weights, its data left as they are."""

    def act(folder: Path) -> None:
        data = (folder / path).read_bytes()
        length = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + length])
        edit(found)
        text = json.dumps(found).encode()
        (folder / path).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return act


def _first(found: dict) -> str:
    return min(name for name in found if name != "__metadata__")


def _headers(path: str) -> dict[str, Act]:
    def field(name: str, value) -> Act:
        return header(path, lambda h: h[_first(h)].update({name: value}))

    return {
        "length of header huge": lambda folder: (folder / path).write_bytes(
            b"\xff" * 7 + b"\x7f" + (folder / path).read_bytes()[8:]
        ),
        "header deep": write(path, (200_000).to_bytes(8, "little") + b"[" * 200_000),
        "shape huge": field("shape", [10**12, 10**12]),
        "shape negative": field("shape", [-1, 4]),
        "shape text": field("shape", "x"),
        "offsets beyond": field("data_offsets", [0, 10**15]),
        "offsets backwards": field("data_offsets", [8, 4]),
        "type unknown": field("dtype", "F999"),
        "type of integers": field("dtype", "I32"),
        "type list": field("dtype", ["F32"]),
        "name escape": header(path, lambda h: h.update({"\x1b[2Jx\n": h.pop(_first(h))})),
        "metadata numbers": header(path, lambda h: h.update({"__metadata__": {"a": 1}})),
        "nan": tensors(path, lambda t: t[_first(t)].fill(np.nan)),
        "infinite": tensors(path, lambda t: t[_first(t)].fill(np.inf)),
        "large": tensors(path, lambda t: t[_first(t)].fill(3e38)),
        "half": tensors(path, lambda t: t.update({n: v.astype(np.float16) for n, v in t.items()})),
        "doubles": tensors(path, lambda t: t.update({n: v.astype(np.float64) for n, v in t.items()})),
        "whole numbers": tensors(path, lambda t: t.update({n: v.astype(np.int64) for n, v in t.items()})),
        "a number less": tensors(path, lambda t: t.update({_first(t): t[_first(t)][..., :-1]})),
        "turned": tensors(path, lambda t: t.update({_first(t): t[_first(t)].T})),
        "scalar": tensors(path, lambda t: t.update({_first(t): np.float32(1).reshape(())})),
        "no rows": tensors(path, lambda t: t.update({_first(t): t[_first(t)][:0]})),
        "none": tensors(path, lambda t: t.clear()),
        "one missing": tensors(path, lambda t: t.pop(_first(t))),
        "one more": tensors(path, lambda t: t.update({"model.layers.99.self_attn.q_proj.weight": np.ones((4, 4), "f4")})),
    }  # fmt: skip


TEMPLATES = {
    "loop": "{% for i in range(10**9) %}{% endfor %}x",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 10**10**9 }}",
    "power of power": "{% set x = 9**9**9 %}{{ x }}",
    "product": "{{ 'a' * 10**10 }}",
    "product of lists": "{% set x = [0] * 10**10 %}{{ x|length }}",
    "doubling": "{% set ns = namespace(x='a'*1000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "padding": "{{ '%999999999s' % 'x' }}",
    "centre": "{{ 'x'.center(10**10) }}",
    "format": "{{ '{:>9999999999}'.format('x') }}",
    "replace": "{{ ('a'*99999).replace('a', 'b'*99999) }}",
    "join": "{{ ('b'*99999).join(['a']*99999) }}",
    "indent": "{{ ('\\n'*99999)|indent(99999) }}",
    "sum": "{{ range(10**10)|sum }}",
    "batch": "{{ range(10**9)|list|length }}",
    "cycle": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "lorem": "{{ lipsum(n=9999999) }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "wide": "{{ '{:,}'.format(10**4999) }}",
    "attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "filter attribute": "{{ ''|attr('__class__') }}",
    "open": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'base.html' %}",
    "division": "{{ 1/0 }}",
    "undefined": "{{ nothing.at.all }}",
    "refuses": "{{ raise_exception('\x1b[2Jno\nerror: twice') }}",
    "none": "",
    "spaces": " \n \n",
    "escape": "\x1b]0;title\x07{{ messages[0].content }}",
    "surrogate": "{{ '\\ud800' }}",
    "syntax": "{% for %}",
    "open tag": "{% if true %}",
    "many brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep if": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long": "x" * 2_000_000,
    "tokens": "</s><s></s>{{ messages[0].content }}",
    "number": "{{ messages[0].content + 1 }}",
    "unknown filter": "{{ 'a'|evil }}",
    "generation": "{% generation %}x{% endgeneration %}",
}


def _template(path: str) -> dict[str, Act]:
    return {name: write(path, text) for name, text in TEMPLATES.items()}


def _config(path: str) -> dict[str, Act]:
    def put(**values) -> Act:
        return edited(path, lambda c: c.update(values))

    ropes = ("linear", "dynamic", "yarn", "llama3", "longrope", "\x1b[2J")
    return {
        "million layers": put(num_hidden_layers=10**6),
        "more layers": put(num_hidden_layers=2),
        "no layers": put(num_hidden_layers=0),
        "no heads": put(num_attention_heads=0, num_key_value_heads=0),
        "more groups than heads": put(num_key_value_heads=8),
        "groups that do not divide": put(num_attention_heads=4, num_key_value_heads=3),
        "wide": put(hidden_size=2**31, intermediate_size=2**31),
        "odd": put(hidden_size=33),
        "odd heads": put(head_dim=7),
        "vocabulary huge": put(vocab_size=2**40),
        "vocabulary of one": put(vocab_size=1),
        "vocabulary less": put(vocab_size=300),
        "context of one": put(max_position_embeddings=1),
        "context huge": put(max_position_embeddings=10**15),
        "end beyond": put(eos_token_id=10**6),
        "end negative": put(eos_token_id=-5),
        "own code": put(auto_map={"AutoModelForCausalLM": "modeling.Evil"}, trust_remote_code=True),
        "other model": put(model_type="mixtral"),
        "spoken model": put(model_type="../evil"),
        "t5": put(model_type="t5", d_model=8, d_kv=4, num_heads=2, decoder_start_token_id=0),
        "gpt2": put(model_type="gpt2", n_embd=32, n_layer=1, n_head=4),
        "quantized": put(quantization_config={"quant_method": "gptq", "bits": 4}),
        "windows": put(sliding_window=-1, use_sliding_window=True),
        "window zero": put(sliding_window=0),
        "types of layers": put(layer_types=["full_attention"] * 7),
        "activation": put(hidden_act="\x1b[2Jrelu7"),
        "eps zero": put(rms_norm_eps=0.0),
        "theta zero": put(rope_parameters={"rope_theta": 0.0, "rope_type": "default"}),
        **{f"rope {i}": put(rope_scaling={"rope_type": t, "type": t}, rope_parameters={"rope_type": t, "factor": 0})
           for i, t in enumerate(ropes)},
    }  # fmt: skip


def _numbered(path: str) -> dict[str, Act]:
    """Of rows."""
    return {
        "λ of two": every(path, lambda r, n: r.update({"lambda": [0.1, 0.2]})),
        "λ of two in one": every(path, lambda r, n: r.update({"lambda": [0.5, 0.5]} if n == 1 else {})),
        "λ empty": every(path, lambda r, n: r.update({"lambda": []})),
        "λ of 999": every(path, lambda r, n: r.update({"lambda": [0.1] * 999} if n == 1 else {})),
        "λ huge": every(path, lambda r, n: r.update({"lambda": 1e308})),
        "one key": every(path, lambda r, n: r.update({"prompt_id": 1, "sample": 0, "lambda": 0.5})),
        "kinds of ids": every(path, lambda r, n: r.update({"prompt_id": n if n % 2 else str(n)})),
        "samples huge": every(path, lambda r, n: r.update({"sample": 10**18 + n})),
        "turns": every(path, lambda r, n: r.update({"turn": 10**9})),
        "turns mixed": every(path, lambda r, n: r.pop("turn", 0) if n % 2 else None),
        "no rewards": every(path, lambda r, n: r.update({"rewards": {}})),
        "rewards without numbers": every(path, lambda r, n: r.update({"rewards": dict.fromkeys(r["rewards"])})),
        "reward names": every(path, lambda r, n: r.update({"rewards": {"\x1b[2J|=1+1`\n$\\x": 1.0, "": 0.0}})),
        "reward of numbers": every(path, lambda r, n: r.update({"rewards": {"length:2:6": 10**400}})),
        "figures large": every(path, lambda r, n: r.update({"logprob": 1e308, "kl_to_reference": 1e308, "length": 10**300})),
        "weights large": every(path, lambda r, n: r.update({"log_normalizer": 1e5, "sampling_logprob": -1e5})),
        "length apart": every(path, lambda r, n: r.update({"length": 99, "tokens": []})),
        "tokens beyond": every(path, lambda r, n: r.update({"tokens": [10**9], "prompt_tokens": [-1]})),
        "texts escape": every(path, lambda r, n: r.update({"prompt": "\x1b[2J", "completion": "\x9b\u202e\ud800"})),
        "empty texts": every(path, lambda r, n: r.update({"prompt": "", "completion": ""})),
        "finish": every(path, lambda r, n: r.update({"finish_reason": "\x1b[31mmaybe"})),
        "rules": every(path, lambda r, n: r.update({"rule": f"rule{n}", "seed": n})),
        "betas": every(path, lambda r, n: r.update({"beta": n - 3.5})),
        "beta zero": every(path, lambda r, n: r.update({"beta": 0})),
        "more fields": every(path, lambda r, n: r.update({f"f{i}": i for i in range(500)})),
        "one row": lambda folder: (folder / path).write_text((folder / path).read_text().split("\n")[0] + "\n"),
        "thousand copies": lambda folder: (folder / path).write_text((folder / path).read_text() * 100),
    }  # fmt: skip


def _prompts(path: str, field: str = "prompt") -> dict[str, Act]:
    return {
        "one empty": lines(path, {field: ""}, {field: "a"}),
        "only empty": lines(path, {field: ""}),
        "one long": lines(path, {field: "word " * 50_000}, {field: "a"}),
        "only long": lines(path, {field: "word " * 50_000}),
        "ids twice": lines(path, {"id": "a", field: "x"}, {"id": "a", field: "y"}),
        "ids of kinds": lines(path, {"id": "1", field: "x"}, {"id": 1, field: "y"}),
        "ids odd": lines(path, {"id": [1], field: "x"}, {"id": {"a": 1}, field: "y"}),
        "id true": lines(path, {"id": True, field: "x"}, {"id": 1.5, field: "y"}),
        "surrogate": lines(path, '{"%s": "Mira \\ud800 visits"}' % field),
        "surrogate, one of two": lines(path, '{"%s": "\\udfff"}' % field, {field: "a", "completion": "b"}),
        "escapes": lines(path, {field: "\x1b[2J\x00\x07\u202e", "id": "\x1b[2J"}),
        "columns": lines(path, {field: "a", "x": 1}, {field: "b", "x": [None]}, {field: "c"}),
        "columns of rewards": lines(path, {field: "a", "completions": 1, "prompts": 2, "self": 3}),
        "both": lines(path, {field: "a", "messages": [{"role": "user", "content": "b"}]}),
        "mixed": lines(path, {field: "a"}, {"messages": [{"role": "user", "content": "b"}]}),
        "messages of none": lines(path, {"messages": []}),
        "roles": lines(path, {"messages": [{"role": "\x1b[2J", "content": "b"}]}),
        "content parts": lines(path, {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}),
        "content null": lines(path, {"messages": [{"role": "user", "content": None}]}),
        "assistant last": lines(path, {"messages": [{"role": "assistant", "content": "b"}]}),
        "system only": lines(path, {"messages": [{"role": "system", "content": "b"}]}),
        "tools": lines(path, {"messages": [{"role": "user", "content": "b"}], "tools": "x"}),
        "λ": lines(path, {field: "a", "lambda": "x"}, {field: "b", "lambda": [[1]]}),
        "prefix": lines(path, {field: "a", "prefix": 5}, {field: "b", "prefix": "\ud800"}),
        "tokens in text": lines(path, {field: "</s><s><pad>"}, {field: "</s>"}),
        "many": lines(path, {field: "a b"}, count=30_000),
        "numbers": lines(path, "5", "6"),
        "lists": lines(path, "[]", "[1]"),
        "large number": lines(path, '{"%s": "a", "id": %s}' % (field, "9" * 6000)),
        "blank lines": lines(path, "", "", {field: "a"}, ""),
    }  # fmt: skip


def _data(path: str, *fields: str) -> dict[str, Act]:
    """Of training data with some text fields."""

    def of(**values) -> dict:
        return {
            **{name: f"some {name}" for name in fields},
            **({"label": True} if "kto" in path else {}),
            **values,
        }

    last, good = fields[-1], of()
    found = {
        "one empty": lines(path, of(**{last: ""}), good, good, good, good),
        "only empty": lines(path, of(**{last: ""})),
        "one long": lines(path, of(**{fields[0]: "word " * 20_000}), good, good, good, good),
        "only long": lines(path, of(**{fields[0]: "word " * 20_000})),
        "all the same": lines(path, {name: "x" for name in good}),
        "one equal": lines(path, {name: "x" for name in good}, good, good, good, good),
        "one": lines(path, good),
        "other fields": lines(path, {"question": "a", "answer": "b"}),
        "fields mixed": lines(path, good, {"text": "a"}, good, good, good),
        "null": lines(path, dict.fromkeys(good), good, good, good, good),
        "lists": lines(path, of(**{last: ["a"]}), good, good, good, good),
        "numbers": lines(path, of(**{last: 5}), good, good, good, good),
        "surrogate": lines(path, of(**{last: "a\ud800"}), good, good, good, good),
        "only surrogates": lines(path, of(**{last: "a\ud800"})),
        "escapes": lines(path, of(**{last: "\x1b[2J\x00"}), of(**{"\x1b[2J": 1}), good, good),
        "end inside": lines(path, of(**{last: "a</s>b<s>"}), good, good, good),
        "labels": lines(path, of(label="yes"), of(label=2), of(label=None), of(label=[])),
        "labels all true": lines(path, of(label=True), count=8),
        "messages": lines(path, of(**{last: [{"role": "assistant", "content": "x"}]}), good, good, good),
        "messages without content": lines(path, of(**{last: [{"role": "assistant"}]}), good, good, good),
        "weights": lines(path, of(weight="x", score=10**400), good, good, good),
    }
    return found


def code(text: str) -> Act:
    return write("mine.py", "import os, sys, time, signal, threading\n" + text)


def _rewards() -> dict[str, Act]:
    bodies = {
        "exit": "sys.exit(0)", "exit 3": "sys.exit(3)", "exit text": "sys.exit('\\x1b[2Jbye')", "quit": "raise SystemExit",
        "interrupt": "raise KeyboardInterrupt", "generator exit": "raise GeneratorExit", "base": "raise BaseException('x')",
        "group": "raise BaseExceptionGroup('a', [SystemExit(1)])", "stop": "raise StopIteration", "os exit": "os._exit(7)",
        "os exit 0": "os._exit(0)", "kill": "os.kill(os.getpid(), 9)", "abort": "os.abort()", "terminate": "os.kill(os.getpid(), 15)",
        "fault": "import ctypes; ctypes.string_at(0)", "recursion": "return reward(**columns, completions=completions)",
        "sleep": "time.sleep(10**6)", "loop": "\n    while True: pass", "memory": "return [0] * 10**12", "memory error": "raise MemoryError",
        "endless": "import itertools; return itertools.count()", "endless ones": "return iter(int, 1)", "generator": "return (1.0 for _ in completions)",
        "bytes": "return bytes(len(completions))", "text": "return 'x' * len(completions)", "dict": "return {i: 1.0 for i in range(len(completions))}",
        "set": "return {1.0}", "none": "return None", "one number": "return 1.0", "nan": "return [float('nan')] * len(completions)",
        "huge": "return [10**400] * len(completions)", "nones": "return [None] * len(completions)", "texts": "return ['1'] * len(completions)",
        "booleans": "return [True] * len(completions)", "complex": "return [1j] * len(completions)", "lists": "return [[1.0]] * len(completions)",
        "fewer": "return [1.0] * (len(completions) - 1)", "more": "return [1.0] * (len(completions) + 1)",
        "array": "import numpy; return numpy.ones(len(completions))", "table": "import numpy; return numpy.ones((len(completions), 2))",
        "masked": "import numpy; return numpy.ma.masked_all(len(completions))", "prints": "print('\\x1b[2J' * 10); return [1.0] * len(completions)",
        "writes": "os.write(1, b'\\x1b[2J'); return [1.0] * len(completions)",
        "changes": "completions.clear(); return []", "changes and keeps": "n = len(completions); completions[:] = ['x'] * n; return [1.0] * n",
        "raises escape": "raise ValueError('\\x1b[2J\\ud800\\nerror: two')", "raises long": "raise ValueError('x' * 100000)",
        "raises no text": "raise ValueError", "raises odd": "\n    class E(Exception):\n        def __str__(self): raise RuntimeError('no')\n    raise E",
        "odd number": "\n    class N:\n        def __float__(self): raise SystemExit(0)\n    return [N()] * len(completions)",
        "odd length": "\n    class L(list):\n        def __len__(self): return 10**9\n    return L()",
        "chdir": "os.chdir('/'); return [1.0] * len(completions)", "closes": "os.close(1); os.close(2); return [1.0] * len(completions)",
        "forks": "\n    if os.fork() == 0: os._exit(0)\n    return [1.0] * len(completions)",
        "thread": "threading.Thread(target=lambda: 1/0).start(); return [1.0] * len(completions)",
        "signal": "signal.signal(signal.SIGTERM, signal.SIG_IGN); return [1.0] * len(completions)",
        "removes": "import shutil; shutil.rmtree('mine'); return [1.0] * len(completions)",
    }  # fmt: skip
    found = {
        name: code(f"def reward(completions, **columns):\n    {body}\n") for name, body in bodies.items()
    }
    tops = {name: bodies[name] for name in ("exit", "exit 3", "exit text", "interrupt", "os exit", "sleep", "loop", "fault",
            "kill", "raises escape", "prints", "base", "memory error")}  # fmt: skip
    tops = {
        name: body.replace("; return [1.0] * len(completions)", "").replace("\n    ", "\n")
        for name, body in tops.items()
    }
    found |= {f"import: {name}": code(f"{body}\n") for name, body in tops.items()}
    shapes = {
        "missing": "", "number": "reward = 5", "class": "class reward: pass", "async": "async def reward(**k): return [1.0]",
        "no names": "def reward(): return [1.0]", "positional": "def reward(a, b, /): return [1.0]", "other names": "def reward(texts): return [1.0]",
        "keyword needed": "def reward(completions, *, missing): return [1.0] * len(completions)",
        "partial": "import functools\nreward = functools.partial(print)", "type": "reward = int", "builtin": "reward = print",
        "syntax": "def reward(:", "tabs": "def reward(completions):\n\tif 1:\n        return", "coding": "# coding: nonsense\n",
        "circular": "import mine\nfrom mine import reward", "no module": "import nowhere_at_all",
        "prints": "print('\\x1b[2J')\ndef reward(completions, **k): return [1.0] * len(completions)",
    }  # fmt: skip
    return found | {f"shape: {name}": code(f"{text}\n") for name, text in shapes.items()}


def _rules() -> dict[str, Act]:
    bodies = {
        "exit": "sys.exit(0)", "interrupt": "raise KeyboardInterrupt", "base": "raise BaseException('x')", "os exit": "os._exit(0)",
        "raises": "raise ValueError('\\x1b[2J\\nerror: two')", "no pair": "return logits[0]", "none": "return None, state",
        "shape": "return logits, state", "text": "return 'x', state", "fewer": "return logits[0][:, :-1], state",
        "whole numbers": "return logits[0].astype(int), state", "nan": "return logits[0] * jnp.nan, state", "half": "return logits[0].astype('bfloat16'), state",
        "infinite": "return logits[0] - jnp.inf, state", "another state": "return logits[0], (state, 1)", "branch": "\n    if logits[0, 0, 0] > 0: return logits[0], state",
        "numpy": "import numpy; return numpy.asarray(logits)[0], state", "attribute": "return logits.nothing, state", "key": "raise KeyError('x')",
        "sleep": "time.sleep(10**6)", "loop": "\n    while True: pass", "recursion": "return rule(logits, weights, state)",
    }  # fmt: skip
    return {name: code(f"import jax.numpy as jnp\ndef rule(logits, weights, state):\n    {body}\n") for name, body in bodies.items()} | {
        "missing": code(""), "number": code("rule = 5"), "no names": code("def rule(): pass"), "import: exit": code("sys.exit(0)"),
        "import: os exit": code("os._exit(0)"), "import: sleep": code("time.sleep(10**6)"), "syntax": code("def rule(:"),
    }  # fmt: skip


def _answers() -> dict[str, Act]:
    """Of a judge's server: `answer.json` holds the body, `answer.how` how it is sent (see `stub`)."""
    hows = "drip,drip header,endless,endless header,no answer,close,garbage,redirect,redirect loop,echo,echo status,400,401,403,404,429,429 forever,500,204,escape status,escape body,gzip bomb,chunked,bad length,long header,two answers,http 0.9,slow"
    return {how: write("answer.how", how) for how in hows.split(",")} | {
        "verdict missing": edited("answer.json", lambda a: a["choices"][0]["message"].update(content="I cannot say")),
        "verdict escape": edited("answer.json", lambda a: a["choices"][0]["message"].update(content="[[A]]\x1b[2J\ud800")),
        "parts": edited("answer.json", lambda a: a["choices"][0]["message"].update(content=[{"text": None}, 5, [], {"text": "[[A]]"}])),
        "number": edited("answer.json", lambda a: a["choices"][0]["message"].update(content="[[1e999]] [[99999999999]] [[-5]]")),
        "refusal": edited("answer.json", lambda a: a["choices"][0]["message"].update(content=None, refusal="no")),
    }  # fmt: skip


def _lexicon() -> dict[str, Act]:
    return {
        name: write("words.txt", text)
        for name, text in {
            "nan": "well\tnan\n", "infinite": "well\t1e999\n", "no rating": "well\n", "text": "well\tgood\n", "escape": "\x1b[2J\tx\x1b[2J\n",
            "large": "a\t1e308\nthe\t1e308\nwell\t1e308\n", "many": "".join(f"w{i}\t{i}\n" for i in range(200_000)), "no word": "\t1.0\n",
            "twice": "well\t1\nwell\t-1\n", "underscores": "well\t1_0\n", "digits": "well\t" + "9" * 5000 + "\n", "spaces": "  well  \t 1.5 \n",
        }.items()
    }  # fmt: skip


def _adapter() -> dict[str, Act]:
    path = "adapter/adapter_config.json"

    def put(**values) -> Act:
        return edited(path, lambda c: c.update(values))

    return {
        "base elsewhere": put(base_model_name_or_path="/nowhere/at/all"), "base itself": put(base_model_name_or_path="adapter"),
        "base up": put(base_model_name_or_path="../../../etc"), "rank huge": put(r=10**9), "rank other": put(r=3), "alpha zero": put(lora_alpha=0),
        "alpha huge": put(lora_alpha=1e308), "pattern of backtracking": put(alpha_pattern={"(([a-z._0-9])+)+!": 2}),
        "rank pattern of backtracking": put(rank_pattern={"(.*.*.*.*.*.*)*$": 2}), "targets of backtracking": put(target_modules="(([a-z._0-9])+)+!"),
        "pattern broken": put(alpha_pattern={"(": 1}), "target pattern broken": put(target_modules="("), "targets none": put(target_modules=[]),
        "kind": put(peft_type="PREFIX_TUNING"), "dora": put(use_dora=True), "rslora": put(use_rslora=True), "bias": put(bias="all"),
        "saved modules": put(modules_to_save=["lm_head"]), "layers": put(layers_to_transform=[99]), "start": put(init_lora_weights="pissa"),
        "fan": put(fan_in_fan_out=True), "mapping": put(auto_mapping={"base_model_class": "os.system"}), "task": put(task_type="\x1b[2J"),
    }  # fmt: skip


def _parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table(
        {"prompt": [["a"], None], "messages": [[{"role": "user"}], []], "\x1b[2J": [b"\xff", b""]}
    )
    write_table(table, folder / "prompts.parquet")


def _bomb(folder: Path) -> None:
    with gzip.open(folder / "prompts.jsonl.gz", "wb", 9) as file:
        file.write(b'{"prompt": "a"}\n')
        for _ in range(200):
            file.write(b"x" * 2**20)


def _index(**values) -> Act:
    return edited("sharded/model.safetensors.index.json", lambda i: i.update(values))


def _all_files(name: str) -> Act:
    return edited(
        "sharded/model.safetensors.index.json",
        lambda i: i["weight_map"].update(dict.fromkeys(i["weight_map"], name)),
    )


SPECIAL: dict[str, dict[str, Act]] = {
    "rows": _numbered("run/rows.jsonl"),
    "rows of a process": _numbered("parted/rows-1.jsonl"),
    "run's manifest": {
        "command runs": edited("run/manifest.json", lambda m: m["provenance"].update(
            command=["python", "-m", "eval.sweep", "--reward=python:subprocess:getoutput"])),
        "models elsewhere": edited("run/manifest.json", lambda m: m["identity"].update(models=[{"name": "/dev/zero"}] * 2)),
        "three models": edited("run/manifest.json", lambda m: m["identity"].update(models=m["identity"]["models"] * 2)),
        "no models": edited("run/manifest.json", lambda m: m["identity"].update(models=[])),
        "one quantization": edited("run/manifest.json", lambda m: m["identity"].update(quantization=[None])),
        "thousand commands": edited("run/manifest.json", lambda m: m.update(commands=m["commands"] * 1000)),
        "extent of nothing": edited("run/manifest.json", lambda m: m.update(extent={})),
        "extent larger": edited("run/manifest.json", lambda m: m["extent"].update(num_prompts=10**9, lambdas=[7.5])),
        "judges": edited("run/manifest.json", lambda m: m.update(judges={"hallucination": "\x1b[2J", "chat": [1]})),
    },
    "config": _config("aligned/config.json"),
    "judge's config": _config("judge/config.json"),
    "weights": _headers("aligned/model.safetensors"),
    "shard": _headers("sharded/model-00001-of-00002.safetensors"),
    "adapter's weights": _headers("adapter/adapter_model.safetensors"),
    "judge's weights": _headers("judge/model.safetensors"),
    "adapter's config": _adapter(),
    "index": {
        "up": _all_files("../aligned/model.safetensors"), "absolute": _all_files("/etc/passwd"), "folder": _all_files("."),
        "itself": _all_files("model.safetensors.index.json"), "missing": _all_files("a\x1b[2J.safetensors"), "nul": _all_files("a\0b"),
        "long": _all_files("a" * 5000), "nothing": _index(weight_map={}), "other names": _index(weight_map={"x": "model-00001-of-00002.safetensors"}),
    },
    "model's template": _template("aligned/chat_template.jinja"),
    "template": _template("template.jinja"),
    "tokenizer's config": {
        f"template {name}": edited("aligned/tokenizer_config.json", lambda c, t=text: c.update(chat_template=t))
        for name, text in TEMPLATES.items() if name in ("loop", "product", "refuses", "syntax", "many brackets")
    } | {
        "templates": edited("aligned/tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "x"}, {"template": 5}])),
        "own code": edited("aligned/tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Evil", None]})),
        "class": edited("aligned/tokenizer_config.json", lambda c: c.update(tokenizer_class="\x1b[2JEvilTokenizer")),
        "class llama": edited("aligned/tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer")),
        "end of none": edited("aligned/tokenizer_config.json", lambda c: c.update(eos_token="<nothing>")),
        "length": edited("aligned/tokenizer_config.json", lambda c: c.update(model_max_length=1)),
    },
    "tokenizer": {
        "word of backtracking": edited("aligned/tokenizer.json", lambda t: t.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False})),
        "bad regex": edited("aligned/tokenizer.json", lambda t: t.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False})),
        "unknown model": edited("aligned/tokenizer.json", lambda t: t["model"].update(type="Evil")),
        "no words": edited("aligned/tokenizer.json", lambda t: t["model"].update(vocab={}, merges=[])),
        "words beyond": edited("aligned/tokenizer.json", lambda t: t["model"]["vocab"].update({"new": 10**6})),
        "decoder": edited("aligned/tokenizer.json", lambda t: t.update(decoder={"type": "Evil"})),
    },
    "generation config": {
        "ends": edited("aligned/generation_config.json", lambda g: g.update(eos_token_id=[2, 2, 10**9, -1])),
        "ends mixed": edited("aligned/generation_config.json", lambda g: g.update(eos_token_id=[2, "</s>"])),
        "many ends": edited("aligned/generation_config.json", lambda g: g.update(eos_token_id=list(range(512)))),
    },
    "model's manifest": {
        "beta zero": edited("aligned/manifest.json", lambda m: m.update(beta=0)),
        "beta negative": edited("aligned/manifest.json", lambda m: m.update(beta=-1)),
        "beta small": edited("aligned/manifest.json", lambda m: m.update(beta=5e-324)),
        "not finished": edited("aligned/manifest.json", lambda m: m.update(finished=False)),
    },
    "ended training": {
        "not finished": edited("aligned/manifest.json", lambda m: m.update(finished=False)),
        "without weights": lambda folder: (folder / "aligned/model.safetensors").unlink(),
        "half the weights": lambda folder: (folder / "aligned/model.safetensors").write_bytes(
            (folder / "aligned/model.safetensors").read_bytes()[:5000]),
        "without config": lambda folder: (folder / "aligned/config.json").unlink(),
        "empty weights": write("aligned/model.safetensors", ""),
    },
    "prompts": _prompts("prompts.jsonl"),
    "prompts, chat": _prompts("chat.jsonl"),
    "prompts, txt": {
        name: write("prompts.txt", text) for name, text in {
            "separators": "a\u2028b\x0bc\x0cd\x85e\n", "one long": "word " * 50_000 + "\na\n", "escapes": "\x1b[2J\x00\n",
            "many": "a b\n" * 30_000, "one word": "a", "surrogate": "a\ud800b\n"}.items()
    },
    "prompts, gz": {"bomb": _bomb, "two members": lambda folder: (folder / "prompts.jsonl.gz").write_bytes(
        (folder / "prompts.jsonl.gz").read_bytes() * 2)},
    "prompts, parquet": {"types": _parquet},
    "completions": _data("completions.jsonl", "prompt", "completion"),
    "texts": _data("texts.jsonl", "text"),
    "pairs": _data("pairs.jsonl", "prompt", "chosen", "rejected"),
    "labels": _data("kto.jsonl", "prompt", "completion"),
    "messages": _prompts("messages.jsonl"),
    "transcripts": _data("transcripts.jsonl", "chosen", "rejected"),
    "options": {
        name: write("config.json", json.dumps(values)) for name, values in {
            "config in it": {"config": "config.json"}, "help": {"help": True}, "escape": {"\x1b[2J": 1}, "names": {"num_prompts": 1, "num-prompts": 2},
            "dashes": {"--rows": 4}, "nested": {"rows": {"a": 1}}, "lists": {"rows": [[1]]}, "out": {"out": ["a", "b"]}, "λ": {"lambda": {"a": 1}},
            "large": {"num-samples": 10**20}, "flag": {"dry-run": "yes"}, "number as text": {"rows": "４"}, "long name": {"a" * 5000: 1},
            "surrogate": {"out": "\ud800"}, "nul": {"out": "a\0b", "prompts": "a\0b.jsonl"}, "rule": {"rule": "mine:nothing"}}.items()
    },
    "lexicon": _lexicon(),
    "reward's module": _rewards(),
    "rule's module": _rules(),
    "answer": _answers(),
    "checkpoint's record": {
        "another step": lambda folder: (folder / "stopped/checkpoints/2").rename(folder / "stopped/checkpoints/3"),
        "step beyond": lambda folder: (folder / "stopped/checkpoints/2").rename(folder / "stopped/checkpoints/99999"),
        "huge step": lambda folder: (folder / "stopped/checkpoints/2").rename(folder / f"stopped/checkpoints/{'9' * 30}"),
        "odd digits": lambda folder: (folder / "stopped/checkpoints/2").rename(folder / "stopped/checkpoints/\u0662"),
        "square": lambda folder: (folder / "stopped/checkpoints/2").rename(folder / "stopped/checkpoints/\u00b2"),
        "file for a folder": write("stopped/checkpoints/7", "x"),
        "file that is saving": write("stopped/checkpoints/3.saving", "x"),
    },
}  # fmt: skip
"""By kind, then by name."""
