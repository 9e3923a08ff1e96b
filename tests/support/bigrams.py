"""A pair whose next word depends on the last one alone: sums over all responses are powers of a matrix."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from dera_jax import models
from dera_jax.data.encoding import EncodedPrompt
from dera_jax.data.prompts import Prompt
from dera_jax.decoding.request import Request
from dera_jax.models.trees import flatten, unflatten
from tests.support.toy import EOS, tiny_policy

VOCAB, START = 24, 0


def bigram(toy, seed, spread=0.8):
    """Returns a policy with independent normal logits of this spread after every word, but for EOS, whose is 0."""
    policy = tiny_policy(toy, seed, VOCAB)
    noise = np.random.default_rng(seed)
    width = policy.config.width

    def of(path, value):
        if path.endswith(("attention.out.kernel", "feed_forward.down.kernel")):
            return jnp.zeros_like(value)  # no block adds anything
        if path == "head.kernel":
            value = noise.normal(size=value.shape) * spread / width**0.5
            value[:, EOS] = 0
        elif path.startswith("embed"):
            value = noise.normal(size=value.shape)
        return jnp.asarray(value, jnp.float32)

    params = unflatten({path: of(path, value) for path, value in flatten(policy.params).items()})
    return replace(policy, config=replace(policy.config, max_positions=512), params=params)


class Bigrams:
    """Two bigram models; the aligned one has the reference's embeddings, and a head that differs by noise."""

    def __init__(self, toy, apart=0.7):
        reference = bigram(toy, 1)
        noise = np.random.default_rng(2).normal(size=reference.params["head"]["kernel"].shape)
        params = flatten(reference.params)
        params["head.kernel"] = jnp.asarray(
            params["head.kernel"] + apart * noise / reference.config.width**0.5, jnp.float32
        )
        aligned = replace(reference, name="aligned", params=unflatten(params), fingerprint="aligned")
        self.policies = reference, aligned
        self.logprobs = [self._transitions(policy) for policy in self.policies]

    def _transitions(self, policy):
        tokens = jnp.arange(VOCAB)[:, None]
        logits = models.bind(policy.config, policy.params).forward(tokens, jnp.ones(tokens.shape, bool))
        return np.asarray(jax.nn.log_softmax(logits[:, 0].astype(jnp.float32)), np.float64)

    def weights(self, lambda_):
        """π_ref(v | u)^{1−λ} π_al(v | u)^λ  [u, v]."""
        reference, aligned = self.logprobs
        return np.exp((1 - lambda_) * reference + lambda_ * aligned)

    def mixture(self, lambda_):
        """The realigned policy's own transitions."""
        weights = self.weights(lambda_)
        return weights / weights.sum(1, keepdims=True)

    def sums(self, matrix, longest):
        """Mass of the responses that end after 1, 2, … tokens [longest], and of those cut off."""
        going = np.zeros(VOCAB)
        going[START] = 1
        ended = []
        for _ in range(longest):
            after = going @ matrix
            ended.append(after[EOS])
            going = np.where(np.arange(VOCAB) == EOS, 0, after)
        return np.array(ended), going.sum()

    def requests(self, lambda_, samples):
        prompt = EncodedPrompt(Prompt(0, "x"), ((5, START), (5, START)))
        return [Request(prompt, sample, (lambda_,)) for sample in range(samples)]

    def rows(self, strength, prompts, samples, longest, seed):
        """Returns rows of the realigned policy at one strength, drawn word by word from its transitions."""
        rng = np.random.default_rng(seed)
        mixture = self.mixture(strength)
        edges = mixture.cumsum(1)
        count = prompts * samples
        word, tokens = np.full(count, START), np.full((count, longest), -1)
        going = np.ones(count, bool)
        sums = np.zeros((3, count))
        terms = [*self.logprobs, np.log(mixture)]
        for place in range(longest):
            drawn = (rng.random(count)[:, None] > edges[word] / edges[word][:, -1:]).sum(1)
            sums += np.where(going, [term[word, drawn] for term in terms], 0)
            tokens[going, place] = drawn[going]
            going &= drawn != EOS
            word = np.where(going, drawn, word)
        return [
            self._row(n // samples, n % samples, strength, tokens[n][tokens[n] >= 0].tolist(), sums[:, n])
            for n in range(count)
        ]

    def _row(self, prompt, sample, strength, tokens, sums):
        reference, aligned, own = sums.tolist()
        ended = tokens[-1] == EOS
        length = len(tokens) - ended
        return {
            "prompt_id": prompt, "sample": sample, "lambda": strength, "tokens": tokens, "length": length,
            "finish_reason": "eos" if ended else "length", "rewards": {"short": float(length < 8)},
            "reference_logprob": reference, "aligned_logprob": aligned, "logprob": own,
            "kl_to_reference": 0.0,
        }  # fmt: skip

    def log_normalizers(self, rows, strength):
        """Returns Σ log z of rows at any strength, and Σ KL(mixture ‖ reference)."""
        z = self.weights(strength).sum(1)
        mixture = self.mixture(strength)
        kl = (mixture * (np.log(mixture) - self.logprobs[0])).sum(1)
        before = [[START, *row["tokens"][:-1]] for row in rows]
        return tuple(np.array([term[words].sum() for words in before]) for term in (np.log(z), kl))

    def means(self, matrix, longest, limit_means):
        """Returns Z, and the means of `length` and of `short` (length below 8), of a matrix's responses."""
        ended, cut = self.sums(matrix, longest)
        cut = cut if limit_means == "absorb" else 0.0
        z = ended.sum() + cut
        lengths = np.arange(longest)  # EOS left out
        return {
            "log_z": np.log(z),
            "length": (ended @ lengths + cut * longest) / z,
            "short": (ended[:8].sum()) / z,
        }
