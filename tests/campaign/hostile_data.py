"""Rows, prompts, training data, lexicons and judges' answers that are wrong, or hostile, in content."""

import gzip
from pathlib import Path

from tests.campaign.edits import Act, edited, every, lines, write


def numbered(path: str) -> dict[str, Act]:
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
        "rewards without numbers": every(
            path, lambda r, n: r.update({"rewards": dict.fromkeys(r["rewards"])})
        ),
        "reward names": every(
            path, lambda r, n: r.update({"rewards": {"\x1b[2J|=1+1`\n$\\x": 1.0, "": 0.0}})
        ),
        "reward of numbers": every(path, lambda r, n: r.update({"rewards": {"length:2:6": 10**400}})),
        "figures large": every(
            path, lambda r, n: r.update({"logprob": 1e308, "kl_to_reference": 1e308, "length": 10**300})
        ),
        "weights large": every(
            path, lambda r, n: r.update({"log_normalizer": 1e5, "sampling_logprob": -1e5})
        ),
        "length apart": every(path, lambda r, n: r.update({"length": 99, "tokens": []})),
        "tokens beyond": every(path, lambda r, n: r.update({"tokens": [10**9], "prompt_tokens": [-1]})),
        "texts escape": every(
            path, lambda r, n: r.update({"prompt": "\x1b[2J", "completion": "\x9b\u202e\ud800"})
        ),
        "empty texts": every(path, lambda r, n: r.update({"prompt": "", "completion": ""})),
        "finish": every(path, lambda r, n: r.update({"finish_reason": "\x1b[31mmaybe"})),
        "rules": every(path, lambda r, n: r.update({"rule": f"rule{n}", "seed": n})),
        "betas": every(path, lambda r, n: r.update({"beta": n - 3.5})),
        "beta zero": every(path, lambda r, n: r.update({"beta": 0})),
        "more fields": every(path, lambda r, n: r.update({f"f{i}": i for i in range(500)})),
        "one row": lambda folder: (folder / path).write_text(
            (folder / path).read_text().split("\n")[0] + "\n"
        ),
        "thousand copies": lambda folder: (folder / path).write_text((folder / path).read_text() * 100),
    }


def prompts(path: str, field: str = "prompt") -> dict[str, Act]:
    return {
        "one empty": lines(path, {field: ""}, {field: "a"}),
        "only empty": lines(path, {field: ""}),
        "one long": lines(path, {field: "word " * 50_000}, {field: "a"}),
        "only long": lines(path, {field: "word " * 50_000}),
        "ids twice": lines(path, {"id": "a", field: "x"}, {"id": "a", field: "y"}),
        "ids of kinds": lines(path, {"id": "1", field: "x"}, {"id": 1, field: "y"}),
        "ids odd": lines(path, {"id": [1], field: "x"}, {"id": {"a": 1}, field: "y"}),
        "id true": lines(path, {"id": True, field: "x"}, {"id": 1.5, field: "y"}),
        "surrogate": lines(path, f'{{"{field}": "Mira \\ud800 visits"}}'),
        "surrogate, one of two": lines(path, f'{{"{field}": "\\udfff"}}', {field: "a", "completion": "b"}),
        "escapes": lines(path, {field: "\x1b[2J\x00\x07\u202e", "id": "\x1b[2J"}),
        "columns": lines(path, {field: "a", "x": 1}, {field: "b", "x": [None]}, {field: "c"}),
        "columns of rewards": lines(path, {field: "a", "completions": 1, "prompts": 2, "self": 3}),
        "both": lines(path, {field: "a", "messages": [{"role": "user", "content": "b"}]}),
        "mixed": lines(path, {field: "a"}, {"messages": [{"role": "user", "content": "b"}]}),
        "messages of none": lines(path, {"messages": []}),
        "roles": lines(path, {"messages": [{"role": "\x1b[2J", "content": "b"}]}),
        "content parts": lines(
            path, {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}
        ),
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
        "large number": lines(path, f'{{"{field}": "a", "id": {"9" * 6000}}}'),
        "blank lines": lines(path, "", "", {field: "a"}, ""),
    }


def data(path: str, *fields: str) -> dict[str, Act]:
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


def answers() -> dict[str, Act]:
    """Of a judge's server: `answer.json` holds the body, `answer.how` how it is sent (see `stub`)."""
    hows = (
        "drip,drip header,endless,endless header,no answer,close,garbage,redirect,redirect loop,echo,"
        "echo status,400,401,403,404,429,429 forever,500,204,escape status,escape body,gzip bomb,"
        "chunked,bad length,long header,two answers,http 0.9,slow"
    )
    return {how: write("answer.how", how) for how in hows.split(",")} | {
        "verdict missing": edited(
            "answer.json", lambda a: a["choices"][0]["message"].update(content="I cannot say")
        ),
        "verdict escape": edited(
            "answer.json", lambda a: a["choices"][0]["message"].update(content="[[A]]\x1b[2J\ud800")
        ),
        "parts": edited(
            "answer.json",
            lambda a: a["choices"][0]["message"].update(content=[{"text": None}, 5, [], {"text": "[[A]]"}]),
        ),
        "number": edited(
            "answer.json",
            lambda a: a["choices"][0]["message"].update(content="[[1e999]] [[99999999999]] [[-5]]"),
        ),
        "refusal": edited(
            "answer.json", lambda a: a["choices"][0]["message"].update(content=None, refusal="no")
        ),
    }


def lexicon() -> dict[str, Act]:
    return {
        name: write("words.txt", text)
        for name, text in {
            "nan": "well\tnan\n",
            "infinite": "well\t1e999\n",
            "no rating": "well\n",
            "text": "well\tgood\n",
            "escape": "\x1b[2J\tx\x1b[2J\n",
            "large": "a\t1e308\nthe\t1e308\nwell\t1e308\n",
            "many": "".join(f"w{i}\t{i}\n" for i in range(200_000)),
            "no word": "\t1.0\n",
            "twice": "well\t1\nwell\t-1\n",
            "underscores": "well\t1_0\n",
            "digits": "well\t" + "9" * 5000 + "\n",
            "spaces": "  well  \t 1.5 \n",
        }.items()
    }


def parquet(folder: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    table = pyarrow.table(
        {"prompt": [["a"], None], "messages": [[{"role": "user"}], []], "\x1b[2J": [b"\xff", b""]}
    )
    write_table(table, folder / "prompts.parquet")


def bomb(folder: Path) -> None:
    with gzip.open(folder / "prompts.jsonl.gz", "wb", 9) as file:
        file.write(b'{"prompt": "a"}\n')
        for _ in range(200):
            file.write(b"x" * 2**20)
