"""A batch is one batch, however many parts it is computed in: the same figures and gradients of every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.examples import Example, Pair
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.config import DecodeConfig
from dera_jax.policies.reward_models import fresh_reward_model
from dera_jax.rewards.registry import Reward
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import losses
from dera_jax.training.config import PPOConfig, PreferenceConfig, RolloutConfig, TrainConfig
from dera_jax.training.optimization import decays, init_state, make_optimizer, make_update
from dera_jax.training.policy_gradient import policy_gradient_method
from dera_jax.training.ppo import ppo_method
from dera_jax.training.preferences import preference_method
from dera_jax.training.reward import reward_method
from dera_jax.training.sft import sft_method
from tests.support.shapes import BASE, SHAPES
from tests.support.toy import tiny_policy

ROWS = 8
CONFIG = TrainConfig(batch_size=ROWS, max_steps=1)
NUMBERS = np.random.default_rng(0)


def words(count):
    return tuple(NUMBERS.integers(0, 3, size=count).tolist())


EXAMPLES = [Example((1, *words(n % 5)), (*words(1 + (n * n) % 29), 3), bool(n % 3)) for n in range(2 * ROWS)]
PAIRS = [
    Pair((1, 2, n % 3), (*words(1 + n % 7), 3), (*words(1 + (n * n) % 23), 3), 0.1 * n)
    for n in range(2 * ROWS)
]
PREFERENCES = {
    "sigmoid": {},
    "sigmoid, smoothed": {"label_smoothing": 0.2},
    "sigmoid_norm": {},
    "ipo": {},
    "kto": {"desirable_weight": 1.5},
    "sigmoid, following": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "kto, following": {"sync_ref_model": True, "ref_model_sync_steps": 1},
}
REWARD = Reward("fours", lambda completions: [float(ids.count(2)) - len(ids) for ids in completions.tokens])


@pytest.fixture(scope="module")
def policies(toy):
    return tiny_policy(toy, 0), tiny_policy(toy, 1)


def method_of(name, policies, folder):
    policy, reference = policies
    if name in PREFERENCES:
        settings = PreferenceConfig(loss=name.partition(",")[0], **PREFERENCES[name])
        data = EXAMPLES if settings.loss == "kto" else PAIRS
        return preference_method(policy, reference, data, 0.3, settings, CONFIG, folder)
    if name in ("sft", "packed"):
        return sft_method(policy, EXAMPLES, CONFIG, packed_length=40 if name == "packed" else None)
    if name == "reward":
        return reward_method(fresh_reward_model(policy, 0), PAIRS, CONFIG, center=0.1)
    prompts = [EncodedPrompt(Prompt(n, "x"), ((1, *words(1 + n)),)) for n in range(4)]
    given = policy, reference, prompts, [REWARD], RolloutConfig(DecodeConfig(max_new_tokens=12), 2, 0.3)
    if name.startswith("ppo"):
        exact = {"kl_estimator": "exact", "value_lam": 1.0} if name == "ppo reference" else {}
        return ppo_method(*given, PPOConfig(num_ppo_epochs=1, value_head=name[4:], **exact), CONFIG)
    return policy_gradient_method(*given, CONFIG, algorithm=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*PREFERENCES, "sft", "packed", "reward", "pg", "rloo", "ppo own", "ppo shared", "ppo reference"]
)
def test_parts_change_nothing(name, policies, tmp_path):
    """Rows of very different lengths, in one part and in four: gradients and every figure are the same."""
    method = method_of(name, policies, tmp_path)
    optimizer = optax.sgd(1.0)
    found = []
    for parts in (1, 4):
        state = init_state(method.trained, optimizer, method.kept)
        batch, _ = method.batches(state, 0) if not found else (found[0][2], None)
        # Only parameters that have moved differ from a reference that is the policy.
        update = make_update(
            method.loss, optimizer, parts, method.updates, method.renew, batch_mean=method.batch_mean
        )
        state, figures = update(state, method.constants, batch)
        found.append((jax.device_get(state.params), jax.device_get(figures), batch))
    (whole, told, _), (split, of_parts, _) = found
    assert told.keys() == of_parts.keys()
    for figure in told:
        np.testing.assert_allclose(of_parts[figure], told[figure], rtol=2e-4, atol=1e-5, err_msg=figure)
    moved = 0
    for path in whole:
        slope, of_split = (np.asarray(method.trained[path]) - each[path] for each in (whole, split))
        np.testing.assert_allclose(of_split, slope, atol=2e-5 * max(1, abs(slope).max()), err_msg=path)
        moved = max(moved, abs(slope).max())
    assert moved > 1e-3


@pytest.mark.slow
def test_ktos_divergence_is_the_mean_over_the_whole_batch(policies, tmp_path):
    """By its definition, from log-probabilities computed one by one; and that of all that is held out."""
    policy, reference = policies
    settings = PreferenceConfig(loss="kto")
    method = preference_method(
        policy, reference, EXAMPLES, 0.3, settings, CONFIG, tmp_path, held_out=EXAMPLES
    )
    logprobs = jax.jit(completion_logprobs, static_argnums=0)

    def expected(batch):
        flat = jax.tree.map(lambda a: jnp.asarray(a).reshape(-1, *a.shape[2:]), batch.both)
        ratio = [np.asarray(logprobs(p.config, p.params, flat)).sum(axis=1).reshape(-1, 2) for p in policies]
        own, other = (ratio[0] - ratio[1]).T
        kl = jnp.float32(max(other.mean(), 0))
        return losses.kto_loss(jnp.asarray(own), batch.desirable, kl, 0.3).mean(), kl

    batch, _ = method.batches(None, 0)
    optimizer = optax.sgd(1.0)
    for parts in (1, 2, 8):
        state = init_state(method.trained, optimizer, {})
        update = make_update(method.loss, optimizer, parts, batch_mean=method.batch_mean)
        _, figures = update(state, method.constants, batch)
        value, kl = expected(batch)
        assert float(figures["loss"]) == pytest.approx(float(value), rel=1e-4)
        assert float(figures["kl"]) == pytest.approx(float(kl), rel=1e-4, abs=1e-5)
    figures, _ = method.evaluate(init_state(method.trained, optimizer, {}), method.constants)
    both = [method.batches(None, step)[0] for step in (0, 1)]
    # An epoch is all examples: the two batches side by side.
    kls, counts = zip(*((expected(one)[1], ROWS) for one in both), strict=True)
    if min(kls) > 0:
        assert figures["eval_kl"] == pytest.approx(float(np.average(kls, weights=counts)), rel=1e-3)
    assert np.isfinite(figures["eval_loss"])


def test_kto_reads_no_other_completion_beyond_the_context(policies, tmp_path):
    """Prompts and completions that fit by themselves need not fit when they are crossed."""
    context = policies[0].config.max_positions
    long_prompt = Example((1, *words(context - 4)), (2, 3), True)
    long_completion = Example((2,), (*words(context - 1), 3), False)
    config = TrainConfig(batch_size=2, max_steps=1)
    method = preference_method(
        *policies, [long_prompt, long_completion], 0.1, PreferenceConfig(loss="kto"), config, tmp_path
    )
    batch, _ = method.batches(None, 0)
    assert np.isfinite(batch.reference).all() and np.asarray(batch.both.mask).sum(-1).max() <= context + 1


def torch_models():
    from transformers import AutoConfig

    from tests.support.t5_models import BASE as T5

    for name in ("llama, biases", "qwen3", "gemma3", "gpt2", "gpt_neox", "olmo2"):
        if name in SHAPES:
            settings = dict(SHAPES[name])
            if settings.get("model_type") != "gpt2":
                settings = {"model_type": "llama"} | BASE | settings
            yield name, AutoConfig.for_model(**settings)
    yield "t5", AutoConfig.for_model(**T5)


def test_weight_decay_is_of_the_parameters_that_transformers_decays(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Trainer

    from dera_jax import models
    from dera_jax.models.trees import flatten
    from dera_jax.policies import families

    compared = 0
    for name, config in torch_models():
        auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
        model = auto.from_config(config)
        theirs = set(Trainer.get_decay_parameter_names(None, model))
        shapes = {path: tensor.shape for path, tensor in model.named_parameters()}
        decayed = sum(shapes[path].numel() for path in theirs & shapes.keys())
        ours = flatten(models.param_shapes(families.model_config(tmp_path, config.to_dict())))
        sizes = {path: int(np.prod(a.shape)) for path, a in ours.items()}
        assert sum(sizes.values()) == sum(shape.numel() for shape in shapes.values()), name
        assert sum(size for path, size in sizes.items() if decays(path)) == decayed, name
        assert 0 < decayed < sum(sizes.values())
        compared += 1
    assert compared > 4


def kept_names(state):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def test_weight_decay_draws_matrices_to_zero_and_nothing_else(policies):
    """Without gradients AdamW's step is that of its decay alone: w ← w (1 − rate · decay)."""
    config = TrainConfig(
        learning_rate=0.1, weight_decay=0.5, max_steps=1, warmup_ratio=0.0, lr_scheduler_type="constant"
    )
    optimizer, _ = make_optimizer(config)
    names = ("a.kernel", "a.bias", "b.norm.scale", "embed.embedding")
    params = {name: jnp.ones(3) for name in names}
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    found = optax.apply_updates(params, updates)
    expected = {"a.kernel": 0.95, "embed.embedding": 0.95, "a.bias": 1.0, "b.norm.scale": 1.0}
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(expected)
    # The arrays kept of a step are those of optax.adamw, by the same names: checkpoints from before are read.
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda _: 0.1, weight_decay=0.5))
    assert kept_names(state) == kept_names(plain.init(params))
