"""A prompt that is read in pieces is continued as one that is read at once."""

import numpy as np
import pytest

from dera_jax import load_policies
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding import pieces
from dera_jax.decoding.batch import Batch
from dera_jax.decoding.complete import run_batch
from dera_jax.decoding.config import DecodeConfig
from dera_jax.decoding.request import Request, shape_of

CONFIG = DecodeConfig(max_new_tokens=20, seed=1)


@pytest.mark.parametrize("lengths", [(200, 200), (129, 129), (65, 65), (40, 40), (200, 150)])
def test_pieces_say_what_the_whole_says(lengths, monkeypatch):
    from dera_jax.decoding import prefilling

    for module in (pieces, prefilling):
        monkeypatch.setattr(module, "PIECE", 64)
    pair = load_policies()
    ids = np.random.default_rng(0).integers(3, 500, max(lengths)).tolist()
    prompt = EncodedPrompt(Prompt(0, "a"), tuple(tuple(ids[:length]) for length in lengths), (None, None))
    request = Request(prompt, 0, (0.5,))

    def continued(in_pieces):
        batch = Batch(pair, shape_of(request), CONFIG, 2)
        batch.submit([])
        count = 0
        if in_pieces:
            count = sum(1 for _ in batch.pool.read_in_pieces(prompt))
            assert prompt.tokens in batch.pool.kept
        (made,) = run_batch(batch, [request])
        return made, count

    (whole, _), (made, count) = continued(False), continued(True)
    assert made.tokens == whole.tokens
    np.testing.assert_allclose(made.logprobs, whole.logprobs, atol=1e-4)
    # A look at others behind every piece of 64 but the last.
    assert count == max(1, -(-(max(lengths) - 1) // 64) - 1) if max(lengths) > 65 else count <= 1
