"""What closes the assistant's turn in a chat template ends answers everywhere, though no file calls it EOS."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

from dera_jax import generate, load_policies, sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.examples import encode_examples, encode_pairs
from dera_jax.data.prompts import Prompt
from dera_jax.data.records import Record
from dera_jax.data.turn_ends import turn_ends
from dera_jax.decoding.config import DecodeConfig
from dera_jax.policies.chat_templates import render_chat
from dera_jax.policies.policy import TOY, with_params
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.scoring import harness
from dera_jax.training import samples
from dera_jax.training.rollout import draw_rollout

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %}{{ ' ' ~ m.content.strip() ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CLOSED_WITHIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}"
)
TWO_ENDS = "{% for m in messages %}{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endfor %}"
WORDS = (
    "<|im_start|> <|im_end|> <|eot_id|> <|start_header_id|> <|end_header_id|> <start_of_turn> <end_of_turn>"
)
MORE = "<|end|> <|end|>x <|return|> [INST] [/INST]"
SHAPES = {
    "chatml": (CHATML, ["<|im_end|>"]),
    "llama 2": (LLAMA2, ["</s>"]),
    "mistral": (MISTRAL, ["</s>"]),
    "zephyr": (ZEPHYR, ["</s>"]),
    "llama 3": (LLAMA3, ["<|eot_id|>"]),
    "gemma": (GEMMA, ["<end_of_turn>"]),
    "closed within a chat": (CLOSED_WITHIN, ["<|end|>"]),
    "one for the last turn": (TWO_ENDS, ["<|end|>", "<|return|>"]),
    "behind blanks": ("{% for m in messages %}{{ m.content }} \n<|end|>{% endfor %}", ["<|end|>"]),
    "of two the longer": ("{% for m in messages %}{{ m.content }}<|end|>x{% endfor %}", ["<|end|>x"]),
    "two at once": ("{% for m in messages %}{{ m.content }}<|end|></s>{% endfor %}", ["<|end|>"]),
    "words": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", []),
    "a word no tokenizer has": ("{% for m in messages %}{{ m.content }}<|never|>{% endfor %}", []),
    "no answers": ("{% for m in messages if m.role == 'user' %}{{ m.content }}</s>{% endfor %}", []),
    "refuses": ("{{ raise_exception('no') }}", []),
    "broken": ("{% for %}", []),
    "none": ("", []),
}
CLOSED = "{% for m in messages %}{{ m.role }}: {{ m.content }}<pad>\n{% endfor %}"
PAD = 0
"""Special, and no EOS: closes turns in `CLOSED`."""
CHAT = {"turns": ["Who paints?", "And then?"]}


@pytest.fixture(scope="module")
def words():
    """A tokenizer with special tokens of several families."""
    tokenizer = load_tokenizer(TOY / "reference")
    tokenizer.add_special_tokens({"additional_special_tokens": [*WORDS.split(), *MORE.split()]})
    return tokenizer


@pytest.fixture(scope="module")
def closing():
    """The shipped pair; turns of its chats are closed by a token that is no EOS."""
    return tuple(replace(policy, template=CLOSED) for policy in load_policies())


def saying(ids):
    """Returns a rule that says these ids, whatever the models say."""

    def rule(logits, weights, state):
        wanted = jnp.asarray([*ids, *[ids[0]] * 40])[state]
        return jnp.where(jnp.arange(logits.shape[-1])[None] == wanted[:, None], 0.0, -jnp.inf), state + 1

    rule.initial_state = lambda rows: jnp.zeros(rows, jnp.int32)
    return rule


def said(policy, text):
    return policy.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(("template", "ends"), SHAPES.values(), ids=SHAPES)
def test_what_closes_turns(template, ends, words):
    assert [words.convert_ids_to_tokens(i) for i in turn_ends(words, template)] == ends


def test_a_tokenizers_own_template_is_read(words):
    assert turn_ends(words) == ()
    words.chat_template = CHATML
    assert words.convert_ids_to_tokens(turn_ends(words)) == ["<|im_end|>"]
    words.chat_template = None


@pytest.mark.slow
def test_answers_of_chats_end_there_and_raw_texts_do_not(closing, capsys):
    tokens = [*said(closing[0], " the painter"), PAD, *said(closing[0], " goes on")]
    rule = saying(tokens)
    first, second = generate(closing, [CHAT], 0.5, rule=rule, max_new_tokens=12, rows=2)
    for each in (first, second):
        assert (each.finish_reason, each.tokens) == ("eos", tokens[: tokens.index(PAD) + 1])
        assert "painter" in each.text and "<pad>" not in each.text
        assert each.length == len(each.tokens) - 1
    assert second.request.prompt.prompt.messages[1]["content"] == first.text
    (raw,) = generate(closing, ["Who paints?"], 0.5, rule=rule, max_new_tokens=12, rows=1)
    assert raw.finish_reason == "length" and raw.text.startswith(" the painter goes on")
    # Side by side in one batch, too.
    both = generate(closing, ["Who paints?", {"turns": ["Who?"]}], 0.5, rule=rule, max_new_tokens=12, rows=2)
    assert [each.finish_reason for each in both] == ["length", "eos"]


def test_it_is_told_once_and_only_where_no_file_lists_it(closing, terminal):
    named = tuple(replace(policy, name=f"a model {n}") for n, policy in enumerate(closing))
    prompts = [Prompt.of({"id": n, "turns": ["Who?"]}) for n in range(2)]
    assert [each.turn_ends for each in encode_prompts(named, prompts, 4)] == [(PAD,)] * 2
    encode_prompts(named, prompts, 4)
    told = terminal.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("a model 1: <pad> (token 0) ends answers")
    listed = (replace(named[0], name="another", eos_ids=(PAD, 2)), named[1])
    assert [each.turn_ends for each in encode_prompts(listed, prompts, 4)] == [(), ()]
    raw = [Prompt.of({"prompt": "Who?"})]
    bare = tuple(replace(policy, template="") for policy in named)
    assert encode_prompts(named, raw, 4)[0].turn_ends == encode_prompts(bare, prompts, 4)[0].turn_ends == ()
    assert not terminal.readouterr().err


def test_rollouts_end_where_answers_do(closing):
    policy = closing[1]
    # All logits are 0, of which the first is the largest: a model that says nothing but PAD.
    still = with_params(policy, policy.params | {"norm": {"scale": jnp.zeros(policy.config.width)}})
    prompts = encode_prompts((still,), [Prompt.of({"turns": ["Who?"]}), Prompt.of({"prompt": "Who?"})], 8)
    prompts = [replace(each, prompt=replace(each.prompt, prompt_id=n)) for n, each in enumerate(prompts)]
    decode = DecodeConfig(max_new_tokens=8, temperature=0)
    drawn = draw_rollout(still, still, prompts, 1, [], decode, 0).completions
    assert [(c.finish_reason, c.tokens) for c in drawn] == [("eos", [PAD]), ("length", [PAD] * 8)]


def test_samples_of_a_training_end_where_answers_do(closing, monkeypatch):
    policy, asked = closing[1], []
    monkeypatch.setattr(samples, "complete", lambda _, cells, *more: asked.extend(cells) or [])
    prompt = (Prompt.of({"turns": ["Who?"]}), Prompt.of({"prompt": "Who?"}))
    ids = [each.tokens[0] for each in encode_prompts((policy,), prompt, 8)]
    samples.sampler(policy, ids, 0)(policy.params)
    assert [cell.prompt.turn_ends for cell in asked] == [(PAD,), ()]


def test_training_learns_what_decoding_ends_with(closing):
    chat = [{"role": "user", "content": "Who?"}]
    answer = [{"role": "assistant", "content": "A painter."}]
    policy = closing[0]
    record = Record({"prompt": chat, "completion": answer}, "d", 1)
    (example,), _ = encode_examples(policy, [record], 64)
    assert example.completion[-1] == PAD and example.completion.count(PAD) == 1
    text = policy.tokenizer.decode([*example.prompt, *example.completion])
    assert render_chat(policy.tokenizer, [*chat, *answer], CLOSED, answer=False).strip() == text.strip()
    other = [{"role": "assistant", "content": "Nobody."}]
    record = Record({"prompt": chat, "chosen": answer, "rejected": other}, "d", 1)
    (made,), _ = encode_pairs(policy, [record], 64)
    assert made.chosen == example.completion and made.rejected[-1] == PAD
    # A template that writes EOS too, and a text: as they end.
    both = replace(policy, template=CLOSED.replace("<pad>", "<pad></s>"))
    record = Record({"prompt": chat, "completion": answer}, "d", 1)
    assert encode_examples(both, [record], 64)[0][0].completion == example.completion
    record = Record({"prompt": "Who?", "completion": " A<pad>"}, "d", 1)
    assert encode_examples(policy, [record], 64)[0][0].completion[-2:] == (PAD, policy.eos_ids[0])


def test_a_folder_whose_answers_went_on_is_another_run(closing, tmp_path):
    rule = saying([*said(closing[0], " a b"), PAD, *said(closing[0], " c")])
    settings = {"out": tmp_path / "run", "max_new_tokens": 6, "rule": rule, "rows": 2}
    rows = list(sweep(closing, [CHAT], [0.5], **settings))
    assert list(sweep(closing, [CHAT], [0.5], **settings)) == rows
    path = tmp_path / "run" / "rows.jsonl"
    old = [row | {"tokens": [*row["tokens"], 5]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    with pytest.raises(ValueError, match="goes on behind the end of its turn there"):
        list(sweep(closing, [CHAT], [0.5], **settings))


def test_answers_in_lm_eval_end_there_with_a_chat_template_alone(tmp_path):
    policies = load_policies(chat_template=CLOSED)
    model = harness.Realigned(policies, [(0.5,)], 1, 64)
    text = model.apply_chat_template([{"role": "user", "content": "Who?"}])
    assert model._encode(text, 40).turn_ends == (PAD,)
    other = harness.Realigned(policies, [(0.5,), (1.0,)], 1, 64)
    assert other._encode(text, 40).turn_ends == ()
    other.chat_template(True)
    assert other.at(1)._encode(text, 40).turn_ends == (PAD,)
