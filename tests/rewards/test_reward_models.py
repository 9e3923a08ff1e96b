"""Reward models against transformers' on torch, and through the commands."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from dera_jax import load_policy, sweep
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.policies.reward_models import load_reward_model
from dera_jax.policies.tokenizers import load_tokenizer
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.model import _forward, reward_texts
from dera_jax.rewards.registry import Reward, parse_rewards
from dera_jax.sweeps.judging import judge_run
from dera_jax.training.rollout import draw_rollout
from tests.support.shapes import FAMILIES
from tests.support.torch_models import save
from tests.support.torch_rewards import T5, TEXTS, classifier, randomize

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForSequenceClassification,
    T5Config,
    T5EncoderModel,
    T5ForSequenceClassification,
)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "," not in name])
def test_rewards_equal_those_of_torch(name, tmp_path, toy):
    model = classifier(name)
    policy = load_reward_model(str(save(model, tmp_path, toy)))
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits.item() for ids in TEXTS]
    ours = reward_texts(policy, TEXTS)
    assert np.std(theirs) > 0.02
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_t5_reads_at_eos(tmp_path, toy):
    model = randomize(T5ForSequenceClassification(T5Config(**T5)))
    policy = load_reward_model(str(save(model, tmp_path, toy)))
    texts = [[*ids, 1] for ids in TEXTS]
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits.item() for ids in texts]
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(reward_texts(policy, texts), theirs, atol=5e-5)


def test_t5_pools_its_encoder(tmp_path, toy):
    model = randomize(T5EncoderModel(T5Config(**T5)))
    head = torch.randn(1, T5["d_model"], generator=torch.Generator().manual_seed(5))
    folder = save(model, tmp_path, toy)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": head}, folder / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        theirs = [(model(torch.tensor([ids])).last_hidden_state.mean(dim=1) @ head.T).item() for ids in TEXTS]
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(reward_texts(load_reward_model(str(folder)), TEXTS), theirs, atol=5e-5)


@pytest.fixture
def folder(tmp_path, toy):
    return save(classifier("llama"), tmp_path / "rm", toy)


def test_as_a_reward(folder, toy):
    (reward,) = parse_rewards(f"model:{folder}")
    tokenizer = load_tokenizer(toy)
    prompts, completions = ["Once upon a time", "Lily"], [" there was a cat.", " ran"]
    found = reward(Completions(prompts, completions, [[5], [6]], ["eos", "length"], tokenizer.decode))
    ids = [tokenizer(p + c).input_ids for p, c in zip(prompts, completions, strict=True)]
    expected = reward_texts(load_reward_model(str(folder)), [[*ids[0], tokenizer.eos_token_id], ids[1]])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert abs(found[0] - reward_texts(load_reward_model(str(folder)), ids)[0]) > 1e-4


def test_few_shapes_are_compiled(folder):
    policy = load_reward_model(str(folder))
    _forward.clear_cache()
    reward_texts(policy, [[5] * n for n in range(1, 60)])
    assert _forward._cache_size() == 3  # 16, 32 and 64 tokens


def test_chats_go_through_its_template(folder):
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    (reward,) = parse_rewards(f"model:{folder}")
    chat = [{"role": "user", "content": "Hi"}]
    policy = load_reward_model(str(folder))
    ids = policy.tokenizer("[user] Hi [assistant] Hello ", add_special_tokens=False).input_ids
    found = reward(Completions([chat], ["Hello"], [[5]], ["eos"], policy.tokenizer.decode))
    np.testing.assert_allclose(found, reward_texts(policy, [ids]), atol=1e-6)


def test_the_start_of_an_answer_belongs_to_it(folder):
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    (reward,) = parse_rewards(f"model:{folder}")
    chat, start = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}
    given = [[[chat], ["Hello"]], [[chat, start], ["lo"]]]
    one, other = (reward(Completions([p], c, [[5]], ["eos"], str)) for p, c in given)
    assert one == other


def test_chats_are_refused_before_anything_is_decoded(folder, pair, tmp_path, monkeypatch):
    """In a sweep, in training and for stored rows; by a template that refuses them, too."""
    chatty = tuple(replace(p, template="{% for m in messages %}{{ m.content }}{% endfor %}") for p in pair)
    chat = {"turns": ["Hi"]}
    list(sweep(chatty, [chat], [0.0], out=tmp_path / "run", max_new_tokens=4, rows=2))
    for text, message in {
        None: rf"model:.*no chat template; put one into {folder / 'chat_template.jinja'}",
        "{{ raise_exception('no') }}": "the chat template refuses the messages: no",
    }.items():
        if text:
            (folder / "chat_template.jinja").write_text(text)
        rewards = parse_rewards(f"model:{folder}")
        with monkeypatch.context() as patched:
            patched.setattr(sys.modules["dera_jax.decoding.batch"], "Batch", None)
            with pytest.raises(ValueError, match=message):
                list(sweep(chatty, [chat], [0.0], rewards, max_new_tokens=4))
            encoded = encode_prompts(chatty[:1], [Prompt.of(chat)], 4)
            with pytest.raises(ValueError, match=message):
                draw_rollout(*chatty, encoded, 1, rewards, DecodeConfig(max_new_tokens=4), 0)
        with pytest.raises(ValueError, match=message):
            judge_run(tmp_path / "run", [Reward("other", lambda completions: 1 / 0), *rewards], {}, [])


def test_a_reward_model_is_no_language_model(folder):
    with pytest.raises(ValueError, match=r"language model, found a reward model \(LlamaForSequenceClass"):
        load_policy(folder)


def refusal(spec):
    with pytest.raises(ValueError) as caught:
        (reward,) = parse_rewards(spec)
        reward(Completions([[{"role": "user", "content": "Hi"}]], ["x"], [[5]], ["eos"], str))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(folder, toy, tmp_path):
    assert "expected a reward model (…ForSequenceClassification), found no tensor score.weight" in refusal(
        f"model:{toy}"
    )
    assert "no such folder" in refusal(f"model:{tmp_path / 'missing'}")
    assert "its tokenizer has no chat template" in refusal(f"model:{folder}")
    config = AutoConfig.from_pretrained(folder, num_labels=3)
    three = save(AutoModelForSequenceClassification.from_config(config), tmp_path / "three", toy)
    assert "expected a reward model with one label, found 3" in refusal(f"model:{three}")
    policy = load_reward_model(str(folder))
    with pytest.raises(ValueError, match="a text of 300 tokens does not fit its context of 256"):
        reward_texts(policy, [[5] * 300])


@pytest.mark.parametrize("pad", [None, 0, 2, -1])
def test_the_score_is_read_where_transformers_reads_it(pad, tmp_path, toy):
    """At the last token that is not the pad token, which may be EOS (2); padding within and all of it, too."""
    model = classifier("llama")
    model.config.pad_token_id = pad
    folder = save(model, tmp_path, toy)
    texts = [[5, 6, 2], [5, 2, 6], [5, 6, 2, 2], [2, 2], [0, 7, 0], [5, 6]]
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits.item() for ids in texts]
    ours = reward_texts(load_reward_model(str(folder)), texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert len(set(np.round(theirs, 4))) >= 4


def test_a_configuration_without_a_pad_token_has_its_familys(tmp_path, toy):
    """Gemma's is 0 where the file does not say; transformers reads the file the same way."""
    model = classifier("gemma")
    folder = save(model, tmp_path, toy)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("pad_token_id")
    (folder / "config.json").write_text(json.dumps(raw))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [[5, 6, 0], [5, 6]]
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits.item() for ids in texts]
    np.testing.assert_allclose(reward_texts(load_reward_model(str(folder)), texts), theirs, atol=1e-4)


def test_what_is_trained_is_what_transformers_reads(tmp_path, toy):
    """By EOS as pad token, and without one: rows of it are read by transformers, as they were trained."""
    from dera_jax.policies.reward_models import fresh_reward_model, save_reward_model

    for name, pad in (("eos", "</s>"), ("none", None)):
        base = tmp_path / name
        shutil.copytree(toy, base)
        changes = {
            "config.json": {"pad_token_id": 2 if pad else None},
            "tokenizer_config.json": {"pad_token": pad},
        }
        for file, changed in changes.items():
            raw = json.loads((base / file).read_text()) | changed
            (base / file).write_text(json.dumps(raw))
        reward = fresh_reward_model(load_policy(str(base)), 0)
        assert reward.config.pad_token == 2  # this tokenizer has no other token for it
        save_reward_model(reward, tmp_path / f"{name} saved", {})
        saved = tmp_path / f"{name} saved"
        model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
        tokenizer = load_tokenizer(saved)
        texts = ["Once upon a time", "Lily"]
        with torch.no_grad():
            theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
        np.testing.assert_allclose(reward_texts(reward, tokenizer(texts).input_ids), theirs, atol=1e-4)
        ended = [[*ids, 2] for ids in tokenizer(texts).input_ids]
        alone = [model(torch.tensor([ids])).logits.item() for ids in ended]
        np.testing.assert_allclose(reward_texts(reward, ended), alone, atol=1e-4)
