"""Adapters to train: what they start as, and what PEFT makes of those that are saved."""

import json
import math
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policy, save_policy
from dera_jax.data.batches import make_batch
from dera_jax.models.trees import flatten, unflatten
from dera_jax.policies import lora
from dera_jax.policies.adapters import read_adapter
from dera_jax.policies.low_rank import with_lora
from dera_jax.policies.policy import with_params
from dera_jax.policies.save import save_adapter
from dera_jax.scoring.logprobs import completion_logprobs
from dera_jax.training import parameters
from tests.support import t5_models
from tests.support.shapes import SHAPES
from tests.support.torch_models import exact_logits, our_logits, padded, random_model, save

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
"""PEFT's own."""

FUSED = {"gpt2": "c_attn", "gpt_neox": "query_key_value"}
KINDS = {
    "attention": ("llama", ["q_proj", "v_proj"]),
    "attention, the default": ("llama", None),
    "biases below": ("qwen2", "all-linear"),
    "norms behind": ("gemma2", "all-linear"),
    "some layers' names": ("mistral", ["layers.0.self_attn.q_proj", "down_proj"]),
    "the head": ("llama", ["lm_head", "o_proj"]),
    "three in one": ("gpt2", "all-linear"),
    "three in one and nothing else": ("gpt2", None),
    "three in one, head by head": ("gpt_neox", "all-linear"),
    "three in one among others": ("gpt_neox", ["query_key_value", "dense"]),
    "encoder and decoder": ("t5", "all-linear"),
    "encoder and decoder, the default": ("t5", None),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, toy):
    """A function from a name of `SHAPES`, or t5, to a folder that is written once."""
    folders = {}

    def base(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp("base")
            if name == "t5":
                folders[name] = t5_models.save(t5_models.random_model({}), folder)
            else:
                folders[name] = save(random_model(SHAPES[name], gain=0.7), folder, toy)
        return folders[name]

    return base


def disturbed(policy, seed=1, size=0.3):
    """Returns the policy with adapters that do something."""
    flat = flatten(policy.params)
    for number, path in enumerate(sorted(flat)):
        if path.endswith("lora_b"):
            key = jax.random.fold_in(jax.random.key(seed), number)
            flat[path] = size * jax.random.normal(key, flat[path].shape, flat[path].dtype)
    return with_params(policy, unflatten(flat))


def logits_of(policy):
    """Returns logits at real tokens."""
    if policy.config.start_token is None:
        tokens, mask = padded()
        return np.asarray(our_logits(policy, tokens, mask))[mask]
    batch = t5_models.random_batch()
    return np.asarray(t5_models.our_logits(policy, batch))[batch.completion_mask]


def logits_of_peft(base, folder, t5):
    """Returns what PEFT computes with the adapter in float64, merged and not."""
    auto = AutoModelForSeq2SeqLM if t5 else AutoModelForCausalLM
    model = auto.from_pretrained(base, **({} if t5 else {"attn_implementation": "eager"})).eval()
    adapted = peft.PeftModel.from_pretrained(model, folder).eval().double()

    def logits(model):
        if not t5:
            return exact_logits(model, *padded())
        batch = t5_models.random_batch()
        return t5_models.torch_logits(t5_models.in_float64(model), batch).numpy()[batch.completion_mask]

    beside = logits(adapted.get_base_model())
    return beside, logits(adapted.merge_and_unload())


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_we_do(kind, bases, tmp_path):
    name, targets = KINDS[kind]
    base = load_policy(bases(name))
    policy = disturbed(with_lora(base, 4, 6.0, targets))
    save_adapter(policy, tmp_path, str(bases(name)))
    ours = logits_of(policy)
    for theirs in logits_of_peft(bases(name), tmp_path, name == "t5"):
        apart = abs(ours - theirs).max()
        print(f"{kind}: {apart:.1e} apart")
        assert apart <= 3e-5
    assert abs(ours - logits_of(base)).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "trained", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["trained", "fresh"]
)
def test_saved_and_loaded_again(kind, trained, bases, tmp_path):
    name, targets = KINDS[kind]
    policy = with_lora(load_policy(bases(name)), 4, 6.0, targets)
    policy = disturbed(policy) if trained else policy
    save_adapter(policy, tmp_path, str(bases(name)), {"beta": 0.25})
    again = load_policy(f"{bases(name)}+{tmp_path}")
    assert again.config == policy.config
    assert again.beta == 0.25
    ours, theirs = flatten(policy.params), flatten(again.params)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)
    # It is trained further as it is, and other adapters are not put on top.
    assert with_lora(again, 4, 6.0, targets) is again
    with pytest.raises(ValueError, match=r"has adapters of rank 4 and scale 1.5 on .* asked: rank 8"):
        with_lora(again, 8, 6.0, targets)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_fresh_adapter_changes_nothing_and_can_learn(name, bases):
    base = load_policy(bases(name))
    policy = with_lora(base, 3, 8.0)
    np.testing.assert_array_equal(logits_of(policy), logits_of(base))
    ours, theirs = flatten(policy.params), flatten(base.params)
    assert all(ours[path] is value for path, value in theirs.items())
    assert len(ours) == len(theirs) + 2 * len(policy.config.adapters)

    batch = make_batch([[5, 6, 7], [8, 9]], [[10, 11], [12, 13, 14]])
    start, frozen = parameters.split(policy.params)

    def loss(changed):
        params = parameters.whole(policy.config, changed, frozen)
        return -jnp.sum(completion_logprobs(policy.config, params, batch) * batch.completion_mask)

    gradients = jax.jit(jax.grad(loss))(start)
    assert gradients.keys() == ours.keys() - theirs.keys()
    for path, gradient in gradients.items():
        # B is 0: what A is makes no difference yet.
        assert bool(jnp.any(gradient != 0)) == path.endswith("lora_b"), path


def test_what_is_random_is_peft_s(bases):
    """Its distribution, and another for every linear map and seed."""
    base = load_policy(bases("gpt2"))
    policies = [with_lora(base, 8, 8.0, seed=seed) for seed in (0, 0, 1)]
    first, same, other = ({p: np.asarray(v) for p, v in flatten(q.params).items()} for q in policies)
    starts = [path for path in first if path.endswith("lora_a")]
    assert len({first[path].tobytes() for path in starts}) == len(starts)
    for path in starts:
        np.testing.assert_array_equal(first[path], same[path])
        assert (first[path] != other[path]).mean() > 0.99
    linear = torch.nn.Linear(96, 2000)
    torch.nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    down = np.concatenate([first[path].ravel() for path in starts if "down" in path])
    assert abs(down).max() <= linear.weight.abs().max().item() * 1.001
    assert down.std() == pytest.approx(linear.weight.std().item(), rel=0.05)
    assert down.mean() == pytest.approx(0, abs=0.01)


def test_stabilized_ranks(bases, tmp_path):
    policy = disturbed(with_lora(load_policy(bases("gpt2")), 5, 7.0, rslora=True))
    assert {one.scale for one in policy.config.adapters} == {7 / math.sqrt(5)}
    save_adapter(policy, tmp_path, str(bases("gpt2")))
    for theirs in logits_of_peft(bases("gpt2"), tmp_path, False):
        np.testing.assert_allclose(logits_of(policy), theirs, rtol=0, atol=5e-5)
    again = load_policy(f"{bases('gpt2')}+{tmp_path}")
    assert with_lora(again, 5, 7.0, rslora=True) is again


@pytest.mark.parametrize("alpha", [1, 2.5, 16, 0.1, 49.0])
@pytest.mark.parametrize("rank", [1, 3, 49, 64])
def test_alpha_is_the_number_that_was_given(alpha, rank):
    assert lora._alpha(alpha / rank, rank) == alpha


def settings_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_settings_say_little_and_name_the_base(bases, tmp_path):
    gpt2 = with_lora(load_policy(bases("gpt2")), 4, 8.0)
    save_adapter(gpt2, tmp_path, "org/base@v2")
    found = settings_of(tmp_path)
    assert (found["base_model_name_or_path"], found["revision"]) == ("org/base", "v2")
    assert (found["r"], found["lora_alpha"], found["fan_in_fan_out"]) == (4, 8, True)
    assert found["rank_pattern"] == {"c_attn": 12}
    assert found["alpha_pattern"] == {"c_attn": 24}
    assert found["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    save_adapter(with_lora(load_policy(bases("t5")), 2, 2.0, None), tmp_path, "t")
    found = settings_of(tmp_path)
    assert (found["task_type"], found["target_modules"]) == ("SEQ_2_SEQ_LM", ["q", "v"])
    assert found["rank_pattern"] == found["alpha_pattern"] == {}


@pytest.mark.parametrize("name", FUSED)
def test_peft_s_own_adapter_of_three_in_one_is_trained_further(name, bases, tmp_path):
    """All three share its A; they part once trained."""
    model = AutoModelForCausalLM.from_pretrained(bases(name), attn_implementation="eager")
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=[FUSED[name]], init_lora_weights=False)
    config.fan_in_fan_out, config.task_type = name == "gpt2", "CAUSAL_LM"
    torch.manual_seed(0)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "start")
    policy = load_policy(f"{bases(name)}+{tmp_path / 'start'}")
    assert {one.rank for one in policy.config.adapters} == {6}
    assert with_lora(policy, 6, 9.0, None) is policy
    save_adapter(policy, tmp_path / "same", str(bases(name)))
    first, second = (read_adapter(tmp_path / folder).tensors for folder in ("start", "same"))
    assert first.keys() == second.keys()
    for tensor, value in first.items():
        np.testing.assert_array_equal(value.read(), second[tensor].read())
    apart = disturbed(policy)
    keys = iter(jax.random.split(jax.random.key(3), 99))
    flat = {
        path: value + 0.1 * jax.random.normal(next(keys), value.shape) if path.endswith("lora_a") else value
        for path, value in flatten(apart.params).items()
    }
    apart = with_params(apart, unflatten(flat))
    save_adapter(apart, tmp_path / "apart", str(bases(name)))
    for theirs in logits_of_peft(bases(name), tmp_path / "apart", False):
        np.testing.assert_allclose(logits_of(apart), theirs, rtol=0, atol=1e-4)


def test_whole_modules_of_the_start_are_kept(bases, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(bases("llama"), attn_implementation="eager")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj"],
        modules_to_save=["lm_head", "norm"],
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.mul_(1.5)
    adapted.save_pretrained(tmp_path / "start")
    policy = disturbed(load_policy(f"{bases('llama')}+{tmp_path / 'start'}"))
    save_adapter(policy, tmp_path / "more", str(bases("llama")))
    np.testing.assert_array_equal(
        logits_of(load_policy(f"{bases('llama')}+{tmp_path / 'more'}")), logits_of(policy)
    )
    for theirs in logits_of_peft(bases("llama"), tmp_path / "more", False):
        np.testing.assert_allclose(logits_of(policy), theirs, rtol=0, atol=1e-4)


def test_merged_it_is_the_same_model(bases, tmp_path):
    policy = disturbed(with_lora(load_policy(bases("llama")), 4, 6.0))
    save_policy(policy, tmp_path)
    np.testing.assert_allclose(logits_of(load_policy(tmp_path)), logits_of(policy), rtol=0, atol=5e-5)


def test_on_a_quantized_base(bases, tmp_path):
    base = load_policy(bases("llama"), quantize="int8")
    policy = with_lora(base, 4, 6.0)
    # Not to the bit: the sum with the adapter is compiled together with the scaling of the product.
    np.testing.assert_allclose(logits_of(policy), logits_of(base), rtol=0, atol=5e-5)
    policy = disturbed(policy)
    save_adapter(policy, tmp_path, str(bases("llama")))
    again = load_policy(f"{bases('llama')}+{tmp_path}", quantize="int8")
    np.testing.assert_array_equal(logits_of(again), logits_of(policy))


def test_half_precision_both_ways(bases, tmp_path):
    policy = disturbed(with_lora(load_policy(bases("gpt2"), "bfloat16"), 4, 6.0))
    save_adapter(policy, tmp_path, str(bases("gpt2")))
    again = load_policy(f"{bases('gpt2')}+{tmp_path}", "bfloat16")
    for path, value in flatten(policy.params).items():
        assert value.dtype == "bfloat16"
        np.testing.assert_array_equal(value, flatten(again.params)[path])


def refusal(call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number, at least 1, got 0"),
        ({"alpha": 0}, "alpha: expected a number above 0, got 0"),
        ({"alpha": -1.0}, "alpha: expected a number from 0 to inf, got -1.0"),
        ({"alpha": math.nan}, "alpha: expected a number from 0 to inf, got nan"),
        ({"targets": []}, "targets: expected at least one name, found none"),
        (
            {"targets": ["q_proj", "c_attn"]},
            "targets: expected all-linear or some of down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, "
            "up_proj, v_proj; found 'c_attn'",
        ),
        ({"targets": "proj"}, "found 'proj'"),
    ],
)
def test_mistakes(settings, message, bases):
    base = load_policy(bases("llama"))
    assert message in refusal(with_lora, base, **{"rank": 4, "alpha": 8.0} | settings)


def test_mistakes_in_saving(bases, tmp_path):
    base = load_policy(bases("llama"))
    assert "expected a policy with adapters, found none" in refusal(save_adapter, base, tmp_path, "b")
    policy = with_lora(base, 4, 8.0)
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(save_adapter, policy, tmp_path / "file", "b")
    # An adapter of this base on another one of the same shape.
    save_adapter(policy, tmp_path / "adapter", str(bases("llama")))
    other = shutil.copytree(bases("llama"), tmp_path / "other")
    save_policy(replace(base, params=jax.tree.map(lambda a: a * 1.5, base.params)), other)
    assert "was trained on" in refusal(load_policy, f"{other}+{tmp_path / 'adapter'}")
