"""What is learned of a chat: transformers' and TRL's masks, with and without marks in the template."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from dera_jax.commands import sft
from dera_jax.data.examples import Example, encode_examples
from dera_jax.data.learned import Partly, encode_learned
from dera_jax.data.records import Record
from dera_jax.policies.load import load_policy
from dera_jax.policies.policy import TOY
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.training.config import TrainConfig
from dera_jax.training.packing import packed_source
from dera_jax.training.sft import sft_method, source_of
from dera_jax.training.supervised import hold_out

LONG = 10**6
CHAT = [
    {"role": "user", "content": "Mira visits Ida."},
    {"role": "assistant", "content": "She is the tailor of Orsa."},
    {"role": "user", "content": "Where is é Mira?"},
    {"role": "assistant", "content": "In Orsa."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
ENDED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = ENDED.replace(
    "{{ m.content }}{{ eos_token }}{{",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{{",
)
"""The same text, with marks."""


def record(**fields):
    return Record(fields, "f:1", 0)


def policy_with(template, words=(), eos=None):
    """Returns the toy's policy with a template, and with further special tokens."""
    policy = load_policy(str(TOY / "reference"))
    tokenizer = load_tokenizer(policy.folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(words)} | ({"eos_token": eos} if eos else {})
    )
    tokenizer.chat_template = template
    vocab = policy.config.vocab_size + len(words)
    eos_ids = (tokenizer.eos_token_id,)
    return replace(
        policy, tokenizer=tokenizer, eos_ids=eos_ids, config=replace(policy.config, vocab_size=vocab)
    )


def whole(example):
    """Returns an example's ids, and which are learned."""
    learned = example.learned or (True,) * len(example.completion)
    return list(example.prompt + example.completion), [False] * len(example.prompt) + list(learned)


def theirs(policy, chat, template=None):
    """Returns transformers' ids and mask, up to the last learned token: what is behind counts nothing."""
    told = policy.tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = [bool(each) for each in told["assistant_masks"]]
    last = len(mask) - mask[::-1].index(True)
    assert sum(mask) > 5
    return told["input_ids"][:last], mask[:last]


def ours(policy, chat):
    return whole(encode_learned(policy, [record(messages=chat)], LONG, assistant_only=True)[0][0])


def without_breaks(policy, found):
    """Returns ids and mask, line breaks not learned: marks of some templates hold those around an answer."""
    ids, mask = found
    mask = [mine and policy.tokenizer.decode([one]) != "\n" for one, mine in zip(ids, mask, strict=True)]
    last = len(mask) - mask[::-1].index(True)
    return ids[:last], mask[:last]


@pytest.mark.parametrize("chat", [CHAT, SYSTEM, CHAT[:3], CHAT[:2]], ids=["chat", "system", "asked", "one"])
def test_masks_are_those_of_marks_with_and_without_them(chat):
    policy = policy_with(MARKED)
    assert ours(policy, chat) == theirs(policy, chat) == ours(policy_with(ENDED), chat)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "phi3", "cohere"])
def test_masks_are_those_of_trls_training_templates(name):
    spec = find_spec("trl")
    if spec is None:
        pytest.skip("no TRL")
    folder = Path(spec.origin).parent / "chat_templates"
    ends = {
        "qwen2_5": "<|im_end|>",
        "llama3": "<|eot_id|>",
        "phi3": "<|end|>",
        "cohere": "<|END_OF_TURN_TOKEN|>",
    }
    words = [
        ends[name],
        "<|im_start|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|assistant|>",
        "<|user|>",
    ]
    training = (folder / f"{name}_training.jinja").read_text()
    plain = (folder / f"{name}.jinja").read_text()
    marked, bare = (policy_with(template, words, ends[name]) for template in (training, plain))
    assert ours(marked, CHAT) == theirs(marked, CHAT)
    expected = without_breaks(marked, theirs(marked, CHAT))
    if name == "phi3":  # which writes EOS behind the last turn's end; what ends an answer is the first of two
        assert marked.tokenizer.decode(expected[0][-3:]) == "<|end|>\n<|end|>"
        expected = tuple(each[:-2] for each in expected)
    assert without_breaks(bare, ours(bare, CHAT)) == expected


def test_the_last_answer_alone_is_as_without_the_option():
    policy = policy_with(ENDED)
    rows = [record(messages=CHAT[:2])]
    assert (
        encode_learned(policy, rows, LONG, assistant_only=True)[0] == encode_examples(policy, rows, LONG)[0]
    )


def test_a_first_message_of_the_assistant_is_learned_without_its_header():
    policy = policy_with(ENDED)
    chat = [CHAT[1], CHAT[0], CHAT[3]]
    assert ours(policy, chat) == theirs(policy, chat, MARKED)


def test_without_eos_the_last_answer_gets_one():
    policy = policy_with(ENDED.replace("{{ eos_token }}", ""))
    (example,), _ = encode_learned(policy, [record(messages=CHAT)], LONG, assistant_only=True)
    ids, learned = whole(example)
    assert ids.count(policy.tokenizer.eos_token_id) == 1 and ids[-1] == policy.tokenizer.eos_token_id
    said = policy.tokenizer.decode([i for i, mine in zip(ids, learned, strict=True) if mine])
    assert "".join(said.split()) == "SheisthetailorofOrsa.InOrsa.</s>"


def test_of_prompt_and_completion_the_completions_answers_are_learned():
    policy = policy_with(MARKED)
    rows = [record(prompt=CHAT[:3], completion=CHAT[3:])]
    (only,), _ = encode_learned(policy, rows, LONG, assistant_only=True)
    (both,), _ = encode_learned(policy, rows, LONG, assistant_only=True, completion_only=False)
    assert only == encode_examples(policy, rows, LONG)[0][0]
    assert both == encode_learned(policy, [record(messages=CHAT)], LONG, assistant_only=True)[0][0]


def test_prompts_are_learned_where_completions_only_is_false():
    policy = policy_with(ENDED)
    shapes = [{"prompt": "Mira", "completion": " visits Ida."}, {"messages": CHAT}, {"text": "Mira visits."}]
    for fields in shapes:
        rows = [record(**fields)]
        (example,), _ = encode_examples(policy, rows, LONG)
        (every,), _ = encode_learned(policy, rows, LONG, completion_only=False)
        ids = example.prompt + example.completion
        assert every == Example(ids[:1], ids[1:])
        if "text" not in fields:
            assert encode_learned(policy, rows, LONG, completion_only=True)[0] == [example]
    with pytest.raises(ValueError, match=r"f:1: --completion-only-loss expects `prompt` and `completion`"):
        encode_learned(policy, rows, LONG, completion_only=True)


def test_answers_of_a_prompt_stay_on_one_side_where_prompts_are_learned_too():
    """The held out prompts are those that are held out where completions alone are learned."""
    policy = policy_with(ENDED)
    asked = [f"Mira visits {n} houses." for n in range(12)]
    rows = [record(prompt=prompt, completion=f" She {verb}.") for prompt in asked for verb in ("ran", "sat")]
    alone, every = (encode_learned(policy, rows, LONG, completion_only=only)[0] for only in (None, False))
    assert [example.asked for example in every] == [example.prompt for example in alone]
    sides = [
        [[e.prompt + e.completion for e in side] for side in hold_out(each, 0.3)] for each in (alone, every)
    ]
    assert sides[0] == sides[1]


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_what_is_cut_is_not_learned(mode):
    policy = policy_with(MARKED)
    rows = [record(messages=CHAT)]
    ids, learned = whole(encode_learned(policy, rows, LONG, assistant_only=True)[0][0])
    for length in range(2, len(ids)):
        kept = slice(-length, None) if mode == "keep_end" else slice(length)
        mask = [False, *learned[kept][1:]]
        if not any(mask):
            with pytest.raises(ValueError, match=f"nothing to learn in its first {length} tokens"):
                encode_learned(policy, rows, length, assistant_only=True, truncation_mode=mode)
            continue
        (cut,), report = encode_learned(policy, rows, length, assistant_only=True, truncation_mode=mode)
        assert whole(cut) == (ids[kept], mask)
        assert (report.cut, report.shortened) == ((0, 1) if mode == "keep_end" else (1, 0))


def test_losses_read_the_whole_and_count_what_is_learned():
    """A row with a mask is the mean of its learned tokens, packed or not; torch says which they are."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    policy = policy_with(MARKED)
    examples, _ = encode_learned(
        policy, [record(messages=chat) for chat in (CHAT, SYSTEM)], LONG, assistant_only=True
    )
    assert all(isinstance(example, Partly) for example in examples)
    model = AutoModelForCausalLM.from_pretrained(TOY / "reference")
    expected = []
    for ids, learned in map(whole, examples):
        labels = torch.tensor([ids]).where(torch.tensor([learned]), -100)
        loss = model(torch.tensor([ids]), labels=labels).loss.item()
        expected.append((loss * sum(learned), sum(learned)))
    mean = sum(loss for loss, _ in expected) / sum(count for _, count in expected)
    policy = replace(policy, config=replace(policy.config, vocab_size=512))
    method = sft_method(policy, examples, TrainConfig())
    loss = jax.jit(method.loss)
    for source in (source_of(policy, examples), packed_source(examples, 256)):
        terms = loss(method.trained, method.constants, source.make(range(source.count), 2))
        ours = np.sum(np.where(terms.weights, terms.values, 0)) / np.sum(terms.weights)
        assert ours == pytest.approx(mean, abs=1e-5)


def test_mistakes_are_told(call, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "Mira visits Ida."}) + "\n")
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": CHAT[:1]}) + "\n")
    (tmp_path / "chat.jinja").write_text(ENDED)
    words = [f"--model={TOY / 'reference'}", f"--out={tmp_path / 'out'}", "--assistant-only-loss"]
    words += [f"--chat-template={tmp_path / 'chat.jinja'}"]
    for data, said in [
        ("texts", "texts.jsonl:1: --assistant-only-loss expects chats"),
        ("asked", "no answer in it"),
    ]:
        code, _, err = call(sft.main, *words, f"--data={tmp_path / data}.jsonl")
        assert code == 2 and said in err.splitlines()[-1], err


@pytest.mark.slow
def test_the_command_learns_every_answer(call, tmp_path):
    (tmp_path / "data.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 4)
    (tmp_path / "chat.jinja").write_text(ENDED)
    words = [
        f"--model={TOY / 'reference'}",
        f"--data={tmp_path / 'data.jsonl'}",
        "--max-steps=1",
        "--batch-size=4",
    ]
    words += [f"--chat-template={tmp_path / 'chat.jinja'}", f"--out={tmp_path / 'out'}"]
    code, _, err = call(sft.main, *words, "--assistant-only-loss")
    assert code == 0, err
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert told["assistant_only_loss"] is True and "completion_only_loss" not in told
    code, _, err = call(sft.main, *words)
    assert code == 2 and "assistant_only_loss: true there, nothing now" in err.splitlines()[-1]
