"""The longest texts: what fits a context is read as transformers reads it, what does not is told at every door."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policies, load_policy, models, save_policy, score
from dera_jax.commands import dpo, reward, sft
from dera_jax.data.batches import make_batch
from dera_jax.models.reward import RewardConfig
from dera_jax.policies.reward_models import fresh_reward_model
from dera_jax.rewards.completions import Completions
from dera_jax.rewards.model import ModelReward
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.scoring.pairs import encode_pairs, load_pairs
from dera_jax.scoring.score import score_tokens
from tests.support.shapes import GPT2

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

CONTEXT = 48


@pytest.fixture(scope="module")
def gpt2(toy, tmp_path_factory):
    """A folder with a model of learned positions, 48 of them."""
    folder = tmp_path_factory.mktemp("gpt2") / "gpt2"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**GPT2 | {"n_positions": CONTEXT}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, folder)
    return folder


@pytest.fixture(scope="module")
def pair(gpt2):
    return load_policies(gpt2, gpt2)


def texts(pair, count):
    numbers = np.random.default_rng(0).integers(3, 400, size=count).tolist()
    return numbers[:20], numbers[20:]


def logprobs_of_torch(folder, prompt, completion):
    """Returns log π of each token of a completion; the last is not fed, as in decoding."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion][:-1]])).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits.double(), -1)[torch.arange(len(completion)), completion].numpy()


@pytest.mark.parametrize("tight", [False, True])
def test_the_last_token_is_not_fed(pair, gpt2, tight):
    prompt, completion = texts(pair, CONTEXT + 1)
    expected = logprobs_of_torch(gpt2, prompt, completion)
    (scored,) = score_tokens(pair, [(prompt, prompt)], [completion], [0.5], 2)
    np.testing.assert_allclose(scored.logprobs[0], expected, atol=1e-4)
    batch = make_batch([prompt, prompt], [completion, completion[:3]], tight=tight)
    policy = pair[0]
    both = jax.jit(completion_logprobs, static_argnums=0)(policy.config, policy.params, batch)
    np.testing.assert_allclose(both[0, : len(completion)], expected, atol=1e-4)
    np.testing.assert_allclose(both[1, :3], expected[:3], atol=1e-4)

    def total(params):
        return completion_logprobs(policy.config, params, batch).sum()

    gradients = jax.jit(jax.grad(total))(policy.params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_values_do_not_read_the_last_token(pair):
    policy = pair[0]
    value = fresh_reward_model(policy, 0)
    config = RewardConfig(trunk=value.config.trunk, head="each", dtype=policy.config.dtype)
    prompt, completion = texts(pair, CONTEXT + 1)
    batch = make_batch([prompt], [completion])
    params = value.params
    model = models.bind(config, params)
    read = model.completion_values(jnp.asarray(batch.tokens), batch.fed, batch.completion_mask.shape[1])
    assert np.isfinite(read).all()


def test_decoding_and_scoring_agree_on_what_fits(pair):
    text = "Mira visits Ida"
    fed = len(pair[0].tokenizer(text).input_ids)
    most = CONTEXT + 1 - fed
    never_ending = [replace(policy, eos_ids=()) for policy in pair]
    (found,) = generate(never_ending, [text], 0.5, max_new_tokens=most, rows=1)
    (scored,) = score(pair, [text], [found.tokens], [0.5])
    np.testing.assert_allclose(scored.logprobs[0], found.logprobs, atol=2e-4)
    with pytest.raises(ValueError, match="do not fit the context"):
        generate(pair, [text], 0.5, max_new_tokens=most + 1, rows=1)
    with pytest.raises(
        ValueError, match=rf"^prompt 0: {fed} tokens and {most + 1} of its completion do not fit"
    ):
        score(pair, [text], [[*found.tokens, 5]], [0.5])
    for token in (-1, 10**6):
        with pytest.raises(ValueError, match=rf"^prompt 0: token {token} is none of the \d+ words"):
            score(pair, [text], [[token]], [0.5])


def test_scoring_tells_of_logits_that_are_not_finite(pair):
    broken = jax.tree.map(lambda a: a, pair[1].params)
    broken["norm"]["scale"] = broken["norm"]["scale"] * np.inf
    policies = pair[0], replace(pair[1], params=broken, name="broken")
    with pytest.raises(ValueError, match=r"^broken: logits are not finite at token 1 of completion 0"):
        score(policies, ["Mira"], [[5, 6]], [0.5])


def test_pairs_beyond_the_context_are_dropped_and_counted(pair, tmp_path):
    lengths = [CONTEXT // 2, 3 * CONTEXT]
    lines = [{"prompt": "Mira", "chosen": " a" * (n // 2), "rejected": " b"} for n in (4, *lengths)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoded, dropped = encode_pairs(pair, load_pairs(str(tmp_path / "pairs.jsonl"))[0])
    assert len(encoded) == 2 and dropped.reasons == {"pair too long": 1}
    fed = [max(map(len, each.completions)) + len(each.prompts[0]) - 1 for each in encoded]
    assert max(fed) <= CONTEXT


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, fields, options, most",
    [
        (sft, {"text": "Mira visits Ida " * 40}, [], CONTEXT + 1),
        (sft, {"text": "Mira visits Ida " * 40}, ["--packing"], CONTEXT),
        (dpo, {"prompt": "Mira", "chosen": " a" * 90, "rejected": " b"}, [], CONTEXT + 1),
        (reward, {"prompt": "Mira", "chosen": " a" * 90, "rejected": " b"}, [], CONTEXT),
    ],
    ids=["sft", "packed", "dpo", "reward"],
)
def test_trainings_take_no_more_than_the_context(call, gpt2, tmp_path, command, fields, options, most):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(fields) + "\n" + json.dumps(fields) + "\n")
    words = [f"--model={gpt2}", f"--data={data}", "--max-steps=1", "--batch-size=2", *options]
    code, _, said = call(command.main, *words, f"--max-length={most + 1}", f"--out={tmp_path / 'no'}")
    told = rf"error: --max-length={most + 1} is beyond the context of .*gpt2 \({CONTEXT} tokens\)"
    assert code == 2 and re.fullmatch(told, said.splitlines()[-1])
    for length, name in ((f"--max-length={most}", "most"), ("", "default")):
        code, *_ = call(command.main, *words, *filter(None, [length]), f"--out={tmp_path / name}")
        assert code == 0
        (line,) = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert np.isfinite(json.loads(line)["loss"])


def test_a_reward_model_has_no_number_for_what_it_cannot_read(pair):
    judge = ModelReward(fresh_reward_model(pair[0], 0), "model:x")
    found = judge(
        Completions(
            prompts=["Mira"] * 3,
            completions=[" a", " a" * 90, " b"],
            tokens=None,
            finish_reasons=["length"] * 3,
            columns={},
            decode=str,
        )
    )
    assert found[1] is None and np.isfinite([found[0], found[2]]).all()
    short = judge(
        Completions(
            prompts=["Mira"] * 2,
            completions=[" a", " b"],
            tokens=None,
            finish_reasons=["length"] * 2,
            columns={},
            decode=str,
        )
    )
    np.testing.assert_allclose([found[0], found[2]], short, atol=1e-6)


def test_the_whole_context_of_a_policy_is_saved_and_read_again(pair, tmp_path):
    save_policy(pair[0], tmp_path / "again")
    assert load_policy(tmp_path / "again").config.max_positions == CONTEXT
