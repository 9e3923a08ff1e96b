"""Heads and embeddings that files hold, against settings that tie them; transformers is the reference."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dera_jax import load_policies, load_policy, save_policy
from dera_jax.models.trees import flatten
from dera_jax.policies import tensors
from dera_jax.policies.combine import combine
from dera_jax.policies.reward_models import fresh_reward_model
from tests.support.shapes import SHAPES
from tests.support.torch_models import check, logits_of_torch, our_logits, padded, random_model, save

torch = pytest.importorskip("torch")
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

KINDS = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"]
SILENT = {"gemma", "gemma2", "gemma3_text", "gpt2"}
"""Families whose default ties."""
HEAD = {"gpt_neox": "embed_out.weight"}


def untied(kind, folder, toy, **edits):
    """Returns a folder with a head of its own, whose settings then say what `edits` say."""
    save(random_model(SHAPES[kind] | {"tie_word_embeddings": False}), folder, toy)
    return edited(folder, **edits)


def edited(folder, **edits):
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | edits
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def put(folder, named):
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [True, ...], ids=["tied", "silent"])
def test_a_head_of_its_own_is_used_whatever_the_settings_say(kind, said, tmp_path, toy, terminal):
    if said is ... and kind not in SILENT:
        assert not AutoConfig.for_model(kind).tie_word_embeddings
        return
    folder = untied(kind, tmp_path / "model", toy, tie_word_embeddings=said)
    terminal.readouterr()
    policy = load_policy(folder)
    assert not policy.config.tie_embeddings
    told = terminal.readouterr().err
    assert told.startswith(f"note: {folder}: {HEAD.get(kind, 'lm_head.weight')} differs from ")
    assert told.count("\n") == 1
    check(policy, folder)
    save_policy(policy, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    check(load_policy(tmp_path / "saved"), folder)
    np.testing.assert_array_equal(logits_of_torch(tmp_path / "saved"), logits_of_torch(folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", ["both", "head"])
def test_of_two_that_are_one_a_file_keeps_either(kind, held, tmp_path, toy, terminal):
    folder = untied(kind, tmp_path, toy, tie_word_embeddings=True)
    named, head = weights(folder), HEAD.get(kind, "lm_head.weight")
    embedding = next(name for name in named if "embed_" in name or "wte" in name if name != head)
    if held == "both":
        named[embedding] = named[head]
    else:
        del named[embedding]
    put(folder, named)
    terminal.readouterr()
    policy = load_policy(folder)
    assert policy.config.tie_embeddings and terminal.readouterr().err == ""
    check(policy, folder)


def test_an_untied_model_without_an_embedding_is_refused(tmp_path, toy):
    folder = untied("llama", tmp_path, toy)
    put(folder, {name: value for name, value in weights(folder).items() if "embed_tokens" not in name})
    with pytest.raises(ValueError, match=r"tensor model\.embed_tokens\.weight is missing"):
        load_policy(folder)


def test_shards_and_other_types_are_compared_too(tmp_path, toy):
    folder = untied("llama", tmp_path, toy, tie_word_embeddings=True)
    named = weights(folder)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + ('head' in name)}-of-00002.safetensors" for name in named}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def write(head):
        for file in set(files.values()):
            part = {name: value for name, value in named.items() if files[name] == file}
            save_file(part | ({"lm_head.weight": head} if "00002" in file else {}), folder / file)

    write(named["lm_head.weight"])
    check(load_policy(folder), folder)
    # The same values in another type tie; one that differs, the last, does not.
    named["model.embed_tokens.weight"] = (
        named["model.embed_tokens.weight"].astype("bfloat16").astype(np.float32)
    )
    same = named["model.embed_tokens.weight"].astype("bfloat16")
    write(same)
    assert load_policy(folder).config.tie_embeddings
    last = same.copy()
    last[-1, -1] += 1
    write(last)
    assert not load_policy(folder).config.tie_embeddings


def test_tensors_are_compared_piece_by_piece_to_the_first_that_differs(tmp_path, monkeypatch):
    numbers = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    for row in (0, 3, 4, 49):
        other = numbers.copy()
        other[row, 2] += 1
        save_file({"a": numbers, "b": other, "c": numbers, "d": numbers[:40]}, tmp_path / "x.safetensors")
        listed = tensors.list_file(tmp_path / "x.safetensors")
        for size in (1, 28, 350, 10**6):
            monkeypatch.setattr(tensors, "COMPARED", size)
            assert tensors.equal(listed["a"], listed["c"])
            assert not tensors.equal(listed["a"], listed["b"])
            assert not tensors.equal(listed["a"], listed["d"])


def test_what_stands_on_such_a_model(tmp_path, toy):
    """Quantization, a combination with its tied reference, a reward model's trunk."""
    folder = untied("llama", tmp_path / "model", toy, tie_word_embeddings=True)
    tied = shutil.copytree(folder, tmp_path / "tied")
    put(tied, {name: value for name, value in weights(tied).items() if name != "lm_head.weight"})
    head = weights(folder)["lm_head.weight"].T
    quantized = load_policy(folder, quantize="int8")
    np.testing.assert_array_equal(quantized.params["head"]["kernel"], head)
    pair = load_policies(tied, folder)
    for strength, source in ((0.0, tied), (1.0, folder)):
        combined = combine(pair, (strength,))
        check(combined, source)
        out = tmp_path / f"combined{strength}"
        save_policy(combined, out)
        np.testing.assert_allclose(logits_of_torch(out), logits_of_torch(source), atol=1e-4)
    half = flatten(combine(pair, (0.5,)).params)["head.kernel"]
    np.testing.assert_allclose(half, (weights(tied)["model.embed_tokens.weight"].T + head) / 2, atol=1e-6)
    reward = fresh_reward_model(pair[1], seed=0)
    assert not any("head" in path for path in flatten(reward.params))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_an_adapter_stands_on_the_head_of_the_file(tmp_path, toy):
    peft = pytest.importorskip("peft")
    folder = untied("llama", tmp_path / "base", toy, tie_word_embeddings=True)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    tokens, mask = padded((60,))
    with torch.no_grad():
        expected = model.eval()(torch.tensor(tokens).long()).logits.numpy()
    ours = our_logits(load_policy(f"{folder}+{tmp_path / 'adapter'}"), tokens, mask)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_rows_of_before_are_another_models(tmp_path, toy):
    """Of those with the tied head, which the same files were read with once."""
    folder = untied("llama", tmp_path / "model", toy, tie_word_embeddings=True)
    plain = tensors.fingerprint(folder / "config.json", tensors.weight_files(folder))
    assert load_policy(folder).fingerprint != plain
    edited(folder, tie_word_embeddings=False)
    plain = tensors.fingerprint(folder / "config.json", tensors.weight_files(folder))
    assert load_policy(folder).fingerprint == plain
