"""Settings of adapters: every field of PEFT's, and the starts that leave a base as it was."""

import dataclasses
import json

import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.policies import adapter_settings
from dera_jax.policies.adapter_settings import OBEYED, REFUSED, STARTS, TOLD_BY_TENSORS, WITHOUT_EFFECT
from tests.support.shapes import SHAPES
from tests.support.torch_models import our_logits, padded, random_model, save

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from transformers import AutoModelForCausalLM  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*(is_gradient_checkpointing|eva|PiSSA changes)")
TABLES = (OBEYED, REFUSED.keys(), TOLD_BY_TENSORS, WITHOUT_EFFECT)


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy):
    return save(random_model(SHAPES["llama"]), tmp_path_factory.mktemp("base"), toy)


def write_adapter(base, folder, **settings):
    """Writes an adapter that was trained a little; returns its logits as PEFT loads it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **settings
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    adapted.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        tokens, _ = padded((60,))
        return (
            peft.PeftModel.from_pretrained(plain, folder).eval()(torch.tensor(tokens).long()).logits.numpy()
        )


def edit(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_no_field_of_peft_is_missing():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - set().union(*TABLES) == set()
    assert sum(map(len, TABLES)) == len(set().union(*TABLES))


def test_what_is_refused_is_peft_s_default():
    defaults = json.loads(json.dumps(peft.LoraConfig().to_dict(), default=str))
    for name, supported in REFUSED.items():
        assert defaults[name] in (supported, None, False), name


@pytest.mark.parametrize("start", [True, False, *STARTS])
def test_starts_that_leave_the_base_as_it_was(start, base, tmp_path):
    expected = write_adapter(base, tmp_path, init_lora_weights=start)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] == start
    ours = our_logits(load_policy(f"{base}+{tmp_path}"), *padded((60,)))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert abs(expected - our_logits(load_policy(base), *padded((60,)))).max() > 0.01


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "OLoRA"])
def test_starts_that_are_taken_from_the_base_are_refused(start, base, tmp_path):
    """PEFT takes them from it again; W + scale · A B is another model."""
    expected = write_adapter(base, tmp_path, init_lora_weights=start)
    with pytest.raises(
        ValueError, match=f"init_lora_weights: expected true, .*, found {start}, .*path_initial"
    ):
        load_policy(f"{base}+{tmp_path}")
    edit(tmp_path, init_lora_weights=True)
    ours = our_logits(load_policy(f"{base}+{tmp_path}"), *padded((60,)))
    assert abs(ours - expected).max() > 0.1


def test_what_peft_converts_is_read(base, tmp_path):
    """Its way out, which the refusal names."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
        tokens, mask = padded((60,))
        expected = adapted.eval()(torch.tensor(tokens).long()).logits.numpy()
    adapted.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=tmp_path / "start")
    ours = our_logits(load_policy(f"{base}+{tmp_path / 'out'}"), tokens, mask)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "what comes next"])
def test_a_start_that_is_not_on_the_list_is_refused(start, base, tmp_path):
    write_adapter(base, tmp_path)
    edit(tmp_path, init_lora_weights=start)
    with pytest.raises(ValueError, match=f"found {start}, whose start is taken from the base"):
        load_policy(f"{base}+{tmp_path}")


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_computation_is_refused_by_name(name, base, tmp_path):
    write_adapter(base, tmp_path)
    edit(tmp_path, **{name: "all" if name == "bias" else True})
    with pytest.raises(ValueError, match=f"{name}: expected .*merge it with PEFT first"):
        load_policy(f"{base}+{tmp_path}")


def test_what_nobody_knows_is_named_once(base, tmp_path, terminal):
    expected = write_adapter(base, tmp_path)
    edit(tmp_path, some_new_setting=3, another=None)
    terminal.readouterr()
    for _ in range(2):
        adapter_settings.read_settings(tmp_path)
    told = terminal.readouterr().err
    assert (
        told
        == f"note: {tmp_path / 'adapter_config.json'}: not known here, and passed over: some_new_setting\n"
    )
    ours = our_logits(load_policy(f"{base}+{tmp_path}"), *padded((60,)))
    np.testing.assert_allclose(ours, expected, atol=1e-4)
