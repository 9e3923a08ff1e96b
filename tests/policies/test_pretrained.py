"""A model that somebody else has trained, on real text, against torch."""

from dataclasses import replace

import numpy as np
import pytest

from dera_jax import generate, load_policy
from tests.support.torch_models import in_float64, our_logits, torch_logits

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM  # noqa: E402

START = "Once upon a time"


@pytest.fixture(scope="module")
def folder(data):
    return str(data / "stories260K")


@pytest.mark.data("stories260K", "tinystories")
def test_logits_of_stories_are_those_of_torch(folder, data):
    """Both differ from float64 by what float32 rounds."""
    policy, model = load_policy(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    text = (data / "tinystories/tiny_stories_head.txt").read_text()
    tokens = [policy.tokenizer(text[at : at + 2000]).input_ids[:400] for at in (0, 5000, 9000)]
    tokens, mask = np.array(tokens, np.int32), np.ones((3, 400), bool)
    exact = torch_logits(in_float64(model), tokens, mask).numpy()
    theirs = torch_logits(model, tokens, mask).numpy()
    ours = np.asarray(our_logits(policy, tokens, mask))
    print(f"largest error: ours {abs(ours - exact).max():.1e}, torch's {abs(theirs - exact).max():.1e}")
    assert abs(ours - exact).max() <= 2 * abs(theirs - exact).max()


@pytest.mark.data("stories260K")
def test_greedy_text_is_that_of_torch(folder):
    policy, model = load_policy(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    endless = (replace(policy, eos_ids=()),)
    (completion,) = generate(endless, [START], (), temperature=0.0, max_new_tokens=100)
    asked = torch.tensor([completion.request.prompt.tokens[0]])
    made = model.generate(asked, do_sample=False, max_new_tokens=100, eos_token_id=None)
    assert completion.tokens == made[0, asked.shape[1] :].tolist()
    # As its author shows it.
    assert (START + completion.text).startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
