"""What a generation_config.json asks of drawing: what has no option here is named."""

import inspect
import json
import re

import pytest

from dera_jax import load_policy
from dera_jax.policies import settings
from tests.support.torch_models import random_model, save

pytest.importorskip("torch")
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin


def test_what_is_not_applied_to_what_is_drawn_is_named_once(tmp_path, toy, terminal):
    """All that transformers has a processor for, but what has an option of its own or does nothing."""
    folder = save(random_model({}), tmp_path, toy)
    file = folder / "generation_config.json"
    quiet = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "eos_token_id": 1}
    quiet |= {"repetition_penalty": 1.0, "min_p": None, "no_repeat_ngram_size": 0, "num_beams": 1}
    file.write_text(json.dumps(quiet))
    terminal.readouterr()
    load_policy(folder)
    assert terminal.readouterr().err == ""
    file.write_text(json.dumps(quiet | {"repetition_penalty": 1.05, "min_p": 0.1, "suppress_tokens": [3]}))
    for _ in range(2):
        load_policy(folder)
    line = f"note: {file}: not applied to what is drawn: repetition_penalty 1.05, min_p 0.1, suppress_tokens [3]\n"
    assert terminal.readouterr().err == line


def test_every_processor_of_transformers_is_known():
    """Those of `_get_logits_processor`, by the settings that it reads."""
    source = inspect.getsource(GenerationMixin._get_logits_processor)
    read = set(re.findall(r"generation_config\.([a-z_]+)", source)) - set(dir(GenerationConfig))
    assert len(read) > 15
    options = {"temperature", "top_k", "top_p", "do_sample", "max_length", "max_new_tokens"}
    # What follows from others, changes no draw, or is of another kind of model.
    others = {name for name in read if name.startswith("_")} | {
        "renormalize_logits", "remove_invalid_values", "use_cache",
    }  # fmt: skip
    assert read - settings.NOT_APPLIED.keys() - options - others == set()
