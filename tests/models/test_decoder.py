"""Decoders against transformers' on torch, through the files on disk."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import generate, load_policy, models, save_policy, score
from dera_jax.data.tokens import encode_prompt
from dera_jax.models.decoder_config import DecoderConfig
from dera_jax.models.trees import flatten
from dera_jax.policies.policy import with_params
from tests.support.shapes import FAMILIES, SHAPES
from tests.support.torch_models import (
    LENGTHS,
    PROMPTS,
    exact_logits,
    our_logits,
    padded,
    random_model,
    save,
    torch_logits,
)

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM  # noqa: E402

SOME = pytest.mark.parametrize("case", FAMILIES, indirect=True)
"""Where the others would add time and no news."""
ALL = pytest.mark.parametrize(
    "case",
    [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES],
    indirect=True,
)
"""Where the others add time and little news."""


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory, toy):
    """A model on torch and the policy read from its files."""
    model = random_model(SHAPES[request.param])
    folder = save(model, tmp_path_factory.mktemp("model"), toy)
    return model, load_policy(str(folder))


def test_logits_equal_those_of_torch(case):
    model, policy = case
    tokens, mask = padded()
    ours = np.asarray(our_logits(policy, tokens, mask))[mask]
    theirs = torch_logits(model, tokens, mask).numpy()[mask]
    exact = exact_logits(model, tokens, mask)
    assert theirs.std() > 0.5
    error, own_error = abs(ours - exact).max(), abs(theirs - exact).max()
    apart = abs(ours - theirs).max()
    print(f"largest error of logits: ours {error:.1e}, torch's {own_error:.1e}; {apart:.1e} apart")
    assert apart <= 5e-5
    assert error <= 3 * own_error + 1e-6


@SOME
def test_padding_changes_nothing_on_either_side(case):
    _, policy = case
    tokens, mask = padded()
    row, length = 1, LENGTHS[1]
    alone = tokens[row : row + 1, -length:]
    expected = our_logits(policy, alone, np.ones_like(alone, bool))[0]
    left = our_logits(policy, tokens, mask)[row, -length:]
    # Queries are read in blocks, whose borders padding moves: both round, each by some 1e-5.
    np.testing.assert_allclose(left, expected, atol=5e-5)
    behind, real = np.full_like(tokens, 7), np.zeros_like(mask)
    behind[row, :length], real[row, :length] = alone, True
    right = our_logits(policy, behind, real)[row, :length]
    np.testing.assert_allclose(right, expected, atol=5e-5)


@SOME
def test_the_last_logits_are_those_of_all(case):
    _, policy = case
    tokens, mask = padded()
    last = our_logits(policy, tokens, mask, 3)
    np.testing.assert_allclose(last, our_logits(policy, tokens, mask)[:, -3:], atol=5e-5)


@ALL
def test_cached_steps_equal_the_forward_pass(case):
    _, policy = case
    tokens, mask = padded((LENGTHS[0], 45, 33))
    prompt = 76
    expected = our_logits(policy, tokens, mask)

    @jax.jit
    def steps(params, tokens, mask):
        model = models.bind(policy.config, params)
        cache = models.grow_cache(
            model.prefill(tokens[:, :prompt], mask[:, :prompt]),
            tokens.shape[1] - prompt + 4,
            policy.config.windows,
        )
        fed = tokens.T[prompt:], (mask.cumsum(-1) - 1).T[prompt:]
        # As the decode loop does it: a few tokens apart from the cache, which then takes them in.
        pieces = []
        for start in range(0, len(fed[0]), 12):
            piece = tuple(each[start : start + 12] for each in fed)

            def step(recent, one, cache=cache):
                logits, recent = model.step(*one, cache, recent)
                return recent, logits

            recent, logits = jax.lax.scan(step, models.no_recent(cache, len(piece[0])), piece)
            cache = models.store_recent(cache, recent)
            pieces.append(logits)
        return jnp.concatenate(pieces).swapaxes(0, 1)

    # Caches are read in blocks of slots, the whole text is not: each sums in its own order.
    np.testing.assert_allclose(steps(policy.params, tokens, mask), expected[:, prompt:], atol=1e-4)


def greedy_on_torch(model, policy, steps):
    encoded = [encode_prompt(policy.tokenizer, text) for text in PROMPTS]
    longest = max(map(len, encoded))
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in encoded])
    made = model.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=steps, eos_token_id=None, pad_token_id=0
    )
    return made[:, longest:].tolist()


# A tied GPT-2 of random weights repeats one token, whatever is cached.
@pytest.mark.parametrize(
    "case", [name if name != "gpt2" else "gpt2, untied" for name in FAMILIES], indirect=True
)
def test_greedy_tokens_equal_those_of_torch(case):
    """Through the whole loop, with one model and no strength; llama3 passes its original context."""
    model, policy = case
    theirs = greedy_on_torch(model, policy, 32)
    assert len({token for row in theirs for token in row}) > 5
    endless = replace(policy, eos_ids=())
    ours = generate((endless,), PROMPTS, (), temperature=0.0, max_new_tokens=32, rows=4)
    assert [completion.tokens for completion in ours] == theirs


@SOME
def test_scores_equal_those_of_torch(case):
    """Given completions of several lengths, through prompts as texts."""
    model, policy = case
    completions = [ids.tolist() for ids in np.split(np.arange(3, 63), [5, 22])]
    found = score((policy,), PROMPTS, completions, [()])
    for text, ids, scored in zip(PROMPTS, completions, found, strict=True):
        prompt = encode_prompt(policy.tokenizer, text)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids]
        np.testing.assert_allclose(scored.model_logprobs[:, 0], expected.numpy(), atol=1e-4)


def test_a_model_mixed_with_itself_is_itself(tmp_path, toy):
    model = random_model(SHAPES["llama"])
    policy = replace(load_policy(str(save(model, tmp_path, toy))), eos_ids=())
    ours = generate((policy, policy), PROMPTS, 0.7, temperature=0.0, max_new_tokens=32, rows=4)
    assert [completion.tokens for completion in ours] == greedy_on_torch(model, policy, 32)


@pytest.mark.parametrize("tied", [False, True])
def test_float32_is_float32_on_accelerators(tied):
    """They round the factors of a matrix product to fewer bits unless each product says otherwise."""
    config = DecoderConfig(512, 64, 96, 2, 8, 2, 8, 256, tie_embeddings=tied)
    tokens = np.zeros((1, 4), np.int32)
    forward = jax.jit(lambda p, t: models.bind(config, p).forward(t, t == t))
    lowered = forward.lower(models.init_params(config, 0), tokens).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    # Both layers are one function, which is traced once.
    assert len(products) == 9 + 1
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("name", [*FAMILIES, "llama, tied"])
def test_bfloat16_loses_no_more_than_on_torch(name, tmp_path, toy):
    model = random_model(SHAPES[name]).bfloat16()
    folder = str(save(model, tmp_path, toy))
    policy = load_policy(folder, "bfloat16")
    assert policy.config.dtype == policy.stored_dtype == "bfloat16"
    assert {str(value.dtype) for value in flatten(policy.params).values()} == {"bfloat16"}
    tokens, mask = padded()
    ours = our_logits(policy, tokens, mask)
    assert ours.dtype == jnp.float32
    # Their last product is not rounded to bfloat16 on its way.
    assert np.mean(ours != ours.astype(jnp.bfloat16)) > 0.9
    exact = np.asarray(our_logits(load_policy(folder, "float32"), tokens, mask))[mask]
    error = abs(np.asarray(ours)[mask] - exact).mean()
    own_error = abs(torch_logits(model, tokens, mask).float().numpy()[mask] - exact).mean()
    print(f"mean error of logits in bfloat16: ours {error:.4f}, torch's {own_error:.4f}")
    assert error <= 1.05 * own_error


@ALL
def test_what_we_save_transformers_loads(case, tmp_path):
    model, policy = case
    save_policy(policy, tmp_path / "same", {"beta": 0.1})
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "same", output_loading_info=True)
    assert not any(info.values()), info
    weights = model.state_dict()
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())

    # And not because the files were there before.
    changed = with_params(policy, jax.tree.map(lambda a: 1.1 * a, policy.params))
    save_policy(changed, tmp_path / "same", {"beta": 0.2})
    tokens, mask = padded()
    theirs = torch_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "same"), tokens, mask).numpy()
    ours = np.asarray(our_logits(changed, tokens, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=2e-4)
    assert abs(ours - our_logits(policy, tokens, mask)).max() > 0.1
    loaded = load_policy(str(tmp_path / "same"))
    assert loaded.beta == 0.2 and loaded.config == policy.config
    for name, value in flatten(loaded.params).items():
        np.testing.assert_array_equal(value, flatten(changed.params)[name])
