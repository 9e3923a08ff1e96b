"""Strengths of prompts from perplexities, against transformers' models, and the command that writes them."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dera_jax import load_policies, load_prompts
from dera_jax.commands import sweep, weigh
from dera_jax.data.prompts import Prompt
from dera_jax.policies.policy import TOY
from dera_jax.scoring.divergence import encode_texts
from dera_jax.scoring.likelihood import likelihoods
from dera_jax.scoring.weighing import greedy_weights, log_perplexities, weights

TEXTS = ["Mira visits Ida, the painter of Sund.", "How is Mira?", "Once upon"]


def torch_log_perplexities(folder):
    """Returns each text's log-perplexity under a model on torch, by its own loss."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    with torch.no_grad():
        return [model(each, labels=each).loss.item() for each in ids]


def weighed(call, tmp_path, records, *words):
    """Returns the records that the command writes, and what it says on stderr."""
    given, out = tmp_path / "given.jsonl", tmp_path / "weighed.jsonl"
    given.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, _, err = call(weigh.main, f"--prompts={given}", f"--out={out}", *words)
    assert code == 0, err
    return [json.loads(line) for line in out.read_text().splitlines()], err


def test_strengths_are_those_of_torchs_losses(call, tmp_path):
    losses = np.array([torch_log_perplexities(TOY / name) for name in ("reference", "aligned")]).T
    found, _ = weighed(call, tmp_path, [{"prompt": text} for text in TEXTS], "--temperature=0.3")
    np.testing.assert_allclose([each["log_perplexity"] for each in found], losses, atol=1e-4)
    wanted = np.exp(-losses / 0.3)
    wanted = wanted[:, 1] / wanted.sum(axis=1)
    np.testing.assert_allclose([each["lambda"] for each in found], wanted, atol=1e-3)


def test_a_sweep_decodes_each_prompt_at_its_own(call, tmp_path):
    given = [{"id": "a", "prompt": TEXTS[0], "topic": "x", "prefix": "Well"}, {"id": "b", "prompt": TEXTS[1]}]
    aligned = f"--aligned={TOY / 'aligned'},{TOY / 'reference'}"
    pair = [f"--reference={TOY / 'reference'}", aligned]
    found, _ = weighed(call, tmp_path, given, *pair)
    read = load_prompts(str(tmp_path / "weighed.jsonl"))
    assert read[0].prefix == "Well" and read[0].columns["topic"] == "x"
    for each in found:
        one, two = map(float, each["lambda"].split("+"))
        # The reference is there twice, and equal models weigh the same.
        assert two == pytest.approx(1 - one - two, abs=1e-6)
    words = [f"--prompts={tmp_path / 'weighed.jsonl'}", "--lambda=prompt", "--max-new-tokens=4"]
    code, _, err = call(sweep.main, *pair, *words, f"--out={tmp_path / 'run'}")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run/rows.jsonl").read_text().splitlines()]
    wanted = {each["id"]: [float(x) for x in each["lambda"].split("+")] for each in found}
    assert {row["prompt_id"]: row["lambda"] for row in rows} == wanted


def test_prompts_that_tell_nothing_are_left_out_and_counted(call, tmp_path):
    records = [{"prompt": TEXTS[0]}, {"prompt": ""}, {"prompt": "word " * 5000}]
    found, err = weighed(call, tmp_path, records)
    assert [each["id"] for each in found] == [0]
    assert "1 used; 2 records dropped" in err and "prompt too long" in err


def test_what_is_refused(refused, tmp_path):
    assert "--out: expected a name that ends in .jsonl" in refused(weigh.main, f"--out={tmp_path / 'a.json'}")
    out = f"--out={tmp_path / 'a.jsonl'}"
    assert "--temperature" in refused(weigh.main, out, "--temperature=0")
    assert "--temperature" in refused(weigh.main, out, "--temperature=nan")
    told = refused(weigh.main, out, "--temperature=2", "--method=greedy")
    assert "--temperature has an effect with --method=softmax only" in told
    assert "--lambda has an effect with --gate only" in refused(weigh.main, out, "--lambda=2")
    told = refused(weigh.main, out, "--num-prompts=2", "--aligned-instruction=Be kind.")
    assert "expected all models to read the same tokens" in told
    assert not (tmp_path / "a.jsonl").exists()
    (own := tmp_path / "own.jsonl").write_text('{"prompt": "Tom"}\n')
    told = refused(weigh.main, f"--prompts={own}", f"--out={tmp_path / '.' / 'own.jsonl'}")
    assert "expected another file than the prompts' own" in told and own.read_text() == '{"prompt": "Tom"}\n'


def test_weights_are_a_softmax():
    losses = np.random.default_rng(0).normal(3, 1, (20, 4))
    assert np.allclose(weights(losses, 0.7).sum(axis=1), 1)
    np.testing.assert_allclose(weights(losses, 1e12), 0.25, atol=1e-9)
    cold = weights(losses, 1e-300)
    np.testing.assert_array_equal(cold.argmax(axis=1), losses.argmin(axis=1))
    assert (cold.max(axis=1) == 1).all()
    np.testing.assert_allclose(weights(np.full((1, 3), 2.0), 0.1), 1 / 3)


def torch_logits(folder, text):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0, :-1].double().numpy(), ids[0, 1:].numpy()


def mixed_loss(logits, weights, ids):
    """Returns −log π(text)/n of the mixture of logits, in NumPy."""
    h = sum(w * each for w, each in zip(weights, logits, strict=True))
    return (
        np.log(np.exp(h - h.max(-1, keepdims=True)).sum(-1)) + h.max(-1) - h[np.arange(len(ids)), ids]
    ).mean()


def test_greedy_shares_predict_the_prompt_best(call, tmp_path):
    """The minimum over a grid of torch's own mixtures, which the search does not look at."""
    found, _ = weighed(call, tmp_path, [{"prompt": text} for text in TEXTS], "--method=greedy")
    shares = np.linspace(0, 1, 1001)
    for text, each in zip(TEXTS, found, strict=True):
        pairs = [torch_logits(TOY / name, text) for name in ("reference", "aligned")]
        losses = [mixed_loss([h for h, _ in pairs], (1 - s, s), pairs[0][1]) for s in shares]
        assert each["lambda"] == pytest.approx(shares[int(np.argmin(losses))], abs=0.006)


def test_a_model_that_adds_nothing_gets_nothing(call, tmp_path):
    model = TOY / "reference"
    found, _ = weighed(
        call, tmp_path, [{"prompt": text} for text in TEXTS], "--method=greedy",
        f"--reference={TOY / 'aligned'}", f"--aligned={model},{model}",
    )  # fmt: skip
    assert all(each["lambda"].endswith("+0") for each in found)


def test_a_third_model_makes_no_prediction_worse(call, tmp_path):
    """Each step starts from the mixture there is: λ of all models predicts no worse than the best of them."""
    policies = load_policies(TOY / "reference", [TOY / "aligned", TOY / "reference"])
    sharp = replace(policies[2], params=jax.tree.map(lambda x: 1.3 * x, policies[2].params))
    policies = (*policies[:2], sharp)
    texts, _ = encode_texts(policies, [Prompt.of(text, n) for n, text in enumerate(TEXTS)])
    alone = np.zeros((len(texts), 3))
    for number, own in log_perplexities(policies, texts, 2):
        alone[number] = own
    for text, own in zip(texts, alone, strict=True):
        w = greedy_weights(policies, text, own)
        assert w.sum() == pytest.approx(1) and (w >= 0).all()
        ids = text.tokens[0]
        ((_, read),) = likelihoods(policies, [ids[:1]], [ids[1:]], [tuple(w[1:])], 1)
        assert -read.logprobs[0] / (len(ids) - 1) <= own.min() + 1e-5


def test_a_strength_that_is_replaced_is_told(call, tmp_path):
    records = [{"prompt": TEXTS[0], "lambda": 0.5}, {"prompt": TEXTS[1]}]
    assert (
        "1 of 2 prompts had a `lambda` of their own, which is replaced" in weighed(call, tmp_path, records)[1]
    )
    assert "of their own" not in weighed(call, tmp_path, records[1:])[1]
