"""A T5 pair through the loop, the sweep and the trainer, with a tokenizer like T5's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy, read_rows, score
from dera_jax.commands.rlhf import main as rlhf_command
from dera_jax.commands.sft import main as sft_command
from dera_jax.commands.sweep import main as sweep_command
from dera_jax.data.encoding import encode_prompts
from dera_jax.data.prompts import as_prompts
from dera_jax.decoding.complete import MixtureDraw, complete, complete_unshared
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request
from dera_jax.devices.usage import Usage
from dera_jax.search.lookahead import lookahead
from tests.support.figures import assert_bit_equal
from tests.support.searched import check_driver
from tests.support.t5_models import write_tokenizer

torch = pytest.importorskip("torch")
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration  # noqa: E402

PROMPTS = ["summarize: The cat sat on the mat.", "translate English to German: Hello!", "a"]
WORDS = 512


def save_t5(folder, seed):
    """A random T5 with the vocabulary of the tokenizer, and padding rows beyond it."""
    config = T5Config(
        vocab_size=WORDS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0, scale_decoder_outputs=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.3 * noise if "norm" in name else 2 * noise / value.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="module")
def t5_pair(tmp_path_factory):
    folders = [tmp_path_factory.mktemp(name) for name in ("reference", "aligned")]
    for seed, folder in enumerate(folders):
        save_t5(folder, seed)
    return folders


def test_ends_are_the_models_and_the_models_are_those_of_torch(t5_pair):
    policies = [replace(policy, eos_ids=()) for policy in load_policies(*t5_pair)]
    assert policies[0].config.start_token == 0
    for number, strength in enumerate((0.0, 1.0)):
        mixed = generate(policies, PROMPTS, strength, temperature=0.0, max_new_tokens=12, rows=4)
        model = AutoModelForSeq2SeqLM.from_pretrained(t5_pair[number]).eval()
        for text, completion in zip(PROMPTS, mixed, strict=True):
            encoded = policies[0].tokenizer(text, return_tensors="pt")
            assert completion.request.prompt.tokens[0] == tuple(encoded.input_ids[0].tolist())
            made = model.generate(
                encoded.input_ids, do_sample=False, num_beams=1, max_new_tokens=12, eos_token_id=None
            )
            assert completion.tokens == made[0, 1:].tolist()
            assert completion.text == policies[0].tokenizer.decode(
                completion.tokens, skip_special_tokens=True
            )


def test_scores_are_what_was_recorded(t5_pair):
    """Within what float32 rounds: against float64 torch's own logits here err by up to 4e-4, ours by 2e-4."""
    policies = load_policies(*t5_pair)
    made = generate(policies, PROMPTS, 0.5, max_new_tokens=10, rows=4)
    for completion, scored in zip(
        made, score(policies, PROMPTS, [c.tokens for c in made], [0.5, 1]), strict=True
    ):
        np.testing.assert_allclose(scored.logprobs[0], completion.logprobs, atol=1e-3)
        np.testing.assert_allclose(scored.model_logprobs, completion.model_logprobs, atol=1e-3)
        np.testing.assert_allclose(scored.kl_to_reference[0], completion.kl_to_reference, atol=1e-3)


def test_completions_given_as_text(t5_pair):
    """They are encoded by themselves, and not as the prompt's continuation."""
    policies = load_policies(*t5_pair)
    (scored,) = score(policies, ["a b"], ["c d"], [1])
    assert scored.tokens == policies[0].tokenizer("c d", add_special_tokens=False).input_ids


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--quantize=int8"]])
def test_a_sweep_from_end_to_end(t5_pair, tmp_path, options, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    out = tmp_path / "run"
    command = [f"--reference={t5_pair[0]}", f"--aligned={t5_pair[1]}", f"--prompts={prompts}", f"--out={out}"]
    command += [
        "--lambda=0,0.5,1,2",
        "--num-samples=2",
        "--max-new-tokens=8",
        "--reward=length:2:6",
        *options,
    ]
    assert sweep_command(command) == 0
    rows = read_rows(out)
    assert len(rows) == 3 * 4 * 2
    at_zero = [row for row in rows if row["lambda"] == 0]
    assert all(row["kl_to_reference"] == 0 for row in at_zero)
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    assert sweep_command(command) == 0 and read_rows(out) == rows


def test_prefixes_are_refused(t5_pair, capsys, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "prefix": "b"}) + "\n")
    command = [f"--reference={t5_pair[0]}", f"--aligned={t5_pair[1]}", f"--prompts={tmp_path / 'p.jsonl'}"]
    assert sweep_command(command) == 2
    assert "a model with an encoder has no place for one" in capsys.readouterr().err


@pytest.mark.slow
def test_sft_learns_and_transformers_loads_what_it_saves(t5_pair, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"say {w}", "completion": w}) + "\n" for w in ("cat", "dog"))
    )
    out = tmp_path / "sft"
    command = [f"--model={t5_pair[0]}", f"--data={data}", f"--out={out}", "--max-steps=30", "--batch-size=2"]
    assert sft_command([*command, "--learning-rate=1e-2"]) == 0
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    model = AutoModelForSeq2SeqLM.from_pretrained(out).eval()
    policy = load_policy(out)
    ids = policy.tokenizer("say cat", return_tensors="pt").input_ids
    labels = policy.tokenizer("cat", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = torch.log_softmax(model(input_ids=ids, labels=labels).logits[0], -1)
    (ours,) = score((policy,), ["say cat"], [labels[0].tolist()], [()])
    expected = theirs.gather(1, labels[0][:, None])[:, 0].numpy()
    np.testing.assert_allclose(ours.model_logprobs[:, 0], expected, atol=1e-4)


def test_policy_gradient_learns(t5_pair, tmp_path):
    data = tmp_path / "prompts.txt"
    data.write_text("\n".join(f"say {word}" for word in ("cat", "dog", "sun", "sea")))
    out = tmp_path / "rlhf"
    command = [f"--model={t5_pair[0]}", f"--data={data}", f"--out={out}", "--reward=length:0:3", "--beta=0.0"]
    command += ["--max-steps=3", "--batch-size=8", "--num-samples=4", "--max-new-tokens=6"]
    assert rlhf_command(command) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # Before the first update the policy is the reference.
    assert len(lines) == 3 and abs(lines[0]["kl"]) < 1e-3 and all(np.isfinite(line["loss"]) for line in lines)
    assert AutoModelForSeq2SeqLM.from_pretrained(out).num_parameters() > 0


@pytest.mark.parametrize("draft", ["reference", "ngram"])
def test_drafts_behind_an_encoder_change_nothing(t5_pair, draft):
    """Look-ups find what stands in the prompt, which the encoder reads."""
    policies = load_policies(*t5_pair)
    encoded = encode_prompts(policies, as_prompts(PROMPTS), 40)
    requests = [Request(p, s, (0.02,)) for p in encoded for s in range(2)]
    config = DecodeConfig(max_new_tokens=40, seed=1)
    found = {d.request.key: d for d in MixtureDraw(draft=draft)(policies, requests, config, 3)}
    plain = {done.request.key: done for done in complete_unshared(policies, requests, config, 3)}
    assert found.keys() == plain.keys()
    for key, done in found.items():
        assert done.tokens == plain[key].tokens
        np.testing.assert_allclose(done.logprobs, plain[key].logprobs, atol=1e-4)


def test_strengths_share_rows_behind_an_encoder(t5_pair):
    policies = load_policies(*t5_pair)
    encoded = encode_prompts(policies, as_prompts(PROMPTS), 40)
    # Near one another, as random models agree on little.
    requests = [Request(p, s, (0.02 * n,)) for p in encoded for s in range(2) for n in range(6)]
    usage, config = Usage(), DecodeConfig(max_new_tokens=40, seed=1)
    shared = {done.request.key: done for done in complete(policies, requests, config, 3, usage=usage)}
    alone = {done.request.key: done for done in complete_unshared(policies, requests, config, 3)}
    # From 0.19 to 0.32 by the tokenizer, whose training is not the same every time.
    assert shared.keys() == alone.keys() and usage.shared > 0.1
    for key, done in shared.items():
        assert_bit_equal(done, alone[key])


def test_searches_go_on_from_what_the_encoder_has_read(pair):
    encoded = encode_prompts(pair, as_prompts(PROMPTS), 37)
    check_driver(pair, [Request(prompt, 0, (0.5,)) for prompt in encoded], 5)
    draw = lookahead(3, 4, 2, "log-ratio", beams=2)
    for text, done in zip(PROMPTS, generate(pair, PROMPTS, 0.5, draw=draw, max_new_tokens=12), strict=True):
        (read,) = score(pair, [text], [done.tokens], [0.5])
        np.testing.assert_allclose(done.model_logprobs, read.model_logprobs, atol=2e-4)
