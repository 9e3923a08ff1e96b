"""The divergence of next-word distributions against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dera_jax.training import losses

torch = pytest.importorskip("torch")


def test_the_divergence_of_the_next_word_is_torchs():
    """Values and gradients; words that one of both excludes count nothing where the policy does not draw them."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 5, 7), scale=2.0)
    a, b = torch.tensor(ours, requires_grad=True), torch.tensor(theirs)
    found = torch.nn.functional.kl_div(
        b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    found.sum().backward()
    value, slope = jax.value_and_grad(lambda x: losses.next_word_kl(x, jnp.float32(theirs)).sum())(
        jnp.float32(ours)
    )
    np.testing.assert_allclose(
        losses.next_word_kl(jnp.float32(ours), jnp.float32(theirs)), found.detach(), rtol=1e-5
    )
    np.testing.assert_allclose(value, found.sum().item(), rtol=1e-5)
    np.testing.assert_allclose(slope, a.grad, atol=1e-5)
    cut = jnp.float32([0.0, 1.0, -jnp.inf])
    assert losses.next_word_kl(cut, cut) == 0
    assert losses.next_word_kl(cut, jnp.zeros(3)) == pytest.approx(
        np.log(3) - float(losses.entropy(cut)), abs=1e-6
    )
    assert np.isfinite(jax.grad(lambda x: losses.next_word_kl(x, jnp.zeros(3)))(cut)).all()
