"""Saving: what is saved comes back, and what cannot be written leaves no half of a file."""

import resource
from contextlib import contextmanager

import jax

from dera_jax import load_policy, save_policy
from dera_jax.policies.policy import with_params
from tests.support.broken_models import WEIGHTS, assert_same_params, refusal, shard
from tests.support.json_files import change_json


def test_saving_over_shards(folder):
    """What was saved last is what is loaded, by transformers too, which looks for the one file first."""
    shard(folder)
    policy = load_policy(str(folder))
    halved = with_params(policy, jax.tree.map(lambda a: a / 2, policy.params))
    save_policy(halved, folder)
    assert_same_params(load_policy(str(folder)), halved)


def test_what_is_saved_comes_back(toy, folder, tmp_path):
    change_json(folder / "generation_config.json", eos_token_id=[3, 5])
    policy = load_policy(str(folder))
    save_policy(policy, tmp_path / "a" / "b", {"beta": 0.1, "command": "train"})
    saved = load_policy(str(tmp_path / "a" / "b"))
    assert_same_params(saved, policy)
    assert (saved.config, saved.eos_ids, saved.beta) == (policy.config, (2, 3, 5), 0.1)
    assert saved.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert saved.tokenizer("Once upon a time") == policy.tokenizer("Once upon a time")
    assert policy.beta is None


@contextmanager
def file_size_limit(size: int):
    """No file may grow beyond `size` bytes: what a full disk does to a large file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failing_save_leaves_no_half_of_a_file(toy, tmp_path):
    policy = load_policy(str(toy))
    with file_size_limit(300_000):
        found = refusal(save_policy, policy, tmp_path / "new")
    assert (
        found.startswith(f"{tmp_path / 'new' / WEIGHTS}: cannot be written: ") and "File too large" in found
    )
    assert not list((tmp_path / "new").glob("*safetensors*")) and not list(
        (tmp_path / "new").glob("*.partial")
    )

    save_policy(policy, tmp_path / "old")
    names = sorted(path.name for path in (tmp_path / "old").iterdir())
    doubled = with_params(policy, jax.tree.map(lambda a: 2 * a, policy.params))
    with file_size_limit(300_000):
        refusal(save_policy, doubled, tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == names
    assert_same_params(load_policy(str(tmp_path / "old")), policy)


def test_a_folder_that_cannot_be_made(toy, tmp_path):
    (tmp_path / "file").write_text("")
    policy = load_policy(str(toy))
    assert refusal(save_policy, policy, tmp_path / "file" / "model") == (
        f"{tmp_path / 'file' / 'model'}: cannot be written: Not a directory"
    )
    assert refusal(save_policy, policy, tmp_path / "file").startswith(
        f"{tmp_path / 'file'}: cannot be written: "
    )
