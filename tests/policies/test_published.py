"""Published models' settings: are they read, and is every parameter there?"""

import json
import math

import pytest

from dera_jax.policies import families
from dera_jax.policies.weights import full_shapes
from tests.support.published import CONFIGS


@pytest.fixture
def read(tmp_path):
    def config(name):
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name][1]))
        return families.model_config(tmp_path, families.read_config(tmp_path))

    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_there(name, read):
    assert sum(map(math.prod, full_shapes(read(name)).values())) == CONFIGS[name][0]


def test_settings_that_only_old_files_have(read):
    assert read("EleutherAI/pythia-1b-deduped").rope.fraction == 0.25
    gemma3 = read("google/gemma-3-1b-pt")
    assert gemma3.windows[:7] == (512,) * 5 + (0, 512)
    assert (gemma3.rope.theta, gemma3.local_rope.theta) == (1e6, 1e4)
    assert read("HuggingFaceH4/zephyr-7b-beta").windows == (4096,) * 32
    assert read("Qwen/Qwen2.5-1.5B").windows == ()
    assert read("google/gemma-2-2b").windows[:3] == (4096, 0, 4096)
    assert read("google/gemma-2b").activation == "gelu_pytorch_tanh"
    assert read("allenai/Llama-3.1-Tulu-3-8B-SFT").rope.kind == "llama3"
    assert read("openai-community/gpt2").tie_embeddings and read("google/gemma-2b").tie_embeddings
    assert read("google-t5/t5-small").scale_outputs and not read("google/flan-t5-small").scale_outputs
