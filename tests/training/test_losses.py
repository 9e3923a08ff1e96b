"""Losses: values and gradients against TRL's own trainers, NumPy loops, and laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import models
from dera_jax.data.batches import make_batch
from dera_jax.policies.reward_models import load_reward_model
from dera_jax.policies.weights import named_tensors
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import losses
from tests.support.torch_models import in_float64, save

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: E402
from trl.trainer.callbacks import SyncRefModelCallback  # noqa: E402
from trl.trainer.utils import entropy_from_logits  # noqa: E402

against_trl = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning")
"""TRL sets an argument that transformers has renamed."""

PROMPTS = ["Once upon a time", "Lily and Ben", "One day, a big dog", "Tom was"]
CHOSEN = [" there was a cat.", " went to the park to play.", " ran.", " happy and he sang a song."]
REJECTED = [" tree tree", " sat.", " was very sad and had no friends at all.", " a a box."]
ROWS = list(zip(PROMPTS, CHOSEN, REJECTED, strict=True))
PAIRS = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in ROWS]
LABELLED = [{"prompt": r[0], "completion": r[1 + n % 2], "label": n % 2 == 0} for n, r in enumerate(ROWS)]


def in_torch(policy):
    """Returns the same model in transformers, in float64: in float32 TRL's own gradients are 1e-5 off."""
    model = AutoModelForCausalLM.from_pretrained(policy.folder)
    tensors = named_tensors(policy.params, "llama", policy.config.num_heads)
    tensors = {name: torch.tensor(value) for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected  # tied to the embedding
    return in_float64(model)


def loss_of_trl(kind, model, tokenizer, rows, folder, batch_size=4, reference=None, **settings):
    """Returns what TRL's trainer makes of `rows`: its batches; its mean loss and gradients."""
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), per_device_train_batch_size=batch_size, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    more = {"ref_model": reference} if reference else {}
    data = datasets.Dataset.from_list(rows)
    more |= {"args": config, "train_dataset": data, "processing_class": tokenizer}
    trainer = getattr(trl, f"{kind}Trainer")(model, **more)
    batches = list(trainer.get_train_dataloader())
    # A copy of each, as the reward trainer adds to what it is given.
    loss = sum(trainer.compute_loss(trainer.model, dict(batch)) for batch in batches) / len(batches)
    loss.backward()
    gradients = {name: value.grad.numpy() for name, value in trainer.model.named_parameters()}
    arrays = [{name: value.numpy() for name, value in batch.items()} for batch in batches]
    return arrays, (loss.item(), gradients)


def as_batch(found, prefix=""):
    """Returns a batch of TRL's, padded on the right, as ours."""
    ids, real, completion = (
        found[prefix + name].astype(kind)
        for name, kind in (("input_ids", int), ("attention_mask", bool), ("completion_mask", bool))
    )
    prompts = [row[mask].tolist() for row, mask in zip(ids, real & ~completion, strict=True)]
    return make_batch(prompts, [row[mask].tolist() for row, mask in zip(ids, completion, strict=True)])


@partial(jax.jit, static_argnames="config")
def whole_logprobs(config, params, batch):
    return completion_logprobs(config, params, batch).sum(axis=1)


def log_ratio(policy, reference, params, batch):
    of_policy = whole_logprobs(policy.config, params, batch)
    return of_policy - whole_logprobs(reference.config, reference.params, batch)


def assert_same(value, slopes, theirs, **others):
    """Asserts that a loss and its gradients with respect to every tensor are TRL's."""
    expected, gradients = theirs
    assert float(value) == pytest.approx(expected, abs=1e-5)
    ours = named_tensors(slopes, "llama", num_heads=8) | others
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        size = np.linalg.norm(gradient)
        assert size > 1e-4 and np.linalg.norm(ours[name] - gradient) < 1e-5 * size, name


PAIRWISE = {
    # name there, batch size there, ours, of ratios per token
    "dpo": ("sigmoid", 4, losses.dpo_loss, False),
    "length-normalized dpo": ("sigmoid_norm", 4, losses.dpo_loss, True),
    "ipo": ("ipo", 4, losses.ipo_loss, True),
    # TRL's sorted loss has the label smoothing that its DPO has lost; of one pair, it is DPO's.
    "smoothed dpo": ("aot", 1, partial(losses.dpo_loss, label_smoothing=0.2), False),
}


@against_trl
@pytest.mark.parametrize("case", PAIRWISE)
def test_losses_of_pairs_are_trls(case, pair, tmp_path):
    name, batch_size, pair_loss, normalized = PAIRWISE[case]
    (reference, policy), beta = pair, 0.3
    found, theirs = loss_of_trl(
        "DPO", in_torch(policy), policy.tokenizer, PAIRS, tmp_path, batch_size, in_torch(reference),
        loss_type=[name], beta=beta, label_smoothing=0.2 if name == "aot" else 0.0,
    )  # fmt: skip
    batches = [as_batch(batch) for batch in found]

    def loss(params):
        rows = []
        for batch in batches:
            ratio = log_ratio(policy, reference, params, batch)
            ratio /= batch.completion_mask.sum(axis=1) if normalized else 1
            rows += [*pair_loss(*jnp.split(ratio, 2), beta)]
        return jnp.mean(jnp.stack(rows))

    assert_same(*jax.value_and_grad(loss)(policy.params), theirs)


@against_trl
@pytest.mark.parametrize("disturbed", [True, False], ids=["divergence seen", "no divergence seen"])
def test_kto_is_trls(disturbed, pair, tmp_path):
    reference, policy = pair if disturbed else pair[::-1]
    beta, weights = 0.2, {"desirable_weight": 1.5, "undesirable_weight": 0.75}
    (found,), theirs = loss_of_trl(
        "KTO", in_torch(policy), policy.tokenizer, LABELLED, tmp_path, reference=in_torch(reference),
        beta=beta, **weights,
    )  # fmt: skip
    batch, others = as_batch(found), as_batch(found, "KL_")

    def loss(params):
        kl = jnp.mean(log_ratio(policy, reference, params, others))
        ratio = log_ratio(policy, reference, params, batch)
        return jnp.mean(losses.kto_loss(ratio, found["label"], kl, beta, **weights)), kl

    (value, kl), slopes = jax.value_and_grad(loss, has_aux=True)(policy.params)
    assert (kl > 0) == disturbed
    assert_same(value, slopes, theirs)


@against_trl
@pytest.mark.parametrize("margin, center", [(False, None), (True, 0.05)], ids=["plain", "margin, center"])
def test_reward_loss_is_trls(margin, center, toy, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(toy, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    ours = load_reward_model(str(save(model, tmp_path / "reward", toy)))
    rows = [pair | {"margin": 0.5 * row} if margin else pair for row, pair in enumerate(PAIRS)]
    (found,), theirs = loss_of_trl(
        "Reward", in_float64(model), ours.tokenizer, rows, tmp_path, center_rewards_coefficient=center
    )
    # Padded on the right there, on the left here.
    turned = [np.argsort(row, kind="stable") for row in found["attention_mask"]]
    tokens, mask = (
        jnp.stack([row[order] for row, order in zip(found[name], turned, strict=True)]).astype(kind)
        for name, kind in (("input_ids", int), ("attention_mask", bool))
    )

    @jax.jit
    def loss(params):
        chosen, rejected = jnp.split(models.bind(ours.config, params)(tokens, mask), 2)
        margins = found.get("margin", 0.0)
        return jnp.mean(losses.bradley_terry_loss(chosen, rejected, margins, center or 0.0))

    value, slopes = jax.value_and_grad(loss)(ours.params)
    assert_same(value, slopes["trunk"], theirs, **{"score.weight": slopes["score"]["kernel"].T})


def test_soft_update_is_trls(pair):
    reference, policy = pair
    theirs = in_torch(reference)
    SyncRefModelCallback._sync_target_model(in_torch(policy), theirs, 0.6)
    ours = losses.soft_update(reference.params, policy.params, 0.6)
    for name, value in named_tensors(ours, "llama", policy.config.num_heads).items():
        np.testing.assert_allclose(value, theirs.state_dict()[name].numpy(), atol=1e-6)
    for alpha, expected in ((0.0, reference), (1.0, policy)):
        found = jax.jit(losses.soft_update)(reference.params, policy.params, alpha)
        jax.tree.map(np.testing.assert_array_equal, found, expected.params)
    half = losses.soft_update({"w": jnp.ones(2, "bfloat16")}, {"w": jnp.zeros(2)}, jnp.float32(0.5))
    assert half["w"].dtype == "bfloat16" and half["w"].tolist() == [0.5, 0.5]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_laws_of_preferences():
    chosen, rejected = 3 * normal(0, 50), 3 * normal(1, 50)
    np.testing.assert_allclose(losses.dpo_loss(chosen, rejected, 1e-9), np.log(2), atol=1e-6)
    smoothed = partial(losses.dpo_loss, beta=0.7, label_smoothing=0.5)
    np.testing.assert_allclose(smoothed(chosen, rejected), smoothed(rejected, chosen), rtol=1e-6)
    # A policy is a reward model of its own, β ρ.
    implicit = losses.bradley_terry_loss(0.7 * chosen, 0.7 * rejected)
    np.testing.assert_allclose(losses.dpo_loss(chosen, rejected, 0.7), implicit, rtol=1e-5)
    # Smoothing has its optimum where the policy prefers the chosen with probability 1 − ε.
    best = jnp.full(1, np.log(0.9 / 0.1) / 0.7)
    slope = jax.grad(lambda r: losses.dpo_loss(r, 0 * r, 0.7, 0.1).sum())
    assert abs(slope(best)[0]) < 1e-6 and slope(best - 1)[0] < -0.01 and slope(best + 1)[0] > 0.01
    np.testing.assert_allclose(losses.ipo_loss(rejected + 1 / 1.4, rejected, 0.7), 0, atol=1e-9)
    far = losses.dpo_loss(jnp.array([-1e4]), jnp.array([1e4]), 1.0)
    assert far.tolist() == [2e4]


def test_padded_rows_count_nothing():
    ratio, label = normal(0, 6), np.array([True, False] * 3)
    real = np.array([True] * 4 + [False] * 2)
    fake = ratio.at[4:].set(jnp.array([1e30, -1e30]))
    for rows in (
        partial(losses.kto_loss, desirable=label, kl=0.1, beta=0.5),
        lambda r: losses.dpo_loss(r, -r, 0.5),
        lambda r: losses.ipo_loss(r, -r, 0.5),
        lambda r: losses.bradley_terry_loss(r, -r, 0.1),
    ):
        slope = jax.grad(lambda r, rows=rows: losses.mean_over(rows(r), real))(fake)
        assert losses.mean_over(rows(fake), real) == pytest.approx(float(rows(ratio)[:4].mean()), rel=1e-6)
        assert np.all(slope[:4] != 0) and np.all(slope[4:] == 0)
    assert losses.mean_over(ratio, np.zeros(6)) == 0


@pytest.fixture
def rollout():
    """Log-probabilities now and then, values now and then, rewards; completions of 0 to 7 tokens."""
    mask = np.arange(7) < np.arange(8)[:, None]
    return [0.5 * normal(seed, 8, 7) for seed in range(5)], mask


def advantages_of_loop(rewards, values, lengths, gamma, lam):
    advantages = np.zeros(rewards.shape)
    for row, length in enumerate(lengths):
        for t in range(length):
            for later in range(t, length):
                following = values[row, later + 1] if later + 1 < length else 0.0
                error = rewards[row, later] + gamma * following - values[row, later]
                advantages[row, t] += (gamma * lam) ** (later - t) * error
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_gae_is_the_sum_of_its_definition(gamma, lam, rollout):
    (_, _, values, _, rewards), mask = rollout
    advantages, returns = jax.jit(losses.gae)(rewards, values, mask, gamma, lam)
    expected = advantages_of_loop(np.asarray(rewards), np.asarray(values), mask.sum(1), gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, expected + np.where(mask, values, 0), atol=1e-5)


def test_gae_that_trusts_rewards_is_the_reward_to_go(rollout):
    (_, _, values, _, rewards), mask = rollout
    advantages, returns = losses.gae(rewards, values, mask, 1.0, 1.0)
    to_go = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), atol=1e-5)
    np.testing.assert_allclose(advantages, np.where(mask, to_go - values, 0), atol=1e-5)
    # Perfect values leave nothing to learn.
    np.testing.assert_allclose(losses.gae(rewards, returns, mask, 1.0, 0.3)[0], 0, atol=1e-5)


def mean_policy_loss(now, then, advantages, mask):
    return losses.mean_over(losses.ppo_policy_loss(now, then, advantages, mask, 0.2), mask)


def mean_value_loss(values, old_values, returns, mask):
    return losses.mean_over(losses.ppo_value_loss(values, old_values, returns, 0.3), mask)


def test_ppo_losses_are_those_of_a_loop(rollout):
    (now, then, values, old_values, advantages), mask = rollout
    returns = advantages + values[::-1]
    policy, value, places = 0.0, 0.0, np.argwhere(mask)
    for place in map(tuple, places):
        a, v, old, goal = (float(x[place]) for x in (advantages, values, old_values, returns))
        ratio = np.exp(float(now[place]) - float(then[place]))
        policy -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / len(places)
        near = min(max(v, old - 0.3), old + 0.3)
        value += 0.5 * max((v - goal) ** 2, (near - goal) ** 2) / len(places)
    assert mean_policy_loss(now, then, advantages, mask) == pytest.approx(policy, abs=1e-6)
    assert mean_value_loss(values, old_values, returns, mask) == pytest.approx(value, abs=1e-6)


def test_ppo_learns_only_from_real_tokens_within_the_clip(rollout):
    (now, then, values, old_values, advantages), mask = rollout
    overflowing = jnp.where(mask, now, 1e4)
    slope = jax.grad(mean_policy_loss)(overflowing, then, advantages, mask)
    ratio = np.exp(now - then)
    clipped = np.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    assert 3 < (clipped & mask).sum() < mask.sum() - 3
    # Where the ratio has strayed so that the update would take it further, nothing; elsewhere −A ρ / n.
    expected = np.where(mask & ~clipped, -advantages * ratio / mask.sum(), 0)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    assert np.array_equal(slope == 0, ~mask | clipped)
    slope = jax.grad(mean_value_loss)(values, old_values, advantages, mask)
    assert np.all(slope[~mask] == 0) and np.any(slope[mask] != 0)
    on_policy = jax.grad(mean_policy_loss)(then, then, advantages, mask)
    np.testing.assert_allclose(on_policy, np.where(mask, -advantages / mask.sum(), 0), atol=1e-7)


def test_whitened_values_have_mean_0_and_variance_1(rollout):
    (values, *_), mask = rollout
    white = np.asarray(losses.whiten(values * 3 + 100 * ~mask, mask))
    assert white[mask].mean() == pytest.approx(0, abs=1e-6)
    assert white[mask].std() == pytest.approx(1, abs=1e-5) and np.all(white[~mask] == 0)


def test_entropy_is_trls():
    logits = 4 * normal(0, 3, 5, 11)
    expected = entropy_from_logits(torch.tensor(np.asarray(logits))).numpy()
    np.testing.assert_allclose(losses.entropy(logits), expected, atol=1e-5)
    np.testing.assert_allclose(losses.entropy(jnp.full((2, 8), 3.0)), np.log(8), atol=1e-6)
    forbidden = jnp.array([0.0, 0.0, -jnp.inf])
    np.testing.assert_allclose(losses.entropy(forbidden), np.log(2), atol=1e-6)
    assert np.isfinite(jax.grad(losses.entropy)(forbidden)).all()


def test_beta_follows_the_divergence():
    assert losses.next_beta(0.1, 6.0, 6.0, 1000, 10) == pytest.approx(0.1)
    assert losses.next_beta(0.1, 6.6, 6.0, 1000, 10) == pytest.approx(0.1 * 1.001)
    assert losses.next_beta(0.1, 600.0, 6.0, 1000, 10) == pytest.approx(0.1 * 1.002)
    assert losses.next_beta(0.1, -5.0, 6.0, 1000, 10) == pytest.approx(0.1 * 0.998)
    beta = 3.0
    for _ in range(300):  # a policy whose divergence is 2 / β
        beta = losses.next_beta(beta, 2 / beta, 4.0, 100, 20)
    assert beta == pytest.approx(0.5, rel=1e-3)
