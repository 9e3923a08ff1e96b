"""Models that are pushed: real requests to a hub on this machine, a card, and failures that lose nothing."""

import json

import pytest

from dera_jax.commands import reward, sft
from dera_jax.policies.policy import TOY
from dera_jax.training import publishing
from tests.support.stub_hub import serve

TOKEN = "hf_very_secret_token"


@pytest.fixture
def hub(monkeypatch):
    with serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def words(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "a cat", "completion": " sat"}\n' * 4)
    given = [f"--model={TOY / 'reference'}", f"--data={tmp_path / 'data.jsonl'}", f"--out={tmp_path / 'out'}"]
    return [*given, "--batch-size=2", "--max-steps=1", "--lora-r=1", "--push-to-hub=me/model"]


def sent(hub, repo="me/model"):
    return hub.files[repo]


@pytest.mark.slow
def test_a_trained_model_is_pushed_with_its_card(hub, words, call, tmp_path):
    code, said, err = call(sft.main, *words, "--hub-private")
    assert code == 0 and f"pushed to {hub.url}/me/model" in said, err
    assert [made["name"] for made in hub.created] == ["model"] and "private" in str(hub.created)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    out, files = tmp_path / "out", sent(hub)
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "tokenizer.json",
    } <= files.keys()
    assert not any("/" in name or name.startswith(("speed", "samples")) for name in files)
    for name, data in files.items():
        assert (out / name).read_bytes() == data
    card = files["README.md"].decode()
    assert "| base | reference |" in card and "LoRA of rank 1" in card and "library_name: peft" in card
    assert "--reference=reference+me/model --aligned=ALIGNED" in card
    # Nothing is trained again; a card of the user's stays.
    (out / "README.md").write_text("mine")
    code, said, _ = call(sft.main, *words)
    assert code == 0 and "already trained" in said and "pushed to" in said
    assert sent(hub)["README.md"] == b"mine"
    for path in out.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_push_that_fails_keeps_the_model_and_is_one_line(hub, words, call, tmp_path):
    hub.status = 403
    code, said, err = call(sft.main, *words)
    last = err.splitlines()[-1]
    assert code == 2 and "Traceback" not in err and TOKEN not in err + said
    assert (
        "the model is there, but was not pushed to me/model (" in last
        and "the same command pushes it" in last
    )
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["finished"]
    hub.status = 200
    assert call(sft.main, *words)[0] == 0 and "README.md" in sent(hub)


def test_every_model_of_a_grid_has_a_repository(hub, words, call):
    assert call(sft.main, *words, "--seed=0,1")[0] == 0
    assert set(hub.files) == {"me/model-seed-0", "me/model-seed-1"}


def test_what_cannot_be_pushed_is_told_first(words, refused, monkeypatch):
    for name in publishing.TOKENS:
        monkeypatch.delenv(name, raising=False)
    assert "expected a token in the environment variable HF_TOKEN" in refused(sft.main, *words)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for repo in ("model", "a/b/c", "me/", "me/a b", "me/a--b"):
        assert "--push-to-hub: expected USER/NAME" in refused(sft.main, *words[:-1], f"--push-to-hub={repo}")
    assert "--hub-private has an effect with --push-to-hub only" in refused(
        sft.main, *words[:-1], "--hub-private"
    )
    assert "--push-to-hub" in refused(reward.main, *words[:-1], "--hub-model-id=me/model")


def test_a_card_says_how_to_decode_at_every_strength():
    manifest = {
        "method": "dpo", "beta": 0.1, "data": "hf:org/pairs:train", "steps": 3, "preference": {"loss": "ipo"},
        "reference": {"model": "org/base"}, "evaluation": {"eval_loss": 0.25},
        "provenance": {"command": ["python", "-m", "train.dpo", "--data=a b"]},
    }  # fmt: skip
    card = publishing.card(manifest, "me/model", "org/base", adapter=False)
    assert "--reference=org/base --aligned=me/model --lambda=0:2:0.2" in card
    assert 'base_model: "org/base"' in card and '- "org/pairs"' in card
    assert "dpo, loss ipo" in card and "eval_loss 0.25" in card and "'--data=a b'" in card
    card = publishing.card({"method": "reward"}, "me/rm", "/home/me/base", adapter=True)
    assert "--reward=model:base+me/rm" in card and "/home" not in card and "base_model" not in card
