"""One reading of a chat: the same ids wherever it is learned, scored or judged; those of transformers and of TRL."""

from dataclasses import replace

import pytest

from dera_jax import load_policy
from dera_jax.data.answers import encode_answer, encode_exchange, encode_whole
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.examples import encode_examples, encode_pairs
from dera_jax.data.prompts import Prompt
from dera_jax.data.records import Record
from dera_jax.models.reward import RewardConfig
from dera_jax.policies.reward_models import RewardPolicy
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.rewards.model import ModelReward
from dera_jax.scoring import pairs

LONG = 10**6
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>",
    "<end_of_turn>", "<think>",
]  # fmt: skip
ENDS = ("</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")
TEMPLATES = {
    "llama-2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral v3": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + "
        "m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) "
        "+ '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "words end turns": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '###\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
"""As those models' tokenizers have them, without system messages and tools."""
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}{% else %}"
    "{{ 'Assistant:' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:<think>\n' }}{% endif %}"
)
"""Asks for thoughts that it does not write, as DeepSeek-R1's does."""
FORGETS = "{% for m in messages %}{{ loop.length ~ m.role + m.content }}{% endfor %}"
"""Writes a chat otherwise once there is one more message."""


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHATS = [
    ([user("Tell me a story")], "Once upon a time there was a dog.", "No, Tom."),
    ([user("Hi"), assistant("Hello."), user("And then?")], "The end", "\nLily ran  "),
]


def reading(toy, template):
    """Returns a policy that reads through a template, which transformers and TRL find in its tokenizer."""
    policy = load_policy(str(toy))
    tokenizer = load_tokenizer(toy)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    ends = [tokenizer.convert_tokens_to_ids(end) for end in ENDS if end == "</s>" or end in template]
    config = replace(policy.config, vocab_size=len(tokenizer), max_positions=LONG)
    return replace(policy, tokenizer=tokenizer, eos_ids=tuple(ends), config=config)


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES.keys(), scope="module")
def policy(request, toy):
    return reading(toy, request.param)


def whole_ids(policy, chat, answer):
    return policy.tokenizer.apply_chat_template([*chat, assistant(answer)], return_dict=False)


def to_its_end(policy, ids):
    """Returns a whole chat up to the last EOS that the template writes; with one where it writes none."""
    last = max((n for n, token in enumerate(ids) if token in policy.eos_ids), default=-1)
    return ids[: last + 1] if policy.tokenizer.decode(ids[last + 1 :]).strip() == "" else [*ids, 2]


@pytest.mark.parametrize("chat, chosen, rejected", CHATS)
def test_a_chat_is_the_templates_own_rendering_everywhere(policy, chat, chosen, rejected):
    fields = {"prompt": chat, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    record = Record(fields, "f:1", 0)
    whole = [whole_ids(policy, chat, answer) for answer in (chosen, rejected)]
    expected = [to_its_end(policy, ids) for ids in whole]

    ((learned,), _) = encode_pairs(policy, [record], LONG)
    assert [[*learned.prompt, *each] for each in (learned.chosen, learned.rejected)] == expected
    ((example,), _) = encode_examples(
        policy, [Record({"messages": [*chat, assistant(chosen)]}, "f:1", 0)], LONG
    )
    assert (example.prompt, example.completion) == (learned.prompt, learned.chosen)

    scored = pairs.Pair(record, pairs.read_pair(record))
    ((pair,), _) = pairs.encode_pairs((policy, policy), [scored])
    assert pair.prompts == (learned.prompt,) * 2 and pair.completions == (learned.chosen, learned.rejected)

    (asked,) = encode_prompts((policy,), [Prompt.of({"messages": chat})], 0)
    assert asked.tokens == (learned.prompt,)
    for answer, ids in ((chosen, learned.chosen), (rejected, learned.rejected)):
        assert encode_answer(policy, asked, answer) == list(ids[:-1])

    # A reward model reads what the template writes to the end, as transformers gives it.
    ((read,), _) = encode_pairs(policy, [record], LONG, whole=True)
    assert [[*read.prompt, *each] for each in (read.chosen, read.rejected)] == whole
    judge = ModelReward(
        RewardPolicy("m", RewardConfig(trunk=policy.config), {}, policy.tokenizer, policy.folder), "m"
    )
    for answer, ids in zip((chosen, rejected), whole, strict=True):
        assert judge._encode(chat, answer, "eos") == judge._encode(chat, answer, "length") == ids


@pytest.mark.parametrize("chat, chosen, rejected", CHATS)
def test_a_chat_is_what_trl_makes_of_it(policy, chat, chosen, rejected):
    trl = pytest.importorskip("trl")
    fields = {"prompt": chat, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    theirs = trl.apply_chat_template(dict(fields), policy.tokenizer)
    prompt, answers = encode_exchange(policy, chat, (fields["chosen"], fields["rejected"]))
    for ids, name in zip(answers, ("chosen", "rejected"), strict=True):
        text = theirs["prompt"] + theirs[name]
        assert prompt + ids == policy.tokenizer(text, add_special_tokens=False).input_ids


def test_an_answer_that_was_drawn_has_no_second_space(toy):
    """Drawn behind `[/INST]`, a word comes with its space, which the template writes too."""
    policy = reading(toy, TEMPLATES["mistral"])
    chat = [user("Tell me a story")]
    (asked,) = encode_prompts((policy,), [Prompt.of({"messages": chat})], 0)
    assert encode_answer(policy, asked, " Once upon") == encode_answer(policy, asked, "Once upon")
    whole = whole_ids(policy, chat, "Once upon")
    assert encode_whole(policy.tokenizer, chat, " Once upon") == whole
    assert encode_whole(policy.tokenizer, [*chat, assistant(" Once")], " upon") == whole
    chatml = reading(toy, TEMPLATES["chatml"])
    assert encode_whole(chatml.tokenizer, chat, " Once") == whole_ids(chatml, chat, " Once")


def test_the_start_of_an_answer_is_part_of_the_prompt(policy):
    chat = [user("Tell me a story")]
    (asked,) = encode_prompts((policy,), [Prompt.of({"messages": chat, "prefix": "Once"})], 0)
    ids = [*asked.tokens[0], *encode_answer(policy, asked, " upon a time")]
    expected = to_its_end(policy, whole_ids(policy, chat, "Once upon a time"))[:-1]
    # Where the template puts a space before the answer, the prefix stands without it.
    assert (
        policy.tokenizer.decode(ids)
        .replace(" ", "")
        .startswith(policy.tokenizer.decode(expected).replace(" ", "")[:20])
    )
    if policy.tokenizer.decode(asked.tokens[0]).endswith("\nOnce"):
        assert ids == expected


def test_a_prompt_that_opens_thoughts_is_learned_as_trl_has_it(toy):
    trl = pytest.importorskip("trl")
    policy = reading(toy, R1)
    chat = [user("Hi")]
    fields = {"prompt": chat, "chosen": [assistant("a</think>Once")], "rejected": [assistant("No.")]}
    theirs = trl.apply_chat_template(dict(fields), policy.tokenizer)
    assert "<think>" not in theirs["prompt"]
    ((pair,), report) = encode_pairs(policy, [Record(fields, "f:1", 0)], LONG)

    def ids(text):
        return tuple(policy.tokenizer(text, add_special_tokens=False).input_ids)

    assert report.used == 1 and pair.prompt == ids(theirs["prompt"])
    assert pair.prompt + pair.chosen == ids(theirs["prompt"] + theirs["chosen"])
    assert pair.prompt + pair.rejected == ids(theirs["prompt"] + theirs["rejected"])
    # In use the prompt opens the thoughts, and what was drawn behind them is the completion, to a letter.
    (asked,) = encode_prompts((policy,), [Prompt.of({"messages": chat})], 0)
    text = "I think.</think>Once"
    ids = [*asked.tokens[0], *encode_answer(policy, asked, text)]
    assert policy.tokenizer.decode(ids).endswith("<think>\n" + text)


def test_a_template_that_writes_prompts_anew_is_refused(toy):
    record = Record({"messages": [user("a"), assistant("b")]}, "f:1", 0)
    with pytest.raises(ValueError, match=r"f:1: expected a chat template that .* from character 0 on"):
        encode_examples(reading(toy, FORGETS), [record], LONG)


def test_a_raw_text_is_one_text_to_a_reward_model(toy):
    """In training and in use; also where a token spans the prompt's end."""
    policy = load_policy(str(toy))
    tokenizer = policy.tokenizer
    for prompt, answer, other in [("Once upon", " a time", " Tom"), ("Once up", "on a time", "stairs")]:
        record = Record({"prompt": prompt, "chosen": answer, "rejected": other}, "f:1", 0)
        ((pair,), _) = encode_pairs(policy, [record], LONG, whole=True)
        for said, ids in ((answer, pair.chosen), (other, pair.rejected)):
            assert [*pair.prompt, *ids] == [*tokenizer(prompt + said).input_ids, tokenizer.eos_token_id]
            assert [*pair.prompt, *ids] == encode_whole(tokenizer, prompt, said)
            assert (
                encode_whole(tokenizer, prompt, said, has_ended=False) == tokenizer(prompt + said).input_ids
            )
