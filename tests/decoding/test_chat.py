"""Chats: templates, turns that continue from the answers before, prefixes, stops, BOS."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy, read_rows, score, sweep
from dera_jax.commands.sweep import main as sweep_command
from dera_jax.data.encoding import encode_prompts, encode_turn
from dera_jax.data.prompts import Prompt, load_prompts
from dera_jax.data.tokens import encode_prompt
from dera_jax.policies.chat_templates import render_chat
from dera_jax.policies.tokenizers import load_tokenizer, read_template
from dera_jax.results.rows import sort_rows

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""Writes BOS itself, before every message of the user."""
SETTINGS = {"max_new_tokens": 8, "rows": 6}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def chat_pair(pair):
    """The pair, reading chats through `CHATML`; nothing ends its answers but their length."""
    return tuple(replace(policy, template=CHATML, eos_ids=()) for policy in pair)


def text_of(policy, tokens):
    return policy.tokenizer.decode(tokens)


def test_a_later_turn_reads_the_answers_of_its_own_strength(chat_pair):
    """Against the second turn asked by itself, with the first answer put in by hand."""
    prompt = {"id": "q", "turns": ["Tell me of Lily.", "And then?"]}
    rows = sort_rows(list(sweep(chat_pair, [prompt], [0, 0.5, 2], num_samples=2, **SETTINGS)))
    assert len(rows) == 3 * 2 * 2
    firsts = {row["completion"] for row in rows if row["turn"] == 0}
    assert len(firsts) == 6
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["turn"], second["turn"]) == (0, 1)
        assert first["lambda"] == second["lambda"] and first["sample"] == second["sample"]
        asked = [user("Tell me of Lily."), assistant(first["completion"]), user("And then?")]
        assert second["prompt"] == asked
        ids = encode_prompt(chat_pair[1].tokenizer, None, asked, template=CHATML)
        assert second["prompt_tokens"] == ids
        (figures,) = score(chat_pair, [{"messages": asked}], [second["tokens"]], [second["lambda"]])
        np.testing.assert_allclose(second["logprob"], figures.logprobs.sum(), atol=1e-3)


def test_one_turn_is_as_ever(chat_pair):
    """The first turn of a conversation has the draws of the same prompt with one turn."""
    (one,) = generate(chat_pair, [{"id": 7, "turns": ["Tell me of Lily."]}], 0.5, **SETTINGS)
    first, second = generate(
        chat_pair, [{"id": 7, "turns": ["Tell me of Lily.", "And then?"]}], 0.5, **SETTINGS
    )
    assert one.tokens == first.tokens and (first.request.turn, second.request.turn) == (0, 1)
    np.testing.assert_array_equal(one.logprobs, first.logprobs)


def test_turns_draw_their_own_noise(chat_pair):
    """Else a model that ignores its prompt would say the same again."""
    deaf = tuple(replace(p, template="{{ 'x' }}") for p in chat_pair)
    first, second = generate(deaf, [{"turns": ["a", "b"]}], 1.0, **SETTINGS)
    assert first.request.prompt.tokens == second.request.prompt.tokens
    assert first.tokens != second.tokens


def test_history_given_is_history_kept(chat_pair):
    messages = [{"role": "system", "content": "Be kind."}, user("a"), assistant("b"), user("c"), user("d")]
    prompt = Prompt.of({"messages": messages})
    assert prompt.num_turns == 2
    assert list(prompt.at_turn(()).messages) == messages[:4]
    assert list(prompt.at_turn(["x"]).messages) == [*messages[:4], assistant("x"), messages[4]]
    assert Prompt.of({"messages": messages[:4]}).num_turns == 1


def test_prefixes_belong_to_the_answer(chat_pair):
    prompt = {"turns": ["Tell me of Lily.", "And then?"], "prefix": ["Once", ""]}
    first, second = generate(chat_pair, [prompt], 0.5, **SETTINGS)
    said = text_of(chat_pair[1], first.request.prompt.tokens[-1])
    assert said.endswith("<assistant>Once") and not first.text.startswith("Once")
    assert second.request.prompt.prompt.messages[1] == assistant("Once" + first.text)
    both = generate(chat_pair, [prompt | {"prefix": "Once"}], 0.5, **SETTINGS)
    assert text_of(chat_pair[1], both[1].request.prompt.tokens[-1]).endswith("<assistant>Once")
    assert both[0].tokens == first.tokens


def test_stops_end_answers_and_later_turns_read_what_is_left(chat_pair):
    prompt = {"turns": ["Once upon a time", "And then?"]}
    (free, _) = generate(chat_pair, [prompt], 1.0, max_new_tokens=40, rows=6)
    stop = free.text[5:8]
    first, second = generate(chat_pair, [prompt], 1.0, max_new_tokens=40, rows=6, stop=(stop,))
    assert first.finish_reason == "stop" and first.text == free.text[: free.text.index(stop)]
    assert second.request.prompt.prompt.messages[1] == assistant(first.text)


def test_a_strength_for_each_turn(chat_pair):
    prompt = {"turns": ["Tell me of Lily.", "And then?"], "lambda": [0, 1.5]}
    rows = sort_rows(list(sweep(chat_pair, [prompt], None, **SETTINGS)))
    assert [(row["turn"], row["lambda"]) for row in rows] == [(0, 0.0), (1, 1.5)]
    (alone,) = generate(chat_pair, [{"turns": ["Tell me of Lily."]}], 0.0, **SETTINGS)
    assert rows[0]["tokens"] == alone.tokens
    with pytest.raises(ValueError, match="lambda: expected one for each of 2 turns, found 3"):
        Prompt.of(prompt | {"lambda": [0, 1, 2]})


def save_pair(pair, folder):
    from dera_jax import save_policy

    names = []
    for policy, name in zip(pair, ("reference", "aligned"), strict=True):
        save_policy(policy, folder / name)
        names.append(str(folder / name))
    return names


def short_questions(source, path, count=3):
    """Writes the questions whose turns are the shortest; the model has room for 256 tokens."""
    lines = [
        json.loads(line) for line in (source / "mt_bench/mt_bench_question.jsonl").read_text().splitlines()
    ]
    lines.sort(key=lambda line: sum(map(len, line["turns"])))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
    return [line["question_id"] for line in lines[:count]]


@pytest.mark.slow
def test_mt_bench_killed_and_taken_up_again(pair, stand_ins, tmp_path, monkeypatch, capsys):
    """Through the command: killed within the second turn, and again before it; the rows are the same."""
    reference, aligned = save_pair(pair, tmp_path)
    ids = short_questions(stand_ins, tmp_path / "mt.jsonl")
    (tmp_path / "chatml.jinja").write_text(CHATML)
    command = [
        f"--reference={reference}", f"--aligned={aligned}", f"--prompts={tmp_path / 'mt.jsonl'}",
        "--lambda=0,1.5", "--max-new-tokens=8", f"--chat-template={tmp_path / 'chatml.jinja'}",
    ]  # fmt: skip
    assert sweep_command([*command, f"--out={tmp_path / 'whole'}"]) == 0
    whole = sort_rows(read_rows(tmp_path / "whole"))
    assert len(whole) == 3 * 2 * 2 and {row["prompt_id"] for row in whole} == set(ids)
    lines = (tmp_path / "whole" / "rows.jsonl").read_text().splitlines(keepends=True)
    for kept in (8, 3):
        part = shutil.copytree(tmp_path / "whole", tmp_path / f"part{kept}")
        (part / "rows.jsonl").write_text("".join(lines[:kept]))
        assert sweep_command([*command, f"--out={part}"]) == 0
        assert sort_rows(read_rows(part)) == whole
    # Another template is another run.
    (tmp_path / "chatml.jinja").write_text(LLAMA2)
    assert sweep_command([*command, f"--out={tmp_path / 'whole'}"]) == 2
    assert "templates" in capsys.readouterr().err


def test_rewards_of_each_turn(chat_pair, stand_ins, tmp_path, capsys):
    """In the table and in summary.csv: means over the rows of one turn."""
    reference, aligned = save_pair(chat_pair, tmp_path)
    short_questions(stand_ins, tmp_path / "mt.jsonl")
    (tmp_path / "t.jinja").write_text(CHATML)
    command = [
        f"--reference={reference}", f"--aligned={aligned}", f"--prompts={tmp_path / 'mt.jsonl'}",
        "--lambda=0,1.5", "--max-new-tokens=8", f"--chat-template={tmp_path / 't.jinja'}",
        r"--reward=keywords:the|a|\x2e", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert sweep_command(command) == 0
    rows, shown = read_rows(tmp_path / "run"), capsys.readouterr().out
    (name,) = rows[0]["rewards"]
    assert ", turn 1" in shown and ", turn 2" in shown and ", turn 3" not in shown
    with open(tmp_path / "run" / "summary.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        for turn in (0, 1):
            mine = [
                r["rewards"][name] for r in rows if (r["lambda"], r["turn"]) == (float(line["lambda"]), turn)
            ]
            assert float(line[f"reward_{name}_turn_{turn + 1}"]) == pytest.approx(np.mean(mine), rel=1e-5)


def test_turns_that_do_not_fit_are_left_out_and_told(chat_pair, pair, tmp_path, capsys):
    long = "word " * 400
    prompt = {"turns": ["Hi", long]}
    assert len(generate(chat_pair, [{"turns": ["Hi", "Hi"]}], 1.0, **SETTINGS)) == 2
    assert len(generate(chat_pair, [prompt], 1.0, **SETTINGS)) == 1
    with pytest.raises(ValueError, match="do not fit the context"):
        generate(chat_pair, [{"turns": [long, "Hi"]}], 1.0, **SETTINGS)
    reference, aligned = save_pair(pair, tmp_path)
    (tmp_path / "t.jinja").write_text(CHATML)
    (tmp_path / "p.jsonl").write_text(json.dumps(prompt) + "\n")
    command = [
        f"--reference={reference}",
        f"--aligned={aligned}",
        f"--prompts={tmp_path / 'p.jsonl'}",
        "--lambda=1",
    ]
    command += [f"--chat-template={tmp_path / 't.jinja'}", f"--out={tmp_path / 'out'}", "--max-new-tokens=4"]
    assert sweep_command(command) == 0
    assert "warning: 1 later turns did not fit" in capsys.readouterr().err


def test_the_reference_reads_its_own_text(pair):
    for template, expected in (("", "Hi there\n\nWhat?"), ("R{{ messages[0].content }}", "RHi there")):
        reference, aligned = replace(pair[0], template=template), replace(pair[1], template=CHATML)
        prompt = Prompt.of({"messages": [user("Hi there"), assistant("Yes."), user("What?")]})
        if template == "":
            expected = "Hi there\n\nYes.\n\nWhat?"
        (encoded,) = encode_prompts((reference, aligned), [prompt], 8)
        assert text_of(pair[0], encoded.tokens[0]).removeprefix("<s>").strip() == expected
        assert text_of(pair[1], encoded.tokens[1]).endswith("<user>What?\n<assistant>")
        # λ = 0 is then the reference on its own text.
        (mixed,) = generate((reference, aligned), [prompt], 0.0, **SETTINGS)
        (alone,) = generate((reference,), [prompt], (), **SETTINGS)
        assert mixed.tokens == alone.tokens
        np.testing.assert_allclose(mixed.logprobs, alone.logprobs, atol=1e-4)


def test_templates_of_both_models_from_the_loader(pair, tmp_path):
    names = save_pair(pair, tmp_path)
    policies = load_policies(*names, chat_template=CHATML, reference_chat_template="")
    assert [policy.template for policy in policies] == ["", CHATML]
    assert [policy.template for policy in load_policies(*names)] == [None, None]


@pytest.mark.parametrize("messages", [[user("Hi")], [user("Hi"), assistant("Yes."), user("Bye")]])
def test_bos_is_said_once_where_the_template_says_it(messages, toy):
    tokenizer = load_tokenizer(toy)
    bos = tokenizer.bos_token_id
    ids = encode_prompt(tokenizer, None, messages, template=LLAMA2)
    assert ids[0] == bos and ids[1] != bos
    assert ids.count(bos) == render_chat(tokenizer, messages, LLAMA2).count(tokenizer.bos_token)
    assert encode_prompt(tokenizer, None, messages, template=CHATML)[0] != bos


def test_bos_in_the_text_is_not_doubled(toy):
    tokenizer = load_tokenizer(toy)
    plain = encode_prompt(tokenizer, "Lily")
    assert plain[0] == tokenizer.bos_token_id
    said = encode_prompt(tokenizer, f"{tokenizer.bos_token}Lily")
    assert said.count(tokenizer.bos_token_id) == 1


def test_several_ids_end_an_answer(pair, tmp_path):
    """Those of generation_config count, as chat models have them."""
    reference, aligned = save_pair(pair, tmp_path)
    (free,) = generate(load_policies(reference, aligned), ["Once upon a time"], 1.0, max_new_tokens=30)
    extra = free.tokens[10]
    path = tmp_path / "aligned" / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {"eos_token_id": [1, extra]}))
    assert set(load_policy(aligned).eos_ids) >= {1, extra}
    (ended,) = generate(load_policies(reference, aligned), ["Once upon a time"], 1.0, max_new_tokens=30)
    assert ended.finish_reason == "eos" and ended.tokens == free.tokens[: free.tokens.index(extra) + 1]


def test_the_shipped_chat_prompts_go_through(chat_pair):
    prompts = load_prompts("chat", 3)
    assert len(generate(chat_pair, prompts, 0.5, **SETTINGS)) == sum(p.num_turns for p in prompts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"turns": []}, "turns: expected a list of strings, found a list"),
        ({"turns": "Hi"}, "turns: expected a list of strings, found a string"),
        ({"turns": ["Hi", 3]}, r"turns\[1\]: expected a string, found a number"),
        ({"turns": ["Hi"], "prompt": "Hi"}, "expected one of the fields 'prompt', 'messages' and 'turns'"),
        ({"messages": [user("a"), assistant("b")]}, "expected the last one to be the user's"),
        ({"messages": [{"role": "system", "content": "a"}]}, "to be the user's, found the system's$"),
        ({"turns": ["a", "b"], "prefix": ["x"]}, "prefix: expected one for each of 2 turns, found 1"),
    ],
)
def test_broken_chats(fields, message):
    with pytest.raises(ValueError, match=message):
        Prompt.of(fields, where="p.jsonl:1")


def test_broken_templates(pair, tmp_path, capsys):
    def refusal(text, name="t.jinja"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError) as caught:
            read_template(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "the chat template is broken" in refusal("{% for %}")
    assert "the chat template is empty" in refusal(" ")
    assert "expected a string in 'chat_template', found NoneType" in refusal("{}", "t.json")
    with pytest.raises(ValueError, match="no such file"):
        read_template(tmp_path / "missing.jinja")
    (tmp_path / "good.json").write_text(json.dumps({"chat_template": CHATML}))
    assert read_template(tmp_path / "good.json") == CHATML
    (tmp_path / "generation.jinja").write_text("{% generation %}{{ messages }}{% endgeneration %}")
    assert "generation" in read_template(tmp_path / "generation.jinja")

    prompt = Prompt.of({"turns": ["Hi"]})
    with pytest.raises(ValueError, match="no chat template; --chat-template=FILE gives one"):
        encode_turn(pair, prompt, (), 4)
    refuses = tuple(replace(p, template="{{ raise_exception('no') }}") for p in pair)
    with pytest.raises(ValueError, match="prompt 0: the chat template refuses the messages: no"):
        encode_turn(refuses, prompt, (), 4)
    reference, aligned = save_pair(pair, tmp_path)
    assert sweep_command([f"--reference={reference}", f"--aligned={aligned}", "--chat-template=nowhere"]) == 2
    assert "error: nowhere: no such file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected a file, found a folder"):
        read_template(tmp_path)


@pytest.mark.parametrize("value", [[0, 1], "0,1", None, (0.5, 0.5), True])
def test_strengths_that_generate_refuses(pair, value):
    with pytest.raises((ValueError, TypeError), match=r"lambda_: expected (a number|one strength)"):
        generate(pair, ["Lily"], value)


def test_a_rule_that_makes_nan_is_refused(pair):
    def broken(logits, weights, state):
        return logits[0] * np.float32("nan"), state

    with pytest.raises(ValueError, match=r"rule .*broken: logits are not finite at token 1 .* at λ = 0\.5"):
        generate(pair, ["Lily"], 0.5, rule=broken, max_new_tokens=4)


def test_conversations_are_told_apart(chat_pair):
    (encoded,) = encode_prompts(chat_pair, [Prompt.of({"turns": ["a"]})], 4)
    from dera_jax.decoding.request import Request

    keys = {Request(encoded, s, (x,)).key for s in range(2) for x in (0.0, 1.0)}
    assert len(keys) == 4
