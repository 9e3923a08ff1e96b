"""The tables of settings against the installed libraries: no field is unknown, and each does what its table says."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax import load_policy
from dera_jax.models.layers import ACTIVATIONS
from dera_jax.policies import families
from dera_jax.policies.fields import FIELDS
from tests.support import t5_models, torch_models
from tests.support.published import CONFIGS
from tests.support.shapes import BASE, GEMMA2, GEMMA3, GPT2, NEOX
from tests.support.torch_models import random_model, save

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402

BASES = {
    "llama": {},
    "mistral": {"model_type": "mistral", "sliding_window": 16},
    "qwen2": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1
    },
    "qwen3": {
        "model_type": "qwen3", "head_dim": 12, "use_sliding_window": True, "sliding_window": 16,
        "max_window_layers": 1,
    },
    "olmo2": {"model_type": "olmo2"},
    "gemma": {"model_type": "gemma", "head_dim": 12, "num_key_value_heads": 1},
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3 | {"tie_word_embeddings": False},
    "gpt2": GPT2 | {"tie_word_embeddings": False},
    "gpt_neox": NEOX | {"num_attention_heads": 4},
    "t5": {"tied": False},
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tied": False},
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
CHANGED = {
    "vocab_size": 520, "hidden_size": 96, "d_model": 48, "n_embd": 96, "intermediate_size": 112, "d_ff": 64,
    "n_inner": 112, "num_hidden_layers": 1, "num_layers": 1, "num_decoder_layers": 1, "n_layer": 1,
    "num_attention_heads": 4, "num_heads": 2, "n_head": 4, "num_key_value_heads": 4, "head_dim": 16, "d_kv": 8,
    "hidden_act": "relu", "hidden_activation": "relu", "activation_function": "relu",
    "dense_act_fn": "silu", "is_gated_act": True, "feed_forward_proj": "gated-silu", "rms_norm_eps": 0.3,
    "layer_norm_eps": 0.3, "layer_norm_epsilon": 0.3, "rope_parameters": YARN, "rope_scaling": YARN,
    "rope_theta": 50.0, "rope_local_base_freq": 50.0, "rotary_pct": 0.5, "rotary_emb_base": 50,
    "attention_bias": True, "mlp_bias": True, "sliding_window": 5, "use_sliding_window": False,
    "max_window_layers": 0, "sliding_window_pattern": 2, "layer_types": ["sliding_attention"],
    "query_pre_attn_scalar": 30, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0,
    "use_parallel_residual": False, "scale_attn_weights": False, "n_positions": 128,
    "relative_attention_num_buckets": 4, "relative_attention_max_distance": 12, "scale_decoder_outputs": True,
}  # fmt: skip
"""Another value of every setting that is obeyed."""
ABSENT = {
    "rope_theta": ["rope_parameters"], "rope_scaling": ["rope_parameters"], "rotary_pct": ["rope_parameters"],
    "rotary_emb_base": ["rope_parameters"], "rope_local_base_freq": ["rope_parameters"],
    "num_hidden_layers": ["layer_types"], "max_window_layers": ["layer_types"], "use_sliding_window": ["layer_types"],
    "sliding_window_pattern": ["layer_types"], "feed_forward_proj": ["dense_act_fn", "is_gated_act"],
}  # fmt: skip
"""What of a saved configuration would go before a setting."""
ELSEWHERE = {
    "tie_word_embeddings": "test_ties.py, and for T5 test_t5_files.py",
    "eos_token_id": "ends completions",
    "max_position_embeddings": "the longest context",
    "pad_token_id": "T5: where there is no decoder_start_token_id",
    "decoder_start_token_id": "T5: the first token",
}
"""Settings that are obeyed, but not by a model's logits of given tokens."""
INERT = {
    "initializer_range": 0.5, "initializer_factor": 0.5, "use_cache": False, "pad_token_id": 7, "bos_token_id": 7,
    "pretraining_tp": 2, "reorder_and_upcast_attn": True, "summary_type": "mean", "summary_use_proj": False,
    "summary_activation": "tanh", "summary_proj_to_labels": False, "hidden_act": "relu",
    "hidden_activation": "relu", "is_decoder": True, "num_labels": 3, "chunk_size_feed_forward": 2,
    "output_hidden_states": True, "output_attentions": True, "problem_type": "regression", "n_positions": 20,
}  # fmt: skip
"""Another value of settings without effect; shares that are dropped in training are 0.5."""
NOT_TRIED = {
    "model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "return_dict", "id2label",
    "label2id",
}  # fmt: skip


@pytest.fixture(scope="module", params=BASES)
def case(request, tmp_path_factory, toy):
    """A family and the folder of a random model of it, with a head of its own."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind in ("t5", "mt5"):
        t5_models.save(t5_models.random_model(BASES[kind]), folder)
    else:
        save(random_model(BASES[kind]), folder, toy)
    return kind, folder, json.loads((folder / "config.json").read_text())


def write(folder, raw, name, value):
    left_out = {*ABSENT.get(name, ()), name}
    changed = {field: old for field, old in raw.items() if field not in left_out} | {name: value}
    (folder / "config.json").write_text(json.dumps(changed))


def tokens_of(kind):
    return np.random.default_rng(1).integers(3, 500, size=(1, 40))


def logits_of_torch(kind, folder):
    """Returns the logits, or None where the files do not fit the configuration."""
    auto = AutoModelForSeq2SeqLM if kind in ("t5", "mt5") else AutoModelForCausalLM
    try:
        # The other implementations of attention leave soft-caps out.
        model, told = auto.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    except Exception:  # of several libraries, each with its own
        return None
    # It draws what is missing.
    if told["missing_keys"] or told["mismatched_keys"]:
        return None
    tokens = torch.tensor(tokens_of(kind))
    with torch.no_grad():
        if kind in ("t5", "mt5"):
            return model.eval()(tokens, decoder_input_ids=tokens).logits.numpy()
        return model.eval()(tokens).logits.numpy()


def our_logits(kind, folder):
    policy, tokens = load_policy(folder, "float32"), tokens_of(kind).astype(np.int32)
    if kind in ("t5", "mt5"):
        # Its own first token is put before a completion.
        both = np.concatenate([tokens, tokens[:, 1:], tokens[:, :1]], axis=1)
        return np.asarray(
            t5_models.jitted_logits(policy.config, policy.params, both, both >= 0, tokens.shape[1])
        )
    return np.asarray(torch_models.our_logits(policy, tokens, tokens >= 0))


@pytest.mark.parametrize("kind", FIELDS)
def test_no_field_of_the_installed_class_is_missing(kind):
    known = FIELDS[kind]
    there = {field.name for field in dataclasses.fields(type(AutoConfig.for_model(kind)))}
    there |= {name for name in AutoConfig.for_model(kind).to_dict() if not name.startswith("_")}
    assert there - known.obeyed - known.inert - known.refused.keys() == set()
    assert not known.obeyed & known.inert and not (known.obeyed | known.inert) & known.refused.keys()


def test_every_family_has_a_table():
    assert FIELDS.keys() == families.FAMILIES.keys() == BASES.keys()


@pytest.mark.slow
def test_what_is_obeyed_changes_the_logits_as_it_does_on_torch(case):
    kind, folder, raw = case
    if kind in ("t5", "mt5"):
        raw = raw | {"decoder_start_token_id": int(tokens_of(kind)[0, 0])}
    write(folder, raw, "use_cache", True)
    plain = logits_of_torch(kind, folder)
    np.testing.assert_allclose(our_logits(kind, folder), plain, atol=1e-4)
    for name in sorted(FIELDS[kind].obeyed - ELSEWHERE.keys()):
        value = CHANGED[name]
        if name == "layer_types":
            value = value * raw["num_hidden_layers"]
        if name == "rope_parameters" and kind == "gemma3_text":
            value = {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            }
        if name == "num_attention_heads" and kind in ("t5", "mt5", "gpt_neox"):
            value = 2
        if name == "head_dim" and kind == "gpt_neox":
            value = 8
        if value is raw.get(name):
            value = not value
        write(folder, raw, name, value)
        expected = logits_of_torch(kind, folder)
        # A GPT-NeoX of another head_dim turns dimensions of heads that it does not have: refused.
        if expected is None or (kind, name) == ("gpt_neox", "head_dim"):
            with pytest.raises(ValueError):
                our_logits(kind, folder)
            continue
        assert abs(expected - plain).max() > 1e-3, name
        np.testing.assert_allclose(our_logits(kind, folder), expected, atol=1e-4, err_msg=name)


def test_what_is_without_effect_changes_nothing_on_torch(case):
    kind, folder, raw = case
    write(folder, raw, "use_cache", True)
    plain = logits_of_torch(kind, folder)
    for name in sorted(FIELDS[kind].inert - NOT_TRIED):
        value = INERT.get(name, 0.5)
        assert name in INERT or "drop" in name, name
        write(folder, raw, name, value)
        np.testing.assert_allclose(logits_of_torch(kind, folder), plain, atol=1e-5, err_msg=name)


def test_what_is_refused_is_named(case):
    kind, folder, raw = case
    for name, supported in FIELDS[kind].refused.items():
        for value in supported:
            write(folder, raw, name, value)
            families.read_config(folder)
        for other in (True, False, 0.5, {"0": {"num_attention_heads": 2}}):
            if other in supported:
                continue
            write(folder, raw, name, other)
            with pytest.raises(ValueError, match=rf"config\.json: .*{name}"):
                load_policy(folder)


@pytest.mark.parametrize("kind", ["llama", "olmo2", "gemma", "gpt2", "gpt_neox"])
def test_a_window_of_a_family_without_is_refused(kind, tmp_path, toy):
    """In transformers it is there in caches alone: a text that is generated is another than one that is read."""
    model = random_model(BASES[kind])
    save(model, tmp_path, toy)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"sliding_window": 5}))
    with pytest.raises(
        ValueError, match=rf"sliding_window: expected null, .* a model of type {kind} has no windows"
    ):
        load_policy(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.tensor(tokens_of(kind))
    with torch.no_grad():
        cache = model(tokens[:, :20]).past_key_values
        found = torch.stack([model(t[None], past_key_values=cache).logits[0, 0] for t in tokens[:, 20:].T])
        assert abs(found - model(tokens).logits[0, 20:]).max() > 1e-3
    (tmp_path / "config.json").write_text(json.dumps(raw | {"sliding_window": 10**6}))
    load_policy(tmp_path)


def test_what_only_other_families_read_is_named_once_and_left_alone(tmp_path, toy, terminal):
    """As transformers does: a window that a Llama's context lies in, biases in a Mistral's attention."""
    for kind, more in (
        (
            "llama",
            {"sliding_window": 512, "layer_types": ["sliding_attention"] * 2, "hidden_activation": "relu"},
        ),
        ("mistral", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"logits_scaling": 8.0, "attention_bias": True}),
        ("gpt_neox", {"partial_rotary_factor": 0.5, "rope_theta": 50.0}),
    ):
        folder = tmp_path / kind
        save(random_model(BASES[kind]), folder, toy)
        raw = json.loads((folder / "config.json").read_text())
        plain = logits_of_torch(kind, folder)
        (folder / "config.json").write_text(json.dumps(raw | more))
        np.testing.assert_array_equal(logits_of_torch(kind, folder), plain)
        terminal.readouterr()
        for _ in range(2):
            np.testing.assert_allclose(our_logits(kind, folder), plain, atol=1e-4)
        told = terminal.readouterr().err
        assert told.count("\n") == 1 and all(f"{name} " in told for name in more), told


def test_published_settings_are_all_known(tmp_path, terminal):
    for _, raw in CONFIGS.values():
        (tmp_path / "config.json").write_text(json.dumps(raw))
        families.read_config(tmp_path)
    assert terminal.readouterr().err == ""


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_other_kinds_of_layers_are_refused(kind, tmp_path, toy):
    save(random_model(BASES[kind]), tmp_path, toy)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["layer_types"] = ["full_attention"] * (raw["num_hidden_layers"] - 1) + ["chunked_attention"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"layer_types: .*chunked_attention"):
        load_policy(tmp_path)


def test_a_share_of_the_dimensions_is_refused_where_transformers_turns_all(tmp_path, toy):
    save(random_model({}), tmp_path, toy)
    raw = json.loads((tmp_path / "config.json").read_text())
    for more in (
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(raw | more))
        with pytest.raises(ValueError, match=r"partial_rotary_factor: expected 1, found 0\.5"):
            load_policy(tmp_path)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_their_names(name):
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.tensor(x)).numpy(), atol=1e-5
    )


def test_what_decides_a_gemmas_activation(tmp_path):
    """Of two names for it, each family reads its own; an old Gemma's gelu is the approximation."""
    for kind, own, other in (
        ("gemma", "hidden_act", "hidden_activation"),
        ("gemma2", "hidden_activation", "hidden_act"),
    ):
        raw = AutoConfig.for_model(kind, **BASE).to_dict() | {own: "silu", other: "gelu"}
        assert families.model_config(tmp_path, raw).activation == "silu"
    assert families.model_config(tmp_path, raw | {"hidden_activation": "gelu"}).activation == "gelu"
    raw = AutoConfig.for_model("gemma", **BASE).to_dict() | {"hidden_act": "gelu"}
    assert families.model_config(tmp_path, raw).activation == "gelu_pytorch_tanh"
